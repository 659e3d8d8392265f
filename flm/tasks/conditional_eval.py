"""mode=conditional_eval: responses of a checkpoint to held-out prompts, scored against the reference responses."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import hydra
from omegaconf import DictConfig
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flm.atomic import write_text
from flm.checkpoints.model_file import ModelSource
from flm.data.corpora.corpus import Corpus
from flm.data.documents import Split
from flm.data.tokenizers import Tokenizer
from flm.measures.responses import response_scores
from flm.ranges import Count, Text
from flm.tasks.assemble import inference_precision, load_for_evaluation, run_dir
from flm.tasks.fillings import Writer, check_hole_is_bounded, padding_of
from flm.tasks.generation import sampler_options
from flm.tasks.processes import check_alone
from flm.tasks.real_text import recorded_corpus
from flm.tasks.results import provenance, write_json
from flm.tasks.scoring import head


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
    """
    check_alone("conditional_eval")
    wanted = config.conditional_eval
    if not isinstance(wanted.samples, int) or wanted.samples < 1:
        raise ValueError(f"conditional_eval.samples must be a whole number of at least 1, not {wanted.samples}")
    if not (wanted.new_tokens in (None, "reference") or (isinstance(wanted.new_tokens, int) and wanted.new_tokens >= 1)):
        raise ValueError(
            f"conditional_eval.new_tokens must be null, reference or a number of at least 1, not {wanted.new_tokens}"
        )
    lm = load_for_evaluation(config)
    algorithm, file, tokenizer = lm.algorithm, lm.source, lm.tokenizer
    options = sampler_options(config, file, algorithm)
    padding = padding_of(file, algorithm, options)
    check_hole_is_bounded(padding, wanted.new_tokens, "conditional_eval.new_tokens")
    corpus = corpus_of(config, file)
    prompts, references, requests, left_out = held_out(config, corpus, tokenizer, algorithm.length)
    writer = Writer(algorithm, tokenizer, options, config.loader.eval_batch_size, config.seed, padding)
    folder, console = run_dir(config), Console()
    results = head("conditional_eval", config, algorithm, file) | {
        "options": options,
        "source": corpus.describe(),
        "left_out": left_out,
        "by_steps": {},
    }
    if left_out:
        console.print(
            f"warning: {left_out} held-out pairs do not fit model.length={algorithm.length} and are left out", soft_wrap=True
        )
    for steps in writer.steps(config):
        with inference_precision(config):
            responses = [[texts[0] for texts in given] for given in writer(requests, wanted.samples, steps)]
        lines = [
            {"prompt": prompt, "reference": reference, "responses": given}
            for prompt, reference, given in zip(prompts, references, responses, strict=True)
        ]
        path = folder / f"responses-{steps}.jsonl"
        write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        scores = response_scores(responses, references, wanted.bert_score_model)
        results["by_steps"][str(steps)] = {"file": path.name, **scores}
        console.rule(f"{steps} step{'s' * (steps > 1)}")
        for line in lines[:3]:
            console.print(escape(f"{line['prompt']}{line['responses'][0]}\n  reference: {line['reference']}\n"), soft_wrap=True)
    write_json(folder / "conditional_eval.json", provenance(config, file) | results)
    console.print(table_of(results))
    console.print(f"responses and results: {folder}")
    return results


def corpus_of(config: DictConfig, file: ModelSource) -> Corpus:
    """The pairs that eval.real_data names."""
    wanted = config.eval.real_data
    if wanted not in ("recorded", "current"):
        raise ValueError(f"eval.real_data must be recorded or current here, not {wanted}: the prompts come from there")
    if wanted == "current":
        return hydra.utils.instantiate(config.data)
    return recorded_corpus(file.config.get("data"), config.eval.trusted_modules)


def held_out(
    config: DictConfig, corpus: Corpus, tokenizer: Tokenizer, length: int
) -> tuple[list[str], list[str], list[list[list[int] | int]], int]:
    """Prompts, references, and prompts with their hole as token ids; and how many pairs did not fit."""
    read: Callable[[Split], Iterator[tuple[str, str]]] | None = getattr(corpus, "pairs", None)
    if read is None:
        raise ValueError(
            f"{corpus.describe()} holds no prompts with responses: set eval.real_data=current data=pairs data.path=..."
        )
    pairs, wanted = list(read("valid")), config.conditional_eval
    count = len(pairs) if wanted.limit is None else min(wanted.limit, len(pairs))
    prompts, references, requests = [], [], []
    for prompt, reference in (pairs[index * len(pairs) // count] for index in range(count)):
        ids = tokenizer.encode(prompt)
        room, needed = length - len(ids), len(tokenizer.encode(reference)) + 1  # EOS
        if needed > room:
            continue
        prompts.append(prompt)
        references.append(reference)
        sizes = {None: room, "reference": needed}
        requests.append([ids, min(room, sizes.get(wanted.new_tokens, wanted.new_tokens))])
    if not requests:
        raise ValueError(f"none of {count} held-out pairs of {corpus.describe()} fits model.length={length}")
    return prompts, references, requests, count - len(requests)


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
