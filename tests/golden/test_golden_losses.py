"""Twenty training losses of each algorithm, fp32, seeded, against recorded ones.

A change that is not meant to change computation must leave them as they are. After one that is:
`python tests/golden/test_golden_losses.py` writes them anew; say in the commit why they moved.
"""

import csv
import json
import sys
import tempfile
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent / "tasks")]

from running import config_of, tiny, write_corpus  # noqa: E402

from flm.tasks.train import train  # noqa: E402

RECORDED = HERE / "losses.json"
RUNS = {
    "ar": ["algo=ar"],
    "flm": ["algo=flm"],
    "fmlm": ["algo=fmlm"],
    "fmlm_lagrangian": ["algo=fmlm", "algo.objective=lagrangian"],
    "fmlm_eulerian": ["algo=fmlm", "algo.objective=eulerian"],
    "mdlm": ["algo=mdlm"],
    "kl_flow": ["algo=kl_flow"],
    "kl_flow_map": ["algo=kl_flow_map", "algo.features=sharpened"],
    "duo": ["algo=duo", "algo.curriculum_end=10"],
    "dfm": ["algo=dfm"],
    "dfm_uniform": ["algo=dfm", "algo.source=uniform", "algo.objective=ce"],
    "native_flow": ["algo=native_flow", "model=golf_native", "optim=muon_golf", "optim.momentum_steps=10"],
}


def losses_of(overrides: list[str], folder: Path) -> list[float]:
    torch.set_num_threads(1)
    corpus = write_corpus(folder / "corpus", documents=20)
    quiet = ["trainer.log_every_n_steps=1", "trainer.limit_val_batches=0", "callbacks.sample=null"]
    if not any(override.startswith("model=") for override in overrides):
        quiet += ["model.time_scale=1", "model.cond_dim=16"]  # of the default model
    train(config_of(folder / "run", *tiny(corpus, *overrides, *quiet)))
    with open(folder / "run" / "metrics" / "version_0" / "metrics.csv") as file:
        rows = [row["train/loss_nats_per_token"] for row in csv.DictReader(file)]
    return [float(value) for value in rows if value]


@pytest.mark.parametrize("name", RUNS)
def test_losses_are_as_recorded(name, tmp_path):
    losses = losses_of(RUNS[name], tmp_path)
    assert len(losses) == 20
    assert losses == pytest.approx(json.loads(RECORDED.read_text())[name], rel=1e-3)


if __name__ == "__main__":
    found = {}
    for name, overrides in RUNS.items():
        with tempfile.TemporaryDirectory() as folder:
            found[name] = losses_of(overrides, Path(folder))
    RECORDED.write_text(json.dumps(found, indent=1) + "\n")
