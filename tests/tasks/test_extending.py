"""An algorithm and a corpus that live outside the package train, and load again, without a line of it changed."""

import sys

from running import command, config_of

from flm.tasks.train import train

ALGORITHM = '''
"""A decoder that predicts each token from its own noised view: no context at all."""
import torch
from torch import nn
from flm.algos.algorithm import Algorithm
from flm.algos.flm import SingleTimeDenoiser
from flm.algos.losses import token_loss
from flm.paths.clock import DecodingErrorClock
from flm.paths.gaussian import corrupt
from flm.samplers.flow import FlowSampler


class Pointwise(Algorithm):
    def __init__(self, backbone, vocab_size, length, scale=1.0):
        super().__init__(vocab_size, length)
        self.backbone = backbone(vocab_size=vocab_size)
        self.clock, self.scale = DecodingErrorClock(vocab_size), scale

    def loss(self, batch, draws):
        tau = draws.stratified(len(batch.tokens))
        state = corrupt(batch.tokens, self.clock.time(tau).float(), (self.backbone.input_table,), draws.rows)
        loss = token_loss(self.backbone(self.scale * state.views[0], tau.float()), batch, tau)
        loss.metrics["scale"] = self.scale * loss.count, loss.count
        return loss

    def denoiser(self):
        return SingleTimeDenoiser(self.backbone, self.clock)

    def sampler(self, **options):
        return FlowSampler(**options)
'''

CORPUS = '''
"""Counting, as text."""
from flm.data.corpora.random_split import RandomSplitCorpus


class Counting(RandomSplitCorpus):
    def __init__(self, until, **options):
        super().__init__(**options)
        self.until = until

    def source(self):
        for start in range(0, self.until, 50):
            yield " ".join(str(n) for n in range(start, start + 50))

    def source_fingerprint(self):
        return {"until": self.until}

    def describe(self):
        return f"counting to {self.until}"
'''


def test_outside_algorithm_and_corpus(tmp_path, monkeypatch, capfd):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "my_algorithm.py").write_text(ALGORITHM)
    (outside / "my_corpus.py").write_text(CORPUS)
    monkeypatch.syspath_prepend(str(outside))
    run = tmp_path / "run"
    overrides = [
        "debug=tiny",
        "~algo",
        "~data",
        "tokenizer=characters",
        "+algo={_target_: my_algorithm.Pointwise, scale: 0.5}",
        f"+data={{_target_: my_corpus.Counting, until: 2000, valid_fraction: 0.2, cache_dir: {run}/data}}",
    ]
    metrics = train(config_of(run, *overrides))
    assert metrics["train/scale"] == 0.5
    assert 0 < metrics["val/denoising_ce_nats_per_token"] < 3

    checkpoint = run / "checkpoints" / "last.ckpt"
    sample = ["mode=sample_eval", f"eval.checkpoint_path={checkpoint}", "sampling.steps=2", f"hydra.run.dir={tmp_path / 's'}"]
    sys.modules.pop("my_algorithm")
    assert command(monkeypatch, *sample) == 1  # a checkpoint alone may not name code outside the package
    assert "eval.trusted_modules" in capfd.readouterr().err and "my_algorithm" not in sys.modules
    assert command(monkeypatch, *sample, "eval.trusted_modules=[my_algorithm]") == 0
