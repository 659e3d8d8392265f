"""algo.schedule={_target_: ...}, as the configs of mdlm and duo say it: trained, saved, loaded, sampled along."""

import pytest
import torch
from running import command, config_of, tiny, write_corpus

from flm.checkpoints.load import load_algorithm
from flm.paths.mixture import Cosine, LogLinear
from flm.samplers.canvas import Canvas
from flm.tasks.train import train

QUICK = [
    "trainer.max_steps=3",
    "logger=none",
    "callbacks.sample=null",
    "callbacks.generation=null",
    "lr_scheduler.warmup_steps=1",
]
COSINE = "algo.schedule={_target_:flm.paths.mixture.Cosine}"
LATER = "algo.schedule={_target_:flm.paths.mixture.LogLinear,eps:1e-2}"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"), documents=20)


def trained(folder, corpus, *overrides):
    train(config_of(folder, *tiny(corpus, *QUICK, *overrides)))
    return folder / "checkpoints" / "last.ckpt"


def test_a_masked_model_steps_along_the_cosine(corpus, tmp_path):
    algorithm, _ = load_algorithm(trained(tmp_path / "run", corpus, "algo=mdlm", COSINE))
    t = torch.linspace(0, 1, 5, dtype=torch.float64)
    assert isinstance(algorithm.denoiser().schedule, Cosine)
    torch.testing.assert_close(algorithm.denoiser().schedule.kappa(t), 1 - torch.cos(torch.pi / 2 * t))

    seen = []
    hook = algorithm.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    tokens = algorithm.generate(Canvas.blank(64, 32), 2, torch.Generator().manual_seed(0))
    hook.remove()
    mask = algorithm.backbone.input_table[algorithm.source.mask_id]
    masked = [(view == mask).all(-1).double().mean().item() for view in seen]
    assert masked[0] == 1 and abs(masked[1] - (1 - float(algorithm.schedule.kappa(t[2])))) < 0.045  # 4 sd of 2048 draws
    assert not (tokens == algorithm.source.mask_id).any()


def test_uniform_states_start_where_the_schedule_says(corpus, tmp_path):
    algorithm, _ = load_algorithm(trained(tmp_path, corpus, "algo=duo", "algo.curriculum_end=1", LATER))
    assert isinstance(algorithm.schedule, LogLinear) and algorithm.schedule.eps == 1e-2


def test_a_schedule_that_starts_at_zero_is_refused_for_uniform_states(corpus, tmp_path, monkeypatch, capsys):
    run = [*tiny(corpus, *QUICK, "algo=duo", COSINE), f"hydra.run.dir={tmp_path}"]
    assert command(monkeypatch, *run) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: algo.schedule must start above 0") and "flm.paths.mixture.LogLinear" in line
