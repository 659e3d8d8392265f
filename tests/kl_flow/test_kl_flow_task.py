"""KL-flow by the command line: trained, sampled by its schemes, distilled into its flow map."""

import json

import pytest
from running import command, config_of, tiny, write_corpus

from flm.tasks.sample_eval import sample_eval
from flm.tasks.train import train


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Checkpoints of a KL-flow and of its flow map, and their folder."""
    folder = tmp_path_factory.mktemp("kl_flow")
    corpus = write_corpus(folder / "corpus", documents=20)
    options = ["algo.features=sharpened", "trainer.max_steps=6", "trainer.val_check_interval=6", "callbacks.sample=null"]
    quick = [*tiny(corpus, *options), f"data.cache_dir={folder}/data"]
    metrics = train(config_of(folder / "flow", "algo=kl_flow", *quick))
    assert metrics["val/context_free_ce_nats_tau_0.9-1.0"] < 0.2 < metrics["val/context_free_ce_nats_tau_0.0-0.1"]
    flow = folder / "flow" / "checkpoints" / "last.ckpt"
    train(config_of(folder / "map", "algo=kl_flow_map", f"algo.teacher_path={flow}", *quick))
    return folder, flow, folder / "map" / "checkpoints" / "last.ckpt"


def sampled(runs, checkpoint, name, *options):
    folder = runs[0] / name
    overrides = ["mode=sample_eval", f"eval.checkpoint_path={checkpoint}", "loader.eval_batch_size=4", *options]
    sample_eval(config_of(folder, *overrides))
    return json.loads((folder / "results.json").read_text())["generated"], folder


def test_schemes_and_their_network_evaluations(runs):
    _, flow, jumps = runs
    found, _ = sampled(runs, flow, "hybrid", "sampling.steps=[2,5]", "sampling.scheme=hybrid", "sampling.t_split=0.2")
    assert [entry["network_evaluations"] for entry in found.values()] == [3, 6]
    assert found["5"]["options"] == {"scheme": "hybrid", "t_split": 0.2}
    found, _ = sampled(runs, jumps, "jumps", "sampling.steps=[1,4]")
    assert [entry["network_evaluations"] for entry in found.values()] == [1, 4]
    found, _ = sampled(runs, jumps, "read", "sampling.steps=4", "sampling.scheme=sampling", "sampling.read_out=argmax")
    assert found["4"]["network_evaluations"] == 5


def test_infilling_keeps_its_text(runs):
    _, folder = sampled(
        runs, runs[1], "infill", "sampling.steps=3", "sampling.infill=the [4] sees [5].", "sampling.scheme=sampling"
    )
    texts = [json.loads(line)["text"] for line in (folder / "samples-3.jsonl").read_text().splitlines()]
    assert len(texts) == 4
    for text in texts:
        assert text.startswith("the ") and text[8:14] == " sees " and text.endswith(".")


def test_what_a_user_can_mend_is_one_line(runs, tmp_path, monkeypatch, capfd):
    sample = ["mode=sample_eval", f"eval.checkpoint_path={runs[1]}", f"hydra.run.dir={tmp_path}"]
    for option, named in (("sampling.scheme=ode", "sampling.scheme"), ("sampling.gamma=1", "gamma")):
        assert command(monkeypatch, *sample, option) == 1
        assert named in capfd.readouterr().err
