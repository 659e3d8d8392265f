"""Duo: its losses against dense ones and exact integrals, its bound where all can be counted, and what training reaches."""

import itertools
import math

import numpy
import pytest
import torch
from algos.dense_flow_map import dense, rough, small_dit
from algos.exact_world import correlated, toy, train
from torch.nn.functional import embedding, one_hot

from flm.algos.algorithm import Batch
from flm.draws import Draws
from flm.duo.duo import CURRICULUM_KAPPAS, LAST_TIME, Duo, gamma_range
from flm.duo.duo_distill import TRAJECTORY_KAPPAS
from flm.duo.gaussian_relaxation import ArgmaxTransform
from flm.duo.uniform_bound import prior_nats
from flm.paths.mixture import LogLinear, Polynomial, UniformSource, corrupt
from flm.samplers.canvas import Canvas
from flm.samplers.options import sampler_for
from flm.schema import check

V, L, B = 6, 2, 5
SEQUENCES = torch.tensor(list(itertools.product(range(V), repeat=L)))


def duo(vocab_size=V, length=L, dtype=torch.float64, **options):
    torch.manual_seed(3)
    return rough(Duo(small_dit(vocab_size, length), vocab_size, length, **options), seed=3).to(dtype).eval()


def a_batch(size=B, given=0.3, dtype=torch.float64):
    rng = torch.Generator().manual_seed(1)
    return Batch(torch.randint(V, (size, L), generator=rng), (torch.rand(size, L, generator=rng) > given).to(dtype))


def dense_density(algorithm, tokens, x, state, kappa):
    """(B, L) nats per kappa from a dense input x (B, L, V), by the definition of the relative entropy of jump rates."""
    p = dense(algorithm.backbone, x, -kappa.log())
    k = kappa[:, None, None]
    data, model, own = V * k * one_hot(tokens, V) + 1 - k, V * k * p + 1 - k, state[..., None]
    r, s = data / data.gather(2, own), model / model.gather(2, own)
    return (r * (r / s).log() - r + s).sum(-1) / (V * kappa[:, None])


def exact_density(algorithm, kappa):
    """E over states of the density, for every sequence (V^L,)."""
    count = len(SEQUENCES)
    data, states = SEQUENCES.repeat_interleave(count, 0), SEQUENCES.repeat(count, 1)
    probability = (kappa * (data == states) + (1 - kappa) / V).prod(-1)
    times = torch.full((count**2,), kappa, dtype=torch.float64)
    with torch.no_grad():
        density = dense_density(algorithm, data, one_hot(states, V).double(), states, times).sum(1)
    return (probability * density).view(count, count).sum(1)


def integral(function, low, high, count=40):
    x, w = numpy.polynomial.legendre.leggauss(count)
    nodes = (low + (high - low) * (x + 1) / 2).tolist()
    return sum(weight * (high - low) / 2 * function(node) for node, weight in zip(nodes, w.tolist(), strict=True))


def exact_bound(algorithm):
    """For every sequence, over all of kappa from 1e-3 to 1."""

    def in_root(root):
        return 2 * root * exact_density(algorithm, 1 - root**2)

    start = torch.tensor(1e-3, dtype=torch.float64)
    return integral(in_root, 0, math.sqrt(1 - 1e-3)) + L * prior_nats(start, V)


# Losses ----------------------------------------------------------------------------------------------------------------


def test_loss_and_gradient_equal_the_dense_bound():
    algorithm, batch = duo(), a_batch()
    loss = algorithm.loss(batch, Draws(4, step=9))
    draws = Draws(4, step=9)
    t = draws.stratified(B) * LAST_TIME
    kappa = 1e-3 + (1 - 1e-3) * t
    state = corrupt(batch.tokens, kappa, UniformSource(V), draws.rows)
    state = torch.where(batch.weight == 0, batch.tokens, state)
    density = dense_density(algorithm, batch.tokens, one_hot(state, V).double(), state, kappa) * (1 - 1e-3)
    reference = (density * batch.weight).sum() / batch.weight.sum()
    parameters = list(algorithm.parameters())
    torch.testing.assert_close(loss.total, reference, rtol=1e-6, atol=0)  # the time is told in fp32
    per_sequence = (density * batch.weight).sum(1) / batch.weight.sum(1).clamp_min(1)
    torch.testing.assert_close(loss.per_sequence, per_sequence.detach(), rtol=1e-6, atol=1e-12)
    got, want = torch.autograd.grad(loss.total, parameters), torch.autograd.grad(reference, parameters)
    scale = max(g.abs().max() for g in want)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a / scale, b / scale, rtol=0, atol=1e-6)


@pytest.mark.parametrize("top_k", [3, 128])
def test_curriculum_is_the_same_bound_over_its_part_of_the_path(top_k):
    """At a temperature that leaves one token: the mean of many losses is the integral over kappa, level by transform."""
    algorithm = duo(curriculum_end=10, temperature_start=1e-9, temperature_end=1e-9, gamma_min=-3.0, gamma_max=0.5, top_k=top_k)
    losses = []
    tokens = SEQUENCES.repeat(40, 1)
    for step in range(10):
        batch = Batch(tokens, torch.ones(tokens.shape, dtype=torch.float64))
        losses.append(algorithm.loss(batch, Draws(0, step)).per_sequence * L)
    losses = torch.cat(losses).view(-1, len(SEQUENCES))
    transform = ArgmaxTransform(V)
    low, high = transform.kappa(torch.tensor([0.5, -3.0], dtype=torch.float64).mul(-0.5).exp()).tolist()
    assert 0.2 < low < 0.4 < 0.9 < high
    want = integral(lambda kappa: exact_density(algorithm, kappa), low, high).mean()
    error = losses.std() / losses.numel() ** 0.5
    assert abs(losses.mean() - want) < 4 * error < 0.06 * want


def test_curriculum_reads_the_softmax_and_scores_the_arg_max():
    """One gradient of the table against the dense one, with the noise the loss draws."""
    temperature = 0.3
    algorithm, batch = duo(curriculum_end=1, temperature_start=temperature), a_batch()
    loss = algorithm.loss(batch, Draws(7, step=0))
    draws = Draws(7, step=0)
    gamma = algorithm.gamma_max + draws.stratified(B) * (algorithm.gamma_min - algorithm.gamma_max)
    signal, spread = torch.sigmoid(-gamma).sqrt()[:, None, None], torch.sigmoid(gamma).sqrt()[:, None, None]
    noise = draws.normal(B, L, V, dtype=torch.float64)
    w = signal * one_hot(batch.tokens, V) + spread * noise
    given = batch.weight == 0
    x = torch.where(given[..., None], one_hot(batch.tokens, V).double(), (w / temperature).softmax(-1))
    state = torch.where(given, batch.tokens, w.argmax(-1))

    def kappa_at(gamma):
        return ArgmaxTransform(V).kappa((-gamma / 2).exp())

    e = 1e-4
    speed = (kappa_at(gamma - e) - kappa_at(gamma + e)) / (2 * e) * (algorithm.gamma_max - algorithm.gamma_min)
    density = dense_density(algorithm, batch.tokens, x, state, kappa_at(gamma)) * speed[:, None]
    reference = (density * batch.weight).sum() / batch.weight.sum()
    torch.testing.assert_close(loss.total, reference, rtol=1e-6, atol=0)
    (got,), (want,) = (torch.autograd.grad(total, algorithm.backbone.input_table) for total in (loss.total, reference))
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-7 * want.abs().max().item())


def test_temperature_follows_the_optimiser_step_until_tokens_are_read():
    algorithm = duo(curriculum_start=10, curriculum_end=30, temperature_start=1e-1, temperature_end=1e-3)
    found = [algorithm.temperature(step) for step in (0, 10, 20, 29, 30, 1000)]
    assert found[:3] == pytest.approx([1e-1, 1e-1, 1e-2]) and found[3] == pytest.approx(10 ** (-1 - 2 * 19 / 20))
    assert found[4:] == [None, None]
    plain, batch = duo(), a_batch()
    losses = [[model.loss(batch, Draws(0, step)).total.item() for model in (algorithm, plain)] for step in (29, 30)]
    assert losses[0][0] != losses[0][1] and losses[1][0] == losses[1][1]
    # whatever the index of a validation batch, it is of tokens
    assert algorithm.validation_loss(batch, Draws(0, 0)).total == plain.validation_loss(batch, Draws(0, 0)).total


@pytest.mark.parametrize("step", [0, 50])
def test_what_is_given_is_read_clean_and_not_scored(step):
    algorithm, batch = duo(curriculum_end=10, temperature_start=0.5), a_batch(400, given=0.5)
    views = []
    algorithm.backbone.register_forward_pre_hook(lambda _, arguments: views.append(arguments[0].detach()))
    loss = algorithm.loss(batch, Draws(0, step))
    clean = (views[0] == embedding(batch.tokens, algorithm.backbone.input_table)).all(-1)
    assert clean[batch.given].all() and clean[~batch.given].double().mean() < 0.7
    assert (loss.per_sequence[batch.weight.sum(1) == 0] == 0).all()
    other = Batch(batch.tokens.clone(), batch.weight * 3.0)
    assert algorithm.loss(other, Draws(0, step)).total.item() == pytest.approx(loss.total.item(), rel=1e-6)


def test_published_ranges_of_gamma_are_the_default():
    for size, gamma_min, gamma_max in ((50257, -3.55, -1.85), (30522, -3.5, -1.75)):
        kappas = ArgmaxTransform(size).kappa(torch.tensor([gamma_min, gamma_max], dtype=torch.float64).mul(-0.5).exp())
        assert kappas.tolist() == pytest.approx([0.945, 0.049], abs=0.004)
        found = gamma_range(ArgmaxTransform(size), None, None, CURRICULUM_KAPPAS)
        assert found == pytest.approx((gamma_min, gamma_max), abs=0.06)
        assert gamma_range(ArgmaxTransform(size), None, None, TRAJECTORY_KAPPAS) == pytest.approx((-4, -1), abs=0.12)
    # a small vocabulary: most of the range is neither clean nor noise
    low, high = gamma_range(ArgmaxTransform(97), None, None, TRAJECTORY_KAPPAS)
    quarters = torch.linspace(low, high, 5, dtype=torch.float64).mul(-0.5).exp()
    clean, first, middle, third, noisy = ArgmaxTransform(97).kappa(quarters).tolist()
    assert clean > 0.998 and 0.6 < first < 0.95 and 0.15 < middle < 0.35 and third > 0.05 and 0.005 < noisy < 0.05


# The bound -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("control", [0.0, 0.7])
def test_draws_of_the_bound_average_to_it(control):
    """For each sequence, and over all; whatever share of the control is used."""
    algorithm = duo()
    exact = exact_bound(algorithm)
    batch = Batch(SEQUENCES.repeat(20, 1), torch.ones(len(SEQUENCES) * 20, L))
    found = torch.stack([algorithm.bound(batch, Draws(1, i), control).nats.view(20, -1) for i in range(20)]).flatten(0, 1)
    error = found.std(0) / len(found) ** 0.5
    assert ((found.mean(0) - exact) / error).abs().max() < 4.5
    overall = found.mean(1)
    error = overall.std() / len(overall) ** 0.5
    assert abs(overall.mean() - exact.mean()) < 4 * error < 0.1 * exact.mean()
    bound = algorithm.bound(batch, Draws(1, 0), control)
    torch.testing.assert_close(sum(bound.parts.values()), bound.nats)
    assert bound.parts["prior"][0].item() == pytest.approx(L * prior_nats(torch.tensor(1e-3).double(), V).item())


def test_the_control_takes_variance_out():
    """Fitted to training batches; none where there are none."""
    algorithm, batches = duo(), [a_batch(500) for _ in range(2)]
    (variant,) = algorithm.bound_variants(batches, Draws(3)).values()
    assert 0.1 < variant.options["control"] <= 1
    plain, controlled = (algorithm.bound(batches[0], Draws(5), **o).nats.var() for o in ({}, variant.options))
    assert controlled < 0.7 * plain
    assert algorithm.bound_variants([], Draws(3))["network"].options == {}


def test_the_bound_is_above_the_truth_and_training_closes_in_on_it():
    """On average over the data, in nats: a network as it comes, and one trained through the curriculum and after it."""
    world = correlated()
    truth = torch.special.entr(world.joint).sum().item()
    torch.manual_seed(0)
    algorithm = Duo(toy(world), 2, 2, curriculum_end=80, temperature_start=0.1, temperature_end=0.01)

    def bound():
        batch = world.batch(20_000, torch.Generator().manual_seed(5))
        return algorithm.eval().bound(batch, Draws(2), control=0.85).nats.mean().item()

    before = bound()
    train(algorithm, world, 250)
    after = bound()
    assert truth - 0.05 < after < truth + 0.07 < before  # 0.05: three standard errors of the draws
    # and its samples follow the data
    tokens = algorithm.generate(Canvas.blank(4000, 2), 50, torch.Generator().manual_seed(0))
    found = torch.bincount(tokens[:, 0] * 2 + tokens[:, 1], minlength=4).double() / 4000
    assert (found - world.joint.flatten()).abs().max() < 0.05


def test_without_context_the_bound_is_the_entropy_of_the_unigrams():
    """Integrated over the clock: with one position there is no context, and the bound is tight."""
    algorithm = duo()
    counts = torch.tensor([50, 30, 10, 5, 5, 0])
    tau = (torch.arange(200, dtype=torch.float64) + 0.5) / 200
    found = algorithm.context_free_loss(counts, tau, Draws(0))
    p = counts / counts.sum()
    assert found.shape == (200,) and found.mean().item() == pytest.approx(torch.special.entr(p).sum().item(), rel=0.02)


@pytest.mark.parametrize(
    "options,key",
    [
        ({"curriculum_start": 5, "curriculum_end": 4}, "algo.curriculum_start"),
        ({"temperature_end": 0.0}, "algo.temperature_end"),
        ({"top_k": 0}, "algo.top_k"),
        ({"gamma_min": 3.0, "gamma_max": 1.0}, "algo.gamma_min"),
        ({"schedule": Polynomial(1.0)}, "algo.schedule"),
    ],
)
def test_mistakes_name_their_key(options, key):
    with pytest.raises(ValueError, match=key):
        check(Duo, options, "algo", is_partial=True)
        duo(**options)
    with pytest.raises(ValueError, match="sampling.solver"):
        sampler_for(duo(schedule=LogLinear(0.01)), {"solver": "heun"}, "sampling")
