"""What a command has begun: text read, a network built, a file or folder made. An error that comes after any of it is late."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from torch.nn import Parameter
from torch.nn.modules.module import register_module_parameter_registration_hook

from flm.data.corpora.corpus import Corpus
from flm.data.tokenizers import TokenizerBuilder

_watching: list["Work"] = []


class Work:
    """
    Attributes:
        done: what was begun, in the order in which it was, each kind once.
    """

    def __init__(self, folder: Path):
        self.folder, self.done = str(folder.absolute()), {}

    def note(self, what: str, of: str = "") -> None:
        self.done.setdefault(what, of)


def _audit(event: str, arguments: tuple) -> None:
    if _watching and event in ("open", "os.mkdir"):
        work, name = _watching[-1], arguments[0]
        writes = event == "os.mkdir" or isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if writes and isinstance(name, str) and os.path.abspath(name).startswith(work.folder):
            work.note("files", name)


sys.addaudithook(_audit)  # cannot be taken back: it looks at nothing where nobody watches


@contextmanager
def watched(folder: Path) -> Iterator[Work]:
    """Watches for text that is read, weights that are made, and files below a folder."""
    work = Work(folder)

    def parameter(module, name, value):
        if isinstance(value, Parameter) and value.device.type != "meta":
            work.note("a network", f"{type(module).__name__}.{name}")

    def noting(owner, name):
        original = getattr(owner, name)

        def call(*args, **kwargs):
            work.note("text", f"{type(args[0]).__name__}.{name}")
            return original(*args, **kwargs)

        return mock.patch.object(owner, name, call)

    hook = register_module_parameter_registration_hook(parameter)
    _watching.append(work)
    owners = [owner for owner in _all(Corpus) if "documents" in vars(owner) or "open" in vars(owner)]
    patches = [noting(owner, name) for owner in owners for name in ("documents", "open") if name in vars(owner)]
    patches += [noting(owner, "build") for owner in _all(TokenizerBuilder) if "build" in vars(owner)]
    for patch in patches:
        patch.start()
    try:
        yield work
    finally:
        for patch in patches:
            patch.stop()
        _watching.remove(work)
        hook.remove()


def _all(kind: type) -> list[type]:
    return [kind, *(found for child in kind.__subclasses__() for found in _all(child))]
