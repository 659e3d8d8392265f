"""README.md of an exported model: its use, training, measured results and licence."""

import inspect
import json
from collections.abc import Mapping, Sequence
from typing import Any

from flm.algos.algorithm import Algorithm
from flm.checkpoints.description import package_version
from flm.checkpoints.folder import shareable, transformers_model
from flm.checkpoints.model_file import AVERAGE, ModelSource
from flm.export.hf_folder import networks_of


def model_card(
    name: str,
    algorithm: Algorithm,
    source: ModelSource,
    license: str | None = None,
    citation: str | None = None,
    results: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Markdown with the hub's front matter.

    Args:
        name: of the model.
        license: identifier as the hub lists them, "apache-2.0"; None: the card says that none was given.
        citation: text to add.
        results: contents of result files of mode=sample_eval and mode=ppl_eval on this very checkpoint.
    """
    recipe = shareable(source.config)
    kind, steps = type(algorithm).__name__, source.generation["steps"]
    parameters = sum(parameter.numel() for parameter in algorithm.parameters())
    tokenizer = shareable({key: value for key, value in (source.tokenizer or {}).items() if key != "json"})
    method = inspect.getdoc(inspect.getmodule(type(algorithm))) or inspect.getdoc(type(algorithm)) or kind
    front = ["library_name: flm", "pipeline_tag: text-generation", "tags:", "- flow-matching", f"- {json.dumps(kind.lower())}"]
    if license is not None:
        front.insert(0, f"license: {json.dumps(license)}")
    opens = ""
    if networks_of(algorithm):
        opens = (
            "\n\nThe networks alone, without the package (see `modeling_flm.py` for their arguments):\n\n"
            "    from transformers import AutoModel\n"
            f'    model = AutoModel.from_pretrained("{name}", trust_remote_code=True)'
        )
    if (own := transformers_model(algorithm)) is not None:
        opens = "\n\n" + own.usage(name)
    sections = [
        "---\n" + "\n".join(front) + "\n---",
        f"# {name}",
        f"{kind}, {parameters:,} parameters, sequences of {algorithm.length} tokens, vocabulary of {algorithm.vocab_size:,} "
        f"({tokenizer.get('name')}). Trained for {source.step:,} steps; these are the "
        f"{'averaged weights' if source.weights == AVERAGE else 'weights of the last step, not their average'}.",
        "## Use",
        "    import flm\n"
        f'    lm = flm.load("{name}")\n'
        f"    lm.generate(n=4, steps={steps})\n"
        f'    lm.generate(prompt="...", suffix="...", steps={steps}, seed=0)\n'
        f'    lm.infill("The [8] sat on the [4].", steps={steps})' + opens,
        "## Method",
        method,
        "## Data",
        _json(recipe.get("data", "not recorded")),
        "Tokenizer:",
        _json(tokenizer),
        "## Metrics",
        *(_tables(results) or ["None were given."]),
        "## Recipe",
        "The resolved configuration of the training run; absolute paths are cut to their last part.",
        _json(recipe),
        f"Checkpoint SHA-256 {source.sha256}; written by flm {package_version()}.",
        "## Licence",
        "None was given: ask the authors before you use these weights." if license is None else f"{license}",
        "## Citation",
        "Please cite the papers named under Method." + (f"\n\n{citation.strip()}" if citation else ""),
    ]
    return "\n\n".join(sections) + "\n"


def _json(value: Any) -> str:
    return "```json\n" + json.dumps(value, indent=2, ensure_ascii=False) + "\n```"


def _tables(results: Sequence[Mapping[str, Any]]) -> list[str]:
    found = []
    for result in results:
        if "likelihood" in result:
            found.append(_likelihood(result["likelihood"]))
        if "generated" in result:
            found.append(_samples(result))
    return found


def _likelihood(result: Mapping[str, Any]) -> str:
    rows = [
        (corpus, variant, _number(row["nats_per_token"]), _number(row["perplexity"]), _number(row["bits_per_byte"]))
        for corpus, values in result["corpora"].items()
        for variant, row in values["variants"].items()
    ]
    return f"Likelihood of held-out text ({result['kind']}):\n\n" + _table(
        ("text", "of", "nats per token", "perplexity", "bits per byte"), rows
    )


def _samples(result: Mapping[str, Any]) -> str:
    entries = [(str(entry["steps"]), entry) for entry in result["generated"].values()]
    entries += [("real text", result["real"])] if result.get("real") else []
    rows = []
    for label, entry in entries:
        values = entry["metrics"]
        scores = values.get("gen_ppl") or [{}]
        entropy, judge = ((values.get(key) or {}).get("mean") for key in ("entropy_nats", "ngram_ce_nats"))
        numbers = (entropy, values.get("token_js_bits"), values.get("distinct_2"), judge, scores[0].get("ppl"))
        rows.append((label, str(entry["count"]), *map(_number, numbers)))
    scorer = (result.get("scorer") or {}).get("name", "no scorer")
    return f"Generated text, by number of steps (generative perplexity: {scorer}):\n\n" + _table(
        (
            "steps",
            "texts",
            "entropy, nats",
            "token JS, bits",
            "distinct-2",
            "3-gram cross-entropy, nats",
            "generative perplexity",
        ),
        rows,
    )


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
