"""Runs a script of scripts/ with a `python` that only writes down how it was called."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
VARIABLES = (
    "TASK",
    "TASKS",
    "ROWS",
    "SEEDS",
    "DATA_DIR",
    "DATA_PATH",
    "TOKENIZER_PATH",
    "SEED",
    "ITERATIONS",
    "TRAIN_SEQ_LEN",
    "VAR_EVAL_STEPS",
    "TEACHER_PATH",
    "CKPT_PATH",
    "STEPS",
    "OUT",
    "BUDGET",
    "SHARE",
    "EVALUATION",
    "PUZZLE",
    "TEXT",
    "TOKENIZER",
    "PACKING",
    "BOX",
    "LAUNCHER",
    "FLM_VENV",
    "VIRTUAL_ENV",
    "CONDA_PREFIX",
)


def stub_python(folder: Path, more: str = "") -> Path:
    """A folder to put first in PATH. `python -c` is the real one; any other call is written to folder/calls.

    Each call has a file of its own, named by the time: scripts call in the background too, and two of them may write at once.

    Args:
        more: lines of bash that a call runs first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stub = folder / "python"
    stub.write_text(
        "#!/usr/bin/env bash\n"
        f'[ "$1" != -c ] || exec "{sys.executable}" "$@"\n'
        f"{more}"
        f'mkdir -p "{folder}/calls" && printf "%s\\0" "$@" > "{folder}/calls/$(date +%s%N)-$$"\n',
        encoding="utf-8",
    )
    stub.chmod(0o755)
    return folder


def run_script(
    name: str, folder: Path, *arguments: str, stub: str = "", **variables: str
) -> tuple[subprocess.CompletedProcess, list[list[str]]]:
    """The finished process, and the arguments of each `python main.py` it would have run."""
    folder = stub_python(folder, stub)
    shutil.rmtree(folder / "calls", ignore_errors=True)
    environment = {key: value for key, value in os.environ.items() if key not in VARIABLES}
    environment |= {"PATH": f"{folder}:{environment['PATH']}", "FLM_VENV": "none"} | variables
    done = subprocess.run(
        ["bash", str(SCRIPTS / name), *arguments], env=environment, cwd=folder, capture_output=True, text=True, timeout=600
    )
    split = [call.read_text(encoding="utf-8").split("\0")[:-1] for call in sorted((folder / "calls").glob("*"))]
    assert all(call[0] == "main.py" for call in split)
    return done, [call[1:] for call in split]
