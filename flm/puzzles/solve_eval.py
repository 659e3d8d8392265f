"""mode=solve_eval: a checkpoint solves puzzles and writes answers without givens, which the rules check."""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import hydra
import torch
from annotated_types import MinLen
from omegaconf import DictConfig

from flm.annotations import NodeValue
from flm.language_model import LanguageModel
from flm.measures.film import FilmStrip
from flm.puzzles.controls import IdealMaskedDiffusion, propagated, random_fill, searched
from flm.puzzles.desk import Desk
from flm.puzzles.rules import HOLE, Puzzle
from flm.puzzles.scores import coverage, solve_rates, verdicts_on
from flm.puzzles.solve_tables import puzzle_table, written_table
from flm.puzzles.writing import Writer
from flm.ranges import DIFFERENT, Count, Index
from flm.tasks.evaluation import EvalOptions, load_model
from flm.tasks.held_out import HeldOut
from flm.tasks.machine import Machine
from flm.tasks.processes import check_alone
from flm.tasks.run import Run
from flm.tasks.samples import Request

_IDEAL_SOLUTIONS = 1000  # most solutions that every answer is compared with, which takes seconds


@dataclass(frozen=True)
class SolveEvalOptions:
    """The group `solve_eval`, whose YAML explains the keys."""

    puzzles: Index = 500
    samples: Count = 1
    k: Annotated[Sequence[Count], MinLen(1), DIFFERENT] = (1, 10)
    written: Index = 1000
    sandbox: NodeValue | None = None


def solve_eval(config: DictConfig) -> dict[str, Any]:
    """Solves held-out puzzles, and writes answers without givens if the data allows it.

    Writes run_dir/solve_eval.json and, for each number of steps, solved-*.jsonl, written-*.jsonl and film-*.json; prints
    answers and tables. All network calls are counted.
    """
    check_alone("solve_eval")
    run = Run(config)
    wanted, evaluation = run.options(SolveEvalOptions, "solve_eval"), run.options(EvalOptions, "eval")
    held_out = HeldOut.of(evaluation, run["data"], run["loader"], run["seed"])
    request = Request.of(run["sampling"], run["loader"]["eval_batch_size"], run["seed"])
    lm = load_model(evaluation, Machine.of(run["trainer"], run["model"]))
    request.set_options(lm)
    corpus = corpus_of(held_out, lm)
    corpus.rules.use(partial(hydra.utils.instantiate, wanted.sandbox))
    writer = Writer(lm, corpus, request.batch_size, request.seed)
    results = run.about("solve_eval", lm) | {"options": lm.options, "source": corpus.describe()}
    asked = [puzzle for puzzle in corpus.puzzles("valid") if puzzle.givens.replace(HOLE, "")][: wanted.puzzles]
    blank = blank_puzzles(corpus, wanted.written)
    if not asked and not blank:
        raise ValueError("solve_eval: nothing to do: solve_eval.puzzles and solve_eval.written leave none of this data")
    misfits = [*writer.misfits(asked), *writer.misfits(blank)]
    all_steps = request.steps
    if lm.has_fixed_steps:  # one step is one position
        all_steps = [max(writer.holes(puzzle) for puzzle in blank or asked)]
    desk = Desk(run, run.about("film", lm), corpus, lm.tokenizer)
    writer((asked or blank)[: writer.batch], 1, min(all_steps))  # so that the setup of the first call is not timed
    if asked:
        results["puzzles"] = solved(writer, asked, all_steps, wanted.samples, list(wanted.k), desk)
        desk.console.print(puzzle_table(results["puzzles"], results["label"]))
    if blank:
        results["written"] = from_nothing(writer, blank, all_steps, desk)
        desk.console.print(written_table(results["written"], results["label"]))
    run.write_json("solve_eval.json", results)
    if misfits:
        remark = f"warning: {len(misfits)} of {len(asked)} puzzles do not fit the model and count as not solved: {misfits[0]}"
        desk.console.print(remark, soft_wrap=True)
    desk.console.print(f"answers and results: {run.folder}")
    return results


def corpus_of(held_out: HeldOut, lm: LanguageModel) -> Any:
    """The puzzles that eval.real_data names."""
    if held_out.which is None:
        raise ValueError("eval.real_data must be recorded or current here, not null: the puzzles come from there")
    found = held_out.corpus(lm)
    if not hasattr(found, "rules"):
        raise ValueError(f"{found.describe()} holds no puzzles with rules: set eval.real_data=current data=sudoku, or another")
    return found


def blank_puzzles(corpus: Any, count: int) -> list[Puzzle]:
    """`count` puzzles in which nothing is given; none if the data has no answers without givens."""
    if corpus.space_size() is None or not count:
        return []
    answer = corpus.puzzles("train")[0].answer
    return [Puzzle(HOLE * len(answer), answer)] * count


def solved(
    writer: Writer, puzzles: list[Puzzle], all_steps: list[int], samples: int, ks: list[int], desk: Desk
) -> dict[str, Any]:
    """Rates of solved puzzles by number of steps, and those of controls."""
    rules = writer.source.rules
    groups = [puzzle.answer for puzzle in puzzles] if getattr(writer.source, "variants", 1) > 1 else None
    found: dict[str, Any] = {"count": len(puzzles), "samples": samples, "by_steps": {}, "controls": {}}
    for steps in all_steps:
        film = FilmStrip()
        written = writer(puzzles, samples, steps, film)
        verdicts = verdicts_on(puzzles, written.answers, rules)
        found["by_steps"][str(steps)] = {
            "steps": steps,
            "evaluations": written.evaluations,
            "ms_per_puzzle": written.ms_per_answer,
            "left_out": written.left_out,
            **solve_rates(verdicts, ks, groups),
        }
        desk.keep("solved", steps, puzzles, written.answers, verdicts, film)
    rng, symbols = random.Random(writer.seed), rules.symbols
    controls: dict[str, Callable[[Puzzle], str | None]] = {
        "exact solver": lambda puzzle: searched(puzzle, rules),
        "propagation": lambda puzzle: propagated(puzzle, rules),
    }
    if symbols:
        controls["random fill"] = lambda puzzle: random_fill(puzzle, symbols, rng)
    for name, answer in controls.items():
        if answer(puzzles[0]) is not None:
            verdicts = verdicts_on(puzzles, [[answer(puzzle) or ""] for puzzle in puzzles], rules)
            found["controls"][name] = solve_rates(verdicts, [1], groups)
    for evaluations, answers in ideal_answers(writer.source, puzzles):
        verdicts = verdicts_on(puzzles, [[answer] for answer in answers], rules)
        found["controls"][f"ideal masked, {evaluations}"] = solve_rates(verdicts, [1], groups)
    return found


def from_nothing(writer: Writer, blank: list[Puzzle], all_steps: list[int], desk: Desk) -> dict[str, Any]:
    """Shares of valid answers and their diversity by number of steps, and those of controls."""
    corpus, space = writer.source, writer.source.space_size()
    held_out = corpus.is_held_out if corpus.held_out else None
    found: dict[str, Any] = {"count": len(blank), "space_nats": math.log(space), "by_steps": {}, "controls": {}}
    for steps in all_steps:
        film = FilmStrip()
        written = writer(blank, 1, steps, film)
        found["by_steps"][str(steps)] = {
            "steps": steps,
            "evaluations": written.evaluations,
            "ms_per_answer": written.ms_per_answer,
            **coverage([given[0] for given in written.answers], corpus.rules, held_out),
        }
        desk.keep("written", steps, blank, written.answers, verdicts_on(blank, written.answers, corpus.rules), film)
    # the exact rate of answers whose symbols are independent and uniform
    chance = math.exp(math.log(space) - len(blank[0].answer) * math.log(len(corpus.rules.symbols)))
    found["controls"]["random fill"] = {"valid": {"mean": chance, "standard_error": 0.0, "count": len(blank)}}
    for evaluations, answers in ideal_answers(corpus, blank):
        found["controls"][f"ideal masked, {evaluations}"] = coverage(answers, corpus.rules)
    return found


def ideal_answers(corpus: Any, puzzles: Sequence[Puzzle]) -> Iterator[tuple[int, list[str]]]:
    """(evaluations, answers) of ideal masked diffusion to puzzles of one length, with 1, 2, 4, ... up to L evaluations.

    The noise is always the same, so that it is one control for all models. Nothing if there are too many solutions to compare
    each answer with all of them.
    """
    whole = corpus.everything()
    if whole is None or len(whole) > _IDEAL_SOLUTIONS:
        return
    ideal, length = IdealMaskedDiffusion(whole), len(puzzles[0].answer)
    for evaluations in sorted({min(2**power, length) for power in range(length.bit_length() + 1)}):
        yield evaluations, ideal([puzzle.givens for puzzle in puzzles], evaluations, torch.Generator().manual_seed(0))
