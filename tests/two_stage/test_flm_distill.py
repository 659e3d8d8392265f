"""Both stages of the residual distillation against V-dimensional squared errors, and where training leads."""

import copy
from functools import partial

import pytest
import torch
from algos.dense_flow_map import Evaluations, column, dense, dense_jump, physical, raw_output, rough, small_dit, told
from algos.exact_world import ExactBackbone, correlated, map_error, toy, train
from torch.nn.functional import one_hot

import flm.posterior
from flm import schema
from flm.algos.algorithm import Algorithm, Batch
from flm.algos.flm import FLM
from flm.algos.losses import summed
from flm.draws import Draws
from flm.paths.flow_map import draw_time_pairs
from flm.paths.gaussian import State, step
from flm.samplers.canvas import Canvas
from flm.samplers.fresh_noise import FlowMapSampler
from flm.samplers.options import sampler_for
from flm.two_stage.flm_distill import FLMDistill
from flm.two_stage.flm_distill_second import FLMDistillSecond
from flm.vocabulary_losses import cross_entropy

V, L, B = 7, 3, 6


def teacher(vocab_size=V, **options):
    torch.manual_seed(5)
    return rough(FLM(small_dit(vocab_size, L, **options), vocab_size, L), seed=5)


def first_stage(dtype=torch.float32, disturbed=True, **options):
    torch.manual_seed(6)
    algorithm = FLMDistill(small_dit(V, L), V, L, teacher=teacher(), **options)
    if disturbed:
        rough(algorithm.residual, seed=6, size=0.3)
    if algorithm.loss_weight is not None:
        rough(algorithm.loss_weight, seed=7, size=0.05)
    return algorithm.to(dtype)


def second_stage(dtype=torch.float32, **options):
    torch.manual_seed(8)
    pair = first_stage(disturbed=True)
    algorithm = FLMDistillSecond(small_dit(V, L), V, L, teacher_g=pair, **options)
    rough(algorithm.backbone, seed=8, size=0.2)
    if algorithm.loss_weight is not None:
        rough(algorithm.loss_weight, seed=7, size=0.05)
    return algorithm.to(dtype)


def a_batch():
    generator = torch.Generator().manual_seed(1)
    return Batch(torch.randint(V, (B, L), generator=generator), (torch.rand(B, L, generator=generator) > 0.3).float())


def residual_jump(f, g, x, tau_s, tau_t, s, t):
    """x + (t-s) v + (t-s)^2/2 g with v = (f - x)/(1-s), in V dimensions."""
    velocity = (dense(f, x, tau_s) - x) / column(1 - s)
    correction = raw_output(g(x @ g.input_table, tau_s, tau_t))
    return x + column(t - s) * velocity + column((t - s) ** 2 / 2) * correction


def dense_loss(algorithm, batch, draws, jumps):
    """Squared error of two V-dimensional jumps; jumps(x, times) gives the trained one and its target."""
    pairs = draw_time_pairs(B, draws, algorithm.time_pairs, algorithm.boundary_prob)
    dtype = next(algorithm.parameters()).dtype
    s, u, t = physical(algorithm.clock, pairs)
    noise = draws.normal(B, L, V, dtype=dtype)
    at = column(s.float()).to(dtype)
    x = at * one_hot(batch.tokens, V) + (1 - at) * noise
    moved, target = jumps(x, [time.to(dtype) for time in (*told(pairs), s, u, t)])
    loss = (moved - target.detach()).square().sum(-1)
    if algorithm.loss_weight is not None:
        w = algorithm.loss_weight(pairs.start.float())[:, None]
        loss = torch.exp(-w) * loss + w
    return (loss * batch.weight).sum() / batch.weight.sum(), pairs


def check(algorithm, jumps, tolerance):
    parameters = [p for p in algorithm.parameters() if p.requires_grad]
    loss = algorithm.loss(a_batch(), Draws(5, step=3))
    got = torch.autograd.grad(loss.total, parameters)
    reference, pairs = dense_loss(algorithm, a_batch(), Draws(5, step=3), jumps)
    want = torch.autograd.grad(reference, parameters, allow_unused=True)
    torch.testing.assert_close(loss.total, reference, rtol=tolerance, atol=tolerance)
    scale = max(g.abs().max() for g in want if g is not None)
    assert scale > 1e-2 and ((pairs.start == 0) & (pairs.end == 1)).any()
    for a, b in zip(got, want, strict=True):
        b = torch.zeros_like(a) if b is None else b
        torch.testing.assert_close(a / scale, b / scale, rtol=0, atol=10 * tolerance)


PRECISIONS = [(torch.float64, 1e-6), (torch.float32, 1e-5)]


@pytest.mark.parametrize("weighting", [False, True])
@pytest.mark.parametrize("dtype,tolerance", PRECISIONS)
def test_first_stage_equals_the_squared_error_of_dense_jumps(dtype, tolerance, weighting, monkeypatch):
    """One jump against two halves of its own, states and noise in V dimensions: the noise cancels."""
    monkeypatch.setitem(flm.posterior.CHUNK_ELEMENTS, "cpu", 4 * V)
    algorithm = first_stage(dtype, learnable_loss_weighting=weighting, boundary_prob=4)
    f, g = algorithm.base, algorithm.residual

    def jumps(x, times):
        tau_s, tau_u, tau_t, s, u, t = times
        with torch.no_grad():
            halfway = residual_jump(f, g, x, tau_s, tau_u, s, u)
            known = dense_jump(x, one_hot(a_batch().tokens, V).to(x), s, u)  # what is given stays on its path
            halfway = torch.where(a_batch().given[..., None], known, halfway)
            target = residual_jump(f, g, halfway, tau_u, tau_t, u, t)
        return residual_jump(f, g, x, tau_s, tau_t, s, t), target

    check(algorithm, jumps, tolerance)


@pytest.mark.parametrize("weighting", [False, True])
@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("dtype,tolerance", PRECISIONS)
def test_second_stage_equals_the_squared_error_of_dense_jumps(dtype, tolerance, separate, weighting, monkeypatch):
    """The student's jump against that of the pair; f from its own checkpoint, or the copy inside g."""
    monkeypatch.setitem(flm.posterior.CHUNK_ELEMENTS, "cpu", 4 * V)
    other = teacher() if separate else None
    algorithm = second_stage(dtype, teacher_f=other, learnable_loss_weighting=weighting, boundary_prob=4)
    if separate:  # another FLM would have been refused; from here on it is told from the copy
        rough(algorithm.teacher("teacher_f"), seed=11, size=0.1)
    f = algorithm.teacher("teacher_f").backbone if separate else algorithm.teacher("teacher_g").base
    g = algorithm.teacher("teacher_g").residual

    def jumps(x, times):
        tau_s, _, tau_t, s, _, t = times
        with torch.no_grad():
            target = residual_jump(f, g, x, tau_s, tau_t, s, t)
        return dense_jump(x, dense(algorithm.backbone, x, tau_s, tau_t), s, t), target

    check(algorithm, jumps, tolerance)


def test_the_pair_jumps_by_the_second_order_formula():
    algorithm = first_stage(torch.float64)
    f, g, denoiser = algorithm.base, algorithm.residual, algorithm.denoiser()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(B, L, V, generator=generator, dtype=torch.float64)
    tau, tau_to = torch.rand(2, B, generator=generator, dtype=torch.float64).sort(0).values
    s, t = algorithm.clock.time(tau), algorithm.clock.time(tau_to)
    state = State(tuple(x @ table for table in denoiser.tables))
    posterior = denoiser(state, tau, tau_to)
    landed = step(state, State(posterior.expected(denoiser.tables)), s, t)
    want = residual_jump(f, g, x, tau, tau_to, s, t)
    for view, table in zip(landed.views, denoiser.tables, strict=True):
        torch.testing.assert_close(view, want @ table, rtol=0, atol=1e-12)


def test_the_first_stage_samples_with_both_networks():
    """Whole trajectories of dense jumps; at the end the arg-max of the state is that of f + (1-s)^2/2 g."""
    algorithm = first_stage(torch.float64)
    f, g, denoiser = algorithm.base, algorithm.residual, algorithm.denoiser()
    noise = torch.randn(50, L, V, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for steps in (1, 3):
        start = State(tuple(noise @ table for table in denoiser.tables))
        got = FlowMapSampler().integrate(denoiser, Canvas.blank(50, L), steps, start, torch.Generator())
        taus = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        x = noise
        for tau, tau_to in zip(taus, taus[1:], strict=False):
            told = [time.float().double().expand(50) for time in (tau, tau_to)]
            x = residual_jump(f, g, x, *told, *(algorithm.clock.time(time) for time in told))
        assert torch.equal(got, x.argmax(-1)) and got.unique().numel() > 1
    with pytest.raises(ValueError, match="sampling.temperature"):
        sampler_for(algorithm, {"temperature": 0.5}, "sampling")  # a sum of predictions has no logits


# What a step evaluates, and what it leaves alone ----------------------------------------------------------------------


def test_the_first_stage_evaluates_five_times():
    algorithm = first_stage()
    f, g = Evaluations(algorithm.base), Evaluations(algorithm.residual)
    algorithm.loss(a_batch(), Draws(0)).total.backward()
    assert f.calls == [(B, False)] * 2
    assert g.calls == [(B, False)] * 2 + [(B, True)]


def test_the_second_stage_evaluates_three_times():
    algorithm = second_stage()
    pair = algorithm.teacher("teacher_g")
    f, g, own = Evaluations(pair.base), Evaluations(pair.residual), Evaluations(algorithm.backbone)
    algorithm.loss(a_batch(), Draws(0)).total.backward()
    assert f.calls == g.calls == [(B, False)] and own.calls == [(B, True)]


def test_the_first_stage_starts_as_the_denoiser_and_can_leave_it():
    algorithm = first_stage(disturbed=False)
    view = torch.randn(B, L, 8, generator=torch.Generator().manual_seed(0))
    tau = torch.rand(B, generator=torch.Generator().manual_seed(1))
    f = algorithm.teacher("teacher").denoiser()(State((view,)), tau).probabilities().flatten(0, 1)
    for tau_to in (tau, (1 + tau) / 2, torch.ones(B)):
        found = algorithm.denoiser()(State((view, view)), tau, tau_to).chunk(slice(None))
        torch.testing.assert_close(found, f, rtol=1e-6, atol=0)
    algorithm.loss(a_batch(), Draws(0)).total.backward()
    assert algorithm.residual.output_layer.linear.weight.grad.abs().max() > 1e-4


@pytest.mark.parametrize("stage", [first_stage, second_stage])
def test_frozen_networks_stay_as_they_are(stage):
    """Without dropout, bit for bit, before train() is ever called and after."""
    algorithm = stage()
    pair = algorithm if stage is first_stage else algorithm.teacher("teacher_g")
    frozen = [algorithm.base] if stage is first_stage else [pair.base, pair.residual]
    trained = algorithm.residual if stage is first_stage else algorithm.backbone
    before, started = copy.deepcopy(frozen), copy.deepcopy(trained)
    assert not any(network.training for network in frozen)
    algorithm.train()
    optimizer = torch.optim.SGD([p for p in algorithm.parameters() if p.requires_grad], 0.1)
    for i in range(3):
        optimizer.zero_grad()
        algorithm.loss(a_batch(), Draws(0, i)).total.backward()
        optimizer.step()
    assert trained.training and not any(network.training for network in frozen)
    for network, old in zip(frozen, before, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(network.parameters(), old.parameters(), strict=True))
        assert all(p.grad is None for p in network.parameters())
    assert not any(torch.equal(a, b) for a, b in zip(trained.parameters(), started.parameters(), strict=True) if a.ndim == 2)


def test_each_stage_saves_what_it_samples_with():
    """The first stage its f beside g; the second neither."""
    one, two = first_stage(), second_stage(learnable_loss_weighting=True)
    assert {name.split(".")[0] for name in one.state_dict()} == {"base", "residual", "loss_weight"}
    assert {name.split(".")[0] for name in two.state_dict()} == {"backbone", "loss_weight"}
    empty = FLMDistill(small_dit(V, L), V, L)
    empty.load_state_dict(one.state_dict())
    state = State(tuple(torch.randn(2, B, L, 8, generator=torch.Generator().manual_seed(0))))
    tau, tau_to = torch.full((B,), 0.3), torch.full((B,), 0.8)
    got, want = (model.denoiser()(state, tau, tau_to).chunk(slice(None)) for model in (empty.eval(), one.eval()))
    assert torch.equal(got, want)


class NoBackbone(Algorithm):
    pass


@pytest.mark.parametrize(
    "wrong,key",
    [
        (lambda: FLMDistill(small_dit(V, L), V, L, teacher=teacher(V + 1)), "algo.teacher_path"),
        (lambda: FLMDistill(small_dit(V, L, width=12), V, L, teacher=teacher()), "algo.teacher_path"),
        (lambda: FLMDistill(small_dit(V, L), V, L, teacher=NoBackbone(V, L)), "algo.teacher_path"),
        (lambda: schema.check(FLMDistill, {"time_pairs": "primes"}, "algo", is_partial=True), "algo.time_pairs"),
        (lambda: FLMDistillSecond(small_dit(V, L), V, L, teacher_g=teacher()), "algo.teacher_g_path"),
        (lambda: FLMDistillSecond(small_dit(V, L), V, L).check_ready(), "algo.teacher_g_path"),
        (lambda: second_stage(teacher_f=NoBackbone(V, L)), "algo.teacher_f_path"),
        (lambda: schema.check(FLMDistillSecond, {"time_pairs": "primes"}, "algo", is_partial=True), "algo.time_pairs"),
    ],
)
def test_mistakes_name_their_key(wrong, key):
    with pytest.raises(ValueError, match=key):
        wrong()


# Where training leads -------------------------------------------------------------------------------------------------


class Taught(FLM):
    """A denoiser that learns from the exact one, without the noise of sampled tokens."""

    def loss(self, batch, draws):
        tau = draws.stratified(len(batch.tokens))
        view = self.world.state(tau, draws.local).float()
        exact = ExactBackbone(self.world).float()(view, tau)
        total, per_token = cross_entropy(self.backbone(view, tau.float()), exact, batch.weight)
        return summed(total, per_token, batch.weight, tau)


def test_both_stages_lead_from_a_denoiser_to_the_exact_map():
    """Mean absolute error of the probabilities beside that of the denoiser alone, one Euler step. The last is over the whole
    way. Both go on falling with more steps."""
    world = correlated()
    torch.manual_seed(0)
    denoiser = Taught(toy(world), 2, 2)
    denoiser.world = world
    train(denoiser, world, 200)
    first = FLMDistill(toy(world), 2, 2, teacher=denoiser)
    euler = map_error(first.denoiser(), world)
    train(first, world, 150, lr=3e-3)
    second = FLMDistillSecond(toy(world), 2, 2, teacher_g=first)
    train(second, world, 150)
    assert euler[:-1].mean() > 0.12 and euler[-1] > 0.45
    for stage in (first, second):
        error = map_error(stage.denoiser(), world)
        assert error[:-1].mean() < 0.075 and error[-1] < 0.25


def test_a_teacher_that_computes_differently_with_the_same_weights_is_refused():
    """Shapes agree; heads, softcap or time scale do not."""
    known = teacher()
    for options in ({"output_softcap": 1.0}, {"time_scale": 100.0}, {"num_heads": 1}):
        backbone = small_dit(V, L)
        changed = partial(backbone.func, **(backbone.keywords | options))
        with pytest.raises(ValueError, match="algo.teacher_path.*num_heads, softcaps"):
            FLMDistill(changed, V, L, teacher=known)
