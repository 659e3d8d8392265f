"""Losses that are asked for at some positions: nobody counts these, none is left out, and others add nothing."""

import pytest
import torch
from every_algorithm import CASES, IDS, L, V, build, ragged_batch

from flm.algos.algorithm import Batch
from flm.draws import Draws
from flm.paths.masking import Places

ROWS = 24  # times those of ragged_batch: enough that fewer places than all are asked


def large_batch(is_ragged):
    small = ragged_batch()
    tokens = torch.randint(V, (ROWS * len(small.tokens), L), generator=torch.Generator().manual_seed(3))
    if not is_ragged:  # nothing that could not be noise: places are as few as they ever are
        return Batch(tokens, torch.ones(tokens.shape).double())
    return Batch(tokens, small.weight.repeat(ROWS, 1), small.documents.repeat(ROWS, 1))


def step(algorithm, seed):
    batch = large_batch(is_ragged=seed % 2 == 0)
    algorithm.zero_grad()
    loss = algorithm.loss(batch, Draws(seed, step=seed))
    loss.total.backward()
    with torch.no_grad():
        validation = algorithm.validation_loss(batch, Draws(seed))
    metrics = [loss.mean(name) for name in loss.metrics]
    gradients = [p.grad for p in algorithm.parameters() if p.grad is not None]
    return [loss.total.detach(), loss.sums, loss.counts, validation.sum.detach(), validation.sums, *metrics, *gradients]


@pytest.mark.parametrize("case", range(len(CASES)), ids=IDS)
def test_places_are_enough_and_the_loss_is_that_of_all_positions(case, monkeypatch):
    algorithm, asked, original = build(*CASES[case]), [], Places.__init__

    def watch(places, positions, most):
        asked.append((int(positions.sum()), most, positions.numel()))
        original(places, positions, most)

    monkeypatch.setattr(Places, "__init__", watch)
    found = [step(algorithm, seed) for seed in range(2)]
    if not asked:
        pytest.skip("asks everywhere")
    assert all(count <= most for count, most, _ in asked), asked
    nobody_sees_noise = "algo.source=uniform" in CASES[case][1] and CASES[case][0] == "dfm"
    assert any(most < total for _, most, total in asked) is not nobody_sees_noise
    monkeypatch.setattr(Places, "__init__", lambda places, positions, most: original(places, positions, positions.numel()))
    for some, every in zip(found, (step(algorithm, seed) for seed in range(2)), strict=True):
        for a, b in zip(some, every, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
