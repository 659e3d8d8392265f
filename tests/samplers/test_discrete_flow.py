"""Samplers of discrete flow matching against laws worked out state by state, and what their options promise."""

import math

import pytest
import torch
from algos.token_world import exact_dfm, jump_law
from chi_square import chi_square_limit

from flm.paths.mixture import Cosine, Polynomial
from flm.samplers.canvas import Canvas
from flm.samplers.discrete_flow import BlindExactJumps, EulerJumps, ExactJumps
from flm.samplers.ending import Ending
from flm.samplers.masked import Step
from flm.samplers.options import sampler_for
from flm.samplers.solvers import JUMP_SOLVERS, MASK_SOLVERS

LEVEL, COUNT = 1e-3, 6000
PAIR = [[0.45, 0.05], [0.15, 0.35]]
SURE = [[0.93, 0.03], [0.02, 0.02]]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def follows(tokens, law):
    flat = (tokens * law.shape[0] ** torch.arange(tokens.shape[1] - 1, -1, -1)).sum(1)
    found, expected = torch.bincount(flat, minlength=law.numel()).double(), law.flatten() * len(tokens)
    assert law.sum().item() == pytest.approx(1) and expected.min() > 5
    return ((found - expected) ** 2 / expected).sum() < chi_square_limit(LEVEL, law.numel() - 1)


def kappas_of(schedule, steps):
    return schedule.kappa(torch.linspace(0, 1, steps + 1, dtype=torch.float64)).tolist()


def steps_of(schedule, steps):
    times, kappas = torch.linspace(0, 1, steps + 1, dtype=torch.float64).tolist(), kappas_of(schedule, steps)
    return [Step(times[i], times[i + 1], kappas[i], kappas[i + 1], torch.tensor([1]), schedule) for i in range(steps)]


# share of masks before the last step, Euler's rule and the exact one
MASKED = {
    (1, 8): (0.1795, 0.1250), (1, 32): (0.0470, 0.0312), (1, 128): (0.0119, 0.0078),
    (2, 8): (0.3467, 0.2344), (2, 32): (0.0932, 0.0615), (2, 128): (0.0237, 0.0156),
    (3, 8): (0.4718, 0.3301), (3, 32): (0.1365, 0.0909), (3, 128): (0.0354, 0.0233),
}  # fmt: skip


@pytest.mark.parametrize("n, steps", MASKED)
def test_the_share_masked_before_the_last_step(n, steps):
    for sampler, expected in zip((EulerJumps(), ExactJumps()), MASKED[n, steps], strict=True):
        share = math.prod(1 - sampler.probability(step) for step in steps_of(Polynomial(n), steps)[:-1])
        assert share == pytest.approx(expected, abs=6e-5)
        assert sampler.probability(steps_of(Polynomial(n), steps)[-1]) == 1


@pytest.mark.parametrize("schedule", [Polynomial(2), Cosine()], ids=["polynomial", "cosine"])
@pytest.mark.parametrize("corrector", [0.0, 0.5, 30.0])
@pytest.mark.parametrize("steps", [1, 4, 50])
def test_the_share_of_data_is_kappa_after_every_exact_step(schedule, corrector, steps):
    for sampler, blind in ((ExactJumps(corrector=corrector), False), (BlindExactJumps(corrector=corrector), True)):
        share = 0.0
        for step in steps_of(schedule, steps):
            jump, noise = sampler.probability(step), sampler.resampling(step)
            assert 0 <= jump < 1 + 1e-12 and 0 <= noise <= 1 and (noise > 0) == (corrector > 0 and step.kappa_next < 1)
            kept = share * (1 - noise)
            share = jump + (1 - jump) * kept if blind else kept + (1 - share) * jump
            assert share == pytest.approx(step.kappa_next, abs=1e-12)


@pytest.mark.parametrize("corrector", [0.0, 1.5])
def test_euler_tends_to_the_exact_step(corrector):
    fine = Step(0.3, 0.3001, 0.3**2, 0.3001**2, torch.tensor([1]), Polynomial(2))
    euler, exact = EulerJumps(corrector=corrector), BlindExactJumps(corrector=corrector)
    assert euler.resampling(fine) == pytest.approx(exact.resampling(fine), rel=1e-3)
    assert euler.probability(fine) == pytest.approx(ExactJumps(corrector=corrector).probability(fine), rel=1e-3)
    start = Step(0.0, 0.1, 0.0, 0.01, torch.tensor([1]), Polynomial(2))  # 0 / 0 there
    assert 0 <= euler.probability(start) < 1 and euler.resampling(start) == (1.0 if corrector else 0.0)


SHAPED = {"corrector": 3.0, "corrector_rise": 0.7, "corrector_fall": 1.5}


def test_a_corrector_that_rises_and_falls():
    """One step's loss is that of any finer ones; Euler's tends to it; the share of data stays kappa; it fades."""
    blind, schedule = BlindExactJumps(**SHAPED), Cosine()
    coarse, fine = (steps_of(schedule, steps)[steps // 4 : -steps // 4] for steps in (4, 4000))
    kept = [math.prod(1 - blind.resampling(step) for step in grid) for grid in (coarse, fine)]
    assert kept[0] == pytest.approx(kept[1], abs=1e-9) and 0.1 < kept[0] < 0.9
    constant = math.prod(1 - BlindExactJumps(corrector=3.0).resampling(step) for step in coarse)
    assert kept[0] > constant + 0.05
    for step in fine[:: len(fine) // 7]:
        assert EulerJumps(**SHAPED).resampling(step) == pytest.approx(blind.resampling(step), rel=2e-2)
        c = 3 * step.t**0.7 * (1 - step.t) ** 1.5
        assert EulerJumps(**SHAPED).probability(step) == pytest.approx(
            -math.expm1(-(1 + c) * (step.t_next - step.t) * schedule.rate(torch.tensor(step.t)).item()), rel=2e-2
        )
    for sampler, is_blind in ((ExactJumps(**SHAPED), False), (blind, True)):
        share = 0.0
        for step in steps_of(schedule, 12):
            jump, held = sampler.probability(step), share * (1 - sampler.resampling(step))
            share = jump + (1 - jump) * held if is_blind else held + (1 - share) * jump
            assert share == pytest.approx(step.kappa_next, abs=1e-12)
    last = steps_of(schedule, 1000)
    assert blind.resampling(last[-2]) < 1e-5 < blind.resampling(last[500])


@pytest.mark.parametrize("source", ["mask", "uniform"])
@pytest.mark.parametrize("solver, corrector", [("exact", 0.0), ("exact", 0.8), ("euler", 0.0), ("euler", 0.8)])
def test_draws_follow_their_law(source, solver, corrector):
    schedule, steps = Polynomial(2), 4
    masked = source == "mask"
    rule = (MASK_SOLVERS if masked else JUMP_SOLVERS)[solver](corrector=corrector)
    grid = steps_of(schedule, steps)
    law = jump_law(
        PAIR, [s.kappa for s in grid], [rule.probability(s) for s in grid], [rule.resampling(s) for s in grid], masked
    )
    model = exact_dfm(PAIR, source, schedule)
    tokens = model.generate(Canvas.blank(COUNT, 2), steps, generator(3), solver=solver, corrector=corrector)
    assert follows(tokens, law)
    independent = torch.tensor(PAIR, dtype=torch.float64)
    independent = independent.sum(1)[:, None] * independent.sum(0)
    assert not follows(tokens, independent)


@pytest.mark.parametrize("source", ["mask", "uniform"])
def test_many_steps_give_the_data_and_each_position_alone_is_exact_in_any(source):
    model = exact_dfm(PAIR, source)
    tokens = model.generate(Canvas.blank(COUNT, 2), 80, generator(1))
    # what 80 steps leave of the error is less than this count can show
    assert follows(tokens, torch.tensor(PAIR, dtype=torch.float64))
    alone, law = exact_dfm([0.5, 0.3, 0.2], source), torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    for steps in (1, 3):
        for corrector in (0.0, 2.0):
            found = alone.generate(Canvas.blank(COUNT, 1), steps, generator(steps), corrector=corrector)
            assert follows(found, law)


def holes(count, length, size, seed=9):
    given = torch.rand(count, length, generator=generator(seed)) < 0.4
    return Canvas(torch.where(given, torch.randint(size, (count, length), generator=generator(seed + 1)), 0), ~given)


CUBE = (torch.rand(3, 3, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64) ** 2 + 0.05).tolist()
CUBE = (torch.tensor(CUBE, dtype=torch.float64) / torch.tensor(CUBE).sum()).tolist()
EVERY = [("mask", solver) for solver in MASK_SOLVERS] + [("uniform", solver) for solver in JUMP_SOLVERS]


@pytest.mark.parametrize("source, solver", EVERY)
def test_no_mask_is_left_the_given_stays_and_the_seed_decides(source, solver):
    model, canvas = exact_dfm(CUBE, source), holes(30, 3, 3)
    for steps in (1, 2, 7):
        for options in ({}, {"grid": "kappa"}) + (({"block_length": 2},) if source == "mask" else ()):
            tokens = model.generate(canvas, steps, generator(11), solver=solver, **options)
            assert tokens.max() < 3 and torch.equal(tokens[~canvas.editable], canvas.tokens[~canvas.editable])
            assert torch.equal(tokens, model.generate(canvas, steps, generator(11), solver=solver, **options))
            assert not torch.equal(tokens, model.generate(canvas, steps, generator(12), solver=solver, **options))
    full = Canvas(torch.ones(2, 3, dtype=torch.long), torch.zeros(2, 3, dtype=torch.bool))
    assert torch.equal(model.generate(full, 3, generator(), solver=solver), full.tokens)


@pytest.mark.parametrize("solver", ["top_margin", "random_order", "low_confidence", "p2"])
def test_one_position_a_step_is_exact_in_any_order_but_that_of_draws(solver):
    model, data = exact_dfm(CUBE), torch.tensor(CUBE, dtype=torch.float64)
    tokens = model.generate(Canvas.blank(COUNT, 3), 3, generator(2), solver=solver)
    # keeping the draws that were likely prefers likely texts
    assert follows(tokens, data) == (solver in ("top_margin", "random_order"))


def test_counts_are_each_sequences_own():
    model, moments = exact_dfm(CUBE), []
    canvas = holes(40, 3, 3)
    for solver in ("top_probability", "low_confidence", "random_order"):
        moments.clear()
        model.generate(canvas, 3, generator(1), moments.append, solver=solver)
        left = torch.stack([moment.masked.sum(1) for moment in moments])
        free = canvas.editable.sum(1).double()
        assert len(free.unique()) > 2
        wanted = torch.stack([(free * (1 - (i + 1) / 3)).round().long() for i in range(3)])
        assert torch.equal(left, wanted)


def test_a_temperature_of_the_order_goes_from_the_surest_to_any():
    joint = torch.einsum("i,j->ij", torch.tensor([0.9, 0.1]).double(), torch.tensor([0.6, 0.4]).double()).tolist()
    model, first = exact_dfm(joint), {}
    for temperature in (0.0, 0.3, 1e6):
        moments = []
        options = {"solver": "top_probability", "order_temperature": temperature}
        model.generate(Canvas.blank(COUNT, 2), 2, generator(1), moments.append, **options)
        first[temperature] = (~moments[0].masked[:, 0]).double().mean().item()
    assert first[0.0] == 1
    error = 4.5 * (0.25 / COUNT) ** 0.5
    assert abs(first[0.3] - 1 / (1 + math.exp(-0.3 / 0.3))) < error and abs(first[1e6] - 0.5) < error


def test_what_is_sure_is_written_at_once():
    model, canvas = exact_dfm(SURE), Canvas.blank(50, 2)
    rounds = {}
    for threshold in (0.5, 0.955, 1.0):
        model.backbone.asked.clear()
        model.generate(canvas, 2, generator(1), solver="threshold", threshold=threshold)
        rounds[threshold] = len(model.backbone.asked)
    assert rounds == {0.5: 1, 0.955: 2, 1.0: 2}


def test_blocks_are_filled_from_the_left_and_the_network_knows_how_much_stands():
    model, moments = exact_dfm(CUBE), []
    given = torch.tensor([[False, False, False], [True, False, False]])
    canvas = Canvas(torch.where(given, 2, 0), ~given)
    model.generate(canvas, 4, generator(1), moments.append, solver="top_probability", block_length=1)
    order = torch.stack([(~m.masked & canvas.editable).sum(1) for m in moments])
    assert (order[:, 0].diff() >= 0).all() and [m.index for m in moments] == list(range(len(moments)))
    for moment in moments:  # nothing stands right of a mask
        open_before = (moment.masked.cumsum(1) > 0) & canvas.editable
        assert torch.equal(open_before, moment.masked)
    times = torch.stack([t for _, t, _ in model.backbone.asked if len(t) == 2])
    assert times[0].tolist() == [0, 0]
    again, exact = [], exact_dfm(CUBE)
    exact.generate(Canvas.blank(4, 3), 3, generator(1), again.append, solver="top_probability", block_length=1)
    assert [t[0].item() for _, t, _ in exact.backbone.asked] == pytest.approx([0, 1 / 3, 2 / 3])


def test_a_grid_is_even_in_time_or_kappa_or_given():
    model = exact_dfm(CUBE, schedule=Polynomial(2))

    def times(steps, **options):
        model.backbone.asked.clear()
        model.generate(Canvas.blank(60, 3), steps, generator(1), **options)
        return sorted({round(float(t[0]), 5) for _, t, _ in model.backbone.asked})

    assert times(4) == [0, 0.25, 0.5, 0.75]
    assert times(4, grid="kappa") == pytest.approx([0, 0.5, 0.5**0.5, 0.75**0.5], abs=1e-5)
    assert times(2, grid=[0, 0.6, 1]) == [0, 0.6]
    with pytest.raises(ValueError, match="sampling.steps must be 2"):
        times(3, grid=[0, 0.6, 1])


def test_documents_of_a_canvas_reach_the_network_row_by_row():
    model, documents = exact_dfm(CUBE), torch.arange(8)[:, None].expand(8, 3)
    canvas = Canvas.blank(8, 3)
    model.generate(Canvas(canvas.tokens, canvas.editable, documents), 30, generator(1))
    assert any(len(tokens) < 8 for tokens, _, _ in model.backbone.asked)
    assert all(shown.shape == tokens.shape for tokens, _, shown in model.backbone.asked)


def test_tokens_that_are_not_wanted():
    model = exact_dfm(CUBE)
    make = lambda **options: model.generate(Canvas.blank(400, 3), 3, generator(1), **options)
    assert (make() == 1).any() and not (make(suppress=[1]) == 1).any()
    begun = make(begin_suppress=[1])
    assert not (begun[:, 0] == 1).any() and (begun[:, 1:] == 1).any()
    middle = model.generate(Canvas.from_pieces([1, [0], 1], 400), 3, generator(1), begin_suppress=[1])
    assert not (middle == 1).any()  # each hole begins
    rare = (make(end_id=1, end_penalty=2.0) == 1).double().mean()
    assert 0 < rare < 0.6 * (make() == 1).double().mean()
    one = exact_dfm([0.5, 0.3, 0.2])
    found = one.generate(Canvas.blank(COUNT, 1), 1, generator(1), end_id=1, end_penalty=1.0, temperature=0.5)
    law = torch.tensor([0.5, 0.3 * math.exp(-1), 0.2]).double() ** 2  # the penalty is of the logit before the temperature
    assert follows(found, law / law.sum())
    assert not follows(one.generate(Canvas.blank(COUNT, 1), 1, generator(1)), law / law.sum())


def test_the_end_comes_last_in_an_order_of_confidence():
    joint = torch.einsum("i,j->ij", torch.tensor([0.1, 0.9]).double(), torch.tensor([0.6, 0.4]).double()).tolist()
    model = exact_dfm(joint)
    for last, column in ((False, 0), (True, 1)):
        moments = []
        options = {"solver": "top_probability", "end_id": 1, "end_last": last}
        model.generate(Canvas.blank(20, 2), 2, generator(1), moments.append, **options)
        assert (~moments[0].masked).double().mean(0).tolist() == [1 - column, column]


def test_the_text_stops_at_its_end():
    canvas = Canvas.from_pieces([3, [7], 2], 1)
    ending = Ending(end_id=1, stop_at_end=True)
    masked = torch.tensor([[False, False, True, False, True, True]])
    tokens = torch.tensor([[5, 1, 9, 7, 9, 9]])
    closed, left = ending.closed(tokens, masked, canvas)
    assert closed.tolist() == [[5, 1, 1, 7, 9, 9]] and left.tolist() == [[False] * 4 + [True, True]]
    early = masked.clone()
    early[0, 0] = True  # what stands before it may still change nothing, but the text is not whole
    assert torch.equal(ending.closed(tokens, early, canvas)[1], early)
    given = Canvas.from_pieces([[1], 2], 1)  # an end that is given ends no hole
    assert ending.closed(torch.tensor([[1, 9, 9]]), given.editable, given)[1].tolist() == [[False, True, True]]
    model = exact_dfm(CUBE)
    asked = {}
    for stop in (False, True):
        model.backbone.asked.clear()
        options = {"solver": "top_probability", "block_length": 1, "end_id": 0, "stop_at_end": stop}
        tokens = model.generate(Canvas.blank(64, 3), 3, generator(1), **options)
        asked[stop] = sum(len(shown) for shown, _, _ in model.backbone.asked)
        ended = (tokens == 0).cumsum(1).bool()
        assert (tokens[ended] == 0).all() == stop
    assert asked[True] < asked[False]


@pytest.mark.parametrize(
    "source, options",
    [
        ("mask", {"corrector": -1.0}), ("mask", {"grid": "cosine"}), ("mask", {"grid": [0, 0.5]}),
        ("mask", {"block_length": 0}),
        ("mask", {"solver": "threshold", "threshold": 2.0}), ("mask", {"solver": "p2", "eta": -1.0}),
        ("mask", {"solver": "low_entropy", "order_temperature": -0.1}), ("mask", {"suppress": [-1]}),
        ("mask", {"corrector_rise": 1.0}), ("uniform", {"corrector": 1.0, "corrector_fall": -1.0}),
        ("mask", {"end_penalty": 1.0}), ("uniform", {"solver": "top_margin"}), ("uniform", {"block_length": 4}),
    ],
    ids=str,
)  # fmt: skip
def test_options_that_cannot_be_are_refused_by_name(source, options):
    name = list(options)[-1]
    with pytest.raises(ValueError, match=f"sampling.{name}"):
        sampler_for(exact_dfm(PAIR, source), options, "sampling")
    with pytest.raises(ValueError, match="sampling.remasking: DFM with solver=exact takes no remasking"):
        sampler_for(exact_dfm(PAIR, source), {"remasking": 0.1}, "sampling")
