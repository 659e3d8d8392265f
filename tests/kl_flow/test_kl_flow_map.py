"""KL-flow's flow map: identities of the exact jump, the loss against the dense loss, its teacher, its sampler."""

from functools import partial

import pytest
import torch
from algos.dense_flow_map import dense, rough, small_dit
from algos.exact_world import ExactWorld, ToyBackbone, train
from chi_square import chi_square_limit
from kl_flow.geodesic_world import ExactBackbone, exact_denoiser, exact_map, path_to

import flm.posterior
from flm.algos.algorithm import Batch
from flm.algos.flm import FLM
from flm.draws import Draws
from flm.kl_flow.geodesic_map_sampler import GeodesicMapSampler
from flm.kl_flow.geodesic_sampler import GeodesicSampler
from flm.kl_flow.geodesic_state import Noise, corrupt
from flm.kl_flow.kl_flow import KLFlow
from flm.kl_flow.kl_flow_map import KLFlowMap
from flm.paths.flow_map import TimePairs, draw_time_pairs
from flm.samplers.canvas import Canvas

V, L, B = 7, 5, 6
DOUBLE = {"dtype": torch.float64}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def dependent() -> ExactWorld:
    return ExactWorld([[0.40, 0.03, 0.07], [0.02, 0.20, 0.03], [0.05, 0.05, 0.15]])


def gathered(logits):
    return torch.cat([m for _, m in logits.chunks()])


class Watched:
    """A denoiser that keeps the first and the last state it was asked about."""

    def __init__(self, denoiser):
        self.denoiser, self.first, self.last = denoiser, None, None
        self.path, self.clock, self.dtype = denoiser.path, denoiser.clock, denoiser.dtype

    def __call__(self, state, *times):
        self.first, self.last = self.first or state, state
        return self.denoiser(state, *times)


def centred(m):
    return m - m.mean(-1, keepdim=True)


# The exact jump ---------------------------------------------------------------------------------------------------------


def test_two_exact_jumps_make_the_target_of_the_exact_long_one():
    """The algorithm's own target, from an exact network, equals that network's prediction: 1e-10. So the flow map is its
    fixed point; halves of other lengths too."""
    world = dependent()
    algorithm = KLFlowMap(partial(ToyBackbone, length=2, two_times=True), 3, 2, features="log")
    exact = ExactBackbone(world, algorithm.path, nodes=400)

    class Halves(torch.nn.Module):
        """In float64 times, on a grid that fp32 keeps."""

        input_table = exact.input_table

        def forward(self, view, *times):
            return exact(view, *((64 * t.double()).round() / 64 for t in times))

    algorithm.backbone = Halves()
    starts, middles, ends = (torch.tensor(x, **DOUBLE) / 64 for x in ([0, 8, 32, 0], [32, 12, 50, 4], [64, 40, 64, 60]))
    pairs = TimePairs(starts, middles, ends)
    tokens = world.sample(4, generator(1))
    state = corrupt(tokens, algorithm.clock.time(starts), algorithm.path, range(len(tokens)), None, torch.float64)
    target = algorithm._two_jumps(state, pairs, None).chunk(slice(None))
    long = algorithm.denoiser()(state, starts, ends).chunk(slice(None))
    torch.testing.assert_close(target, long, rtol=0, atol=1e-10)
    short = algorithm.denoiser()(state, starts, starts).chunk(slice(None))
    assert (short - long).abs().max() > 0.05


def test_the_exact_jump_ends_where_small_steps_do():
    """One jump against the flow's own steps of the exponential kind, extrapolated from 300 and 600 of them."""
    world, path, count = dependent(), path_to(7.0, 3), 40
    canvas, reached = Canvas.blank(count, 2), []
    for steps in (300, 600):
        denoiser = Watched(exact_denoiser(world, path, steps))
        GeodesicSampler("basic")(denoiser, canvas, steps, generator())
        reached.append(centred(gathered(denoiser.last.logits)))
        start = denoiser.first
    average = exact_map(world, path, 1, nodes=200)(start, torch.zeros(count, **DOUBLE), torch.ones(count, **DOUBLE))
    m = gathered(start.logits)
    jumped = centred(m + path.signal(path.max_t) * average.chunk(slice(None)))
    assert (jumped - (2 * reached[1] - reached[0])).abs().max() < 4e-3
    sampled = Watched(exact_map(world, path, 1, nodes=200))
    GeodesicMapSampler(read_out="argmax")(sampled, canvas, 1, generator())
    torch.testing.assert_close(centred(gathered(sampled.last.logits)), jumped, rtol=0, atol=1e-9)
    assert (jumped - reached[1]).abs().max() > 5e-3 and (jumped - centred(m)).abs().max() > 3


@pytest.mark.parametrize("options,steps", [({}, 1), ({}, 3), ({"scheme": "sampling"}, 2), ({"read_out": "categorical"}, 1)])
def test_the_exact_map_reproduces_the_joint_in_few_steps(options, steps):
    """Chi-square at level 1e-3, where the flow itself fails in as many steps; renoising included."""
    world, path, count = dependent(), path_to(10.0, 3), 2500
    limit, expected = chi_square_limit(1e-3, 8), world.joint.flatten() * count

    def statistic(tokens):
        counts = torch.bincount(tokens[:, 0] * 3 + tokens[:, 1], minlength=9).double()
        return ((counts - expected) ** 2 / expected).sum()

    sampler = GeodesicMapSampler(**options)
    assert statistic(sampler(exact_map(world, path, steps, 40), Canvas.blank(count, 2), steps, generator(5))) < limit
    few = GeodesicSampler("basic")(exact_denoiser(world, path, steps), Canvas.blank(count, 2), steps, generator(5))
    assert statistic(few) > 2 * limit


# The loss ---------------------------------------------------------------------------------------------------------------


def teacher(**options):
    torch.manual_seed(5)
    return rough(KLFlow(small_dit(V, L, 12), V, L, **options), seed=5)


def student(seed=6, **options):
    torch.manual_seed(seed)
    return rough(KLFlowMap(small_dit(V, L), V, L, **options), seed=seed)


def a_batch():
    g = generator(1)
    return Batch(torch.randint(V, (B, L), generator=g), (torch.rand(B, L, generator=g) > 0.3).float())


@pytest.mark.parametrize("taught", [True, False])
def test_loss_and_gradient_equal_dense_on_the_same_noise(taught, monkeypatch):
    monkeypatch.setitem(flm.posterior.CHUNK_ELEMENTS, "cpu", 4 * V)
    master = teacher() if taught else None
    algorithm = student(teacher=master, initialize_student_from_teacher=False, boundary_prob=None).double()
    batch, parameters = a_batch(), list(algorithm.parameters())
    loss = algorithm.loss(batch, Draws(5, step=3))
    got = torch.autograd.grad(loss.total, parameters)

    draws, path, clock = Draws(5, step=3), algorithm.path, algorithm.clock
    cut = draws.split(B, 0.5)
    batch, parts = batch.rows(cut.order), cut.parts
    tau = parts[0].draws.stratified(len(parts[0]))
    pairs = draw_time_pairs(len(parts[1]), parts[1].draws, "uniform_gap", None)
    one_hot = torch.nn.functional.one_hot(batch.tokens, V).double()

    def noisy(part, tau):
        noise = Noise(part.draws.rows.seeds(len(part)), L, path, torch.device("cpu"), torch.float64)
        return gathered(noise).view(len(part), L, V) + column(path.signal(clock.time(tau))) * one_hot[part.rows]

    def point(m, tau, rows):
        x = torch.softmax((1 - column(clock.time(tau))) * m, -1)
        return torch.where(batch.given[rows][..., None], one_hot[rows], x)

    def column(x):
        return x[:, None, None]

    first, rest = parts[0].rows, parts[1].rows
    still, moving = noisy(parts[0], tau), noisy(parts[1], pairs.start)
    a, b, d = (path.signal(clock.time(x)) for x in (pairs.start, pairs.middle, pairs.end))
    network = algorithm.backbone
    with torch.no_grad():
        p1 = dense(network, point(moving, pairs.start, rest), pairs.start.float(), pairs.middle.float())
        halfway = moving + column(b - a) * p1
        p2 = dense(network, point(halfway, pairs.middle, rest), pairs.middle.float(), pairs.end.float())
        w = column((b - a) / (d - a))
        diagonal = dense(master.backbone, point(still, tau, first), tau.float()) if taught else one_hot[first]
        target = torch.cat([diagonal, w * p1 + (1 - w) * p2])
    x = torch.cat([point(still, tau, first), point(moving, pairs.start, rest)])
    p = dense(network, x, torch.cat([tau, pairs.start]).float(), torch.cat([tau, pairs.end]).float())
    reference = -((target * p.log()).sum(-1) * batch.weight).sum() / batch.weight.sum()
    want = torch.autograd.grad(reference, parameters)
    torch.testing.assert_close(loss.total, reference, rtol=0, atol=1e-6)
    for x, y in zip(got, want, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=2e-6)
    assert max(g.abs().max() for g in want) > 1e-2


def test_a_student_starts_as_its_teacher_wherever_it_is_told_to_go():
    master = teacher(features="sharpened")
    algorithm = KLFlowMap(small_dit(V, L, 12), V, L, teacher=master, features="sharpened")
    state = corrupt(a_batch().tokens, torch.full((B,), 0.2, **DOUBLE), algorithm.path, range(B))
    tau, end = torch.full((B,), 0.4), torch.ones(B)
    want = master.denoiser()(state, tau).probabilities()
    assert torch.equal(algorithm.denoiser()(state, tau, end).probabilities(), want) and want.std() > 0.01
    losses = [model.validation_loss(a_batch(), Draws(2)) for model in (master.eval(), algorithm.eval())]
    torch.testing.assert_close(losses[1].per_sequence, losses[0].per_sequence, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(losses[1].tau, losses[0].tau)


@pytest.mark.parametrize("options", [{"max_t": 0.3}, {"features": "log"}, {"smoothing": 0.1}])
def test_a_teacher_of_another_path_is_refused(options):
    with pytest.raises(ValueError, match="algo.teacher_path"):
        student(teacher=teacher(), **options)
    with pytest.raises(ValueError, match="algo.teacher_path"):
        student(teacher=FLM(small_dit(V, L), V, L))


def test_shares_of_a_batch_that_are_empty():
    for fraction, names in ((0.0, {"jump"}), (1.0, {"diagonal"})):
        loss = student(diagonal_fraction=fraction).loss(a_batch(), Draws(0))
        assert {name.split("_")[0] for name in loss.metrics} == names and loss.total.isfinite()
        assert loss.tau.shape == loss.per_sequence.shape == (B,)


@pytest.mark.parametrize("taught", [pytest.param(True, marks=pytest.mark.slow), False])
def test_training_leads_to_a_map_that_generates_in_one_jump(taught):
    """Two tokens that always agree. One step of the flow as one jump writes many pairs apart; the map, from a teacher or from
    data, few: 1% of tokens are read off wrong at max_t."""
    world, options = ExactWorld([[0.5, 0.0], [0.0, 0.5]]), {"features": "sharpened"}
    master = KLFlow(partial(ToyBackbone, length=2), 2, 2, **options)

    def agreement(algorithm):
        tokens = GeodesicMapSampler()(algorithm.denoiser(), Canvas.blank(500, 2), 1, generator())
        assert 0.4 < tokens[:, 0].double().mean() < 0.6
        return (tokens[:, 0] == tokens[:, 1]).double().mean()

    if taught:
        train(master, world, 200)
        assert agreement(master) < 0.8
    algorithm = KLFlowMap(
        partial(ToyBackbone, length=2), 2, 2, master if taught else None, initialize_student_from_teacher=False, **options
    )
    train(algorithm, world, 400)
    assert agreement(algorithm) > 0.92


# The sampler ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["basic", "sampling", "hybrid"])
@pytest.mark.parametrize("read_out", ["state", "argmax"])
def test_evaluations_are_counted_and_given_positions_stay(scheme, read_out):
    algorithm, canvas, calls, shown = student(), Canvas.from_pieces([[3], 2, [6, 1]], 4), [], []
    algorithm.eval().backbone.register_forward_pre_hook(lambda module, inputs: calls.append(inputs))
    for steps in (1, 3):
        calls.clear(), shown.clear()
        options = {"scheme": scheme, "read_out": read_out}
        tokens = algorithm.generate(canvas, steps, generator(), shown.append, **options)
        assert len(calls) == steps + (read_out == "argmax") == len(shown) == shown[0].steps
        given = ~canvas.editable
        assert torch.equal(tokens[given], canvas.tokens[given])
        for view, *_ in calls:
            assert torch.equal(view[given], algorithm.backbone.input_table[canvas.tokens[given]])
    ends = torch.stack([end for _, _, end in calls])
    if scheme == "sampling":
        assert (ends == 1).all()
    elif read_out == "state" and scheme == "basic":
        torch.testing.assert_close(ends[:, 0], torch.tensor([1 / 3, 2 / 3, 1.0]))
