"""Masked samplers against their laws, worked out state by state, and against the data's own where they must give it."""

import pytest
import torch
from algos.masked_world import exact_mdlm, sampler_law
from chi_square import chi_square_limit

from flm.paths.mixture import Cosine, LogLinear, Polynomial
from flm.samplers.canvas import Canvas
from flm.samplers.masked import CarriedOver
from flm.samplers.masked_remasking import LoopingSampler
from flm.samplers.options import sampler_for
from flm.samplers.solvers import MASK_SOLVERS as SOLVERS

LEVEL = 1e-3  # of each chi-square test; seeds are fixed
COUNT = 10_000
PAIR = [[0.45, 0.05], [0.15, 0.35]]
CUBE = (torch.rand(3, 3, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64) ** 2 + 0.05).tolist()
CUBE = (torch.tensor(CUBE, dtype=torch.float64) / torch.tensor(CUBE).sum()).tolist()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def statistic(tokens, law):
    """Chi-square of sequences (N, L) against their law (V,) * L, and its degrees of freedom."""
    flat = torch.zeros(len(tokens), dtype=torch.long)
    for column in tokens.T:
        flat = flat * law.shape[0] + column
    found, expected = torch.bincount(flat, minlength=law.numel()).double(), law.flatten() * len(tokens)
    possible = expected > 1e-6
    assert found[~possible].sum() == 0 and expected[possible].min() > 5
    return ((found - expected)[possible] ** 2 / expected[possible]).sum().item(), int(possible.sum()) - 1


def follows(tokens, law):
    value, degrees = statistic(tokens, law)
    return value < chi_square_limit(LEVEL, degrees)


def grid(schedule, steps):
    return schedule.kappa(torch.linspace(0, 1, steps + 1, dtype=torch.float64)).tolist()


@pytest.mark.parametrize("schedule", [LogLinear(), Polynomial(2.0), Cosine()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_ancestral_draws_follow_their_law(schedule, steps):
    model = exact_mdlm(PAIR, schedule=schedule)
    tokens = model.generate(Canvas.blank(COUNT, 2), steps, generator(steps))
    law = sampler_law(PAIR, grid(schedule, steps))
    assert law.sum().item() == pytest.approx(1)
    assert follows(tokens, law)
    if steps == 1:  # both at once, independently: the product of marginals, far from the data
        joint = torch.tensor(PAIR, dtype=torch.float64)
        torch.testing.assert_close(law, joint.sum(1)[:, None] * joint.sum(0))
        assert not follows(tokens, joint)


def test_with_many_steps_they_follow_the_data():
    tokens = exact_mdlm(CUBE).generate(Canvas.blank(COUNT, 3), 300, generator(1))
    data = torch.tensor(CUBE, dtype=torch.float64)
    assert follows(tokens, data)
    assert not follows(exact_mdlm(CUBE).generate(Canvas.blank(COUNT, 3), 1, generator(1)), data)


@pytest.mark.parametrize("solver", ["top_probability", "top_margin", "low_entropy"])
def test_any_order_of_confidence_is_exact_one_position_at_a_time(solver):
    model, data = exact_mdlm(CUBE), torch.tensor(CUBE, dtype=torch.float64)
    for steps in (3, 7):
        assert follows(model.generate(Canvas.blank(COUNT, 3), steps, generator(steps), solver=solver), data)


SURENESS = {
    "top_probability": lambda p: p.max().item(),
    "top_margin": lambda p: (p.sort().values[-1] - p.sort().values[-2]).item(),
    "low_entropy": lambda p: (p * p.log()).sum().item(),
}


@pytest.mark.parametrize("solver", SURENESS)
def test_the_surest_is_written_first(solver):
    """One of three positions in the first step, the others in the second: which one tells the three orders apart."""
    a, b, c = torch.tensor([[0.6, 0.3, 0.1], [0.54, 0.23, 0.23], [0.5, 0.44, 0.06]], dtype=torch.float64)
    d = torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64)  # dependence that leaves the marginals as they are
    joint = sum(torch.einsum("i,j,k->ijk", *x) for x in ((a, b, c), (0.04 * d, d, c), (a, 0.05 * d, d))).tolist()

    def law(name):
        surest = lambda laws: max(laws, key=lambda j: SURENESS[name](laws[j]))
        return sampler_law(joint, [0, 0.25, 1], order=lambda laws, step: [surest(laws)] if step == 0 else list(laws))

    model = exact_mdlm(joint, schedule=Polynomial(2.0))  # 3 * (1 - 0.25) rounds to 2 masks after the first step
    tokens = model.generate(Canvas.blank(COUNT, 3), 2, generator(2), solver=solver)
    for name in SURENESS:
        assert follows(tokens, law(name)) == (name == solver)


@pytest.mark.parametrize(
    "solver, sigma", [("remask_cap", lambda eta, most: min(eta, most)), ("remask_rescale", lambda eta, most: eta * most)]
)
@pytest.mark.parametrize("remasking", [0.3, 1.0])
def test_remasking_draws_follow_their_law(solver, sigma, remasking):
    kappas = grid(LogLinear(), 4)
    sigmas = [sigma(remasking, min(1.0, (1 - b) / a)) for a, b in zip(kappas, kappas[1:], strict=False)]
    law = sampler_law(PAIR, kappas, sigmas)
    tokens = exact_mdlm(PAIR).generate(Canvas.blank(COUNT, 2), 4, generator(3), solver=solver, remasking=remasking)
    assert follows(tokens, law)
    if remasking == 1.0:  # the test tells it from sampling without
        assert not follows(tokens, sampler_law(PAIR, kappas))


def test_remasking_keeps_what_is_given_and_the_share_that_is_known():
    model, shares = exact_mdlm(CUBE), []
    canvas = Canvas.from_pieces([1, [2], 1], COUNT)
    tokens = model.generate(
        canvas, 6, generator(4), lambda m: shares.append((~m.masked)[:, [0, 2]].double().mean().item()),
        solver="remask_rescale", remasking=0.7,
    )  # fmt: skip
    kappas = grid(LogLinear(), 6)
    assert (tokens[:, 1] == 2).all()
    # one row of 40,000 positions; they start from nothing known, not from kappa(0) = eps
    assert max(abs(share - kappa) for share, kappa in zip(shares, kappas[1:], strict=True)) < 4 * (0.25 / (2 * COUNT)) ** 0.5
    sigmas = [0.7 * min(1.0, (1 - b) / a) for a, b in zip(kappas, kappas[1:], strict=False)]
    assert follows(tokens, sampler_law(CUBE, kappas, sigmas, start=(3, 2, 3)))


def test_the_loop_holds_its_share_and_follows_its_law():
    sampler, steps, remasking = LoopingSampler(remasking=0.05), 20, 0.05
    kappas = sampler.kappas(LogLinear(), steps).tolist()
    assert kappas[0] == 0 and kappas[9] == kappas[10] == kappas[18] == 0.9 and kappas[20] == 1
    assert kappas[1] == pytest.approx(0.1) and kappas[19] == pytest.approx(0.9)
    sigmas = [remasking if a == b else 0.0 for a, b in zip(kappas, kappas[1:], strict=False)]
    assert sum(sigma > 0 for sigma in sigmas) >= 9
    tokens = exact_mdlm(PAIR).generate(Canvas.blank(COUNT, 2), steps, generator(6), solver="remask_loop", remasking=remasking)
    assert follows(tokens, sampler_law(PAIR, kappas, sigmas))


def test_holes_are_filled_given_the_rest():
    model = exact_mdlm(CUBE)
    canvas = Canvas.from_pieces([1, [2], 1], COUNT)
    for solver, steps in (("ancestral", 300), ("low_entropy", 2)):
        tokens = model.generate(canvas, steps, generator(5), solver=solver)
        joint = torch.tensor(CUBE, dtype=torch.float64)[:, 2]
        assert (tokens[:, 1] == 2).all() and follows(tokens[:, [0, 2]], joint / joint.sum())


def test_temperature_and_truncation_act_on_each_draw():
    law = sampler_law(PAIR, grid(LogLinear(), 3), temperature=0.5)
    tokens = exact_mdlm(PAIR).generate(Canvas.blank(COUNT, 2), 3, generator(7), temperature=0.5)
    assert follows(tokens, law) and not follows(tokens, sampler_law(PAIR, grid(LogLinear(), 3)))
    greedy = exact_mdlm(PAIR).generate(Canvas.blank(50, 2), 300, generator(8), top_k=1)
    assert {tuple(row) for row in greedy.tolist()} <= {(0, 0), (1, 1)}  # the second token follows the first
    nucleus = exact_mdlm(PAIR).generate(Canvas.blank(500, 2), 300, generator(8), top_p=0.85)
    assert {tuple(row) for row in nucleus.tolist()} == {(0, 0), (1, 0), (1, 1)}  # 0.05 / 0.5 and 0.05 / 0.4 are cut


class Counting:
    """A denoiser that counts its calls and the sequences it reads, and holds that no other state was shown."""

    def __init__(self, model):
        self.inner = model.denoiser()
        self.source, self.schedule = self.inner.source, self.inner.schedule
        self.rows: list[int] = []

    def __call__(self, tokens, t):
        self.rows.append(len(tokens))
        return self.inner(tokens, t)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("steps", [1, 2, 3, 8, 200])
def test_no_mask_is_left_and_the_given_stays(solver, steps):
    model = exact_mdlm(CUBE)
    given = torch.rand(40, 3, generator=generator(9)) < 0.4
    canvas = Canvas(torch.where(given, torch.randint(3, (40, 3), generator=generator(10)), 0), ~given)
    tokens = model.generate(canvas, steps, generator(11), solver=solver)
    assert tokens.max() < 3 and torch.equal(tokens[given], canvas.tokens[given])
    full = Canvas(torch.ones(2, 3, dtype=torch.long), torch.zeros(2, 3, dtype=torch.bool))
    assert torch.equal(model.generate(full, steps, generator(), solver=solver), full.tokens)


@pytest.mark.parametrize("solver", ["ancestral", "top_probability"])
def test_the_network_reads_a_sequence_only_when_something_is_written_in_it(solver):
    model, batch, moments = exact_mdlm(CUBE), 8, []
    counting = Counting(model)
    tokens = model.sampler(solver=solver)(counting, Canvas.blank(batch, 3), 400, generator(12), moments.append)
    # the first reading is of all; after it, a sequence is read for each of its tokens but where two came at once
    assert counting.rows[0] == batch and len(counting.rows) <= 3 * batch
    assert sum(counting.rows[1:]) <= 3 * batch
    assert torch.equal(tokens, model.generate(Canvas.blank(batch, 3), 400, generator(12), solver=solver))
    # every step is shown from the first prediction on, though most ask nothing
    first = moments[0].index
    assert [m.index for m in moments] == list(range(first, 400)) and first <= 200
    for earlier, later in zip(moments, moments[1:], strict=False):
        kept = ~earlier.masked
        assert not (later.masked & kept).any() and torch.equal(later.so_far[kept], earlier.so_far[kept])
    assert torch.equal(moments[-1].tokens(), tokens)


def test_a_moment_shows_what_was_predicted_where_it_was_asked():
    model, moments = exact_mdlm(CUBE), []
    canvas = Canvas.from_pieces([1, [2], 1], 6)
    model.generate(canvas, 40, generator(13), moments.append)
    for moment in moments:
        shown = moment.tokens()
        assert torch.equal(shown[~moment.masked], moment.so_far[~moment.masked]) and shown.max() < 3
        p = moment.posterior.chunk(slice(None)).view(6, 3, 3)
        torch.testing.assert_close(p.sum(-1), torch.ones(6, 3, dtype=torch.float64))
        assert torch.equal(p[:, 1], torch.eye(3, dtype=torch.float64)[2].expand(6, 3))  # the given token is certain
        exact = model.denoiser()(torch.where(moment.masked, 3, moment.so_far)).probabilities()
        untouched = moment.masked.sum(1) == 2
        torch.testing.assert_close(p[untouched], torch.where(moment.masked[..., None], exact, p)[untouched])
        assert torch.equal(moment.posterior.rows(slice(0, 2)).chunk(slice(None)), p[:2].flatten(0, 1))
    assert isinstance(moments[0].posterior, CarriedOver)


@pytest.mark.parametrize(
    "options",
    [{"temperature": -0.1}, {"top_k": 0}, {"top_p": 1.5}, {"solver": "heun"}, {"solver": "remask_cap", "remasking": 1.5}],
    ids=str,
)
def test_options_out_of_range_are_refused_by_name(options):
    with pytest.raises(ValueError, match=f"sampling.{list(options)[-1]} must"):
        sampler_for(exact_mdlm(PAIR), options, "sampling")
    with pytest.raises(ValueError, match="takes no remasking"):
        sampler_for(exact_mdlm(PAIR), {"remasking": 0.1})
    with pytest.raises(ValueError, match="sampling.steps"):
        exact_mdlm(PAIR).generate(Canvas.blank(1, 2), 0, generator())
