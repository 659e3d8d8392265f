"""An exported model read back: a folder of weights, a tokenizer and JSON. Nothing in it is executed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import safetensors
import safetensors.torch
from torch import Tensor

from flm.algos.algorithm import Algorithm
from flm.checkpoints.build import build_algorithm
from flm.checkpoints.description import Description
from flm.checkpoints.model_file import AVERAGE, LAST_STEP, ModelFile, sha256_of
from flm.checkpoints.room import Room
from flm.handed_in import VOCABULARY_BYTES, read_json, read_text
from flm.registry import objects

FORMAT_VERSION = 1
# Groups of the config that concern the run and its machine, not the model.
_OF_THE_RUN = ("run_dir", "mode", "eval", "report", "benchmark", "callbacks", "logger", "wandb", "checkpointing", "strategy")
WEIGHTS, CONFIG, GENERATION, TOKENIZER = "model.safetensors", "config.json", "generation_config.json", "tokenizer.json"
READ = (WEIGHTS, CONFIG, TOKENIZER, GENERATION)  # what `read_folder` needs
SHA256 = "sha256"  # in config.json under `flm`: digests of these files by name; older folders have none
DIGESTED = (WEIGHTS, TOKENIZER)


class TransformersModel(Protocol):
    """A network that transformers itself can open, and how its weights and config are written to a folder.

    Attributes:
        code: the source files that transformers runs to open it.
    """

    code: list[Path]

    def config(self, algorithm: Algorithm, steps: int) -> dict[str, Any]:
        """Its config.json; `steps` is the sampler's default."""

    def usage(self, name: str) -> str:
        """Markdown for the model card: how to open a model called `name`."""

    def to_folder(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The algorithm's weights under the names that `code` reads."""

    def from_folder(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The reverse."""

    def recipe(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The part of a recorded config that builds the model which the folder's weights fit."""


def transformers_model(algorithm: Algorithm) -> TransformersModel | None:
    """The kind, of those that wings register, that opens an algorithm's network; None if there is none."""
    return next((found for _, find in objects("transformers_models") if (found := find(algorithm)) is not None), None)


@dataclass
class ExportedFolder(ModelFile):
    """A folder with one set of weights.

    Attributes:
        weights: which they are, AVERAGE or LAST_STEP.
        defaults: `generation` as in generation_config.json, which users may edit; None: from the recorded config.
    """

    weights: str = AVERAGE
    defaults: dict[str, Any] | None = None

    @property
    def only_weights(self) -> str:
        return self.weights

    @property
    def generation(self) -> dict[str, Any]:
        return super().generation if self.defaults is None else self.defaults

    @property
    def content(self) -> Path:
        return self.path / WEIGHTS

    def algorithm(self, trusted_modules: Sequence[str], **extra: Any) -> Algorithm:
        try:
            room = Room.of(self.state)
            return build_algorithm(self.config, self.description.vocab_size, trusted_modules, room=room, **extra)
        except Exception as error:  # constructors raise anything for senseless values: too much memory, a width of 0
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise ValueError(f"{self.path / CONFIG}: no model can be built from it: {reason}") from error

    def state_for(self, algorithm: Algorithm) -> Mapping[str, Tensor]:
        network = transformers_model(algorithm)
        return self.state if network is None else network.from_folder(self.state)


def read_folder(folder: str | Path) -> ExportedFolder:
    """Reads an exported folder.

    Raises:
        ValueError: a file is missing or damaged, or is of another format.
    """
    folder = Path(folder)
    content = json_object(folder / CONFIG)
    own = content.get("flm")
    if not isinstance(own, dict):
        raise ValueError(f"{folder / CONFIG}: not a model of this project: it has no key 'flm'")
    if own.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{folder / CONFIG}: folder format {own.get('format_version')!r}, written by version "
            f"{own.get('package_version')!r}; this code reads format {FORMAT_VERSION}: use the version that wrote it"
        )
    types = {"config": dict, "tokenizer": dict, "step": int}
    damaged = [key for key, kind in types.items() if not isinstance(own.get(key), kind)]
    damaged += [] if own.get("weights") in (AVERAGE, LAST_STEP) else ["weights"]
    damaged += [key for key in ("vocab_size", "length") if not isinstance(content.get(key), int)]
    if damaged:
        raise ValueError(f"{folder / CONFIG}: damaged: {', '.join(damaged)} missing or of another type")
    for name in (WEIGHTS, TOKENIZER):
        if not (folder / name).is_file():
            raise ValueError(f"{folder}: not a whole exported model: {name} is missing")
    try:
        weights = safetensors.torch.load_file(folder / WEIGHTS)
    except (safetensors.SafetensorError, OSError, MemoryError) as error:
        raise ValueError(f"{folder / WEIGHTS}: not a readable safetensors file ({error})") from error
    try:
        text = read_text(folder / TOKENIZER, VOCABULARY_BYTES)
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder / TOKENIZER}: not a readable tokenizer ({error})") from error
    _check_digests(folder, own.get(SHA256, {}))
    defaults = json_object(folder / GENERATION).get("flm") if (folder / GENERATION).exists() else None
    if defaults is not None and not (
        isinstance(defaults, dict) and isinstance(defaults.get("options"), dict) and "steps" in defaults
    ):
        raise ValueError(f"{folder / GENERATION}: key 'flm' must hold steps and options")
    tokenizer = own["tokenizer"] | {"json": text}
    vocab_size = own.get("vocab_size", content["vocab_size"])  # the outer one also counts spare rows of the tables
    description = Description(own["config"], tokenizer, vocab_size, content["length"], own["step"])
    return ExportedFolder(folder, description, weights, weights=own["weights"], defaults=defaults)


def _check_digests(folder: Path, recorded: Any) -> None:
    if not (isinstance(recorded, dict) and set(recorded) <= set(DIGESTED)):
        raise ValueError(f"{folder / CONFIG}: damaged: flm.{SHA256} must hold digests of {' and '.join(DIGESTED)}")
    for name, digest in recorded.items():
        if sha256_of(folder / name) != digest:
            raise ValueError(
                f"{folder / name}: changed since it was exported: its SHA-256 is not that in {CONFIG}: export or download it "
                f"again, or remove flm.{SHA256} from {CONFIG} if you changed it"
            )


def json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises ValueError, naming the file, if it cannot be read or holds no object."""
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not a readable JSON file ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: not a JSON object")
    return content


def shareable(config: Mapping[str, Any]) -> dict[str, Any]:
    """A recorded config without groups that concern the run or machine. Absolute paths are cut to their last part."""
    return _cut({key: value for key, value in config.items() if key not in _OF_THE_RUN})


def _cut(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _cut(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_cut(item) for item in value]
    absolute = isinstance(value, str) and (value.startswith(("/", "~")) or value[1:3] in (":\\", ":/"))
    return value.replace("\\", "/").rstrip("/").rpartition("/")[2] if absolute else value
