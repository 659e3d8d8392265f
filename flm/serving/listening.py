"""Listening at an address of this machine. The address is bound first, so that a taken port shows before slow work begins."""

import errno
import socket
from typing import Any


def bound(host: str, port: int) -> socket.socket:
    """A socket at the address; port 0 takes a free one.

    Raises:
        ValueError: there is no such port or host, or another program has it.
    """
    if not 0 <= port < 65536:
        raise ValueError(f"--port must be in 0 ... 65535, not {port}")
    found = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
    except OSError as error:
        found.close()
        why = "another program is there: end it, or take another --port" if error.errno == errno.EADDRINUSE else error.strerror
        raise ValueError(f"{host}:{port} cannot be listened at: {why}") from error
    return found


def run(app: Any, listening: socket.socket) -> None:
    """Serves until the process is told to end. Ctrl-C is no error."""
    import uvicorn

    try:
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listening])
    except KeyboardInterrupt:
        pass
