"""mode=conditional_eval: responses of a checkpoint to held-out prompts, scored against the reference responses."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from omegaconf import DictConfig
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flm.atomic import write_lines
from flm.conditional.responses import response_scores
from flm.data.corpora.corpus import Corpus
from flm.data.documents import Split
from flm.language_model import LanguageModel
from flm.ranges import Count, Text
from flm.samplers.canvas import Pieces
from flm.tasks.evaluation import EvalOptions, load_model
from flm.tasks.fillings import Writer, check_hole_is_bounded, padding_of
from flm.tasks.held_out import HeldOut
from flm.tasks.machine import Machine
from flm.tasks.processes import Team, team_of
from flm.tasks.run import Run
from flm.tasks.samples import Request


@dataclass(frozen=True)
class ConditionalEvalOptions:
    """The `conditional_eval` config; keys explained there."""

    limit: Count | None = 256
    samples: Count = 1
    new_tokens: Literal["reference"] | Count | None = None
    bert_score_model: Text | None = None


def conditional_eval(config: DictConfig) -> dict[str, Any]:
    """Writes run_dir/responses-<steps>.jsonl and conditional_eval.json; prints a few responses and a table.

    Prompts that leave no room for the reference response in model.length are left out, as they are in training, and counted.
    Of several processes each writes its share of the responses; the first one does all else, and the others return nothing.
    """
    run = Run(config)
    with team_of(Machine.of(run["trainer"], run["model"]).device) as team:
        return evaluate(run, team)


def evaluate(run: Run, team: Team) -> dict[str, Any]:
    """The same, of a config in plain values."""
    wanted, evaluation = run.options(ConditionalEvalOptions, "conditional_eval"), run.options(EvalOptions, "eval")
    held_out = HeldOut.of(evaluation, run["data"], run["loader"], run["seed"])
    request = Request.of(run["sampling"], run["loader"]["eval_batch_size"], run["seed"])
    if held_out.which is None:
        raise ValueError("eval.real_data must be recorded or current here, not null: the prompts come from there")
    lm = load_model(evaluation, Machine.of(run["trainer"], run["model"]))
    request.set_options(lm)
    padding = padding_of(lm)
    check_hole_is_bounded(padding, wanted.new_tokens, "conditional_eval.new_tokens")
    corpus = held_out.corpus(lm)
    asked, left_out = requests_of(corpus, lm, wanted.limit, wanted.new_tokens)
    writer, console = Writer(lm, request.batch_size, request.seed, padding, team), Console(quiet=not team.is_first)
    results = run.about("conditional_eval", lm) | {
        "options": lm.options,
        "source": corpus.describe(),
        "left_out": left_out,
        "by_steps": {},
    }
    if left_out:
        console.print(
            f"warning: {left_out} held-out pairs do not fit model.length={lm.length} and are left out", soft_wrap=True
        )
    for steps in writer.steps(request.steps):
        written = writer([one.pieces for one in asked], wanted.samples, steps)
        if not team.is_first:
            continue
        responses = [[texts[0] for texts in given] for given in written]
        lines = [
            {"prompt": one.prompt, "reference": one.reference, "responses": given}
            for one, given in zip(asked, responses, strict=True)
        ]
        path = run.folder / f"responses-{steps}.jsonl"
        write_lines(path, lines)
        scores = response_scores(responses, [one.reference for one in asked], wanted.bert_score_model)
        results["by_steps"][str(steps)] = {"file": path.name, **scores}
        console.rule(f"{steps} step{'s' * (steps > 1)}")
        for line in lines[:3]:
            console.print(escape(f"{line['prompt']}{line['responses'][0]}\n  reference: {line['reference']}\n"), soft_wrap=True)
    if not team.is_first:
        return {}
    run.write_json("conditional_eval.json", results)
    console.print(table_of(results))
    console.print(f"responses and results: {run.folder}")
    return results


@dataclass(frozen=True)
class Asked:
    """A held-out prompt with its reference response, and as token ids with a hole for the answer."""

    prompt: str
    reference: str
    pieces: Pieces


def requests_of(corpus: Corpus, lm: LanguageModel, limit: int | None, new_tokens: Any) -> tuple[list[Asked], int]:
    """Held-out pairs, evenly spaced, and how many of them did not fit.

    Args:
        limit: at most so many; None: all.
        new_tokens: length of the hole, "reference" for that of the reference, None for all the room.
    """
    read: Callable[[Split], Iterator[tuple[str, str]]] | None = getattr(corpus, "pairs", None)
    if read is None:
        raise ValueError(
            f"{corpus.describe()} holds no prompts with responses: set eval.real_data=current data=pairs data.path=..."
        )
    pairs = list(read("valid"))
    count = len(pairs) if limit is None else min(limit, len(pairs))
    asked = []
    for prompt, reference in (pairs[index * len(pairs) // count] for index in range(count)):
        ids = lm.tokenizer.encode(prompt)
        room, needed = lm.length - len(ids), len(lm.tokenizer.encode(reference)) + 1  # EOS
        if needed <= room:
            sizes = {None: room, "reference": needed}
            asked.append(Asked(prompt, reference, [ids, min(room, sizes.get(new_tokens, new_tokens))]))
    if not asked:
        raise ValueError(f"none of {count} held-out pairs of {corpus.describe()} fits model.length={lm.length}")
    return asked, count - len(asked)


def table_of(results: dict[str, Any]) -> Table:
    first = next(iter(results["by_steps"].values()))
    names = [name for name, value in first.items() if isinstance(value, dict)]
    table = Table(title=f"{first['prompts']} prompts, {first['samples']} responses each; mean / best")
    for heading in ("steps", "corpus BLEU", *names):
        table.add_column(heading, justify="right")
    for steps, entry in results["by_steps"].items():
        cells = [f"{100 * entry[name]['mean']['mean']:.1f} / {100 * entry[name]['best']['mean']:.1f}" for name in names]
        table.add_row(steps, f"{entry['corpus_bleu']:.1f}", *cells)
    return table
