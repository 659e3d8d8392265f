"""The three schemes of KL-flow: written-out steps, enumerable languages, limits, and what is given."""

import pytest
import torch
from algos.exact_world import ExactWorld
from chi_square import chi_square_limit
from kl_flow.geodesic_world import exact_denoiser, path_to

from flm.kl_flow.geodesic import Geodesic, GeodesicClock
from flm.kl_flow.geodesic_sampler import GeodesicSampler, noised
from flm.kl_flow.geodesic_state import Carried, State, embed
from flm.kl_flow.kl_flow import GeodesicDenoiser
from flm.models.dit import DiT
from flm.posterior import TokenPosterior
from flm.samplers.canvas import Canvas
from flm.schema import check

V, L, B = 7, 6, 3
DOUBLE = {"dtype": torch.float64}
E = torch.tensor([[0.2, 1.0, 0.5, 2.0]], **DOUBLE)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


class Given:
    """Logits that are what they are."""

    def __init__(self, m):
        self.m = m

    def chunks(self):
        yield slice(0, len(self.m)), self.m.clone()


class Constant:
    """Predicts the same distribution everywhere, and keeps the points of the simplex it is shown."""

    def __init__(self, path, p):
        self.path, self.clock, self.dtype, self.seen = path, GeodesicClock(path.max_t), torch.float64, []
        self.p = torch.tensor(p, **DOUBLE)

    def __call__(self, state, tau, tau_to=None):
        table = torch.eye(self.path.vocab_size, **DOUBLE)
        self.seen.append(embed(state, table, "simplex", self.path))
        logits = self.p.log().expand(*state.tokens.shape, -1)
        return TokenPosterior(logits, table)


# Steps written out ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "solver,expected",
    [
        ("euler", [0.064730, 0.334831, 0.138066, 0.462373]),
        ("exponential", [0.063850, 0.329361, 0.137970, 0.468819]),
    ],
)
def test_one_basic_step_written_out(solver, expected):
    """V = 4, beta = 0.1, max_t = 0.5, N = 4, from l = log E with p = (.1 .6 .1 .2)."""
    denoiser = Constant(Geodesic.of(4, 0.5, smoothing=0.1), [0.1, 0.6, 0.1, 0.2])
    canvas = Canvas.blank(1, 1)
    start = State(Given(E.log()), torch.zeros(1, **DOUBLE), canvas.tokens)
    GeodesicSampler("basic", solver=solver).integrate(denoiser, canvas, 4, start, generator())
    torch.testing.assert_close(denoiser.seen[0][0, 0], E[0] / E.sum(), rtol=0, atol=1e-12)
    torch.testing.assert_close(denoiser.seen[1][0, 0], torch.tensor(expected, **DOUBLE), rtol=0, atol=1e-6)
    assert len(denoiser.seen) == 5


def test_one_sampling_step_written_out(monkeypatch):
    """To t' = 0.292893 with fresh E' = (1.5, 0.3, 0.7, 0.9) around token 3."""
    fresh = torch.tensor([[1.5, 0.3, 0.7, 0.9]], **DOUBLE)
    monkeypatch.setattr("flm.kl_flow.geodesic_state.log_noise_", lambda out, *_: out.copy_(fresh.log()))
    path = Geodesic.of(4, 0.5, smoothing=0.1)
    denoiser = Constant(path, [1e-9, 1e-9, 1e-9, 1.0])
    GeodesicSampler("sampling")(denoiser, Canvas.blank(1, 1), 4, generator())
    want = torch.tensor([0.255731, 0.081948, 0.149189, 0.513132], **DOUBLE)
    torch.testing.assert_close(denoiser.seen[2][0, 0], want, rtol=0, atol=1e-6)


@pytest.mark.parametrize("solver", ["euler", "exponential"])
def test_a_step_leaves_along_the_velocity(solver):
    """As steps shrink, the change of l over that of t becomes (c p - l) / (1 - t) up to a constant."""
    path, steps, k = Geodesic.of(5, 0.6), 200_000, 70_000
    times = GeodesicClock(path.max_t).time(torch.linspace(0, 1, steps + 1, **DOUBLE)).tolist()
    t, t_next = times[k], times[k + 1]
    p = torch.softmax(torch.randn(5, generator=generator(), **DOUBLE), -1)
    m = torch.randn(5, generator=generator(1), **DOUBLE)
    keep, gain = GeodesicSampler("basic", solver=solver)._step(path, t, t_next)
    moved = keep * m + gain * p
    rate = ((1 - t_next) * moved - (1 - t) * m) / (t_next - t)
    velocity = (path.gap * p - (1 - t) * m) / (1 - t)
    gap = rate - velocity
    assert (gap - gap.mean()).abs().max() < 1e-4 and velocity.std() > 1


@pytest.mark.parametrize("steps,basic", [(256, 236), (512, 472), (1024, 944)])
def test_where_hybrid_changes_over(steps, basic):
    """Published: t_split = 0.28 of [0, 0.3]; as a share of the clock it is the same for any vocabulary."""
    times = GeodesicClock(0.3).time(torch.linspace(0, 1, steps + 1, **DOUBLE)).tolist()
    assert GeodesicSampler(t_split=0.28).basic_steps(times) == GeodesicSampler().basic_steps(times) == basic
    wide = GeodesicClock(0.45).time(torch.linspace(0, 1, steps + 1, **DOUBLE)).tolist()
    assert GeodesicSampler().basic_steps(wide) == basic
    assert GeodesicSampler(t_split=0.0).basic_steps(times) == GeodesicSampler("sampling").basic_steps(times) == 0
    assert GeodesicSampler(t_split=0.3).basic_steps(times) == GeodesicSampler("basic").basic_steps(times) == steps


# Enumerable languages ---------------------------------------------------------------------------------------------------

SINGLE = [0.30, 0.20, 0.15, 0.12, 0.10, 0.07, 0.04, 0.02]


def dependent() -> ExactWorld:
    """Two tokens of four that depend on each other strongly."""
    joint = torch.distributions.Dirichlet(torch.full((16,), 0.25)).expand(())
    torch.manual_seed(3)
    return ExactWorld((0.98 * joint.sample().double() + 0.02 / 16).view(4, 4).tolist())


def counts_of(world, count, steps, seed=0, **options):
    path = path_to(10.0, world.vocab_size)
    tokens = GeodesicSampler(**options)(
        exact_denoiser(world, path, steps), Canvas.blank(count, world.length), steps, generator(seed)
    )
    index = (tokens * world.vocab_size ** torch.arange(world.length)).sum(-1)
    return torch.bincount(index, minlength=world.vocab_size**world.length).double()


def chi_square(world, counts):
    expected = world.joint.permute(*reversed(range(world.length))).flatten() * counts.sum()
    return ((counts - expected) ** 2 / expected).sum().item()


def entropy(counts):
    return torch.special.entr(counts / counts.sum()).sum().item()


@pytest.mark.parametrize("solver", ["euler", "exponential"])
def test_the_flow_of_token_marginals_reproduces_the_joint(solver):
    """Chi-square at level 1e-3; the product of the marginals, and few steps, are told apart."""
    world, count = dependent(), 4000
    limit = chi_square_limit(1e-3, 15)
    assert chi_square(world, counts_of(world, count, 128, scheme="basic", solver=solver)) < limit
    product = world.joint.sum(1)[:, None] * world.joint.sum(0)[None]
    assert chi_square(world, product.T.flatten() * count) > 20 * limit
    assert chi_square(world, counts_of(world, count, 3, scheme="basic", solver=solver)) > limit


def test_exponential_steps_are_better_than_euler_when_there_are_few():
    world = dependent()
    apart = [chi_square(world, counts_of(world, 4000, 4, scheme="basic", solver=s)) for s in ("exponential", "euler")]
    assert apart[0] < 0.8 * apart[1]


def test_sampling_one_token_is_exact_at_any_number_of_steps_and_top_1_is_not():
    world, limit = ExactWorld(SINGLE), chi_square_limit(1e-3, 7)
    exact = counts_of(world, 10_000, 8, scheme="sampling", read_out="categorical")
    assert chi_square(world, exact) < limit
    truth = torch.special.entr(world.joint).sum().item()
    greedy = counts_of(world, 10_000, 8, scheme="sampling", top_k=1)
    assert abs(entropy(exact) - truth) < 0.03 and entropy(greedy) == pytest.approx(1.496, abs=0.05)
    hybrid = counts_of(world, 10_000, 32, scheme="hybrid", guess="argmax")
    assert abs(entropy(hybrid) - truth) < 0.06


def test_sampling_takes_tokens_for_independent_when_steps_are_few():
    """Entropy too high at 2 steps, right at 128."""
    world = dependent()
    truth = torch.special.entr(world.joint).sum().item()
    few, many = (entropy(counts_of(world, 4000, n, scheme="sampling", read_out="categorical")) for n in (2, 128))
    assert few > truth + 0.12 and abs(many - truth) < 0.06


def test_infilling_draws_from_the_conditional():
    """The second token given the first, by all schemes: clean evidence is certain, at every time."""
    world, path, count = dependent(), path_to(10.0, 4), 2000
    canvas = Canvas.from_pieces([[2], 1], count)
    expected = world.joint[2] / world.joint[2].sum() * count
    for scheme, read_out in (("basic", "argmax"), ("sampling", "categorical"), ("hybrid", "argmax")):
        sampler = GeodesicSampler(scheme, read_out=read_out)
        tokens = sampler(exact_denoiser(world, path, 48), canvas, 48, generator(1))
        assert (tokens[:, 0] == 2).all()
        counts = torch.bincount(tokens[:, 1], minlength=4).double()
        assert ((counts - expected) ** 2 / expected).sum() < chi_square_limit(1e-3, 3), scheme


# Limits and what is given -----------------------------------------------------------------------------------------------


class Tiny(GeodesicDenoiser):
    """A random network; keeps the views it was shown."""

    def __init__(self, seed=0, features="simplex"):
        torch.manual_seed(seed)
        backbone = DiT(V, L, 16, 2, 2, cond_dim=8, dropout=0.0).double().eval()
        with torch.no_grad():
            for parameter in backbone.parameters():
                parameter.add_(0.5 * torch.randn_like(parameter))
        path = Geodesic.of(V, 0.5)
        super().__init__(backbone, path, GeodesicClock(path.max_t), features)
        self.seen = []

    def __call__(self, state, tau, tau_to=None):
        self.seen.append(self.view(state))
        return self.backbone(self.seen[-1], tau.double())


HOLES = Canvas.from_pieces([[3], 2, [6, 1], 1], B)


def run(canvas=HOLES, steps=9, seed=4, **options):
    denoiser = Tiny()
    return GeodesicSampler(**options)(denoiser, canvas, steps, generator(seed)), denoiser


def test_hybrid_at_its_ends_is_the_pure_schemes_bit_for_bit():
    for pure, split in (("sampling", 0.0), ("basic", 0.5)):
        a, first = run(scheme=pure)
        b, second = run(scheme="hybrid", t_split=split)
        assert torch.equal(a, b)
        assert all(torch.equal(x, y) for x, y in zip(first.seen, second.seen, strict=True))
    mixed = run(scheme="hybrid", t_split=0.25)[1].seen
    pure = [run(scheme=scheme)[1].seen for scheme in ("basic", "sampling")]
    assert torch.equal(mixed[1], pure[0][1]) and not torch.equal(mixed[-1], pure[0][-1])
    assert torch.equal(pure[0][0], pure[1][0])  # all schemes begin at the same noise


def test_top_1_is_the_arg_max(monkeypatch):
    """Whatever the temperature; it takes as many random numbers as any other draw."""
    tokens, _ = run(scheme="sampling", top_k=1, temperature=5.0)
    assert not torch.equal(tokens, run(scheme="sampling", temperature=5.0)[0])

    def greedy(self, generator):
        torch.rand(self.shape.numel(), 1, generator=generator, dtype=torch.float64)
        return self.argmax()

    monkeypatch.setattr(TokenPosterior, "draw", greedy)
    assert torch.equal(tokens, run(scheme="sampling")[0])
    monkeypatch.undo()
    cold, warm = (run(scheme="sampling", guess="argmax", temperature=t)[0] for t in (1.0, 5.0))
    assert torch.equal(cold, warm)


@pytest.mark.parametrize("scheme", ["basic", "sampling", "hybrid"])
def test_given_positions_are_clean_at_every_evaluation_and_in_the_end(scheme):
    tokens, denoiser = run(scheme=scheme, seed=5)
    given = ~HOLES.editable
    assert len(denoiser.seen) == 10  # N + 1 evaluations
    for view in denoiser.seen:
        assert torch.equal(view[given], denoiser.backbone.input_table[HOLES.tokens[given]])
        assert not torch.equal(view[~given], denoiser.backbone.input_table[HOLES.tokens[~given]])
    assert torch.equal(tokens[given], HOLES.tokens[given])
    assert len({tuple(row) for row in tokens.tolist()}) > 1


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_steps_are_honoured_and_shown(steps):
    for scheme in ("basic", "sampling", "hybrid"):
        shown, denoiser = [], Tiny()
        tokens = GeodesicSampler(scheme)(denoiser, HOLES, steps, generator(), shown.append)
        assert len(denoiser.seen) == steps + 1 == len(shown) == shown[0].steps
        assert [m.index for m in shown] == list(range(steps + 1))
        assert shown[-1].tau == 1.0 and torch.equal(shown[-1].tokens(), tokens)


def test_the_basic_scheme_is_deterministic_given_its_noise_and_temperature_counts():
    denoiser = Tiny()
    start = noised(HOLES, HOLES.tokens, torch.zeros(()), denoiser, generator(7))
    sampler = GeodesicSampler("basic")
    a, b = (sampler.integrate(denoiser, HOLES, 6, start, generator(seed)) for seed in (0, 1))
    assert torch.equal(a, b)
    views = denoiser.seen[6].clone()
    GeodesicSampler("basic", temperature=0.5).integrate(denoiser, HOLES, 6, start, generator())
    assert not torch.equal(denoiser.seen[-1], views)


def test_the_state_of_the_sampling_scheme_is_a_recipe():
    """Nothing of size V a position is held between its steps."""
    states = []

    class Watch(Tiny):
        def __call__(self, state, tau, tau_to=None):
            states.append(state)
            return super().__call__(state, tau)

    GeodesicSampler("sampling")(Watch(), HOLES, 4, generator())
    assert not any(isinstance(state.logits, Carried) for state in states)
    states.clear()
    GeodesicSampler("basic")(Watch(), HOLES, 4, generator())
    assert isinstance(states[-1].logits, Carried) and states[1].logits is states[-1].logits


def test_bad_options_name_their_key():
    for options, key in (
        ({"scheme": "ode"}, "sampling.scheme"),
        ({"solver": "heun"}, "sampling.solver"),
        ({"t_split": -1.0}, "sampling.t_split"),
        ({"scheme": "basic", "t_split": 0.1}, "sampling.t_split"),
        ({"scheme": "basic", "guess": "argmax"}, "sampling.guess"),
        ({"top_k": 0}, "sampling.top_k"),
        ({"top_p": 0.0}, "sampling.top_p"),
        ({"temperature": -0.1}, "sampling.temperature"),
        ({"read_out": "state"}, "sampling.read_out"),
    ):
        with pytest.raises(ValueError, match=key):
            check(GeodesicSampler, options, "sampling")
            GeodesicSampler(**options)
    with pytest.raises(ValueError, match="sampling.steps"):
        GeodesicSampler()(Tiny(), HOLES, 0, generator())
