"""A published checkpoint as one of ours: which algorithm its weights are of, and what the file leaves to be told."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from flm.checkpoints.description import Description
from flm.checkpoints.files import check_state
from flm.checkpoints.foreign import ImportChoices, Kind, kinds
from flm.data.pretrained_tokenizer import HuggingFaceTokenizer
from flm.data.tokenizers import Tokenizer
from flm.published.behaviour import check_softcap_known, generation
from flm.published.layout import Layout, is_published, layout_of

log = logging.getLogger(__name__)


FLM = Kind(
    "FLM (arXiv 2602.16813)",
    "flm.algos.flm.FLM",
    two_times=False,
    output_softcap=30.0,
    attention_softcap=50.0,
    uncapped_for_weeks=True,
)
FMLM = Kind(
    "FMLM (arXiv 2602.16813)",
    "flm.algos.fmlm.FMLM",
    two_times=True,
    output_softcap=30.0,
    attention_softcap=50.0,
    loss_weight=True,
    uncapped_for_weeks=True,
)
MDLM = Kind("MDLM (masked diffusion, arXiv 2406.07524)", "flm.algos.mdlm.MDLM", two_times=False, names=("mdlm",), masked=True)
_NOT_IMPORTED = {"ar", "sedd", "sedd_absorb", "d3pm", "d3pm_absorb", "udlm", "ot-finetune"}
_TOKENIZERS = {30522: "bert-base-uncased", 50257: "gpt2", 50258: "gpt2"}  # names on the Hugging Face hub, by V
_MASKS = {30522: 103}  # the id of [MASK] by V, for where the tokenizer is not read


def kind_of(layout: Layout, name: str, imported_as: str | None = None) -> str:
    """Which of `kinds` a file called `name` is.

    Raises:
        ValueError: imported_as is none of them or does not fit, or it is needed, or the weights are of another method.
    """
    known = kinds()
    # FLM's authors renamed theirs often: whatever is not another method's is told by its shape
    method = next((found for found, kind in known.items() if layout.algorithm in kind.names), None)
    method = method or ("mdlm" if layout.parameterization == "subs" else None)
    if imported_as is not None:
        if imported_as not in known:
            raise ValueError(f"eval.imported_as must be one of {', '.join(known)}, not {imported_as}")
        kind = imported_as
    elif method is not None:
        kind = method
    elif layout.algorithm in _NOT_IMPORTED:
        raise ValueError(f"{name}: weights of algorithm {layout.algorithm!r}, which is not imported; {', '.join(known)} are")
    elif layout.two_times:
        kind = "fmlm"
    elif layout.algorithm is None:
        raise ValueError(
            f"{name}: holds no config, and weights of several methods look alike: set eval.imported_as to one of "
            f"{', '.join(name for name, kind in known.items() if not kind.two_times)}"
        )
    else:
        kind = "flm"
    if known[kind].two_times != layout.two_times:
        has = "a second time embedding" if layout.two_times else "no second time embedding"
        raise ValueError(f"{name}: has {has}, so it is not {known[kind].title}: set eval.imported_as")
    return kind


def describe(
    layout: Layout, name: str, choices: ImportChoices, base: Mapping[str, Tensor] | None = None
) -> tuple[Description, dict[str, Tensor]]:
    """The description and the algorithm's state dict that one of our checkpoints would hold.

    Args:
        base: for a residual, the weights of its FLM, named `backbone.*`.

    Raises:
        ValueError: as `kind_of`; or a choice is missing or does not fit the weights.
    """
    kind = kinds()[kind_of(layout, name, choices.imported_as)]
    model = {
        "_target_": "flm.models.dit.DiT",
        "length": _length(layout, name, choices),
        **layout.model,
        "output_softcap": _softcap(choices.output_softcap, kind.output_softcap, "output_softcap"),
        "attention_softcap": _softcap(choices.attention_softcap, kind.attention_softcap, "attention_softcap"),
        "time_scale": 1.0,
    }
    if choices.output_softcap == "auto" and kind.uncapped_for_weeks:
        check_softcap_known(layout, name)
    weighted = any(key.startswith("loss_weight.") for key in layout.weights)
    algorithm: dict[str, Any] = {"_target_": kind.target}
    if kind.loss_weight:
        algorithm["learnable_loss_weighting"] = weighted
    elif weighted:
        log.warning("%s: its learned loss weight, used in training alone, is left out", name)
    average = _average(layout, name, choices.imported_ema)
    state, average = (None if part is None else _placed(part, kind) for part in (layout.weights, average))
    assert state is not None
    if kind.network == "residual":
        state = _base(layout, name, base) | state
    tokenizer = _tokenizer(layout, name, kind, choices) if choices.tokenizer else None
    vocab_size = layout.vocab_size
    if kind.masked:
        mask = _mask(layout, name, tokenizer)
        vocab_size, algorithm["mask_id"] = (vocab_size - 1, None) if mask is None else (vocab_size, mask)
    origin = {"file": Path(name).name, "algorithm": layout.algorithm, "parameterization": layout.parameterization}
    sampling = {"sampling": generation(layout)} if kind.two_times and kind.network == "backbone" else {}
    description = Description(
        config={"algo": algorithm, "model": model, "imported": origin} | sampling,
        tokenizer=None if tokenizer is None else tokenizer.to_dict(),
        vocab_size=vocab_size,
        length=model["length"],
        step=layout.step,
        average=average,
        average_updates=layout.average_updates,
    )
    return description, state


def _placed(weights: Mapping[str, Tensor], kind: Kind) -> dict[str, Tensor]:
    """Weights under the names of the algorithm's modules."""
    found = {f"{kind.network}.{key.removeprefix('backbone.')}": w for key, w in weights.items() if key.startswith("backbone.")}
    if kind.loss_weight:
        found |= {key: weight for key, weight in weights.items() if key.startswith("loss_weight.")}
    return found


def _base(layout: Layout, name: str, base: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    if base is None:
        raise ValueError(
            f"{name}: a residual network adds to the FLM it was trained beside: set eval.imported_base_path to that checkpoint"
        )
    own = {
        key: weight
        for key, weight in layout.weights.items()
        if key.startswith("backbone.") and not key.startswith("backbone.second_time_embedding.")
    }
    check_state(base, own, "eval.imported_base_path")
    return {f"base.{key.removeprefix('backbone.')}": weight for key, weight in base.items()}


def _average(layout: Layout, name: str, decay: float | None) -> dict[str, Tensor] | None:
    if decay is None:
        return next(iter(layout.averages.values()), None)
    for written, average in layout.averages.items():
        if written != "ema" and _is_number(written) and abs(float(written) - decay) < 1e-9:
            return average
    raise ValueError(f"{name}: eval.imported_ema={decay}: it holds averages {', '.join(layout.averages) or 'none'}")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _length(layout: Layout, name: str, choices: ImportChoices) -> int:
    length = layout.length if choices.length is None else choices.length
    if length is None:
        raise ValueError(f"{name}: does not say how long its sequences are: set eval.length (LM1B 128, OpenWebText 1024)")
    if type(length) is not int or length < 1:
        raise ValueError(f"eval.length must be a whole number of at least 1, not {length}")
    return length


def _softcap(given: float | str | None, published: float | None, key: str) -> float | None:
    if given == "auto":
        return published
    if given is not None and (isinstance(given, (str, bool)) or not given > 0):
        raise ValueError(f"eval.{key} must be auto, a number above 0 or null, not {given}")
    return None if given is None else float(given)


def _mask(layout: Layout, name: str, tokenizer: Tokenizer | None) -> int | None:
    """The id of the tokenizer's mask; None where the mask is the last row of the tables."""
    rows = layout.vocab_size
    if tokenizer is None:
        return _MASKS.get(rows)
    if tokenizer.vocab_size == rows - 1:
        return None
    found = tokenizer.encode("[MASK]")
    if len(found) != 1:
        raise ValueError(
            f"{name}: the weights have no row beyond the {rows} tokens of {tokenizer.name}, which has no [MASK]: "
            "set eval.tokenizer_name_or_path to the one it was trained with"
        )
    return found[0]


def _tokenizer(layout: Layout, name: str, kind: Kind, choices: ImportChoices) -> Tokenizer:
    rows = layout.vocab_size
    source = choices.tokenizer_name_or_path or _TOKENIZERS.get(rows)
    place = None if choices.tokenizer_dir is None else Path(choices.tokenizer_dir)
    if source is None:
        raise ValueError(f"{name}: no tokenizer is known for {rows} tokens: set eval.tokenizer_name_or_path")
    try:
        tokenizer = HuggingFaceTokenizer(source).build(lambda: iter(()), place)
        if tokenizer.vocab_size == rows - 1 and not kind.masked:  # [PAD] was appended, as for GPT-2
            tokenizer = HuggingFaceTokenizer(source, add_pad=True).build(lambda: iter(()), place)
    except ValueError as error:
        raise ValueError(f"{name}: eval.tokenizer_name_or_path: {error}") from error
    if tokenizer.vocab_size not in ({rows, rows - 1} if kind.masked else {rows}):
        raise ValueError(
            f"{name}: the weights have {rows} tokens, the tokenizer {source} has {tokenizer.vocab_size}: "
            "set eval.tokenizer_name_or_path to the one it was trained with"
        )
    return tokenizer


class PublishedLayout:
    """The entry in the registry."""

    @staticmethod
    def matches(content: Any) -> bool:
        return is_published(content)

    @staticmethod
    def read(
        content: Mapping[str, Any], name: str, choices: ImportChoices, base: Mapping[str, Tensor] | None
    ) -> tuple[Description, dict[str, Tensor]]:
        return describe(layout_of(content, name), name, choices, base)
