"""The keys of `eval`, grouped by what reads them, and the model that they name."""

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any, Literal

from annotated_types import MinLen

import flm
from flm.checkpoints.foreign import ImportChoices
from flm.checkpoints.hub import ModelName
from flm.language_model import LanguageModel
from flm.ranges import DIFFERENT, Count, Existing, Index, OpenShare, Text, Where
from flm.registry import entries, load
from flm.tasks.machine import Machine, compile_networks

JUDGE = Where(lambda name: name in ("ar", *entries("judges")), "ar, or a judge that a wing registers")
ACCELERATION = Where(lambda name: name in entries("accelerations"), "one that a wing registers, as cuda_graphs")
Protocol = Literal["published", "whole_text"]


@dataclass(frozen=True)
class LoadOptions:
    """Which model, which of its weights, and how its networks are evaluated."""

    checkpoint_path: ModelName | None = None
    disable_ema: bool | None = False
    trusted_modules: Sequence[Text] = ()
    hub_revision: Text | None = None
    hub_file: Text | None = None
    acceleration: Annotated[str, ACCELERATION] | None = None


@dataclass(frozen=True)
class LikelihoodOptions:
    """Options of mode=ppl_eval and similar evaluations."""

    max_examples: Count | None = 256
    draws_per_example: Count = 4
    pilot_draws: Index = 256
    exact_evidence: bool = False
    evidence_share: OpenShare = 0.5
    bound_steps: Annotated[Sequence[Count], DIFFERENT] = ()
    corpora: Mapping[str, Existing | Mapping[str, Any]] | None = None


@dataclass(frozen=True)
class SampleOptions:
    """Options of mode=sample_eval and mode=frontier: the judges of samples, and the real text to compare with."""

    label: Text | None = None
    gen_ppl_eval_model_name_or_path: Text | Sequence[Text] | None = None
    scorer: Annotated[str, JUDGE] | None = None
    scorer_checkpoint_path: ModelName | None = None
    protocols: Protocol | Annotated[Sequence[Protocol], MinLen(1), DIFFERENT] = ("published",)
    scorer_batch_size: Count = 8
    scorer_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    real_data: Literal["recorded", "current"] | None = "recorded"
    mauve: bool = False
    mauve_model_name_or_path: Text = "gpt2-large"


@dataclass(frozen=True)
class EvalOptions(SampleOptions, LikelihoodOptions, LoadOptions, ImportChoices):
    """The whole group; configs/eval/default.yaml explains the keys."""

    def __post_init__(self) -> None:
        if self.scorer is None and self.scorer_checkpoint_path is not None:
            raise ValueError("eval.scorer_checkpoint_path is set and eval.scorer is not: set eval.scorer=ar to score with it")
        if self.scorer == "ar" and self.scorer_checkpoint_path is None:
            raise ValueError("eval.scorer=ar needs eval.scorer_checkpoint_path, a checkpoint trained with algo=ar")
        if self.mauve and self.real_data is None:
            raise ValueError("eval.mauve compares with real text: it needs eval.real_data")
        if self.mauve and importlib.util.find_spec("mauve") is None:
            raise ValueError("eval.mauve=true needs the package mauve-text: pip install mauve-text")


def load_model(wanted: EvalOptions, machine: Machine) -> LanguageModel:
    """The model that eval.checkpoint_path names, which may be anything that `flm.load` takes.

    Args:
        wanted: which model, and which of its weights.
        machine: that it will run on.
    """
    path = checkpoint_path(wanted, "use")
    choices = asdict(import_choices(wanted))
    lm = flm.load(
        path,
        machine.device,
        None if wanted.disable_ema is None else not wanted.disable_ema,
        wanted.trusted_modules,
        wanted.hub_revision,
        wanted.hub_file,
        **choices,
    )
    compile_networks(lm.algorithm, machine.compilation, machine.device)
    if wanted.acceleration is not None:
        load(entries("accelerations")[wanted.acceleration])(lm.algorithm, machine.device)
    lm.precision = machine.precision
    return lm


def checkpoint_path(wanted: EvalOptions, purpose: str) -> str:
    """eval.checkpoint_path; ValueError if it is not set. `purpose` completes "name the checkpoint to"."""
    if wanted.checkpoint_path is None:
        raise ValueError(f"eval.checkpoint_path is not set: name the checkpoint to {purpose}")
    return wanted.checkpoint_path


def import_choices(wanted: EvalOptions) -> ImportChoices:
    """The keys of `eval` about published checkpoints."""
    return ImportChoices(**{item.name: getattr(wanted, item.name) for item in fields(ImportChoices)})
