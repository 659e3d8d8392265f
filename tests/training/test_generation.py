"""The generation monitor measures what is generated, guards against collapse, and leaves training alone."""

import csv
import math

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from toy import ToyData, make_module, make_trainer

from flm.training.generation import GenerationMonitor


class Scripted:
    """Replaces an algorithm's generate by a list of outcomes, one after the other."""

    def __init__(self, *outcomes):
        self.outcomes = list(outcomes)

    def __call__(self, canvas, steps, generator, **options):
        kind = self.outcomes.pop(0)
        shape = canvas.tokens.shape
        if kind == "collapsed":
            return torch.zeros(shape, dtype=torch.long)
        if kind == "narrow":  # two tokens in turn too, but one of them is nothing the text has
            return torch.arange(shape[1]).expand(shape) % 2 + 1
        return torch.arange(shape[1]).expand(shape) % 2  # two tokens in turn: entropy log 2


REFERENCE = [[0, 1] * 4 for _ in range(8)]


def run(tmp_path, outcomes, **options):
    module = make_module()
    module.algorithm.generate = Scripted(*outcomes)
    monitor = GenerationMonitor(REFERENCE, tmp_path / "ckpt", count=4, **options)
    logger = CSVLogger(tmp_path, name="metrics")
    trainer = make_trainer(tmp_path, 6, callbacks=[monitor], logger=logger, limit_val_batches=1, val_check_interval=2)
    return module, trainer, monitor


def test_collapse_stops_the_run_and_the_best_file_is_of_the_best_step(tmp_path):
    module, trainer, monitor = run(
        tmp_path, ["good", "collapsed", "good"], min_entropy_nats=0.5, keep_best=True, entropy_tolerance=0.1
    )
    trainer.fit(module, datamodule=ToyData())
    assert trainer.global_step == 4  # the second validation
    saved = torch.load(tmp_path / "ckpt" / "best.ckpt", weights_only=True)
    assert saved["global_step"] == 2
    best = monitor.state_dict()["best"]
    assert 0 < best < 0.2  # nearly deterministic text under its own 3-gram model


def test_tokens_that_the_text_has_not_stop_the_run_though_entropy_is_as_it_should_be(tmp_path):
    module, trainer, monitor = run(
        tmp_path, ["good", "narrow", "good"], min_entropy_nats=0.5, max_token_js_bits=0.2, keep_best=True
    )
    trainer.fit(module, datamodule=ToyData())
    assert trainer.global_step == 4  # the second validation: JS is half a bit
    assert torch.load(tmp_path / "ckpt" / "best.ckpt", weights_only=True)["global_step"] == 2


def test_measures_are_of_the_samples(tmp_path):
    module, trainer, monitor = run(tmp_path, ["good", "good", "collapsed"])
    trainer.fit(module, datamodule=ToyData())
    with open(tmp_path / "metrics" / "version_0" / "metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["gen/entropy_nats_1_step"]]
    assert [float(row["gen/entropy_nats_1_step"]) for row in rows] == pytest.approx([math.log(2), math.log(2), 0.0])
    assert [float(row["gen/distinct_tokens_1_step"]) for row in rows] == [2, 2, 1]
    assert [float(row["gen/tokens_used_1_step"]) for row in rows] == [2, 2, 1]
    js = [float(row["gen/token_js_bits_1_step"]) for row in rows]
    # all 0 against half and half: H(3/4, 1/4) - 1/2
    assert js == pytest.approx([0, 0, 0.311278], abs=1e-6)
    judged = [float(row["gen/ngram_ce_nats_1_step"]) for row in rows]
    assert judged[2] > judged[0] + 1  # a token repeated is nothing the text does


def test_training_does_not_depend_on_the_monitor(tmp_path):
    weights = []
    for callbacks in ([], [GenerationMonitor(REFERENCE, tmp_path / "ckpt", count=2)]):
        module = make_module()
        trainer = make_trainer(tmp_path, 6, callbacks=callbacks, limit_val_batches=1, val_check_interval=2)
        trainer.fit(module, datamodule=ToyData())
        weights.append([p.detach().clone() for p in module.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
