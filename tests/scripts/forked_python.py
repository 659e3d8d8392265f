"""A `python` for scripts whose processes are forks of this one: all that a new process does, but for the seconds of imports.

A file named python, to be put first in PATH, hands its arguments, environment, folder and standard streams to this process,
which forks; the fork runs the very file, module or line, and its exit status goes back.
"""

import importlib
import json
import os
import runpy
import socket
import sys
import threading
import traceback
from pathlib import Path

IMPORTED = (
    "torch",
    "lightning",
    "hydra",
    "transformers",
    "datasets",
    "matplotlib",
    "flm.tasks.command_line",
    "flm.tasks.train",
)
_CLIENT = """import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as asked:
    asked.connect({address!r})
    given = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(asked, [len(given).to_bytes(8, "big")], [0, 1, 2])
    asked.sendall(given)
    sys.exit(int(asked.recv(16) or b"1"))
"""


def serve(folder: Path) -> Path:
    """Starts serving, as long as this process lives. Returns the folder that `python` lies in."""
    for name in IMPORTED:
        importlib.import_module(name)
    folder.mkdir(parents=True)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(address := str(folder / "s"))
    listening.listen()
    (folder / "client.py").write_text(_CLIENT.format(address=address), encoding="utf-8")
    python = folder / "python"
    python.write_text(f'#!/usr/bin/env bash\nexec "{sys.executable}" -I -S "{folder}/client.py" "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    threading.Thread(target=_accept, args=(listening,), daemon=True).start()
    return folder


def _accept(listening: socket.socket) -> None:
    while True:
        asked, _ = listening.accept()
        threading.Thread(target=_answer, args=(asked,), daemon=True).start()


def _answer(asked: socket.socket) -> None:
    with asked:
        size, streams, *_ = socket.recv_fds(asked, 8, 3)
        given = b""
        while len(given) < int.from_bytes(size, "big"):
            given += asked.recv(1 << 16)
        child = os.fork()
        if not child:
            os._exit(_run(*json.loads(given), streams))
        for stream in streams:
            os.close(stream)
        asked.sendall(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])).encode())


def _run(arguments: list[str], folder: str, environment: dict[str, str], streams: list[int]) -> int:
    """In the fork: as `python ARGUMENTS` in that folder."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    status = 0
    try:
        what, *rest = arguments
        if what == "-c":
            sys.argv = ["-c", *rest[1:]]
            exec(rest[0], {"__name__": "__main__"})
        elif what == "-m":
            sys.argv = rest
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        else:
            while what in ("-u",):
                what, *rest = rest
            sys.argv = [what, *rest]
            sys.path.insert(0, str(Path(what).resolve().parent))
            runpy.run_path(what, run_name="__main__")
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return status
