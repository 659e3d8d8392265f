"""Models by name: those that come with the package (flm/box/README.md), and those on the Hugging Face hub.

From the hub, only the files of an exported model or one named checkpoint are fetched, and no code is run.
"""

import glob
import re
from pathlib import Path, PurePosixPath
from typing import Annotated

from flm.checkpoints.folder import CONFIG, READ
from flm.ranges import Where, is_there

BOX = Path(__file__).resolve().parents[1] / "box"
PREFIX = "builtin:"
_SHOWN = 8  # names of files in an error
FILE_ENDINGS = (".ckpt", ".pt", ".pth", ".bin", ".safetensors", ".flmpack")  # never the end of a name on the hub
_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def names() -> dict[str, Path]:
    """The file of each model that comes with the package, `builtin:text` and `builtin:puzzle`."""
    return {f"{PREFIX}{path.stem}": path for path in sorted(BOX.glob("*.flmpack"))}


def builtin(source: str) -> Path | None:
    """The file of a model called builtin:NAME; None for any other source.

    Raises:
        ValueError: no such model comes with the package.
    """
    if not source.startswith(PREFIX):
        return None
    found = names()
    if source not in found:
        raise ValueError(f"{source}: no such model comes with the package; there are: {', '.join(found) or 'none'}")
    return found[source]


def is_hub_name(name: str) -> bool:
    """Whether it has the form owner/model."""
    return _NAME.fullmatch(name) is not None


def names_repository(name: str) -> bool:
    """Whether it is owner/model and does not end like a file, for arguments that may also be paths."""
    return is_hub_name(name) and Path(name).suffix not in FILE_ENDINGS


# A model as `flm.load` takes it. The schema refuses a mistyped path before anything is read.
ModelName = Annotated[
    str,
    Where(
        lambda name: is_there(name) or names_repository(name) or name in names(),
        "a run folder, checkpoint, exported folder or artifact, owner/model on the hub, builtin:text or builtin:puzzle",
    ),
]


def download(name: str, revision: str | None = None, endpoint: str | None = None, file: str | None = None) -> Path:
    """The local copy of a model on the hub: its folder, or one file. What was downloaded before needs no network.

    Args:
        name: owner/model.
        revision: branch, tag or commit; None: main.
        endpoint: address of the hub; None: the usual one, or HF_ENDPOINT.
        file: path in the repository of the one checkpoint to fetch (owt_fmlm.ckpt); None: an exported model.

    Raises:
        ValueError: it cannot be fetched and is not here already; or the repository holds no such file, or no exported model.
    """
    import huggingface_hub

    if file is not None and (PurePosixPath(file).is_absolute() or ".." in PurePosixPath(file).parts or not file.strip()):
        raise ValueError(f"{name}: file={file!r} is no path inside a repository")
    wanted = list(READ) if file is None else [glob.escape(file)]
    try:
        folder = Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=wanted, endpoint=endpoint))
        found = folder / (CONFIG if file is None else file)
        there = [] if found.is_file() else huggingface_hub.HfApi(endpoint).list_repo_files(name, revision=revision)
    except Exception as error:  # the hub and the network each raise their own
        raise ValueError(
            f"{name}: no such file or folder here, and it could not be fetched from the Hugging Face hub "
            f"({first_line(error)}): without network, give a local folder or checkpoint"
        ) from error
    if not found.is_file():
        others = ", ".join(sorted(there)[:_SHOWN]) or "no file"
        more = f" and {len(there) - _SHOWN} more" if len(there) > _SHOWN else ""
        missing = f"no exported model ({CONFIG})" if file is None else f"no file {file}"
        raise ValueError(f"{name}: the repository holds {missing}, but {others}{more}: name a checkpoint by file=")
    return folder if file is None else found


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its class name if it has none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
