"""DBTM: loss and gradient against dense ones, where the transport's gradient vanishes, the map it learns, and its rounds."""

from functools import partial

import pytest
import torch
from algos.dense_flow_map import column, dense, rough, small_dit
from torch import nn
from torch.nn.functional import one_hot

import flm.posterior
from flm.algos.algorithm import Batch
from flm.draws import Draws
from flm.few_step.commit_sampler import CommitSampler
from flm.few_step.dbtm import DBTM, along
from flm.posterior import TokenPosterior
from flm.samplers.canvas import Canvas
from flm.vocabulary_losses import of_logits

V, L, B = 7, 3, 8


def a_map(**options):
    torch.manual_seed(6)
    algorithm = DBTM(small_dit(V, L), V, L, **options)
    rough(algorithm.backbone, 6)
    return algorithm.double()


def a_batch():
    rng = torch.Generator().manual_seed(1)
    return Batch(torch.randint(V, (B, L), generator=rng), (torch.rand(B, L, generator=rng) > 0.2).double())


@pytest.mark.parametrize("options", [{}, {"weight_power": 0.0, "t_anchor": 0.3}], ids=str)
def test_loss_and_gradient_equal_dense_on_the_same_noise(options, monkeypatch):
    """The derivative along the path by central differences."""
    monkeypatch.setitem(flm.posterior.CHUNK_ELEMENTS, "cpu", 4 * V)
    algorithm, batch = a_map(**options), a_batch()
    loss = algorithm.loss(batch, Draws(2))
    draws = Draws(2)
    whole = draws.stratified(B) < algorithm.boundary_share
    t, share = draws.stratified(B), draws.stratified(B)
    free = (batch.weight > 0) & ~whole[:, None]
    noisy = free & (draws.per_sequence(B, L) < share[:, None])
    clean = one_hot(batch.tokens, V).double()
    noise = draws.normal(B, L, V, dtype=torch.float64)
    at = lambda t: torch.where(noisy[..., None], column(t) * clean + (1 - column(t)) * noise, clean)
    x = at(t.float().double())
    tangent = torch.where(noisy[..., None], clean - noise, 0)
    p = dense(algorithm.backbone, x)
    with torch.no_grad():
        h = 1e-5
        change = (dense(algorithm.backbone, x + h * tangent) - dense(algorithm.backbone, x - h * tangent)) / (2 * h)
        square = change.square().sum(-1)
        weight = (square + algorithm.weight_offset) ** -algorithm.weight_power
    transport = weight * (p - (p + change).detach()).square().sum(-1)
    named = -(clean * p.log()).sum(-1)
    told = (whole[:, None] & (batch.weight > 0)) | (noisy & (t > algorithm.t_anchor)[:, None])
    reference = (batch.weight * (transport * noisy + named * told)).sum() / batch.weight.sum()
    assert noisy.any() and (told & noisy).any() and whole.any()
    torch.testing.assert_close(loss.total, reference, rtol=1e-6, atol=1e-9)
    parameters = list(algorithm.parameters())
    got, want = torch.autograd.grad(loss.total, parameters), torch.autograd.grad(reference, parameters)
    scale = max(g.abs().max() for g in want)
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g / scale, w / scale, rtol=0, atol=1e-6)
    for name, counted in (
        ("transport_residual", noisy),
        ("boundary_nats", whole[:, None] & told),
        ("anchor_nats", noisy & told),
    ):
        values = transport if name == "transport_residual" else named
        weight = batch.weight * counted
        assert loss.mean(name).item() == pytest.approx((values * weight).sum().item() / weight.sum().item(), rel=1e-6)


def test_rounds_are_learned_from_their_own_end():
    """Against rounds written out on dense states: which positions are open in which round, and towards what they are taught."""
    algorithm, batch = a_map(loop_from=3, loop_share=1.0, commit=0.3, loop_rounds=3), a_batch()
    plain = algorithm.loss(batch, Draws(2, step=2))
    assert "loop_nats" not in plain.metrics
    seen = set()
    for step in range(3, 9):
        loss, draws = algorithm.loss(batch, Draws(2, step)), Draws(2, step)
        for _ in range(3):
            draws.stratified(B)  # which rows are whole, times and shares
        draws.per_sequence(B, L), draws.normal(B, L, V)
        draws.stratified(B)
        noise = draws.normal(B, L, V, dtype=torch.float64)
        this = int(3 * draws.shared_uniform())
        seen.add(this)
        tokens, left, states = batch.tokens, batch.weight > 0, []
        for rounds in (3, 2, 1):
            states.append((torch.where(left[..., None], noise, one_hot(tokens, V).double()), left))
            sure, chosen = dense(algorithm.backbone, states[-1][0]).max(-1)
            tokens, left = tokens.clone(), left.clone()
            for row in range(B):
                places = sorted(left[row].nonzero()[:, 0].tolist(), key=lambda i, p=sure[row]: -p[i])
                for rank, place in enumerate(places):
                    if sure[row, place] >= 0.3 or rank < -(-len(places) // rounds):
                        tokens[row, place], left[row, place] = chosen[row, place], False
        assert not left.any()
        state, at = states[this]
        nats = -dense(algorithm.backbone, state).log().gather(2, tokens[..., None])[..., 0]
        assert loss.mean("loop_nats").item() == pytest.approx(nats[at].mean().item(), rel=1e-6)
        others = algorithm.loss(batch, Draws(2, step)).sum - loss.metrics["loop_nats"][0]
        algorithm.loop_from = None
        torch.testing.assert_close(others, algorithm.loss(batch, Draws(2, step)).sum, rtol=1e-6, atol=1e-9)
        algorithm.loop_from = 3
    assert len(seen) > 1


# One position of two tokens, the second with probability 0.7; u = x_1 - x_0. T is a step of u at c, softened.
PRIOR = 0.7
BOUNDARY = -(2**0.5) * torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(PRIOR, dtype=torch.float64))


def slope_at(c, power, width=0.05):
    """d transport / d c, over all times, noises and tokens."""
    t = (torch.arange(400, dtype=torch.float64) + 0.5) / 400
    noise = torch.linspace(-9, 9, 1801, dtype=torch.float64)
    mass = torch.softmax(-noise.square() / 4, 0)
    c = torch.tensor(c, dtype=torch.float64, requires_grad=True)
    total = 0.0
    for token, share in ((-1.0, 1 - PRIOR), (1.0, PRIOR)):
        u, rate = t[:, None] * token + (1 - t[:, None]) * noise, (token - noise).expand(400, -1)
        logits = torch.stack([torch.zeros_like(u), (u - c) / width], -1)
        motion = torch.stack([torch.zeros_like(u), rate / width], -1)
        posterior = TokenPosterior(logits, torch.eye(2, dtype=torch.float64))
        value_and_slope = along(motion.reshape(-1, 2), 1.0, power)(posterior)
        total = total + of_logits(posterior, value_and_slope, share * mass.expand(400, -1) / 400)[0]
    return torch.autograd.grad(total, c)[0].item()


def test_the_partition_that_carries_the_law_is_where_the_transport_is_still():
    """Noise beyond the boundary has the second token's probability; through it, over all times, flows nothing."""
    here = [slope_at(BOUNDARY.item() + shift, 0.0) for shift in (-0.15, 0.0, 0.15)]
    assert abs(here[1]) < 0.03 * min(abs(here[0]), abs(here[2])) and here[0] * here[2] < 0
    # the published weight is not linear in the derivative: it takes the boundary elsewhere, wherever T is steep
    assert abs(slope_at(BOUNDARY.item(), 0.5)) > 0.1 * abs(slope_at(BOUNDARY.item() + 0.15, 0.5))


class Steps(nn.Module):
    """A perceptron of the two numbers of a state, told no time."""

    def __init__(self, vocab_size, conditioned):
        super().__init__()
        self.register_buffer("input_table", torch.eye(vocab_size))
        self.body = nn.Sequential(nn.Linear(vocab_size, 32), nn.SiLU(), nn.Linear(32, 32), nn.SiLU())
        self.out = nn.Linear(32, vocab_size)

    def forward(self, view):
        return TokenPosterior(self.body(view), self.out.weight, self.out.bias)


@pytest.mark.slow
@pytest.mark.parametrize("power,tolerance", [(0.0, 0.03), (0.5, 0.06)])
def test_noise_is_mapped_to_tokens_as_often_as_they_are(power, tolerance):
    torch.manual_seed(0)
    algorithm = DBTM(Steps, 2, 1, weight_power=power)
    optimizer = torch.optim.Adam(algorithm.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, 3000)
    generator = torch.Generator().manual_seed(0)
    for step in range(3000):
        tokens = (torch.rand(512, 1, generator=generator) < PRIOR).long()
        optimizer.zero_grad()
        algorithm.loss(Batch(tokens, torch.ones(512, 1)), Draws(0, step)).total.backward()
        optimizer.step()
        schedule.step()
    drawn = algorithm.generate(Canvas.blank(40_000, 1), 1, torch.Generator().manual_seed(1))
    assert drawn.double().mean().item() == pytest.approx(PRIOR, abs=tolerance)
    vertices = algorithm.backbone(torch.eye(2)[:, None])
    assert torch.equal(vertices.argmax()[:, 0], torch.arange(2)) and vertices.log_prob(torch.arange(2)[:, None]).min() > -0.05


class Surely:
    """A map that is sure of each position to a degree of its own, and says the position's number as its token."""

    clean_given = True

    def __init__(self, sure):
        self.tables = (torch.eye(len(sure)),)
        self.log_odds = torch.tensor(sure).logit()
        self.seen = []

    def __call__(self, state, tau, tau_to=None):
        self.seen.append(state.views[0])
        count = len(self.log_odds)
        # the probability of the position's own token against all others together
        logits = torch.eye(count) * (self.log_odds + torch.tensor(count - 1.0).log())
        return TokenPosterior(logits.expand(len(state.views[0]), -1, -1), torch.eye(count))


def test_rounds_write_what_is_sure_and_at_least_their_share():
    sure = [0.95, 0.5, 0.6, 0.97, 0.7, 0.4, 0.3, 0.99]
    denoiser, canvas = Surely(sure), Canvas(torch.arange(8)[None], torch.ones(1, 8, dtype=torch.bool))
    canvas.editable[0, 5] = False
    open_at = []

    def spy(moment):
        seen = denoiser.seen[-1][0]
        open_at.append([i for i in range(8) if not torch.equal(seen[i], torch.eye(8)[i])])

    out = CommitSampler()(denoiser, canvas, 3, torch.Generator().manual_seed(0), spy)
    assert torch.equal(out, torch.arange(8)[None])
    assert open_at == [[0, 1, 2, 3, 4, 6, 7], [1, 2, 4, 6], [1, 6]]  # 3 sure ones are a third of 7; then 2 of 4; then all
    # fresh noise each round, where nothing is written yet
    assert not torch.equal(denoiser.seen[0][0, 1], denoiser.seen[1][0, 1])
    denoiser.seen.clear()
    CommitSampler(commit=0.2)(denoiser, canvas, 3, torch.Generator().manual_seed(0))
    assert len(denoiser.seen) == 1  # everything was sure enough
    denoiser.seen.clear(), open_at.clear()
    CommitSampler(commit=1.0)(denoiser, canvas, 3, torch.Generator().manual_seed(0), spy)
    assert [len(left) for left in open_at] == [7, 4, 2]


def test_tokens_are_drawn_where_that_is_asked_for():
    denoiser, canvas = Surely([0.9, 0.5]), Canvas.blank(4000, 2)
    sample = partial(CommitSampler(draw=True), denoiser, canvas, 1)
    share = (sample(torch.Generator().manual_seed(0)) == torch.arange(2)).double().mean(0)
    assert share.tolist() == pytest.approx([0.9, 0.5], abs=0.03)
    assert (CommitSampler()(denoiser, canvas, 1, torch.Generator().manual_seed(0))[:, 0] == 0).all()
