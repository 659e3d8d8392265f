"""Small files that are handed in, lying in every way: one line, bounded memory and time, in a process with limits."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from running import config_of, tiny, write_corpus

from flm.checkpoints.load import load_algorithm
from flm.export.hf_folder import write_folder
from flm.handed_in import MAX_BYTES, read_json, regular_file
from flm.tasks.train import train

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = """
import json, resource, signal, sys, time
from pathlib import Path
from flm.checkpoints.load import load_algorithm
from flm.data.cache import TokenCache
from flm.data.pretrained_tokenizer import HuggingFaceTokenizer
from flm.golf import packed
from flm.qwen.backbone import architecture_of
from flm.report.files import read_results
from flm.training.status import cpu_seconds
import zstandard, safetensors.torch, transformers

READERS = {
    "model": lambda path: load_algorithm(path),
    "artifact": lambda path: packed.read(path),
    "qwen": lambda path: architecture_of(path),
    "tokenizer": lambda path: HuggingFaceTokenizer(path).build(None).encode("a b"),
    "cache": lambda path: TokenCache(Path(path)),
    "results": lambda path: read_results([Path(path)]),
    "status": lambda path: cpu_seconds(Path(path)),
}
load_algorithm(sys.argv[1])
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30),) * 2)
resource.setrlimit(resource.RLIMIT_CPU, (120, 120))
def ring(*_):
    raise RuntimeError("it waits")
signal.signal(signal.SIGALRM, ring)
for kind, path in json.load(sys.stdin):
    signal.alarm(20)
    start = time.process_time()
    try:
        said = f"read {READERS[kind](path)!r}"[:40]
    except (ValueError, OSError) as error:
        said = str(error)
    except BaseException as error:
        said = f"TRACEBACK {type(error).__name__}: {error}"
    print(json.dumps([said, time.process_time() - start]), flush=True)
"""
NESTED, LONG = b'{"a": ' + b"[" * 300_000, b'{"a": "' + b"x" * (1 << 20)
LIES = {
    "nested": NESTED,
    "nested in flm": b'{"flm": {"config": ' + b'{"a":' * 100_000,
    "not UTF-8": b'{"a": "\xff"}',
    "a number of a million digits": b'{"a": ' + b"9" * 10**6 + b"}",
    "broken off": LONG,
    "a list": b"[1, 2]",
    "nothing": b"",
    "huge": None,  # a terabyte that takes no room on the disk
    "a folder": None,
    "a pipe": None,  # that nobody writes to: who reads it waits for ever
}


def put(path: Path, lie: str) -> None:
    path.unlink(missing_ok=True)
    if lie == "huge":
        with path.open("wb") as file:
            file.truncate(1 << 40)
    elif lie == "a folder":
        path.mkdir()
    elif lie == "a pipe":
        os.mkfifo(path)
    else:
        path.write_bytes(LIES[lie])


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """(kind, what is opened, the file in it that lies)."""
    root = tmp_path_factory.mktemp("handed")
    corpus = write_corpus(root / "corpus", documents=4)
    quick = ["trainer.max_steps=1", "logger=none", "callbacks.generation=null", "callbacks.sample=null"]
    train(config_of(root / "run", *tiny(corpus, *quick, f"data.cache_dir={root / 'cache'}")))
    good = root / "run" / "checkpoints" / "last.ckpt"
    algorithm, source = load_algorithm(good)
    found = []
    for lie in LIES:
        for name in ("config.json", "generation_config.json", "tokenizer.json", "model.safetensors"):
            folder = root / f"{lie}, {name}"
            write_folder(folder, algorithm, source, "")
            put(folder / name, lie)
            found.append(("model", folder, folder / name))
        for kind, names in (
            ("qwen", ["config.json"]),
            ("tokenizer", ["tokenizer.json", "vocab.txt", "tokenizer_config.json"]),
            ("cache", ["manifest.json"]),
            ("status", ["status.json"]),
        ):
            for name in names:
                folder = root / f"{lie}, {kind}, {name}"
                folder.mkdir()
                put(folder / name, lie)
                found.append((kind, folder, folder / name))
        for kind, name in (("results", "results.json"), ("artifact", "x.flmpack"), ("model", "x.ckpt")):
            (root / f"{lie}, {name}").mkdir()
            put(root / f"{lie}, {name}" / name, lie)
            found.append((kind, root / f"{lie}, {name}" / name, root / f"{lie}, {name}" / name))
    return good, found


def test_every_file_that_lies_is_one_line_within_limits(cases):
    good, found = cases
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(good)],
        input=json.dumps([(kind, str(path)) for kind, path, _ in found]),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        check=False,
        timeout=550,
    )
    said = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert done.returncode == 0 and len(said) == len(found), (done.returncode, found[len(said) :][:1], done.stderr[-1500:])
    wrong = {}
    for (kind, path, file), (line, seconds) in zip(found, said, strict=True):
        names = str(path) in line or str(file) in line
        harmless = kind == "status" and line == "read None"
        if not (names or harmless) or line.startswith(("TRACEBACK", "read ")) and not harmless or "\n" in line or seconds > 5:
            wrong[f"{kind} {file}"] = (line[:300], seconds)
    print(f"{len(found)} files, at most {max(seconds for _, seconds in said):.2f} s")
    assert not wrong, "\n".join(f"{key}: {value}" for key, value in wrong.items())


def test_limits(tmp_path):
    file = tmp_path / "x.json"
    file.write_bytes(b" " * (MAX_BYTES - 1) + b"1")
    assert read_json(file) == 1 and regular_file(file) == file
    file.write_bytes(b" " * MAX_BYTES + b"1")
    with pytest.raises(ValueError, match="more than the 16,777,216 that such a file may have"):
        read_json(file)
    file.write_bytes(NESTED)
    with pytest.raises(ValueError, match="nested too deeply"):
        read_json(file)
