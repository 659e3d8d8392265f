"""Rates against a clock that only these tests move, and operations against counts made by hand."""

import pytest
import torch
from toy import BATCH, LENGTH, ToyData, make_module, make_trainer

from flm.algos.algorithm import Batch
from flm.algos.flm import FLM
from flm.algos.fmlm import FMLM
from flm.draws import Draws
from flm.models.dit import DiT
from flm.training import throughput
from flm.training.checkpointing import CheckpointEvery
from flm.training.cost import FlopCount
from flm.training.throughput import Throughput


class Clock:
    """A reading takes a second, so a batch two: one before its step, one after. Whatever else moves it, `now` says."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        self.now += 1.0
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(throughput, "time", clock)
    return clock


def test_tokens_over_time_without_validation(tmp_path, clock):
    class SlowValidation(Throughput):
        def on_validation_start(self, *_):
            clock.now += 1000.0

    validating = dict(limit_val_batches=1.0, val_check_interval=6)
    trainer = make_trainer(tmp_path, 8, callbacks=[SlowValidation()], accumulate_grad_batches=2, **validating)
    trainer.fit(make_module(), datamodule=ToyData())
    assert float(trainer.callback_metrics["perf/tokens_per_second"]) == BATCH * LENGTH / 2.0
    assert float(trainer.callback_metrics["perf/data_wait_fraction"]) == 0.5


def test_old_batches_are_forgotten(tmp_path, clock):
    class Slow(Throughput):
        def on_train_batch_start(self, trainer, *arguments):
            clock.now += 100.0 if trainer.global_step < 4 else 0.0
            super().on_train_batch_start(trainer, *arguments)

    trainer = make_trainer(tmp_path, 8, callbacks=[Slow(window=4)])
    trainer.fit(make_module(), datamodule=ToyData())
    assert float(trainer.callback_metrics["perf/tokens_per_second"]) == BATCH * LENGTH / 2.0


def test_writing_a_checkpoint_takes_time_but_is_no_waiting_for_data(tmp_path, clock):
    class SlowSave(CheckpointEvery):
        def on_train_batch_end(self, trainer, *arguments):
            super().on_train_batch_end(trainer, *arguments)
            clock.now += 6.0 if trainer.global_step == 2 else 0.0

    saving = SlowSave(dirpath=tmp_path / "checkpoints", every_n_train_steps=2)
    trainer = make_trainer(tmp_path, 5, callbacks=[Throughput(), saving])
    trainer.fit(make_module(), datamodule=ToyData())
    # batches 2 to 5 count, of 2 s each and 6 s more; between 2 and 3, and between 4 and 5, a checkpoint was written
    assert float(trainer.callback_metrics["perf/tokens_per_second"]) == pytest.approx(4 * BATCH * LENGTH / 14)
    assert float(trainer.callback_metrics["perf/data_wait_fraction"]) == pytest.approx(2 / 14)


class Counted(torch.nn.Module):
    """Output of a network that says it takes 7 operations a token."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def flops_per_token(self, length):
        assert length == LENGTH
        return 7

    def forward(self, x):
        return _Rows(self.inner(x))


class _Rows:
    def __init__(self, hidden):
        self.hidden, self.shape = hidden, hidden.shape[:2]


def counted_module():
    module = make_module(ema=None)
    backbone = module.algorithm.backbone
    inner = Counted(backbone.blocks)
    backbone.blocks = torch.nn.Sequential(_Unwrapped(inner))
    return module


class _Unwrapped(torch.nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x).hidden


def test_utilisation_is_operations_over_time_and_peak(tmp_path, clock):
    trainer = make_trainer(tmp_path, 4, callbacks=[Throughput(peak_flops_per_second=1000.0)])
    trainer.fit(counted_module(), datamodule=ToyData())
    expected = 3 * 7 * BATCH * LENGTH / 2.0 / 1000.0
    assert float(trainer.callback_metrics["perf/model_flop_utilisation"]) == pytest.approx(expected)


@pytest.mark.parametrize("make", [make_module, counted_module])
def test_no_utilisation_without_a_peak_or_a_network_that_counts(tmp_path, make):
    peak = 1000.0 if make is make_module else None
    trainer = make_trainer(tmp_path, 3, callbacks=[Throughput(peak_flops_per_second=peak)])
    trainer.fit(make(), datamodule=ToyData())
    assert "perf/model_flop_utilisation" not in trainer.callback_metrics
    assert float(trainer.callback_metrics["perf/peak_memory_mb"]) > 50  # torch alone takes more


V, D, H, N_BLOCKS, L = 40, 16, 2, 3, 8


def backbone(**options):
    return DiT(length=L, hidden_size=D, num_blocks=N_BLOCKS, num_heads=H, cond_dim=8, dropout=0.0, **options)


def test_operations_of_an_evaluation():
    # q, k, v, out: 4 D^2; MLP: 8 D^2; the output table; scores and mixing: 2 products of L x D each
    by_hand = 2 * (N_BLOCKS * 12 * D * D + V * D) + N_BLOCKS * 4 * L * D
    assert backbone(vocab_size=V).flops_per_token(L) == by_hand
    # the published size on OpenWebText: 855 MFLOP a token for a training step
    with torch.device("meta"):
        small = DiT(50257, 1024, 768, 12, 12)
    assert 3 * small.flops_per_token(1024) == pytest.approx(855e6, rel=2e-3)


def flops_of_a_step(algorithm, batch=8):
    tokens = torch.randint(V, (batch, L), generator=torch.Generator().manual_seed(0))
    with FlopCount().watching(algorithm.every_module()) as count:
        algorithm.loss(Batch(tokens, torch.ones(batch, L)), Draws(0)).total.backward()
    return count.total / (batch * L) / backbone(vocab_size=V).flops_per_token(L)


def test_steps_in_evaluations_a_token():
    assert flops_of_a_step(FLM(backbone, V, L)) == 3
    teacher = FLM(backbone, V, L)
    # half the batch asks the teacher, half makes two jumps
    assert flops_of_a_step(FMLM(backbone, V, L, teacher=teacher, boundary_prob=None)) == 3 + 0.5 + 2 * 0.5
    # without a teacher the data stand on the diagonal
    assert flops_of_a_step(FMLM(backbone, V, L, boundary_prob=None)) == 3 + 2 * 0.5
