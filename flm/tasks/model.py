"""The model that an evaluation asks for."""

from dataclasses import asdict, fields

import flm
from flm.checkpoints.imported import ImportChoices
from flm.language_model import LanguageModel
from flm.tasks.eval_options import EvalOptions
from flm.tasks.machine import Machine, compile_networks


def load_model(wanted: EvalOptions, machine: Machine) -> LanguageModel:
    """What eval.checkpoint_path names: anything that `flm.load` takes.

    Args:
        wanted: which model, and which of its weights.
        machine: where it will run.
    """
    path = checkpoint_path(wanted, "use")
    choices = asdict(import_choices(wanted))
    lm = flm.load(
        path,
        machine.device,
        not wanted.disable_ema,
        wanted.trusted_modules,
        wanted.hub_revision,
        wanted.hub_file,
        **choices,
    )
    compile_networks(lm.algorithm, machine.compilation, machine.device)
    lm.precision = machine.precision
    return lm


def checkpoint_path(wanted: EvalOptions, purpose: str) -> str:
    """eval.checkpoint_path, or an error where it is not set."""
    if wanted.checkpoint_path is None:
        raise ValueError(f"eval.checkpoint_path is not set: name the checkpoint to {purpose}")
    return wanted.checkpoint_path


def import_choices(wanted: EvalOptions) -> ImportChoices:
    """What `eval` says of a published checkpoint."""
    return ImportChoices(**{item.name: getattr(wanted, item.name) for item in fields(ImportChoices)})
