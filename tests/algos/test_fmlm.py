"""FMLM's loss and gradient against the dense loss, what it evaluates and holds, its teacher, and where training leads."""

import copy
import gc

import pytest
import torch
from algos.dense_flow_map import Evaluations, column, dense, dense_target, rough, small_dit
from algos.exact_world import ExactTeacher, correlated, map_error, toy, train
from algos.test_flm import LiveMemory
from torch.nn.functional import one_hot

import flm.posterior
from flm.algos.algorithm import Algorithm, Batch
from flm.algos.flm import FLM
from flm.algos.flow_map_objectives import OBJECTIVES
from flm.algos.fmlm import FMLM
from flm.algos.losses import LossWeight, apply_loss_weight
from flm.draws import Draws
from flm.paths.flow_map import draw_time_pairs
from flm.paths.gaussian import State
from flm.schema import check

V, L = 7, 3


def teacher(vocab_size=V, length=L, **options):
    torch.manual_seed(5)
    return rough(FLM(small_dit(vocab_size, length, **options), vocab_size, length), seed=5)


def student(vocab_size=V, length=L, width=8, softcap=3.0, **options):
    torch.manual_seed(6)
    algorithm = FMLM(small_dit(vocab_size, length, width, softcap), vocab_size, length, **options)
    rough(algorithm.backbone, seed=6)
    if algorithm.loss_weight is not None:
        rough(algorithm.loss_weight, seed=7, size=0.05)
    return algorithm


def a_batch(size=6, vocab_size=V, length=L):
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(vocab_size, (size, length), generator=generator)
    return Batch(tokens, (torch.rand(size, length, generator=generator) > 0.3).float())


def dense_fmlm(algorithm, batch, draws, network=None):
    """The loss on dense states of the same noise; `network` makes the jumps' targets."""
    network, clock = network or algorithm.backbone, algorithm.clock
    cut = draws.split(len(batch.tokens), algorithm.diagonal_fraction)
    first, rest = cut.parts
    batch = batch.rows(cut.order)
    tokens, master = one_hot(batch.tokens, V).double(), algorithm.teacher("teacher")

    def corrupt(part, tau):
        t = column(clock.time(tau).float().double())
        return t * tokens[part.rows] + (1 - t) * part.draws.normal(len(part), L, V, dtype=torch.float64)

    tau = first.draws.stratified(len(first))
    pairs = draw_time_pairs(len(rest), rest.draws, algorithm.time_pairs, algorithm.boundary_prob)
    still, moving = corrupt(first, tau), corrupt(rest, pairs.start)

    def denoise(x, tau):
        return dense(network, x, tau, tau) if master is None else dense(master.backbone, x, tau)

    with torch.no_grad():
        objective = next(name for name, kind in OBJECTIVES.items() if isinstance(algorithm.objective, kind))
        still_target = tokens[first.rows] if master is None else denoise(still, tau.float().double())

        def point(p):
            return torch.where(batch.given[rest.rows][..., None], tokens[rest.rows], p)

        target = torch.cat([still_target, dense_target(objective, network, clock, moving, pairs, denoise, point)])
    times = torch.cat([tau, pairs.start]).float()
    p = dense(algorithm.backbone, torch.cat([still, moving]), times, torch.cat([tau, pairs.end]).float())
    loss = -(target * p.log()).sum(-1)
    if algorithm.loss_weight is not None:
        w = algorithm.loss_weight(times)[:, None]
        loss = torch.exp(-w) * loss + w
    return (loss * batch.weight).sum() / batch.weight.sum()


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("taught", [True, False])
@pytest.mark.parametrize("options", [{}, {"learnable_loss_weighting": True}, {"averaged_targets": True}], ids=str)
def test_loss_and_gradient_equal_dense_on_the_same_noise(objective, taught, options, monkeypatch):
    """Every parameter's gradient, with the teacher's table of another width. V is small enough for the noise to be dense."""
    monkeypatch.setitem(flm.posterior.CHUNK_ELEMENTS, "cpu", 4 * V)
    master = teacher(width=12) if taught else None
    algorithm = student(
        teacher=master, initialize_student_from_teacher=False, objective=objective, boundary_prob=None, **options
    ).double()
    network = algorithm.backbone
    if "averaged_targets" in options:
        network = rough(copy.deepcopy(network), seed=9)
        algorithm.averaged_weights = {"backbone." + name: p.detach() for name, p in network.named_parameters()}
    parameters = list(algorithm.parameters())
    loss = algorithm.loss(a_batch(), Draws(5, step=3))
    got = torch.autograd.grad(loss.total, parameters)
    reference = dense_fmlm(algorithm, a_batch(), Draws(5, step=3), network)
    want = torch.autograd.grad(reference, parameters)
    torch.testing.assert_close(loss.total, reference, rtol=0, atol=5e-6)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    assert max(g.abs().max() for g in want) > 1e-2
    if not options:
        torch.testing.assert_close(
            (loss.per_sequence * a_batch().weight.sum(1)).sum() / a_batch().weight.sum(), reference.detach()
        )


def test_learned_weight_and_its_gradients_equal_the_formula():
    """exp(-w) loss + w, with w per sequence; also that it starts at w = 0."""
    generator = torch.Generator().manual_seed(0)
    values, w = torch.rand(4, 3, generator=generator), torch.randn(4, generator=generator)
    weight = torch.rand(4, 3, generator=generator)
    assert torch.equal(LossWeight()(torch.rand(4)), torch.zeros(4))
    leaves = [values.requires_grad_(), w.requires_grad_()]

    def loss(constant):
        assert not constant.requires_grad
        return (values * constant).sum(), values.detach()

    total, per_token = apply_loss_weight(w, weight, loss)
    want = ((torch.exp(-w)[:, None] * values + w[:, None]) * weight).sum()
    torch.testing.assert_close(total, want)
    assert torch.equal(per_token, values)
    for a, b in zip(torch.autograd.grad(total, leaves), torch.autograd.grad(want, leaves), strict=True):
        torch.testing.assert_close(a, b)


# What a step evaluates and holds --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "objective,targets,teaching",
    [("semigroup", [6, 6], [2]), ("lagrangian", [6, 6], [2]), ("eulerian", [6], [2, 6])],
)
def test_a_step_evaluates_what_the_mathematics_needs(objective, targets, teaching):
    """Targets without gradient on the jumps alone, the teacher on the diagonal (the Eulerian asks it at the jumps' start as
    well), and one evaluation of everything with gradient. A forward-mode derivative counts as one evaluation."""
    master = teacher()
    algorithm = student(teacher=master, objective=objective, diagonal_fraction=0.25)
    asked, taught = Evaluations(algorithm.backbone), Evaluations(master.backbone)
    algorithm.loss(a_batch(8), Draws(0)).total.backward()
    assert asked.calls == [(n, False) for n in targets] + [(8, True)]
    assert taught.calls == [(n, False) for n in teaching]


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("fraction,size", [(0.0, 4), (1.0, 4), (0.0, 1), (1.0, 1)])
def test_all_diagonal_and_all_jumps(objective, fraction, size):
    """Also a batch of one. What a share of zero would need is not evaluated."""
    master = teacher()
    algorithm = student(teacher=master, objective=objective, diagonal_fraction=fraction)
    asked, taught = Evaluations(algorithm.backbone), Evaluations(master.backbone)
    loss = algorithm.loss(a_batch(size), Draws(0))
    loss.total.backward()
    assert loss.total.isfinite() and all(p.grad.isfinite().all() for p in algorithm.backbone.parameters())
    assert set(loss.metrics) == {"diagonal_nats_per_token" if fraction else "jump_nats_per_token"}
    assert all(n == size for n, _ in asked.calls + taught.calls)
    assert len(asked.calls) == (1 if fraction else 2 if objective == "eulerian" else 3)
    assert len(taught.calls) == (1 if fraction or objective == "eulerian" else 0)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("autocast", [False, True])
def test_a_first_step_from_the_teachers_own_table_is_finite(objective, autocast):
    """Student, average and teacher read the same table: a vocabulary too large for dense noise, whose joint Gram matrix is
    singular. Its targets being what it says already, but for the jumps, the gradient is below that of learning from data."""

    def gradient(**options):
        algorithm = FMLM(small_dit(60, L), 60, L, objective=objective, **options)
        algorithm.backbone.load_state_dict(teacher(60).backbone.state_dict(), strict=False)
        algorithm.averaged_weights = {name: p.detach().clone() for name, p in algorithm.named_parameters()}
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = algorithm.loss(a_batch(32, 60), Draws(0))
        loss.total.backward()
        assert loss.total.isfinite()
        return algorithm.backbone.input_table.grad

    joint, alone = gradient(teacher=teacher(60), averaged_targets=True), gradient()
    assert 0 < joint.norm() < 1.5 * alone.norm()


@pytest.mark.parametrize("size", [1, 3])
def test_small_batches_split_at_the_right_rate(size):
    """A micro-batch of one must not be a jump (or diagonal) for ever."""
    algorithm = student(diagonal_fraction=0.5)
    calls = Evaluations(algorithm.backbone).calls
    for step in range(100):
        algorithm.loss(a_batch(size), Draws(0, step))
    jumps = sum(n for n, with_grad in calls if not with_grad) / 2  # two evaluations a jump
    assert abs(jumps / 100 - size / 2) < 4 * 0.5 / 100**0.5


def test_peak_memory_of_a_step_does_not_hold_the_vocabulary(monkeypatch):
    """Teacher and student together, with two jumps mixed into one target: no (B, L, V) beyond a chunk."""
    chunk, length, size = 2**19, 32, 16
    monkeypatch.setitem(flm.posterior.CHUNK_ELEMENTS, "cpu", chunk)

    def peak(vocab_size, batch):
        algorithm = student(vocab_size, length, 16, teacher=teacher(vocab_size, length, width=16))
        algorithm.loss(a_batch(2, 5, length), Draws(0))
        gc.collect()
        with LiveMemory() as memory:
            algorithm.loss(a_batch(batch, vocab_size, length), Draws(0)).total.backward()
        return memory.peak

    peaks = peak(20_000, size), peak(20_000, 2 * size)
    dense_state = size * length * 20_000 * 4
    assert peaks[0] < dense_state  # tables and their gradients included
    assert peaks[1] - peaks[0] < dense_state / 8  # twice the batch: a little more of everything else


# Teacher and start ----------------------------------------------------------------------------------------------------


def test_the_student_starts_as_its_teacher_wherever_it_is_told_to_go():
    master = teacher()
    algorithm = FMLM(small_dit(V, L), V, L, teacher=master)
    view = torch.randn(5, L, 8, generator=torch.Generator().manual_seed(0))
    tau = torch.rand(5, generator=torch.Generator().manual_seed(1))
    want = master.denoiser()(State((view,)), tau).probabilities()
    for tau_to in (None, tau, (1 + tau) / 2, torch.ones(5)):
        assert torch.equal(algorithm.denoiser()(State((view,)), tau, tau_to).probabilities(), want)
    assert want.std() > 0.05
    # and it has learned to listen after one step
    optimizer = torch.optim.Adam(algorithm.parameters(), 1e-2)
    algorithm.loss(a_batch(), Draws(0)).total.backward()
    optimizer.step()
    there, here = (algorithm.denoiser()(State((view,)), tau, end).probabilities() for end in (torch.ones(5), tau))
    assert (there - here).abs().max() > 1e-5


def test_the_teacher_is_neither_trained_nor_saved():
    master = teacher()
    algorithm = student(teacher=master).train()
    before = copy.deepcopy(master.state_dict())
    optimizer = torch.optim.SGD(algorithm.parameters(), 1.0)
    algorithm.loss(a_batch(), Draws(0)).total.backward()
    optimizer.step()
    assert not master.training
    assert all(p.grad is None and not p.requires_grad for p in master.parameters())
    assert all(torch.equal(value, before[name]) for name, value in master.state_dict().items())
    alone = student()
    assert set(algorithm.state_dict()) == set(alone.state_dict())
    assert {n for n, _ in algorithm.named_parameters()} == {n for n, _ in alone.named_parameters()}
    assert len(list(algorithm.modules())) == len(list(alone.modules()))


def test_the_teacher_moves_with_the_student():
    algorithm = student(teacher=teacher())
    algorithm.double()
    assert {p.dtype for p in algorithm.teacher("teacher").parameters()} == {torch.float64}
    algorithm.to("meta")
    assert {p.device.type for p in algorithm.teacher("teacher").parameters()} == {"meta"}


class NoBackbone(Algorithm):
    pass


@pytest.mark.parametrize(
    "wrong,key",
    [
        (lambda: student(teacher=teacher(V + 1)), "algo.teacher_path"),
        (lambda: student(teacher=teacher(width=12)), "algo.teacher_path"),
        (lambda: student(width=12, teacher=teacher()), "algo.teacher_path"),
        (lambda: student(teacher=NoBackbone(V, L)), "algo.teacher_path"),
        (lambda: check(FMLM, {"objective": "euclid"}, "algo", is_partial=True), "algo.objective"),
        (lambda: check(FMLM, {"time_pairs": "primes"}, "algo", is_partial=True), "algo.time_pairs"),
        (lambda: check(FMLM, {"diagonal_fraction": 1.5}, "algo", is_partial=True), "algo.diagonal_fraction"),
        (lambda: student(averaged_targets=True).loss(a_batch(), Draws(0)), "training.ema"),
    ],
)
def test_mistakes_name_their_key(wrong, key):
    with pytest.raises(ValueError, match=key):
        wrong()


def test_a_teacher_of_another_shape_may_still_teach():
    algorithm = student(width=12, teacher=teacher(), initialize_student_from_teacher=False)
    algorithm.loss(a_batch(), Draws(0)).total.backward()
    assert algorithm.backbone.input_table.grad.abs().sum() > 0


def test_validation_measures_the_denoiser_against_the_data():
    """Two networks that differ in the second time alone, off the diagonal, validate alike; the teacher plays no part."""
    algorithm = student(teacher=teacher())
    alone = student()
    alone.load_state_dict(algorithm.state_dict())
    draws = Draws(3)
    tau = draws.stratified(6)
    t = column(algorithm.clock.time(tau).float())
    noise = draws.normal(6, L, V)
    x = t * one_hot(a_batch().tokens, V) + (1 - t) * noise
    p = dense(algorithm.backbone, x, tau.float(), tau.float())
    ce = -p.log().gather(-1, a_batch().tokens[..., None])[..., 0]
    want = (ce * a_batch().weight).sum() / a_batch().weight.sum()
    for model in (algorithm, alone):
        torch.testing.assert_close(model.validation_loss(a_batch(), Draws(3)).total, want)


# Where training leads -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "objective,steps,tolerance", [("semigroup", 130, 0.05), ("lagrangian", 250, 0.075), ("eulerian", 130, 0.05)]
)
def test_training_leads_to_the_exact_flow_map(objective, steps, tolerance):
    """Mean absolute error of the probabilities, beside that of the denoiser at the start: one Euler step, off by 0.14
    between the times below, and by 0.49 over the whole way, where the exact map is a step function."""
    world = correlated()
    torch.manual_seed(0)
    algorithm = FMLM(
        toy(world),
        2,
        2,
        teacher=ExactTeacher(world),
        initialize_student_from_teacher=False,
        objective=objective,
        boundary_prob=8,
    )
    train(algorithm, world, steps)
    error = map_error(algorithm.denoiser(), world)
    euler = map_error(ExactTeacher(world).denoiser(), world)
    assert error[:-1].mean() < tolerance and euler[:-1].mean() > 0.13
    assert error[-1] < 0.33 and euler[-1] > 0.48
