"""A run that diverges stops, and says when, on which batch, and what is left of it."""

import hashlib
import random

import pytest
import torch
from toy import BATCH, ToyData, make_batch, make_module, make_trainer

from flm.algos.algorithm import Batch, Loss
from flm.data.order import ExampleOrder, ShareSampler
from flm.training.checkpointing import CheckpointEvery
from flm.training.progress import fingerprint
from flm.training.step_loss import FIRST, RECENT, DivergenceCheck


def first_problem(check, losses):
    for index, loss in enumerate(losses):
        check.watch(Loss(torch.tensor(loss), torch.tensor([loss - 0.1, loss + 0.1]), torch.ones(2)))
        problem = check.problem()
        if problem is not None:
            return index, problem
    return None


def noisy(count, level, spread=0.3, seed=0):
    rng = random.Random(seed)
    return [level * (1 + rng.uniform(-spread, spread)) for _ in range(count)]


def test_ordinary_losses_pass():
    rng = random.Random(1)
    falling = [10.0 * 0.99**n + 1.0 for n in range(600)]
    rare_spikes = [50.0 if n % 400 == 399 else 2.0 for n in range(2000)]
    slowly_doubling = [1.0 + n / 1000 for n in range(1000)]
    heavy = [60.0 if rng.random() < 0.1 else 0.5 for _ in range(5000)]  # a tenth of the batches has nearly all of the loss
    for losses in (heavy, falling, noisy(1000, 3.0), rare_spikes, slowly_doubling, [0.0] * 500, [-1.0] * 500):
        assert first_problem(DivergenceCheck(3.0), losses) is None


def test_a_lasting_rise_stops_within_a_few_batches():
    losses = noisy(1000, 2.0) + noisy(100, 10.0)
    index, problem = first_problem(DivergenceCheck(3.0), losses)
    assert 1000 + RECENT // 2 - 1 <= index <= 1000 + RECENT // 2 + 1  # half of those compared are of the new level
    assert "more than 3 times its long average" in problem
    assert first_problem(DivergenceCheck(6.0), losses) is None
    assert first_problem(DivergenceCheck(None), losses) is None


def test_nothing_is_compared_at_first():
    assert first_problem(DivergenceCheck(1.5), [0.01] * 50 + [5.0] * (FIRST - 50)) is None


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_stops_at_once(loss):
    assert first_problem(DivergenceCheck(None), [1.0, 1.0, loss]) == (2, "is not finite")


def test_an_exploding_run_names_step_batch_and_file(tmp_path, monkeypatch):
    monkeypatch.setattr("flm.training.step_loss.FIRST", 10)
    module = make_module(lr=0.0)
    module._divergence = DivergenceCheck(1.5)
    loss, calls = module.algorithm.loss, []

    def exploding(batch, draws):
        calls.append(batch)
        found = loss(batch, draws)
        factor = 20.0 if len(calls) > 2 * 14 else 1.0
        found.sum, found.sums = found.sum * factor, found.sums * factor
        return found

    module.algorithm.loss = exploding
    trainer = make_trainer(tmp_path, 40, callbacks=[CheckpointEvery(tmp_path, 4)], accumulate_grad_batches=2)
    with pytest.raises(ValueError, match="the loss has risen to") as raised:
        trainer.fit(module, datamodule=ToyData())
    text, step = str(raised.value), trainer.global_step
    assert 14 <= step < 30 and f" at step {step}: process 0, batch sha256 " in text
    assert f"step_{step // 4 * 4:07d}.ckpt" in text and "\n" not in text
    digest = hashlib.sha256(calls[-1].tokens.numpy().tobytes()).hexdigest()[:12]
    assert digest in text and torch.equal(calls[-1].tokens, make_batch(len(calls) - 1).tokens)


class _Loader:
    def __init__(self, sampler):
        self.batch_sampler = sampler


class _Trainer:
    global_rank = 1

    def __init__(self, loader):
        self.train_dataloader = loader


def test_the_examples_are_those_of_the_batch():
    sampler = ShareSampler(ExampleOrder(100, seed=5), 10, start=7, stop=20, rank=1, world_size=2, accumulation=2)
    expected = list(sampler)[3]
    assert len(expected) == 10
    text = fingerprint(Batch(torch.zeros(BATCH, 2, dtype=torch.long), torch.ones(BATCH, 2)), 3, _Trainer(_Loader(sampler)))
    assert text.endswith(f"examples {', '.join(map(str, expected[:8]))} and 2 more") and text.startswith("process 1, ")
