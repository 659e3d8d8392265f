"""mode=ppl_eval: how probable a checkpoint finds held-out text, exactly or as an upper bound on the nats."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import hydra
import torch
from omegaconf import DictConfig
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from flm.algos.algorithm import Algorithm, Batch, BoundVariant
from flm.checkpoints.load import CheckpointFile
from flm.data.corpora.corpus import Corpus
from flm.data.corpora.text import TextCorpus
from flm.data.module import TextDataModule
from flm.data.tokenizers import Tokenizer, TokenizerBuilder
from flm.draws import Draws, mix_seed
from flm.evaluation.bits_per_byte import utf8_bytes
from flm.evaluation.likelihood import likelihood
from flm.tasks.assemble import load_for_evaluation, plain_config, run_dir
from flm.tasks.results import provenance, write_json
from flm.tasks.scoring import head

TRAINED_ON = "data"  # what the corpus of the `data` node is called among eval.corpora


def ppl_eval(config: DictConfig) -> dict[str, Any]:
    """Scores the held-out text of `data` and of each of eval.corpora; writes run_dir/likelihood.json, prints a table."""
    for key in ("max_examples", "draws_per_example"):
        if config.eval[key] is not None and config.eval[key] < 1:
            raise ValueError(f"eval.{key} must be at least 1, not {config.eval[key]}")
    if config.eval.pilot_draws < 0:
        raise ValueError(f"eval.pilot_draws must be 0 (no pilot) or more, not {config.eval.pilot_draws}")
    algorithm, file, tokenizer = load_for_evaluation(config)
    if algorithm.bound_kind is None:
        raise ValueError(f"{file.path}: {type(algorithm).__name__} has no likelihood bound, which mode=ppl_eval needs")
    console = Console()
    sources = {name: _data(node, tokenizer, algorithm, config) for name, node in _corpora(config).items()}
    variants = _variants(algorithm, sources[TRAINED_ON], config)
    chosen = min(variants, key=lambda name: variants[name].expected or 0.0)  # without a pilot, the first
    result = {
        "kind": algorithm.bound_kind,
        "chosen": chosen,
        "measured_on_training_text": {name: variant.table for name, variant in variants.items()},
        "corpora": {name: _score(name, data, tokenizer, algorithm, variants, config) for name, data in sources.items()},
    }
    folder = run_dir(config)
    about = provenance(config, file) | head("likelihood", config, algorithm, file)
    write_json(folder / "likelihood.json", about | {"likelihood": result})
    recorded, given = (_without_cache(node) for node in (file.config.get("data"), plain_config(config)["data"]))
    if recorded is not None and recorded != given:
        console.print(f"note: this checkpoint was trained on another data node than is given now: {escape(str(recorded))}")
    _print(console, result, algorithm, file)
    console.print(f"written to {folder / 'likelihood.json'}")
    return result


class _Given(TokenizerBuilder):
    """The checkpoint's tokenizer, whatever the text."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer

    def build(self, documents, cache_dir=None, source=None) -> Tokenizer:
        return self.tokenizer


def _corpora(config: DictConfig) -> dict[str, Any]:
    """Config nodes, or paths, by name; the one trained on first."""
    named = config.eval.corpora or {}
    if not isinstance(named, Mapping) or TRAINED_ON in named:
        raise ValueError(f"eval.corpora must map names (other than {TRAINED_ON}) to files or data configs, not {named}")
    return {TRAINED_ON: config.data, **{str(name): node for name, node in named.items()}}


def _data(node: Any, tokenizer: Tokenizer, algorithm: Algorithm, config: DictConfig) -> TextDataModule:
    # a bare path: all of its text is held-out text
    corpus = TextCorpus(node, valid_path=node) if isinstance(node, str) else hydra.utils.instantiate(node)
    if not isinstance(corpus, Corpus):
        raise ValueError(f"eval.corpora: {node} is no corpus: give a path, or a node with the _target_ of one")
    return TextDataModule(
        corpus,
        _Given(tokenizer),
        length=algorithm.length,
        seed=config.seed,
        eval_batch_size=config.loader.eval_batch_size,
        num_workers=config.loader.num_workers,
        max_eval_examples=config.eval.max_examples,
    )


def _variants(algorithm: Algorithm, data: TextDataModule, config: DictConfig) -> dict[str, BoundVariant]:
    """What the bound leaves free, chosen on training blocks of the `data` corpus, evenly spaced over it."""
    blocks, wanted = data.train_blocks(), config.eval.pilot_draws
    device = next(algorithm.parameters()).device
    rows = [blocks[i * len(blocks) // wanted] for i in range(wanted)]
    size = config.loader.eval_batch_size
    parts = [torch.stack(rows[start : start + size]) for start in range(0, wanted, size)]
    training = [Batch(tokens, torch.ones(tokens.shape)).to(device) for tokens in parts]
    options = {key: config.eval[key] for key in ("exact_evidence", "evidence_share")}
    return algorithm.bound_variants(training, Draws(mix_seed(config.seed, 1), device=device), **options)


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
    num_characters = num_bytes * _characters_per_byte(data, tokenizer)
    return {
        "corpus": data.corpus.describe(),
        "wrap": data.corpus.wrap,
        "bytes": round(num_bytes),
        "characters": round(num_characters),
        "variants": {variant: value.in_units(num_bytes, num_characters) for variant, value in values.items()},
    }


def _characters_per_byte(data: TextDataModule, tokenizer: Tokenizer) -> float:
    """Of the evaluated blocks, decoded: their own bytes would count characters cut at a block's edge twice over."""
    texts = [tokenizer.decode(row, skip_special=True) for batch in data.valid_loader() for row in batch.tokens.tolist()]
    return sum(map(len, texts)) / max(1, utf8_bytes(texts))


def _print(console: Console, result: dict[str, Any], algorithm: Algorithm, file: CheckpointFile) -> None:
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
    shown = {name: row["parts_nats_per_token"] for name, row in result["corpora"][TRAINED_ON]["variants"].items()}
    if not any(shown.values()):
        return
    parts = Table(title=f"nats per token of {TRAINED_ON}, by part of the bound", **narrow)
    parts.add_column("of")
    parts.add_column("where")
    parts.add_column("nats / token", justify="right")
    for variant, nats in shown.items():
        for where, value in nats.items():
            parts.add_row(variant, where, f"{value:.4f}")
    console.print(parts)
    if len(shown) > 1:
        console.print(f"* the lowest on training text: {result['chosen']}")


def _without_cache(node: Any) -> Any:
    return {key: value for key, value in node.items() if key != "cache_dir"} if isinstance(node, Mapping) else None
