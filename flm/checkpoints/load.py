"""From a file, folder or name back to a model. Nothing in any of them is executed."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from flm.algos.algorithm import Algorithm
from flm.checkpoints import restricted
from flm.checkpoints.description import KEY, Description
from flm.checkpoints.files import check_state
from flm.checkpoints.folder import CONFIG, read_folder
from flm.checkpoints.foreign import ImportChoices, layout_of
from flm.checkpoints.hub import builtin, download, names_repository
from flm.checkpoints.model_file import AVERAGE, LAST_STEP, ModelFile, ModelSource
from flm.registry import objects

PREFIX = "algorithm."  # the name of the algorithm in the training module
_OF_A_RUN = ("checkpoints/last.ckpt", "last.ckpt", "checkpoints/imported.ckpt")


class _Tokenizer(Protocol):
    def to_dict(self) -> dict[str, Any]: ...


def read_model(
    source: str | Path, choices: ImportChoices | None = None, revision: str | None = None, file: str | None = None
) -> ModelFile:
    """Reads a model: a checkpoint, a run's last one, an exported folder, here or on the hub, or a kind that a wing registers.

    Args:
        source: a path, owner/model if there is no such path, or the name of a model that comes with the package.
        choices: what a checkpoint of others leaves open; None: all is inferred, and no tokenizer is read.
        revision: branch, tag or commit on the hub; None: main.
        file: path of a checkpoint inside the repository on the hub; None: an exported model.

    Raises:
        ValueError: there is nothing of that name; it is none of these, or damaged; or a choice is missing.
    """
    path = _located(source, revision, file)
    kind = _registered_kind(path)
    if kind is not None:
        return ModelFile(path, *kind.read(path))
    return read_folder(path) if path.is_dir() else read_checkpoint(path, choices)


def read_description(path: str | Path) -> Description:
    """The description in a checkpoint that training resumes from; errors as of `read_checkpoint`."""
    kind = _registered_kind(Path(path))
    if kind is None:
        return read_checkpoint(path).description
    return kind.describe(path) if hasattr(kind, "describe") else kind.read(path)[0]


def read_checkpoint(path: str | Path, choices: ImportChoices | None = None) -> ModelFile:
    """A checkpoint file of this project, or one of others that a wing can read; arguments and errors as of `read_model`."""
    content, name = _content(path), str(path)
    layout = None if KEY in content else layout_of(content)
    if layout is None:
        try:
            description = Description.of(content, name)
        except RecursionError as error:
            raise ValueError(f"{name}: damaged description: nested without end") from error
        return ModelFile(Path(path), description, algorithm_state(content, name))
    choices = ImportChoices(tokenizer=False) if choices is None else choices
    base = None
    if choices.imported_base_path is not None:
        alone = replace(choices, imported_as=None, imported_base_path=None, imported_ema=None, tokenizer=False)
        found = read_model(choices.imported_base_path, alone)
        base = found.state | (found.average or {})
    return ModelFile(Path(path), *layout.read(content, name, choices, base), published=True)


def load_algorithm(
    source: str | Path,
    use_average: bool | None = True,
    trusted_modules: Sequence[str] = (),
    choices: ImportChoices | None = None,
    revision: str | None = None,
    file: str | None = None,
    **extra: Any,
) -> tuple[Algorithm, ModelSource]:
    """The model in any source that `read_model` takes, on the CPU, in evaluation mode.

    Args:
        use_average: take the averaged weights, not those of the last step; None: if the file has them. An exported folder
            holds only one of the two.
        trusted_modules, extra: as in `build_algorithm`.
        choices, revision, file: as in `read_model`.

    Raises:
        ValueError: as `read_model`; the file describes no model that this code can build, or the weights do not fit it; or it
            lacks the weights that use_average asks for.
    """
    found = read_model(source, choices, revision, file)
    algorithm = found.algorithm(trusted_modules, **extra)
    state = found.state_for(algorithm)
    check_state(state, algorithm.state_dict(), str(found.content))
    algorithm.load_state_dict(state)
    weights = found.only_weights
    if weights is None:
        weights = AVERAGE if use_average or (use_average is None and found.average is not None) else LAST_STEP
        if weights == AVERAGE:
            apply_average(algorithm, found)
    elif use_average is False and weights == AVERAGE:
        raise ValueError(f"{source}: holds the averaged weights alone, not those of the last step")
    return algorithm.eval(), found.source(_label(source, found.path), weights)


@torch.no_grad()
def apply_average(algorithm: nn.Module, file: ModelFile) -> None:
    """Puts the averaged weights in place of the last step's.

    Raises:
        ValueError: the file holds no average, or one of other parameters.
    """
    # by parameter, not by state dict: there a tied weight has a second name, under which the last step's would come back
    if file.average is None:
        raise ValueError(f"{file.path}: holds no average of the weights: set eval.disable_ema=true")
    trainable = {name: p for name, p in algorithm.named_parameters() if name in file.average}
    check_state(file.average, trainable, f"{file.path}, average")
    for name, parameter in trainable.items():
        parameter.copy_(file.average[name])


def _located(source: str | Path, revision: str | None, file: str | None) -> Path:
    """The file or folder of the model that a source names; downloaded if it is on the hub."""
    if not str(source).strip():
        raise ValueError("a model has no empty name: give a run folder, checkpoint, exported folder or owner/model on the hub")
    boxed = builtin(str(source))
    if boxed is not None:
        return boxed
    path = Path(source)
    if path.is_file():
        return path
    if not path.is_dir():
        if not names_repository(str(source)):
            raise ValueError(f"{source}: no such file or folder, and no name on the Hugging Face hub (owner/model)")
        return download(str(source), revision, file=file)
    if (path / CONFIG).is_file() or _registered_kind(path) is not None:
        return path
    last = next((path / name for name in _OF_A_RUN if (path / name).exists()), None)
    if last is None:
        runs = sorted((file.stat().st_mtime, file) for depth in ("*", "*/*") for file in path.glob(f"{depth}/{_OF_A_RUN[0]}"))
        newest = f"; the newest run in it is {runs[-1][1].parents[1]}" if runs else ""
        raise ValueError(
            f"{source}: not an exported model: it has no {CONFIG}; and not a run's folder: it has no {_OF_A_RUN[0]}{newest}"
        )
    return last


def _registered_kind(path: Path) -> Any:
    return next((kind for _, kind in objects("model_files") if kind.matches(path)), None)


def _label(source: str | Path, path: Path) -> str:
    """The name of the run's folder if a run wrote it; else the name of the file or of the model."""
    if not Path(source).exists():
        return str(source).rpartition("/")[2]
    path = path.resolve()
    return path.parent.parent.name if path.parent.name == "checkpoints" else path.name if path.is_dir() else path.stem


def _content(path: str | Path) -> Mapping[str, Any]:
    noted: list[str] = []
    content = restricted.read(path, noted)
    # a published checkpoint carries its config and tokenizer as objects; no other file has a reason to hold any
    if noted and (layout_of(content) is None or KEY in content):
        raise ValueError(f"{path}: refused, it holds Python objects beyond plain values and tensors ({noted[0]})")
    return content if isinstance(content, Mapping) else {}


def algorithm_state(content: Mapping[str, Any], name: str) -> dict[str, Tensor]:
    """The algorithm's part of the state dict in a loaded file called `name`."""
    state = content.get("state_dict")
    if not isinstance(state, Mapping) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    ):
        raise ValueError(f"{name}: damaged checkpoint: no weights under state_dict")
    return {key.removeprefix(PREFIX): value for key, value in state.items() if key.startswith(PREFIX)}


def check_vocabulary(source: ModelSource, tokenizer: _Tokenizer) -> None:
    """Raises ValueError unless the tokenizer is the one the model was trained with."""
    check_tokenizer(source.tokenizer, tokenizer.to_dict(), str(source.path))


def check_tokenizer(stored: Mapping[str, Any] | None, given: Mapping[str, Any] | None, name: str) -> None:
    """Raises ValueError unless two Tokenizer.to_dict() are equal; `name` is the file that holds the first."""
    stored, given = ({key: v for key, v in (side or {}).items() if key != "name"} for side in (stored, given))
    if stored != given:
        keys = sorted(set(stored) | set(given))
        differing = [key for key in keys if stored.get(key) != given.get(key)]
        raise ValueError(
            f"{name}: a checkpoint of another vocabulary: its tokenizer differs from that of the data in "
            f"{', '.join(differing) or 'being absent'}: choose the data= it was trained on"
        )
