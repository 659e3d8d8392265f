"""Checkpoints of other projects: what a wing declares of each kind it reads, and what the user adds where a file is silent."""

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
        names: its names in the configs of such files, under `algo.name`.
        target: its class here, as a dotted path.
        two_times: whether its network is a flow map.
        output_softcap, attention_softcap: of its network, as published; None for none.
        uncapped_for_weeks: whether some published files come from code that lacked the output softcap for a time.
        network: name of the algorithm's module that takes the published backbone's weights.
        masked: whether it has a mask: the tokenizer's, or else the last row of the tables.
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
    """What the user says of a published checkpoint, by keys of `eval`. The rest is inferred if the file allows.

    Attributes:
        imported_as: one of `kinds`. Needed where the file cannot tell: a one-time network without a config, a residual.
        imported_base_path: for imported_as=flm_distill, the checkpoint of the FLM that the residual was trained with.
        imported_ema: decay of the average to take, if the file holds several; None: the first.
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
    """The registered `checkpoint_layouts` entry that can read this loaded file; None if there is none."""
    return next((layout for _, layout in objects("checkpoint_layouts") if layout.matches(content)), None)
