"""Files that are written whole or not at all, and one-line errors where they cannot be written."""

import errno
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_ADVICE = {
    errno.ENOSPC: "free some room",
    errno.EDQUOT: "free some room, your quota is used up",
    errno.EFBIG: "the file system or a limit takes no file so large",
    errno.EACCES: "choose a folder you may write to",
    errno.EPERM: "choose a folder you may write to",
    errno.EROFS: "choose a folder that is not read-only",
    errno.ENOTDIR: "a file stands where a folder belongs: move it away or choose another folder",
    errno.EEXIST: "a file stands where a folder belongs: move it away or choose another folder",
    errno.EISDIR: "a folder stands where a file belongs: move it away",
    errno.ENAMETOOLONG: "choose a shorter name",
}


@contextmanager
def draft(path: str | Path, durable: bool = False, shared: bool = False) -> Iterator[Path]:
    """A name beside `path` to write a file to. It becomes `path` when the block ends, and is removed if the block fails.

    Whenever the process dies, `path` is the old file or the whole new one. Its folder is made if it is not there.

    Args:
        durable: the new file also survives a power cut (fsync of file and folder).
        shared: several processes may write `path` at once, and the last wins. Otherwise the draft's name is always the same,
            so that a killed process leaves at most one behind and the next write reuses it.

    Raises:
        OSError: one line that names `path` and says what to do.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{f'{uuid.uuid4().hex}.' if shared else ''}partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            if durable:
                sync(partial)
            os.replace(partial, path)
            if durable:
                sync(path.parent)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        others = error.filename not in (None, str(partial), str(path)) and Path(str(error.filename)) not in path.parents
        if error.errno is None or others:  # already one of our lines, or about another file
            raise
        raise unwritable(path, error) from error


def write_json(path: Path, content: Mapping[str, Any]) -> Path:
    """Writes indented JSON, see `draft`; returns the path."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return path


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    """JSON Lines, whole or not at all."""
    write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def write_bytes(path: str | Path, content: bytes, shared: bool = False) -> None:
    """See `draft`."""
    with draft(path, shared=shared) as partial:
        partial.write_bytes(content)


def write_text(path: str | Path, text: str, shared: bool = False) -> None:
    """UTF-8, line ends unchanged; see `draft`."""
    write_bytes(path, text.encode(), shared)


def alias(path: Path, name: Path) -> None:
    """Makes `name` a hard link to the file `path`, or a copy where the file system has no hard links. Survives a power cut.

    If `path` is a folder, `name` must be beside it and becomes a symbolic link.
    """
    with draft(name) as partial:
        partial.unlink(missing_ok=True)
        try:
            os.symlink(path.name, partial) if path.is_dir() else os.link(path, partial)
        except OSError:
            shutil.copyfile(path, partial)
    # `draft` removes what is left: renaming a link onto another link to the same file leaves both
    sync(name.parent)


def remove(path: str | Path) -> None:
    """Removes a file, or a folder with its content, if it is there. A folder of this name never stays with half its content."""
    path = Path(path)
    if path.is_dir() and not path.is_symlink():
        leaving = path.with_name(f".{path.name}.leaving")
        shutil.rmtree(leaving, ignore_errors=True)
        os.replace(path, leaving)
        shutil.rmtree(leaving, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def writable_folder(path: str | Path, key: str) -> Path:
    """The folder, made if it is not there, and tested by writing and removing a file.

    Args:
        key: config key that names it, for the error.

    Raises:
        ValueError: one line with key, folder and what to do.
    """
    path = Path(path)
    probe = path / f".{uuid.uuid4().hex}.probe"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"\0")
        probe.unlink()
    except OSError as error:
        raise ValueError(f"{key}={_reason(path, error)}") from error
    return path


def check_room(folder: str | Path, needed: int, what: str) -> None:
    """Raises OSError, one line, if the disk has less free room than `needed`.

    Args:
        needed: bytes that will be written at least.
        what: what will be written, for the error: "a checkpoint".
    """
    disk = os.statvfs(folder)
    free = (disk.f_bavail if os.geteuid() else disk.f_bfree) * disk.f_frsize
    if disk.f_blocks and free < needed:
        raise OSError(f"{folder}: {free >> 10:,} KiB are free, and {what} takes at least {needed >> 10:,}: free some room")


def unwritable(path: str | Path, error: OSError) -> OSError:
    """The error in one line that names the file and says what to do."""
    return OSError(_reason(Path(path), error))


def of_disk(error: OSError, place: str | Path | None = None) -> str | None:
    """One line for a system error that a user can mend: no room, no permission, a file in the way. None for other errors.

    Args:
        place: the file that was being written, for errors that name none.
    """
    if error.errno is None or (name := error.filename or place) is None:
        return None
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
        return _reason(Path(str(name)), error)
    if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.EACCES, errno.EPERM):
        return f"{name}: {error.strerror}: {_ADVICE[error.errno].replace('may write to', 'may read and write')}"
    return None


def _reason(path: Path, error: OSError) -> str:
    # mkdir names the file in the way, which may be one of the path's parents
    where = f": {error.filename}" if error.filename not in (None, str(path)) and _is_parent(error.filename, path) else ""
    advice = _ADVICE.get(error.errno or 0, "choose another place")
    return f"{path} cannot be written ({error.strerror or error}{where}): {advice}"


def _is_parent(name: object, path: Path) -> bool:
    return isinstance(name, str) and Path(name) in path.parents


def sync(path: Path) -> None:
    """Makes the content of a file, or the names in a folder, survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
