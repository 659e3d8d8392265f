"""mode=ppl_eval: the likelihood of held-out text under a checkpoint, exact or as an upper bound on the nats."""

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

from omegaconf import DictConfig
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from flm.algos.algorithm import Batch, BoundVariant
from flm.data.loaders import collate
from flm.data.module import TextDataModule
from flm.data.tokenizers import Tokenizer
from flm.language_model import LanguageModel
from flm.likelihood.bits_per_byte import scored_bytes, scored_texts, utf8_bytes
from flm.likelihood.held_out import Likelihood
from flm.tasks.evaluation import EvalOptions, load_model
from flm.tasks.held_out import HeldOut, corpus_of
from flm.tasks.machine import Machine
from flm.tasks.processes import ALONE, Team, team_of, terminal
from flm.tasks.run import Run

FIRST = "data"  # name of the corpus of eval.real_data beside those of eval.corpora


def ppl_eval(config: DictConfig) -> dict[str, Any]:
    """Scores the held-out text of the corpus that eval.real_data names, and of each of eval.corpora.

    Writes run_dir/likelihood.json and prints a table. Several processes divide the batches; the numbers are those of a single
    process, and the first one writes them.
    """
    run = Run(config)
    with team_of(Machine.of(run["trainer"], run["model"]).device) as team:
        return evaluate(run, team)


def evaluate(run: Run, team: Team = ALONE) -> dict[str, Any]:
    """As `ppl_eval`, for a run with a plain config; returns {} in all processes but the first."""
    wanted = run.options(EvalOptions, "eval")
    held_out = HeldOut.of(wanted, run["data"], run["loader"], run["seed"])
    held_out.check_needed("ppl_eval")
    others = _other_corpora(wanted.corpora)
    lm, console = load_model(wanted, Machine.of(run["trainer"], run["model"])), terminal()
    if lm.algorithm.bound_kind is None:
        name = type(lm.algorithm).__name__
        other = lm.algorithm.scored_by
        advice = "" if other is None else f": take mode={other}"
        raise ValueError(f"{lm.source.path}: {name} has no likelihood bound of whole texts, which mode=ppl_eval needs{advice}")
    sources = {FIRST: held_out.data(lm)}
    sources |= {name: held_out.data_of(corpus_of(node, "eval.corpora"), lm) for name, node in others.items()}
    pilot = _training_blocks(sources[FIRST], wanted.pilot_draws, run["loader"]["eval_batch_size"])
    options = {key: getattr(wanted, key) for key in ("exact_evidence", "evidence_share", "bound_steps")}
    variants = team.from_first(lm.bound_variants(pilot, run["seed"], **options))
    draws, seed = wanted.draws_per_example, run["seed"]
    values = {name: _score(name, data, lm, variants, draws, seed, team) for name, data in sources.items()}
    if not team.is_first:
        return {}
    corpora = {name: _in_units(data, lm, values[name]) for name, data in sources.items()}
    recorded = _without_cache(lm.config.get("data"))
    same = None if recorded is None else recorded == _without_cache(run["data"])
    corpora[FIRST]["trained_on"] = True if held_out.which == "recorded" else same
    result = {
        "kind": lm.algorithm.bound_kind,
        "chosen": _lowest(variants),
        "measured_on_training_text": {name: variant.table for name, variant in variants.items()},
        "corpora": corpora,
    }
    path = run.write_json("likelihood.json", run.about("likelihood", lm, autocast=False) | {"likelihood": result})
    _print(console, result, f"{type(lm.algorithm).__name__}, step {lm.source.step}: {result['kind']}")
    _print_notes(console, result, held_out.which, recorded)
    console.print(f"written to {path}")
    return result


def _other_corpora(named: Mapping[str, Any] | None) -> dict[str, Any]:
    """eval.corpora checked: config nodes or paths, by name."""
    named = named or {}
    if FIRST in named:
        raise ValueError(f"eval.corpora must map names (other than {FIRST}) to files or data configs, not {named}")
    return {str(name): node for name, node in named.items()}


def _training_blocks(data: TextDataModule, wanted: int, size: int) -> list[Batch]:
    """`wanted` training blocks, evenly spaced, in batches of `size`; none if training text is absent or streamed."""
    if "train" not in data.corpus.splits or data.corpus.streamed or not wanted:
        return []
    blocks = data.train_blocks()
    rows = [blocks.row(i * len(blocks) // wanted) for i in range(wanted)]
    return [collate(rows[start : start + size]) for start in range(0, wanted, size)]


def _lowest(variants: dict[str, BoundVariant]) -> str | None:
    """The only variant, or that with the lowest bound on training text; None if none was measured."""
    if len(variants) == 1:
        return next(iter(variants))
    measured = {name: variant.expected for name, variant in variants.items() if variant.expected is not None}
    return min(measured, key=measured.__getitem__) if measured else None


def _score(
    name: str, data: TextDataModule, lm: LanguageModel, variants: dict[str, BoundVariant], draws: int, seed: int, team: Team
) -> dict[str, Likelihood]:
    """The likelihood by name of the bound."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    values = {}
    with Progress(*columns, transient=True, disable=not team.is_first) as progress:
        for variant, settings in variants.items():
            loader = data.valid_loader()
            rounds = 1 if lm.algorithm.bound_kind == "exact" else draws
            bar = progress.add_task(f"{name}: {variant}", total=len(team.share(len(loader))) * rounds)
            values[variant] = lm.likelihood(loader, draws, seed, settings.options, partial(progress.advance, bar), team)
    return values


def _in_units(data: TextDataModule, lm: LanguageModel, values: dict[str, Likelihood]) -> dict[str, Any]:
    """For the result file: the text, and each bound in all units."""
    num_tokens = next(iter(values.values())).num_tokens
    num_bytes, num_characters = _scored_size(data, lm.tokenizer, num_tokens)
    return {
        "corpus": data.corpus.describe(),
        "wrap": data.corpus.wrap,
        "bytes_estimated": round(num_bytes),
        "characters_estimated": round(num_characters),
        "unknown_share": _unknown_share(data, lm.tokenizer),
        "variants": {variant: value.in_units(num_bytes, num_characters) for variant, value in values.items()},
    }


def _scored_size(data: TextDataModule, tokenizer: Tokenizer, num_tokens: int) -> tuple[float, float]:
    """UTF-8 bytes and characters of the scored tokens.

    Blocks cut anywhere from a text have their share of its documents' bytes, including text that the tokenizer cannot spell.
    If only a part of the rows is scored, as responses to prompts, the tokens themselves are counted.
    """
    if all(bool(batch.counted.all()) for batch in data.valid_loader()):
        estimated = data.bytes_per_token() * num_tokens
        return estimated, estimated * _characters_per_byte(data)
    num_bytes = scored_bytes(data.valid_loader(), tokenizer)
    texts = [text for batch in data.valid_loader() for text in scored_texts(batch, tokenizer)]
    if any("\ufffd" in text for text in texts):  # cut inside a character, so characters are estimated from bytes
        return num_bytes, num_bytes * _characters_per_byte(data)
    return num_bytes, sum(map(len, texts))


def _characters_per_byte(data: TextDataModule) -> float:
    """Of the held-out documents themselves, since decoded tokens lack characters that the tokenizer does not know."""
    characters = num_bytes = 0
    for document in data.valid_documents():
        characters += len(document)
        num_bytes += utf8_bytes([document])
    return characters / num_bytes


def _unknown_share(data: TextDataModule, tokenizer: Tokenizer) -> float:
    """Share of the scored tokens that stand for text the tokenizer cannot spell."""
    unknown = _unknown_id(tokenizer)
    if unknown is None:
        return 0.0
    lost = scored = 0
    for batch in data.valid_loader():
        lost += int((batch.counted & (batch.tokens == unknown)).sum())
        scored += int(batch.counted.sum())
    return lost / scored


def _unknown_id(tokenizer: Tokenizer) -> int | None:
    """The id of unknown characters; None: every text can be spelled. GPT-2 names its end token, which no text becomes."""
    model = json.loads(tokenizer.to_dict()["json"])["model"]
    unknown = model.get("unk_id")  # unigram models give the id, others the token
    if unknown is None and model.get("unk_token") is not None:
        unknown = model["vocab"].get(model["unk_token"])
    return None if unknown in (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) else unknown


def _print(console: Console, result: dict[str, Any], title: str) -> None:
    narrow = {"box": SIMPLE, "pad_edge": False, "collapse_padding": True}
    table = Table(title=title, **narrow)
    for heading in ("text", "of", "nats/token", "+-text", "+-draws", "ppl", "bits/byte", "bits/char"):
        words = heading in ("text", "of")
        table.add_column(heading, justify="left" if words else "right", no_wrap=heading != "text", min_width=4)
    for name, corpus in result["corpora"].items():
        for variant, row in corpus["variants"].items():
            errors = (row["standard_error_nats"], row["monte_carlo_error_nats"])
            table.add_row(
                escape(name),
                variant + " *" * (variant == result["chosen"] and len(corpus["variants"]) > 1),
                f"{row['nats_per_token']:.4f}",
                *("" if error is None else f"{error:.4f}" for error in errors),
                f"{row['perplexity']:.2f}",
                f"{row['bits_per_byte']:.4f}",
                f"{row['bits_per_character']:.4f}",
            )
    console.print(table)
    shown = result["corpora"][FIRST]["variants"]
    if any(row["parts_nats_per_token"] for row in shown.values()):
        parts = Table(title=f"nats per token of {FIRST}, by part of the bound", **narrow)
        for heading in ("of", "where", "nats / token", "draws"):
            parts.add_column(heading, justify="left" if heading in ("of", "where") else "right")
        for variant, row in shown.items():
            for where, nats in row["parts_nats_per_token"].items():
                parts.add_row(variant, where, "-" if nats is None else f"{nats:.4f}", str(row["draws_by_part"][where]))
        console.print(parts)
    if len(shown) > 1 and result["chosen"] is not None:
        console.print(f"* the lowest on training text: {result['chosen']}")


def _print_notes(console: Console, result: dict[str, Any], which: str | None, recorded: Any) -> None:
    """Prints remarks on the texts below the table.

    Args:
        which: eval.real_data.
        recorded: the data node of the model, without its cache.
    """
    first = result["corpora"][FIRST]
    if which == "recorded":
        remark = "the corpus the checkpoint records; data=... of this command is not read without eval.real_data=current"
        console.print(f"{FIRST}: {escape(first['corpus'])}: {remark}", soft_wrap=True)
    elif first["trained_on"] is False:
        node = escape(str(recorded))
        console.print(f"note: this checkpoint was trained on another data node than is given now: {node}", soft_wrap=True)
    for name, corpus in result["corpora"].items():
        padding = next(iter(corpus["variants"].values()))["padding_scored"]
        if padding:
            remark = (
                "padding targets, which the model is to write too, have their nats in those of the text and are no tokens of it"
            )
            console.print(f"note: {padding} {remark} ({escape(name)})", soft_wrap=True)
        if corpus["unknown_share"] > 0:
            share = f"{100 * corpus['unknown_share']:.2g}% of the tokens of {escape(name)}"
            remark = "stand for unknown characters: its likelihood is no bound on that of the text"
            console.print(f"warning: {share} {remark}", soft_wrap=True)


def _without_cache(node: Any) -> Any:
    places = ("cache_dir", "processes")  # they do not change the text
    return {key: value for key, value in node.items() if key not in places} if isinstance(node, Mapping) else None
