"""What holds for every algorithm of configs/algo: no field of a batch is ignored, and an example's validation is its own."""

import copy

import pytest
import torch
from every_algorithm import CASES, IDS, L, V, build, ragged_batch

from flm.algos.ar import AR
from flm.draws import Draws
from flm.samplers.canvas import Canvas

LOSSES = ("loss", "validation_loss")


@pytest.fixture(scope="module", params=CASES, ids=IDS)
def case(request):
    return request.param


@pytest.fixture(scope="module")
def algorithm(case):
    return build(*case)


def measured(algorithm, batch, which, seed=3):
    return getattr(algorithm, which)(batch, Draws(seed, places=range(len(batch.tokens)), total=len(batch.tokens)))


def changed(batch, where):
    """The batch with other tokens there."""
    other = copy.copy(batch)
    other.tokens = torch.where(where, (batch.tokens + 1 + torch.arange(L) % (V - 2)) % V, batch.tokens)
    assert (other.tokens != batch.tokens)[where].all()
    return other


def assert_same(a, b):
    torch.testing.assert_close(a.sum, b.sum, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(a.sums, b.sums, rtol=1e-6, atol=1e-9)
    assert torch.equal(a.counts, b.counts)


@pytest.mark.parametrize("which", LOSSES)
def test_padding_is_not_read(algorithm, which):
    batch = ragged_batch()
    found = measured(algorithm, batch, which)
    assert found.sums.abs().sum() > 0 and not found.sums[6].any()  # a row with nothing to learn
    assert_same(measured(algorithm, changed(batch, batch.documents < 0), which), found)


@pytest.mark.parametrize("which", LOSSES)
def test_another_document_of_the_row_is_not_read(algorithm, which):
    batch = ragged_batch()
    first = batch.documents == batch.documents[:, :1]
    several = torch.tensor([row in (2, 4) for row in range(len(batch.tokens))])[:, None]
    batch.weight = batch.weight.masked_fill(first & several, 0)
    found = measured(algorithm, batch, which)
    assert (found.counts[[2, 4]] > 0).all() or found.counts[4] > 0
    assert_same(measured(algorithm, changed(batch, first & several), which), found)


@pytest.mark.parametrize("which", LOSSES)
def test_a_prompt_is_read_by_its_own_document_alone(algorithm, which):
    """Rows 0 and 5 are conditioned on what they give; nobody else is."""
    batch = ragged_batch()
    prompts = batch.given & torch.tensor([row in (0, 5) for row in range(len(batch.tokens))])[:, None]
    before, after = (measured(algorithm, b, which).sums for b in (batch, changed(batch, prompts)))
    moved = (before - after).abs() > 1e-6 * before.abs().max()
    assert moved[[0, 5]].any() and not moved[[1, 2, 3, 4, 6, 7]].any()


class Inputs:
    """What the networks that read states are shown, call by call."""

    def __init__(self, algorithm):
        self.seen = []
        for module in algorithm.every_module():
            if hasattr(module, "input_table"):
                module.register_forward_pre_hook(lambda _, inputs: self.seen.append(inputs[0].detach().clone()))


def is_clean(algorithm):
    return getattr(algorithm.denoiser(), "clean_given", True)


def test_given_tokens_are_shown_as_the_algorithm_says(case):
    """Without noise at every call, student's and teacher's, or on the path that noise leads to them."""
    algorithm, batch = build(*case), ragged_batch()
    if isinstance(algorithm, AR):
        return  # shows tokens alone, those before each
    batch.weight[:, 2] = 0
    batch.documents[:] = 0
    inputs, found = Inputs(algorithm), []
    for seed in (3, 4):
        measured(algorithm, batch, "loss", seed)
        found.append([seen[:, 2] for seen in inputs.seen])
        rest = [seen[:, 4:6] for seen in inputs.seen]
        inputs.seen.clear()
    assert len(found[0]) == len(found[1]) > 0 and rest
    same = [torch.equal(a, b) for a, b in zip(*found, strict=True)]
    assert all(same) if is_clean(algorithm) else not any(same)


def test_samplers_show_given_tokens_as_training_did(case):
    algorithm = build(*case).float().eval()
    clean = getattr(algorithm.denoiser(), "clean_given", None)
    if clean is None or getattr(algorithm, "reads", "view") != "view":
        return  # one convention, tested with its sampler; what reads the evidence is shown no row of a table
    tokens = torch.randint(V, (2, L), generator=torch.Generator().manual_seed(0))
    editable = torch.ones(2, L, dtype=torch.bool)
    editable[:, 2] = False
    inputs = Inputs(algorithm)
    out = algorithm.generate(Canvas(tokens, editable), 3, torch.Generator().manual_seed(1))
    assert torch.equal(out[:, 2], tokens[:, 2]) and inputs.seen
    tables = [table[tokens[:, 2]] for table in algorithm.denoiser().tables]
    shown = [any(torch.equal(seen[:, 2], row) for row in tables) for seen in inputs.seen]
    assert all(shown) if clean else not any(shown)


def test_an_example_is_validated_alike_in_any_batch(algorithm):
    """Times and noise follow its number: batch and rank do not matter."""
    batch = ragged_batch()
    numbers = torch.tensor([5, 70, 2, 3, 64, 65, 6, 1])
    whole = algorithm.validation_loss(batch, Draws(3, places=numbers.tolist()))
    sums, taus = torch.zeros_like(whole.sums), torch.zeros(len(numbers), dtype=torch.float64)
    for rows in (torch.tensor([6, 1]), torch.tensor([0]), torch.tensor([7, 2, 5, 4, 3])):
        part = algorithm.validation_loss(batch.rows(rows), Draws(3, places=numbers[rows].tolist()))
        sums[rows] = part.sums
        taus[rows] = torch.zeros(len(rows), dtype=torch.float64) if part.tau is None else part.tau.double()
    torch.testing.assert_close(sums, whole.sums, rtol=1e-9, atol=1e-12)
    assert whole.tau is None or torch.equal(taus, whole.tau.double())
