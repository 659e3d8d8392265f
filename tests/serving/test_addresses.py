"""Servers as commands: an address that is taken or is none is one line before a model is read; Ctrl-C is no error."""

import io
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from rich.console import Console
from serving.models import tiny

import flm
from flm.__main__ import main
from flm.serving.terminal_demo import terminal_demo

pytest.importorskip("uvicorn")
ROOT = Path(flm.__file__).parents[1]


@pytest.mark.parametrize("command", [["serve"], ["demo", "--web"]])
def test_an_address_that_cannot_be_had_is_one_line(command, capsys, monkeypatch):
    monkeypatch.setattr(flm, "load", lambda *given, **options: pytest.fail("a model was read first"))
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert main([*command, "--port", str(port)]) == 1
        said = capsys.readouterr()
        wanted = f"127.0.0.1:{port} cannot be listened at: another program is there: end it, or take another --port"
        assert said.err == f"error: {wanted}\n" and said.out == ""
    assert main([*command, "--port", "99999"]) == 1
    assert capsys.readouterr().err == "error: --port must be in 0 ... 65535, not 99999\n"


def test_a_host_that_is_not_here_is_one_line(capsys):
    for host in ("192.0.2.1", "no.such.host.invalid"):
        assert main(["serve", "--host", host]) == 1
        said = capsys.readouterr().err
        assert said.startswith(f"error: {host}:8000 cannot be listened at: ") and said.count("\n") == 1


@pytest.mark.parametrize("command", [["serve"], ["demo", "--web"]])
def test_it_answers_at_a_free_port_and_ctrl_c_is_no_error(command, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    options = {"cwd": tmp_path, "env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    server = subprocess.Popen([sys.executable, "-m", "flm", *command, "--port", "0"], start_new_session=True, **options)
    address = server.stdout.readline().split("http://")[1].split("/")[0].strip()
    path = "health" if command == ["serve"] else ""
    for _ in range(6000):  # the address is said before the first question is answered
        try:
            with urllib.request.urlopen(f"http://{address}/{path}", timeout=5) as answer:
                assert answer.status == 200
            break
        except OSError:
            time.sleep(0.05)

    os.killpg(server.pid, signal.SIGINT)
    _, said = server.communicate(timeout=600)
    assert (server.returncode, said) == (0, "")


def test_numbers_typed_wrong_are_one_line():
    said = io.StringIO()
    lines = ["/steps x", "/steps 0", "/steps 2", "/seed -1", "/seed", "a \udcff", "a [0]", "/steps"]
    terminal_demo(tiny(), Console(file=said, width=100), [1], lines=lines)
    errors = [line for line in said.getvalue().splitlines() if line.startswith("error")]
    assert errors == [
        "error: /steps takes whole numbers of at least 1, not 'x'",
        "error: /steps takes whole numbers of at least 1, not '0'",
        "error: /seed takes whole numbers of at least 0, not '-1'",
        r"error: the text: 'a \udcff' holds half a surrogate pair, which is no character",
        "error: the text='a [0]' has a hole of 0 tokens: a hole needs at least 1",
    ]


def test_no_steps_are_refused_before_a_model_is_read(capsys):
    assert main(["demo", "nowhere", "--steps", "1", "0"]) == 1
    assert capsys.readouterr().err == "error: --steps takes whole numbers of at least 1, not 0\n"
