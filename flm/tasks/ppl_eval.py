"""mode=ppl_eval: how probable a checkpoint finds held-out text, exactly or as an upper bound on the nats."""

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from omegaconf import DictConfig
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from flm.algos.algorithm import Algorithm, Batch, BoundVariant
from flm.checkpoints.model_file import ModelSource
from flm.data.module import TextDataModule
from flm.data.tokenizers import Tokenizer
from flm.draws import Draws, mix_seed
from flm.likelihood.bits_per_byte import utf8_bytes
from flm.likelihood.held_out import likelihood
from flm.tasks.assemble import load_for_evaluation, plain_config, run_dir
from flm.tasks.held_out import check_real_data, corpus_of, data_of, held_out_data
from flm.tasks.processes import check_alone
from flm.tasks.results import provenance, write_json
from flm.tasks.scoring import head

FIRST = "data"  # what the corpus of eval.real_data is called among eval.corpora


def ppl_eval(config: DictConfig) -> dict[str, Any]:
    """Scores the held-out text of the corpus eval.real_data names and of each of eval.corpora.

    Writes run_dir/likelihood.json and prints a table.
    """
    check_alone("ppl_eval")
    if config.eval.max_examples is not None:
        _check_whole(config, "max_examples", 1, "or null for all")
    _check_whole(config, "draws_per_example", 1)
    _check_whole(config, "pilot_draws", 0, "where 0 is no pilot")
    check_real_data(config, "ppl_eval")
    others = _other_corpora(config)
    lm = load_for_evaluation(config)
    algorithm, file, tokenizer = lm.algorithm, lm.source, lm.tokenizer
    if algorithm.bound_kind is None:
        raise ValueError(f"{file.path}: {type(algorithm).__name__} has no likelihood bound, which mode=ppl_eval needs")
    console = Console()
    sources = {FIRST: held_out_data(config, file, tokenizer, algorithm)}
    sources |= {name: data_of(corpus_of(node, "eval.corpora"), tokenizer, algorithm, config) for name, node in others.items()}
    variants = _variants(algorithm, sources[FIRST], config)
    corpora = {name: _score(name, data, tokenizer, algorithm, variants, config) for name, data in sources.items()}
    corpora[FIRST]["trained_on"] = _trained_on(config, file)
    result = {
        "kind": algorithm.bound_kind,
        "chosen": _lowest(variants),
        "measured_on_training_text": {name: variant.table for name, variant in variants.items()},
        "corpora": corpora,
    }
    folder = run_dir(config)
    about = provenance(config, file) | head("likelihood", config, algorithm, file)
    write_json(folder / "likelihood.json", about | {"likelihood": result})
    _print(console, result, algorithm, file)
    _print_notes(console, result, config, file)
    console.print(f"written to {folder / 'likelihood.json'}")
    return result


def _check_whole(config: DictConfig, key: str, least: int, remark: str = "") -> None:
    value = config.eval[key]
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        bounds = f"a whole number of at least {least}{remark and f' ({remark})'}"
        raise ValueError(f"eval.{key} must be {bounds}, not {'null' if value is None else value}")


def _other_corpora(config: DictConfig) -> dict[str, Any]:
    """Config nodes, or paths, by name."""
    named = config.eval.corpora or {}
    if not isinstance(named, Mapping) or FIRST in named:
        raise ValueError(f"eval.corpora must map names (other than {FIRST}) to files or data configs, not {named}")
    return {str(name): node for name, node in named.items()}


def _variants(algorithm: Algorithm, data: TextDataModule, config: DictConfig) -> dict[str, BoundVariant]:
    """What the bound leaves free, chosen on training blocks of the first corpus, evenly spaced over it."""
    wanted = config.eval.pilot_draws if "train" in data.corpus.splits else 0  # as without a pilot
    device = next(algorithm.parameters()).device
    blocks = data.train_blocks() if wanted else []
    rows = [blocks[i * len(blocks) // wanted] for i in range(wanted)]
    size = config.loader.eval_batch_size
    parts = [torch.stack(rows[start : start + size]) for start in range(0, wanted, size)]
    training = [Batch(tokens, torch.ones(tokens.shape)).to(device) for tokens in parts]
    options = {key: config.eval[key] for key in ("exact_evidence", "evidence_share")}
    return algorithm.bound_variants(training, Draws(mix_seed(config.seed, 1), device=device), **options)


def _lowest(variants: dict[str, BoundVariant]) -> str | None:
    """The only one, or that with the lowest bound on training text; None where none was measured."""
    if len(variants) == 1:
        return next(iter(variants))
    measured = {name: variant.expected for name, variant in variants.items() if variant.expected is not None}
    return min(measured, key=measured.__getitem__) if measured else None


def _score(
    name: str,
    data: TextDataModule,
    tokenizer: Tokenizer,
    algorithm: Algorithm,
    variants: dict[str, BoundVariant],
    config: DictConfig,
) -> dict[str, Any]:
    draws = config.eval.draws_per_example
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    values = {}
    with Progress(*columns, transient=True) as progress:
        for variant, settings in variants.items():
            loader = data.valid_loader()
            rounds = 1 if algorithm.bound_kind == "exact" else draws
            bar = progress.add_task(f"{name}: {variant}", total=len(loader) * rounds)
            advance = partial(progress.advance, bar)
            values[variant] = likelihood(algorithm, loader, draws, config.seed, settings.options, advance)
    num_tokens = next(iter(values.values())).num_tokens
    num_bytes = data.bytes_per_token() * num_tokens
    num_characters = num_bytes * _characters_per_byte(data)
    return {
        "corpus": data.corpus.describe(),
        "wrap": data.corpus.wrap,
        "bytes_estimated": round(num_bytes),
        "characters_estimated": round(num_characters),
        "unknown_share": _unknown_share(data, tokenizer),
        "variants": {variant: value.in_units(num_bytes, num_characters) for variant, value in values.items()},
    }


def _characters_per_byte(data: TextDataModule) -> float:
    """Of the held-out documents themselves: what tokens spell lacks the characters the tokenizer does not know."""
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
    found = [(batch.tokens == unknown).double().mean(1) for batch in data.valid_loader()]
    return torch.cat(found).mean().item()


def _unknown_id(tokenizer: Tokenizer) -> int | None:
    """None where every text can be spelled. GPT-2 names its end mark here, which no text becomes."""
    model = json.loads(tokenizer.to_dict()["json"])["model"]
    unknown = model.get("unk_id")  # of unigram models; the others name it
    if unknown is None and model.get("unk_token") is not None:
        unknown = model["vocab"].get(model["unk_token"])
    return None if unknown in (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) else unknown


def _print(console: Console, result: dict[str, Any], algorithm: Algorithm, file: ModelSource) -> None:
    narrow = {"box": SIMPLE, "pad_edge": False, "collapse_padding": True}
    table = Table(title=f"{type(algorithm).__name__}, step {file.step}: {result['kind']}", **narrow)
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


def _print_notes(console: Console, result: dict[str, Any], config: DictConfig, file: ModelSource) -> None:
    """What a reader of the table should know of the texts."""
    first = result["corpora"][FIRST]
    if config.eval.real_data == "recorded":
        remark = "the corpus the checkpoint records; data=... of this command is not read without eval.real_data=current"
        console.print(f"{FIRST}: {escape(first['corpus'])}: {remark}", soft_wrap=True)
    elif first["trained_on"] is False:
        recorded = escape(str(_without_cache(file.config["data"])))
        console.print(f"note: this checkpoint was trained on another data node than is given now: {recorded}", soft_wrap=True)
    for name, corpus in result["corpora"].items():
        if corpus["unknown_share"] > 0:
            share = f"{100 * corpus['unknown_share']:.2g}% of the tokens of {escape(name)}"
            remark = "stand for unknown characters: its likelihood is no bound on that of the text"
            console.print(f"warning: {share} {remark}", soft_wrap=True)


def _trained_on(config: DictConfig, file: ModelSource) -> bool | None:
    """Whether the first corpus is the one the checkpoint records; None if it records none."""
    if config.eval.real_data == "recorded":
        return True
    recorded = _without_cache(file.config.get("data"))
    return None if recorded is None else recorded == _without_cache(plain_config(config)["data"])


def _without_cache(node: Any) -> Any:
    places = ("cache_dir", "processes")  # no part of which text it is
    return {key: value for key, value in node.items() if key not in places} if isinstance(node, Mapping) else None
