"""The bound of what is written in few steps, against the law of what is written: an enumerable world, both exact and spoilt."""

import math

import pytest
import torch
from algos.exact_world import correlated, single_token
from likelihood_gap import SpoiltBackbone, flm_of

from flm.algos.algorithm import Batch
from flm.draws import Draws
from flm.paths.gaussian import State
from flm.paths.gaussian_bound import GaussianDenoiser
from flm.paths.renoising import bridge, renoised
from flm.paths.step_bound import steps_estimate

REPEATS, CHAINS = 3000, 20_000


def every_text(world):
    grids = torch.meshgrid(*[torch.arange(world.vocab_size)] * world.length, indexing="ij")
    return torch.stack([grid.flatten() for grid in grids], 1)


def law_of_the_sampler(denoiser, texts, steps, jumps, chains=CHAINS):
    """p(text) of noise, bridges to predicted points, and a draw from the last prediction, averaged over simulated chains."""
    generator = torch.Generator().manual_seed(7)
    length = texts.shape[1]
    noise = lambda: State((torch.randn(chains, length, 2, generator=generator, dtype=torch.float64),))  # noqa: E731
    tau = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    t = denoiser.clock.time(tau).tolist()
    tell = lambda value: torch.full((chains,), float(value), dtype=torch.float64)  # noqa: E731
    state = noise()
    for i in range(steps):
        posterior = denoiser.predict(state, tell(tau[i]), tell(tau[i + 1]) if jumps else None)
        p = posterior.probabilities()
        if i < steps - 1:
            state = renoised(state, State((p,)), t[i], t[i + 1], bridge(t[i], t[i + 1]), noise())
    chosen = torch.stack([p[:, torch.arange(length), text].prod(1) for text in texts])
    return chosen.mean(1), chosen.std(1) / chains**0.5


def bounds_of(denoiser, texts, steps, repeats=REPEATS):
    rows = texts.repeat_interleave(repeats, 0)
    nats, parts = steps_estimate(denoiser, rows, steps, Draws(3), torch.ones_like(rows, dtype=torch.bool))
    torch.testing.assert_close(sum(parts.values()), nats)
    found = nats.view(len(texts), repeats)
    return found.mean(1), found.std(1) / repeats**0.5


def of_flow(world, **spoilt):
    algorithm = flm_of(world, SpoiltBackbone(world, **spoilt)).double()
    batch = Batch(torch.zeros(1, world.length, dtype=torch.long), torch.ones(1, world.length))
    return algorithm._gaussian(batch)


def of_map(world):
    denoiser = world.denoiser()
    denoiser.backbone.nodes = 5
    return GaussianDenoiser(denoiser, denoiser.tables[0], denoiser.clock, world.vocab_size)


CASES = [("exact flow", steps) for steps in (1, 2, 4, 16)] + [("spoilt flow", 4), ("exact map", 2), ("exact map", 4)]


@pytest.mark.parametrize("kind, steps", CASES)
def test_it_bounds_the_sampler_of_so_many_steps(kind, steps):
    world = correlated()
    denoiser = {"exact flow": of_flow, "spoilt flow": lambda w: of_flow(w, mixed=0.3), "exact map": of_map}[kind](world)
    texts = every_text(world)
    size = {"chains": 3000} if kind == "exact map" else {}
    p, p_error = law_of_the_sampler(denoiser, texts, steps, kind == "exact map", **size)
    assert p.sum() == pytest.approx(1)
    bound, error = bounds_of(denoiser, texts, steps, 1000 if size else REPEATS)
    assert (bound > -p.log() - 4 * (error + p_error / p) - 1e-9).all()
    if kind == "exact flow":  # loose by what few steps lose, and less the more there are
        assert (bound + p.log()).max() < {1: 0.02, 2: 0.9, 4: 0.6, 16: 0.35}[steps]


def test_one_token_in_one_step_is_exact_and_many_steps_come_to_the_entropy():
    """In between, a few steps are loose: 0.70 nats in eight of them, of an entropy of 0.61."""
    world = single_token(0.3)
    texts, entropy = every_text(world), -(0.3 * math.log(0.3) + 0.7 * math.log(0.7))
    means = {}
    for steps in (1, 8, 64):
        bound, error = bounds_of(of_flow(world), texts, steps, 2000)
        if steps == 1:
            torch.testing.assert_close(bound, -torch.tensor([0.3, 0.7], dtype=torch.float64).log())
        means[steps] = (0.3 * bound[0] + 0.7 * bound[1]).item()
        assert means[steps] > entropy - 4 * (0.3 * error[0] + 0.7 * error[1]) - 1e-9
    assert means[1] == pytest.approx(entropy) and means[64] < means[8] and means[64] < entropy + 0.08


def test_jumps_cost_against_the_denoiser_of_the_same_map():
    """Of all points of the simplex the posterior has the least squared error."""
    world = correlated()
    jumping = of_map(world)
    still = GaussianDenoiser(lambda state, tau, tau_to: jumping.predict(state, tau, tau), jumping.table, jumping.clock, 2)
    texts = every_text(world)
    for steps in (2, 4):
        (a, a_error), (b, b_error) = (bounds_of(one, texts, steps, 1500) for one in (jumping, still))
        weights = world.joint.flatten()
        gap, error = (weights * (a - b)).sum(), (weights * (a_error**2 + b_error**2).sqrt()).sum()
        assert gap > 3 * error
