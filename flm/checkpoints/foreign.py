"""Checkpoints of others: what a wing says of a kind that it reads, and what the user says where a file is silent."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from flm.checkpoints.hub import ModelName
from flm.ranges import Count, PositiveShare, Scale, Text, Where
from flm.registry import objects


@dataclass(frozen=True)
class Kind:
    """A published algorithm.

    Attributes:
        title: for people.
        names: what such files' configs call it, under `algo.name`.
        target: its class here.
        two_times: whether its network is a flow map.
        output_softcap, attention_softcap: of its network, as published; None for none.
        uncapped_for_weeks: whether some of its files are of code that had lost the output softcap.
        network: the algorithm's module that the published backbone becomes.
        masked: whether it has a mask: the tokenizer's, or where that has none the last row of the tables.
        loss_weight: whether the algorithm here has the learned loss weight.
    """

    title: str
    target: str
    two_times: bool
    names: tuple[str, ...] = ()
    output_softcap: float | None = None
    attention_softcap: float | None = None
    network: str = "backbone"
    masked: bool = False
    loss_weight: bool = False
    uncapped_for_weeks: bool = False


def kinds() -> dict[str, Kind]:
    """All that can be imported, by the name that `eval.imported_as` takes."""
    return dict(objects("published_models"))


IMPORTED = Where(lambda name: name in kinds(), "flm, fmlm, mdlm, or another that a wing registers")


@dataclass(frozen=True)
class ImportChoices:
    """What the user says of a published checkpoint; keys of `eval`. What is left out is inferred where it can be.

    Attributes:
        imported_as: one of `kinds`. Needed where the file cannot tell: a one-time network without a config, a residual.
        imported_base_path: for imported_as=flm_distill, the checkpoint of the FLM that the residual was trained beside.
        imported_ema: of several averages in the file, the decay of the one to take; None: the first.
        tokenizer_name_or_path: as of `HuggingFaceTokenizer`; None: by the number of tokens.
        length: L; None: from the file's config.
        output_softcap, attention_softcap: a number, None for none, or "auto": as published for the algorithm.
        tokenizer_dir: folder in which a tokenizer of that name is looked for first; None: none.
        tokenizer: whether one is wanted at all; a teacher needs none.
    """

    imported_as: Annotated[str, IMPORTED] | None = None
    imported_base_path: ModelName | None = None
    imported_ema: PositiveShare | None = None
    tokenizer_name_or_path: Text | None = None
    length: Count | None = None
    output_softcap: Scale | Literal["auto"] | None = "auto"
    attention_softcap: Scale | Literal["auto"] | None = "auto"
    tokenizer_dir: Text | None = None
    tokenizer: bool = True


def layout_of(content: Any) -> Any:
    """What reads a loaded file of others: the entry of `checkpoint_layouts` that knows it, or None."""
    return next((layout for _, layout in objects("checkpoint_layouts") if layout.matches(content)), None)
