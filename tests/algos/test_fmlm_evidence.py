"""FMLM that reads evidence: against the dense loss and sampler, its teacher, the exact flow map, and where training leads."""

import copy
from functools import partial

import pytest
import torch
from algos.dense_flow_map import rough
from algos.exact_world import ExactWorld, ToyBackbone, correlated, map_error, train
from torch.nn.functional import one_hot

import flm.paths.evidence
import flm.posterior
from flm.algos.algorithm import Algorithm, Batch
from flm.algos.evidence_map import LATEST, EvidenceMap, two_jumps
from flm.algos.flm import FLM, EvidenceDenoiser
from flm.algos.fmlm import FMLM
from flm.draws import Draws
from flm.models.attention import document_mask
from flm.models.dit import DiT
from flm.paths.evidence import Held, LocalEvidence, Noised
from flm.paths.flow_map import TimePairs, draw_time_pairs, semigroup_weight
from flm.paths.gaussian import Given, State
from flm.posterior import TokenPosterior
from flm.samplers.canvas import Canvas
from flm.two_stage.flm_distill import FLMDistill

V, L = 50, 6
COUNTS = 10_000 / torch.arange(1, V + 1).double().pow(1.2)
BACKBONE = partial(
    DiT, length=L, hidden_size=12, num_blocks=1, num_heads=2, cond_dim=8, dropout=0.0, output_softcap=3.0, neighbours=1
)


def teacher(**options):
    torch.manual_seed(5)
    algorithm = rough(FLM(BACKBONE, V, L, reads="evidence", **options), seed=5)
    algorithm.know_frequencies(COUNTS)
    return algorithm


def student(same=False, **options):
    torch.manual_seed(6)
    algorithm = FMLM(BACKBONE, V, L, reads="evidence", initialize_student_from_teacher=same, **options)
    if not same:
        rough(algorithm.backbone, seed=6)
    algorithm.know_frequencies(COUNTS)
    return algorithm.double()


def a_batch(size=6):
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(V, (size, L), generator=generator)
    documents = torch.arange(L).expand(size, L) // 4
    return Batch(tokens, (torch.rand(size, L, generator=generator) > 0.3).double(), documents)


def dense(network, log_prior, x, t, until, tau, tau_to, mask):
    """delta (B, L, V), the textbook way; x (B, L, V), t and until (B, L)."""
    m, m_until = (at / (1 - at).clamp_min(1e-3) for at in (t, until))
    evidence = log_prior + x * ((m + m_until) / 2 / (1 - t).clamp_min(1e-3))[..., None]
    times = (tau,) if tau_to is None else (tau, tau_to)
    own = network(evidence.softmax(-1) @ network.input_table, *times, mask=mask)
    logits = own.hidden @ own.table.T + own.bias
    return (own.softcap * torch.tanh(logits / own.softcap) + evidence).softmax(-1)


def at(algorithm, tau, clean):
    return algorithm.clock.time(tau.double())[:, None].expand(clean.shape).masked_fill(clean, 1.0)


def dense_jump(algorithm, network, x, clean, tau, tau_to, mask):
    """delta_{s,t} of float32 clock times."""
    latest = torch.maximum(tau.double(), tau_to.double().clamp_max(LATEST))
    t, until = at(algorithm, tau, clean), at(algorithm, latest, clean)
    return dense(network, algorithm.log_prior, x, t, until, tau, tau_to, mask)


def dense_fmlm(algorithm, batch, draws, network):
    split = draws.split(len(batch.tokens), algorithm.diagonal_fraction)
    first, rest = split.parts
    batch = batch.rows(split.order)
    given, onehot = batch.given, one_hot(batch.tokens, V).double()
    clean = given if algorithm.clean_given else torch.zeros_like(given)
    mask = document_mask(batch.documents)
    tau = first.draws.stratified(len(first))
    pairs = draw_time_pairs(len(rest), rest.draws, algorithm.time_pairs, algorithm.boundary_prob)

    def corrupt(part, tau):
        t = at(algorithm, tau, clean[part.rows])
        tokens, seeds = batch.tokens[part.rows], part.draws.rows.seeds(len(part))
        state = Noised(tokens.flatten(), t.flatten(), V, seeds, torch.float64)
        return state.chunk(slice(0, tokens.numel())).view(*tokens.shape, V)

    still, moving = corrupt(first, tau), corrupt(rest, pairs.start)
    s, u, t = (algorithm.clock.time(tau)[:, None, None] for tau in (pairs.start, pairs.middle, pairs.end))
    rows = rest.rows
    with torch.no_grad():
        master, log_prior = algorithm.teacher("teacher"), algorithm.log_prior
        here = at(algorithm, tau, clean[first.rows])
        targets = [onehot[first.rows]]
        if master is not None:
            targets = [dense(master.backbone, log_prior, still, here, here, tau.float(), None, mask[first.rows])]
        ends = [x.float() for x in (pairs.start, pairs.middle, pairs.end)]
        there = dense_jump(algorithm, network, moving, clean[rows], ends[0], ends[1], mask[rows])
        point = torch.where(given[rows][..., None], onehot[rows], there)
        landed = torch.where(clean[rows][..., None], onehot[rows], moving + (u - s) / (1 - s) * (point - moving))
        beyond = dense_jump(algorithm, network, landed, clean[rows], ends[1], ends[2], mask[rows])
        share = semigroup_weight(s, u, t)
        targets.append(share * there + (1 - share) * beyond)
    total = 0.0
    for part, x, target, start, end in zip(
        split.parts, (still, moving), targets, (tau, pairs.start), (tau, pairs.end), strict=True
    ):
        own = dense_jump(algorithm, algorithm.backbone, x, clean[part.rows], start.float(), end.float(), mask[part.rows])
        total = total - ((target * own.clamp_min(1e-300).log()).sum(-1) * batch.weight[part.rows]).sum()
    return total / batch.weight.sum()


@pytest.mark.parametrize("clean_given", [False, True])
@pytest.mark.parametrize("taught,tokens_per_chunk", [(True, 7), (True, 10_000), (False, 7)])
@pytest.mark.parametrize("averaged_targets", [False, True])
def test_loss_and_gradient_equal_dense(clean_given, taught, tokens_per_chunk, averaged_targets, monkeypatch):
    monkeypatch.setitem(flm.posterior.CHUNK_ELEMENTS, "cpu", tokens_per_chunk * V)
    monkeypatch.setattr(flm.paths.evidence, "CELL_ELEMENTS", 5 * V)
    master = teacher(clean_given=clean_given) if taught else None
    algorithm = student(teacher=master, clean_given=clean_given, boundary_prob=3, averaged_targets=averaged_targets)
    network = algorithm.backbone
    if averaged_targets:
        network = rough(copy.deepcopy(network), seed=9)
        algorithm.averaged_weights = {"backbone." + name: p.detach() for name, p in network.named_parameters()}
    parameters = list(algorithm.parameters())
    loss = algorithm.loss(a_batch(), Draws(5, step=3))
    reference = dense_fmlm(algorithm, a_batch(), Draws(5, step=3), network)
    torch.testing.assert_close(loss.total, reference, rtol=0, atol=1e-8)
    got, want = (torch.autograd.grad(x, parameters) for x in (loss.total, reference))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-8)
    assert max(g.abs().max() for g in want) > 1e-2


@torch.no_grad()
def test_it_starts_as_its_teacher_on_the_diagonal():
    algorithm, master = student(same=True, teacher=teacher()), teacher().double()
    x = State((torch.randn(4, L, V, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),))
    tau = torch.tensor([0.0, 0.3, 0.7, 0.995])
    got, want = (model.denoiser()(x, tau).probabilities() for model in (algorithm, master))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    batch = a_batch(64)
    a, b = algorithm.validation_loss(batch, Draws(2)), master.loss(batch, Draws(2))
    torch.testing.assert_close(a.total, b.total)


# The reading --------------------------------------------------------------------------------------------------------


def one_position():
    return ExactWorld((COUNTS[:8] / COUNTS[:8].sum()).tolist())


def toward(world, x, m, m_to):
    s, t = m / (1 + m), m_to / (1 + m_to)
    evidence = LocalEvidence(Held(x[:, 0]), s, world.joint.log(), t)
    return evidence.chunk(slice(0, len(x))).log_softmax(-1)[:, None]


@pytest.mark.parametrize("m,m_to,times", [(0.0, 1.0, 20), (0.0, 2.0, 5), (0.5, 2.0, 5), (1.0, 2.0, 5), (1.5, 3.0, 2.5)])
def test_evidence_toward_the_end_is_near_the_exact_map_without_context(m, m_to, times):
    """Kullback-Leibler from the exact endpoint, in nats, beside that of the evidence at the start."""
    world = one_position()
    m, m_to = (torch.full((2000,), value, dtype=torch.float64) for value in (m, m_to))
    x = world.state(m / (1 + m), torch.Generator().manual_seed(0))
    exact = world.log_delta(x, m, m_to)
    near, still = ((exact.exp() * (exact - q)).sum(-1).mean() for q in (toward(world, x, m, m_to), toward(world, x, m, m)))
    assert 0 <= near * times < still


def test_from_noise_it_is_exact_to_first_order():
    """d delta_{0,t} / dt at t = 0: there the flow has not moved x yet."""
    world, h = one_position(), 1e-4
    zero, small = torch.zeros(5, dtype=torch.float64), torch.full((5,), h, dtype=torch.float64)
    x = world.state(zero, torch.Generator().manual_seed(0))
    want = (world.log_delta(x, zero, small).exp() - world.joint) / h
    got = (toward(world, x, zero, small).exp() - world.joint) / h
    torch.testing.assert_close(got, want, rtol=2e-3, atol=1e-5)
    assert want.abs().max() > 0.05


class ExactMap(EvidenceMap):
    """delta_{s,t} of a world known in full, for states of V numbers."""

    def __init__(self, world):
        super().__init__(torch.nn.Identity(), world.clock, world.joint.log())
        self.world = world

    def jump(self, x, clean, tau, tau_to):
        state = x.chunk(slice(0, clean.numel())).view(*clean.shape, -1)
        m, m_to = (self.world.ratio(at) for at in (tau, tau_to))
        log_p = self.world.log_delta(state, m, m_to, nodes=200)
        return TokenPosterior(log_p, torch.eye(log_p.shape[-1], dtype=torch.float64))


def test_two_jumps_of_the_exact_map_are_one():
    world = ExactWorld([[0.3, 0.05, 0.1], [0.05, 0.2, 0.02], [0.08, 0.05, 0.15]])
    tau = torch.tensor([0.0, 0.1, 0.3, 0.5], dtype=torch.float64)
    middle, end = tau + 0.2, torch.tensor([0.4, 0.75, 0.6, 0.8], dtype=torch.float64)
    x = world.state(tau, torch.Generator().manual_seed(0))
    nothing = torch.zeros(4, 2, dtype=torch.bool)
    given = Given(torch.zeros(4, 2, dtype=torch.long), nothing, False)
    target = two_jumps(ExactMap(world), Held(x.flatten(0, 1)), given, nothing, TimePairs(tau, middle, end))
    want = world.log_delta(x, world.ratio(tau), world.ratio(end), nodes=400).exp()
    # the times of the network are float32
    torch.testing.assert_close(target.chunk(slice(0, 8)).view(4, 2, 3), want, rtol=0, atol=1e-6)


# Where training leads, and what it samples ------------------------------------------------------------------------------


class ExactDenoiser(EvidenceDenoiser):
    def __init__(self, world):
        super().__init__(ToyBackbone(2, 2), world.clock, torch.zeros(2))
        self.world = world

    def predict(self, state, t, tau):
        x = state.chunk(slice(0, t.numel())).view(*t.shape, -1)
        return TokenPosterior(self.world.denoise(x.double(), t[:, 0]).float(), torch.eye(2))


class ExactTeacher(Algorithm):
    reads = "evidence"

    def __init__(self, world):
        super().__init__(world.vocab_size, world.length)
        self.world, self.log_prior = world, torch.zeros(2)

    def denoiser(self):
        return ExactDenoiser(self.world)


class ToyReader(ToyBackbone):
    """What decides between two tokens is read as its logit: near 0 and 1 their probabilities hide it."""

    def forward(self, view, tau, tau_to=None):
        return super().forward(torch.logit(view, 1e-4), tau, tau_to)


def test_training_leads_to_the_exact_flow_map():
    """The same world, steps and bounds as the map that reads views (test_fmlm)."""
    world = correlated()
    torch.manual_seed(0)
    backbone = partial(ToyReader, length=2)
    algorithm = FMLM(
        backbone,
        2,
        2,
        teacher=ExactTeacher(world),
        initialize_student_from_teacher=False,
        boundary_prob=8,
        reads="evidence",
    )
    algorithm.know_frequencies(torch.ones(2))
    before = map_error(algorithm.denoiser(), world)
    train(algorithm, world, 130)
    error = map_error(algorithm.denoiser(), world)
    assert error[:-1].mean() < 0.05 and error[-1] < 0.33
    assert error.mean() < 0.5 * before.mean()


@torch.no_grad()
@pytest.mark.parametrize("gamma", [0.0, 0.6])
def test_sampling_equals_dense_jumps_and_keeps_what_is_given(gamma):
    algorithm, steps = student(clean_given=True), 3
    tokens = torch.randint(V, (3, L), generator=torch.Generator().manual_seed(1))
    editable = torch.ones(3, L, dtype=torch.bool)
    editable[:, :2] = editable[1, 4] = False
    got = algorithm.generate(Canvas(tokens, editable), steps, torch.Generator().manual_seed(4), gamma=gamma)

    generator = torch.Generator().manual_seed(4)
    z = torch.randn(3, L, V, generator=generator, dtype=torch.float64)
    given = one_hot(tokens, V).double()
    tau = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    sigma = 1 - algorithm.clock.time(tau)
    aim = 1 - sigma * (1 - gamma**2) ** 0.5
    for i in range(steps):
        start, end = (x.float().expand(3) for x in (tau[i], algorithm.clock.tau(aim)[i + 1]))
        seen = torch.where(editable[..., None], z, given)
        p = dense_jump(algorithm, algorithm.backbone, seen, ~editable, start, end, None)
        p = torch.where(editable[..., None], p, given)
        if i == steps - 1:
            break
        z = (1 - aim[i + 1]) / sigma[i] * z + (1 - (1 - aim[i + 1]) / sigma[i]) * p
        if gamma:
            noise = torch.randn(3, L, V, generator=generator, dtype=torch.float64)
            z = z + (1 - aim[i + 1] - sigma[i + 1]) * p + gamma * sigma[i + 1] * noise
    assert torch.equal(got, torch.where(editable, p.argmax(-1), tokens))


@pytest.mark.parametrize(
    "make,key",
    [
        (lambda: student(objective="lagrangian"), "algo.reads=evidence is for algo.objective=semigroup"),
        (lambda: FMLM(BACKBONE, V, L, teacher=teacher()), "algo.teacher_path: trained with algo.reads=evidence: give"),
        (lambda: FMLM(BACKBONE, V, L, teacher=FLM(BACKBONE, V, L), reads="evidence"), "trained with algo.reads=view: give"),
        (
            lambda: FLMDistill(BACKBONE, V, L, teacher=teacher()),
            "algo.teacher_path: trained with algo.reads=evidence: algo=fmlm",
        ),
    ],
)
def test_what_does_not_fit_is_refused(make, key):
    with pytest.raises(ValueError, match=key):
        make()
