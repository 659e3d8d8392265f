"""Averages, errors and units of a likelihood over blocks and draws."""

import math
from dataclasses import replace

import pytest
import torch
from likelihood_gap import SpoiltBackbone, entropy, flm_of, words

from flm.algos.algorithm import Algorithm, Batch, Bound
from flm.draws import Draws
from flm.likelihood.held_out import likelihood
from flm.paths.gaussian_bound import Plan


class Known(Algorithm):
    """nats = 10 * first token + noise of standard deviation `noise` per draw."""

    def __init__(self, kind: str, noise: float = 0.0):
        super().__init__(vocab_size=4, length=5)
        self.bound_kind, self.noise, self.calls = kind, noise, []
        self.anchor = torch.nn.Parameter(torch.zeros(1))

    def bound(self, batch: Batch, draws: Draws, offset: float = 0.0) -> Bound:
        self.calls.append(len(batch.tokens))
        mean = 10.0 * batch.tokens[:, 0] + offset
        noise = self.noise * draws.normal(len(mean))
        return Bound(mean + noise, {"mean": mean, "noise": noise})


def batches(firsts, size):
    tokens = torch.zeros(len(firsts), 5, dtype=torch.long)
    tokens[:, 0] = torch.tensor(firsts)
    return [Batch(part, torch.ones(part.shape)) for part in tokens.split(size)]


def test_an_exact_likelihood_by_hand():
    """Nats 0, 10, 20, 30, 10 of five tokens each: per token 0, 2, 4, 6, 2; one draw, however many are asked for."""
    model = Known("exact")
    got = likelihood(model, batches([0, 1, 2, 3, 1], size=2), draws_per_example=7, seed=0, options={"offset": 0.0})
    assert model.calls == [2, 2, 1]
    assert got.nats_per_token.mean == pytest.approx(2.8)
    assert got.nats_per_token.standard_error == pytest.approx(math.sqrt(20.8 / 4 / 5))  # squared deviations sum to 20.8
    assert got.monte_carlo_error == 0 and got.num_tokens == 25 and got.nats_per_token.count == 5
    assert got.parts == pytest.approx({"mean": 2.8, "noise": 0.0})
    row = got.in_units(num_bytes=50, num_characters=40)
    assert row["perplexity"] == pytest.approx(math.exp(2.8))
    assert row["bits_per_token"] == pytest.approx(2.8 / math.log(2))
    assert row["bits_per_byte"] == pytest.approx(2.8 * 25 / 50 / math.log(2))
    assert row["bits_per_character"] == pytest.approx(2.8 * 25 / 40 / math.log(2))
    assert all(error == 0 for name, error in row.items() if name.startswith("monte_carlo_error"))
    assert got.draws_by_part == {"mean": 5, "noise": 5}  # each draw evaluates both


def test_sequences_of_unlike_length_differ_in_their_nats_per_token_alone():
    """20 nats of four tokens and 10 of two are five a token, both: nothing is uncertain. 30 of five differ from the mean."""

    def of(firsts, lengths):
        tokens = torch.zeros(len(firsts), 5, dtype=torch.long)
        tokens[:, 0] = torch.tensor(firsts)
        weight = (torch.arange(5) < torch.tensor(lengths)[:, None]).float()
        return likelihood(Known("exact"), [Batch(tokens, weight)], 1, seed=0).nats_per_token

    alike = of([2, 1], [4, 2])
    assert alike.mean == 5 and alike.standard_error == pytest.approx(0, abs=1e-12)
    three, r = of([2, 1, 3], [4, 2, 5]), 60 / 11
    assert three.mean == pytest.approx(r) and three.count == 3
    squares = (20 - 4 * r) ** 2 + (10 - 2 * r) ** 2 + (30 - 5 * r) ** 2
    assert three.standard_error == pytest.approx(math.sqrt(3 / 2 * squares) / 11)
    # against the spread over 400 texts of 50 sequences
    generator = torch.Generator().manual_seed(0)
    many = [torch.randint(1, 4, (2, 50), generator=generator) for _ in range(400)]
    found = [of(firsts.tolist(), (firsts + extra - 1).tolist()) for firsts, extra in many]
    spread = torch.tensor([one.mean for one in found]).std().item()
    assert sum(one.standard_error for one in found) / 400 == pytest.approx(spread, rel=0.15)


def test_the_two_errors_tell_text_from_draws():
    """2000 sequences of standard deviation s = 1 nat per token between them, noise of 3 per sequence, 4 draws each."""
    firsts = [0, 1] * 1000
    model = Known("upper bound", noise=3.0)
    got = likelihood(model, batches(firsts, 500), draws_per_example=4, seed=3)
    noise_per_token = 3.0 / 5 / math.sqrt(4 * 2000)
    assert got.monte_carlo_error == pytest.approx(noise_per_token, rel=0.05)
    assert got.nats_per_token.standard_error == pytest.approx(math.hypot(noise_per_token, 1 / math.sqrt(2000)), rel=0.05)
    assert abs(got.nats_per_token.mean - 1.0) < 4.5 * noise_per_token
    assert sum(got.parts.values()) == pytest.approx(got.nats_per_token.mean)
    once = likelihood(model, batches(firsts, 500), 1, seed=3)
    assert once.monte_carlo_error is None
    names = ("perplexity", "bits_per_token", "bits_per_byte", "bits_per_character")
    assert all(once.in_units(7.0, 5.0)[f"monte_carlo_error_{name}"] is None for name in names)
    step = 1e-6  # the error of each unit is its derivative by the nats times the error in nats
    further = replace(got, nats_per_token=replace(got.nats_per_token, mean=got.nats_per_token.mean + step))
    units, moved = got.in_units(4000.5, 3000.0), further.in_units(4000.5, 3000.0)
    for name in names:
        slope = (moved[name] - units[name]) / step
        assert units[f"monte_carlo_error_{name}"] == pytest.approx(slope * got.monte_carlo_error, rel=1e-5), name


def test_a_part_is_known_only_where_a_draw_fell():
    """Nine parts; three draws for each of two sequences cannot fall into them all."""
    world = words()
    model = flm_of(world, SpoiltBackbone(world))
    options = {"plan": Plan.even(3)}
    got = likelihood(model, [world.batch(2, torch.Generator().manual_seed(0))], 3, seed=0, options=options)
    assert sum(got.draws_by_part.values()) == 6 and list(got.draws_by_part) == list(got.parts)
    missed = [name for name, count in got.draws_by_part.items() if count == 0]
    assert missed and all((got.parts[name] is None) == (name in missed) for name in got.parts)
    assert sum(nats for nats in got.parts.values() if nats is not None) == pytest.approx(got.nats_per_token.mean)


def test_draws_differ_between_batches_and_repeats_but_not_between_runs():
    model = Known("upper bound", noise=3.0)
    one, again = (likelihood(model, batches([0] * 40, 10), 2, seed=5).nats_per_token for _ in range(2))
    assert one == again != likelihood(model, batches([0] * 40, 10), 2, seed=6).nats_per_token
    # eight batches of the same draws would have a spread of zero between them
    single = [likelihood(model, batches([0] * 10 * n, 10), 1, seed=5).nats_per_token.mean for n in (1, 2)]
    assert abs(single[0] - single[1]) > 1e-3


def test_the_bound_of_an_exact_model_is_the_entropy_of_its_language():
    world = words()
    generator = torch.Generator().manual_seed(0)
    model = flm_of(world, SpoiltBackbone(world))
    variants = model.bound_variants([world.batch(2000, generator) for _ in range(4)], Draws(1))
    (settings,) = variants.values()
    calls = []
    text = [world.batch(2000, generator) for _ in range(5)]
    got = likelihood(model, text, 2, seed=0, options=settings.options, on_draw=lambda: calls.append(1))
    assert len(calls) == 10
    assert abs(got.nats_per_token.mean - entropy(world) / 2) < 4.5 * got.nats_per_token.standard_error
    assert got.nats_per_token.standard_error < 0.03
    assert settings.expected == pytest.approx(entropy(world) / 2, abs=0.1)
