"""Simplex-DMD of a KL-flow: the mean noise, the divergence and its gradient, the dense twin, its start, what it learns."""

import pytest
import torch
from algos.dense_flow_map import column, dense, rough, small_dit
from algos.exact_world import correlated, toy, train
from every_algorithm import ragged_batch
from torch.nn.functional import one_hot

import flm.posterior
from flm.algos.algorithm import Batch
from flm.draws import Draws
from flm.kl_flow.geodesic_state import Noise
from flm.kl_flow.kl_flow import KLFlow
from flm.kl_flow.kl_simplex_dmd import KLSimplexDMD
from flm.kl_flow.noise_matching import geodesic_matching, mean_noise, noise_divergence
from flm.posterior import TokenPosterior
from flm.samplers.canvas import Canvas

V, L, B = 7, 3, 6


def rows(count, size, seed=0):
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# The noise is what has to be known ------------------------------------------------------------------------------------


def test_the_mean_noise_is_that_of_bayes_and_of_the_score():
    """By summing over tokens, and by differentiating the law of x: d log p / d m_k = alpha - alpha V E[n_k | x]."""
    m, p, s, alpha = (
        rows(4, V),
        rows(4, V, 1).softmax(-1),
        torch.tensor([[0.1], [1.0], [4.0], [12.0]], dtype=torch.float64),
        0.7,
    )
    a = -torch.expm1(-s)
    by_token = torch.stack([(m - s * one_hot(torch.tensor(y), V)).softmax(-1) for y in range(V)], 1)
    found = mean_noise(p, m.softmax(-1), a)
    torch.testing.assert_close(found, (p[..., None] * by_token).sum(1), rtol=1e-9, atol=1e-14)

    prior = rows(1, V, 2).softmax(-1)

    def log_law(m):
        """Of x by its logarithm, the density of n = x e^(-s onehot) / sum being prod n^alpha in these coordinates."""
        n = torch.stack([(m - s * one_hot(torch.tensor(y), V)).log_softmax(-1) for y in range(V)], 1)
        joint = prior.log() + alpha * n.sum(-1)
        return joint.logsumexp(1), joint.softmax(1)

    m.requires_grad_(True)
    law, posterior = log_law(m)
    (score,) = torch.autograd.grad(law.sum(), m)
    exact = alpha - alpha * V * mean_noise(posterior.detach(), m.detach().softmax(-1), a)
    torch.testing.assert_close(score, exact, rtol=1e-9, atol=1e-11)


def test_the_divergence_of_the_noise_and_its_slope():
    """Against differentiation, and where its minimum is: at the posterior, for the law of n given x of several tokens."""
    logits, m, s = rows(5, V).requires_grad_(True), rows(5, V, 1), torch.linspace(0.2, 9, 5, dtype=torch.float64)[:, None]
    x, n, a = m.softmax(-1), rows(5, V, 2).softmax(-1), -torch.expm1(-s)
    value, slope = noise_divergence(x, n, a)(slice(0, 5), logits.detach().clone(), True)
    dense = (n * (n.log() - mean_noise(logits.softmax(-1), x, a).log())).sum(-1)
    torch.testing.assert_close(value, dense.detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(slope, torch.autograd.grad(dense.sum(), logits)[0], rtol=1e-8, atol=1e-11)
    by_token = torch.stack([(m - s * one_hot(torch.tensor(y), V)).softmax(-1) for y in range(V)], 1)
    truth = rows(5, V, 3).softmax(-1)
    slopes = [noise_divergence(x, by_token[:, y], a)(slice(0, 5), truth.log(), True)[1] for y in range(V)]
    mean = sum(truth[:, y, None] * slopes[y] for y in range(V))
    assert mean.abs().max() < 1e-10 < max(slope.abs().max() for slope in slopes)


# The gradient is that of the divergence -------------------------------------------------------------------------------
# One position of two tokens, the second with probability 0.7, alpha = 1: u = m_1 - m_0 is logistic noise plus s h, with
# h = delta_1 - delta_0 = tanh(g z / 2 + c) of the student's own logistic noise z. All integrals over a fine grid.

GRID = torch.linspace(-24, 24, 241, dtype=torch.float64)


def logistic(u):
    return torch.exp(-u.abs()) / (1 + torch.exp(-u.abs())).square()


MASS = logistic(GRID) / logistic(GRID).sum()
DATA = torch.tensor([0.3, 0.7], dtype=torch.float64)


def divergence(g, c, s):
    u = torch.linspace(-40, 40, 4001, dtype=torch.float64)[:, None]
    p = (MASS * logistic(u - s * torch.tanh(g * GRID / 2 + c))).sum(1)
    q = (DATA * logistic(u - s * torch.tensor([-1.0, 1.0], dtype=torch.float64))).sum(1)
    return ((p * (p / q).log()).sum() / p.sum() + (q.sum() / p.sum()).log()).item()


class Given:
    """Prepared log E (n, V), in chunks of a few."""

    def __init__(self, log_noise):
        self.log_noise = log_noise

    def chunks(self):
        for start in range(0, len(self.log_noise), 5000):
            part = slice(start, min(start + 5000, len(self.log_noise)))
            yield part, self.log_noise[part].clone()


def gradient(g, c, s):
    """By the algorithm's own loss, with exact D and F at every pair of noises."""
    g, c = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (g, c))
    inner, eye = GRID[::2], torch.eye(2, dtype=torch.float64)
    student = TokenPosterior(
        torch.stack([torch.zeros_like(GRID), g * GRID + 2 * c], -1)[:, None].expand(-1, len(inner), -1), eye
    )
    h = torch.tanh(g * GRID / 2 + c).detach()
    u = (s * h[:, None] + inner).reshape(-1)
    weight = torch.outer(MASS, logistic(inner) / logistic(inner).sum())
    point, a = torch.stack([-u, u], -1).div(2).softmax(-1), -torch.expm1(torch.tensor(-s, dtype=torch.float64))
    # the token's posterior under the data
    real = (DATA * logistic(u[:, None] - s * torch.tensor([-1.0, 1.0], dtype=torch.float64))).log().softmax(-1)
    # the noise's mean under the student, and the token probabilities that say so: of two tokens any mean can be said
    likely = (MASS * logistic(u[:, None] - s * h)).log().softmax(-1)
    mean = (likely * torch.sigmoid(u[:, None] - s * h)).sum(-1)
    gain = 1 / (1 - a * point)
    second = (mean / point[:, 1] - gain[:, 0]) / ((1 - a) * gain[:, 1] - gain[:, 0])
    fake = torch.stack([1 - second, second], -1)
    assert (fake > 0).all()

    def certain(p):
        return TokenPosterior(p.log().view(*weight.shape, 2), eye)

    noise = Given(torch.stack([-inner, inner], -1).div(2).expand(len(GRID), -1, -1).reshape(-1, 2))
    signal = torch.full((len(GRID),), s, dtype=torch.float64)
    total, about = geodesic_matching(student, certain(real), certain(fake), noise, signal, weight, scale=2.0)
    assert about["score_gap"].max() > 1e-4
    return [grad.item() for grad in torch.autograd.grad(total, (g, c))]


@pytest.mark.parametrize("g,c,s", [(1.0, 0.1, 1.5), (0.6, -0.4, 4.0)])
def test_the_gradient_is_that_of_the_reverse_divergence(g, c, s):
    step = 1e-4
    by_g, by_c = gradient(g, c, s)
    assert by_g == pytest.approx((divergence(g + step, c, s) - divergence(g - step, c, s)) / (2 * step), abs=2e-5)
    assert by_c == pytest.approx((divergence(g, c + step, s) - divergence(g, c - step, s)) / (2 * step), abs=2e-5)
    assert abs(by_g) > 1e-2 and abs(by_c) > 1e-2


# Dense twin -----------------------------------------------------------------------------------------------------------


def student(vocab_size=V, disturbed=True):
    torch.manual_seed(5)
    known = KLFlow(small_dit(vocab_size, L), vocab_size, L, features="sharpened")
    if disturbed:
        rough(known, seed=5)
    algorithm = KLSimplexDMD(small_dit(vocab_size, L), vocab_size, L, teacher=known, features="sharpened")
    if disturbed:
        for network, seed in ((algorithm.backbone, 7), (algorithm.fake, 8)):
            table = network.input_table.clone()
            rough(network, seed, 0.3).input_table.data.copy_(table)
    return algorithm


def a_batch(dtype=torch.float64):
    rng = torch.Generator().manual_seed(1)
    return Batch(torch.randint(V, (B, L), generator=rng), (torch.rand(B, L, generator=rng) > 0.3).to(dtype))


def dense_loss(algorithm, batch, draws, students):
    tokens, given, path = one_hot(batch.tokens, V).double(), batch.given[..., None], algorithm.path
    start = draws.stratified(B)
    level = start + (1 - start) * draws.stratified(B)
    s, t = (path.signal(algorithm.clock.time(tau)) for tau in (start, level))

    def noise():
        made = Noise(draws.rows.seeds(B), L, path, torch.device("cpu"), torch.float64)
        return torch.cat([m.clone() for _, m in made.chunks()]).view(B, L, V)

    def ask(network, m, *times):
        x = torch.where(given, tokens, m.softmax(-1))
        return dense(network, x, *(tau.float().double() for tau in times))

    delta = ask(algorithm.backbone, noise() + column(s) * tokens, start)
    log_noise = noise()
    m = (log_noise + column(t) * delta).detach()
    real, fake = ask(algorithm.teacher("teacher").backbone, m, level), ask(algorithm.fake, m, level, start)
    told = lambda p: mean_noise(p.flatten(0, 1), m.flatten(0, 1).softmax(-1), -torch.expm1(-t).repeat_interleave(L)[:, None])
    if students:
        gap = (told(real) - told(fake)).view(B, L, V).detach()
        per_token = V * t[:, None] * (gap * delta).sum(-1)
    else:
        n = log_noise.softmax(-1)
        per_token = (n * (n.log() - told(fake).view(B, L, V).log())).sum(-1)
    return (per_token * batch.weight).sum() / batch.weight.sum()


@pytest.mark.parametrize("step", [0, 1], ids=["student", "fake"])
def test_loss_and_gradient_equal_dense_on_the_same_noise(step, monkeypatch):
    monkeypatch.setitem(flm.posterior.CHUNK_ELEMENTS, "cpu", 4 * V)
    algorithm, batch = student().double(), a_batch()
    loss = algorithm.loss(batch, Draws(2, step=step))
    reference = dense_loss(algorithm, batch, Draws(2, step=step), step == 0)
    resting = {id(p) for p in algorithm.resting(step)}
    learning = [p for p in algorithm.parameters() if p.requires_grad and id(p) not in resting]
    got, want = torch.autograd.grad(loss.sum / batch.weight.sum(), learning), torch.autograd.grad(reference, learning)
    torch.testing.assert_close(loss.sum / batch.weight.sum(), reference, rtol=1e-6, atol=1e-9)
    scale = max(g.abs().max() for g in want)
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g / scale, w / scale, rtol=0, atol=1e-6)


def test_all_start_as_the_teacher_and_there_is_nothing_to_learn_of_it():
    algorithm = student(29, disturbed=False).double()
    loss = algorithm.loss(Batch(ragged_batch().tokens[:, :L], torch.ones(8, L, dtype=torch.float64)), Draws(0))
    loss.sum.backward()
    assert max(p.grad.abs().max() for p in algorithm.backbone.parameters() if p.requires_grad) < 1e-9
    assert loss.mean("score_gap") < 1e-12 < loss.mean("student_entropy_nats")


# Learning -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_one_evaluation_writes_what_belongs_together():
    """Two tokens that depend on each other. The teacher's one step writes the likelier tokens of each position by itself."""
    world = correlated()
    torch.manual_seed(0)
    known = KLFlow(toy(world), 2, 2, features="sharpened")
    train(known, world, 600)
    algorithm = KLSimplexDMD(toy(world), 2, 2, teacher=known, features="sharpened")
    train(algorithm, world, 3000, lr=2e-3)

    def law(steps):
        tokens = algorithm.generate(Canvas.blank(20_000, 2), steps, torch.Generator().manual_seed(1))
        return torch.bincount(2 * tokens[:, 0] + tokens[:, 1], minlength=4) / len(tokens)

    for steps in (1, 4):
        assert (law(steps) - world.joint.flatten()).abs().sum().item() / 2 < 0.1
