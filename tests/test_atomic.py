import os
import resource
import signal
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from flm import atomic


@contextmanager
def full_disk(at):
    """No file may grow beyond so many bytes, as on a disk that fills up."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (at, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


def test_a_new_file_in_a_new_folder_is_plain(tmp_path):
    path = tmp_path / "a" / "b" / "x.txt"
    atomic.write_text(path, "caf\u00e9\r\n")
    assert path.read_bytes() == b"caf\xc3\xa9\r\n" and os.listdir(path.parent) == ["x.txt"]
    (tmp_path / "usual").write_text("")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "usual").stat().st_mode)


@pytest.mark.parametrize("shared", [False, True])
def test_a_full_disk_leaves_the_old_file_and_nothing_beside_it(tmp_path, shared):
    path = tmp_path / "x.txt"
    atomic.write_text(path, "old")
    with full_disk(1000), pytest.raises(OSError, match=r"^\S*/x\.txt cannot be written \(File too large\): [^\n]+$"):
        atomic.write_text(path, "new" * 1000, shared)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["x.txt"]


def test_a_block_that_fails_keeps_the_old_file_and_its_own_error(tmp_path):
    path = tmp_path / "x.txt"
    atomic.write_text(path, "old")
    for error in (ZeroDivisionError("mine"), FileNotFoundError(2, "No such file", "/another/file"), OSError("my line")):
        with pytest.raises(type(error)) as caught, atomic.draft(path) as partial:
            partial.write_text("half")
            raise error
        assert caught.value is error and path.read_text() == "old" and os.listdir(tmp_path) == ["x.txt"]


def test_what_stands_in_the_way_is_named(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "inside").write_text("mine")
    cases = {
        tmp_path / "file" / "x.txt": "a file stands where a folder belongs",
        tmp_path / "file" / "deep" / "er" / "x.txt": "a file stands where a folder belongs",
        tmp_path / "folder": "a folder stands where a file belongs",
        tmp_path / ("x" * 300): "choose a shorter name",
    }
    for path, advice in cases.items():
        with pytest.raises(OSError, match=advice) as caught:
            atomic.write_text(path, "new")
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"^data\.cache_dir=\S*/file/cache cannot be written .* a file stands"):
        atomic.writable_folder(tmp_path / "file" / "cache", "data.cache_dir")
    with pytest.raises(ValueError, match=r"^data\.cache_dir=\S*/file cannot be written .* a file stands"):
        atomic.writable_folder(tmp_path / "file", "data.cache_dir")
    assert (tmp_path / "file").read_text() == "mine" and os.listdir(tmp_path / "folder") == ["inside"]


def test_a_read_only_folder_is_named(tmp_path):
    (tmp_path / "shut").mkdir(mode=0o555)
    tmp_path.chmod(0o755)
    code = """
import os
from flm import atomic
os.chdir(os.environ["FOLDER"])
if os.geteuid() == 0:
    os.setuid(65534)  # nothing is read-only for root
try:
    atomic.write_text("shut/x.txt", "new")
except OSError as error:
    print(error)
try:
    atomic.writable_folder("shut/deep", "run_dir")
except ValueError as error:
    print(error)
"""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    environment = {**os.environ, "FOLDER": str(tmp_path), "PYTHONPATH": root}
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        f"{key}shut/{name} cannot be written (Permission denied): choose a folder you may write to"
        for key, name in (("", "x.txt"), ("run_dir=", "deep"))
    ]
    assert os.listdir(tmp_path / "shut") == []


def test_a_writable_folder_is_made_and_left_empty(tmp_path):
    assert atomic.writable_folder(tmp_path / "a" / "b", "run_dir") == tmp_path / "a" / "b"
    assert os.listdir(tmp_path / "a" / "b") == []


def test_a_killed_writer_leaves_one_draft_that_the_next_write_uses_up(tmp_path):
    code = f"""
import os, signal
from flm import atomic
with atomic.draft({str(tmp_path / "x.txt")!r}) as partial:
    partial.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    for _ in range(2):
        died = subprocess.run([sys.executable, "-c", code], cwd=root, check=False)
        assert died.returncode == -signal.SIGKILL
        assert len(os.listdir(tmp_path)) == 1 and not (tmp_path / "x.txt").exists()
    atomic.write_text(tmp_path / "x.txt", "whole")
    assert os.listdir(tmp_path) == ["x.txt"]


def test_many_writers_of_a_shared_file_leave_one_whole_version(tmp_path):
    texts = [str(number) * 200_000 for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda text: atomic.write_text(tmp_path / "x.txt", text, shared=True), texts * 4))
    assert (tmp_path / "x.txt").read_text() in texts and os.listdir(tmp_path) == ["x.txt"]


def test_alias_moves_to_the_newest(tmp_path, monkeypatch):
    last = tmp_path / "last"
    for name in ("0", "1"):
        atomic.write_text(tmp_path / name, name)
        atomic.alias(tmp_path / name, last)
        atomic.alias(tmp_path / name, last)
        assert last.samefile(tmp_path / name)
    assert sorted(os.listdir(tmp_path)) == ["0", "1", "last"]

    def no_links(*_):
        raise OSError("not supported")

    monkeypatch.setattr(os, "link", no_links)
    atomic.alias(tmp_path / "0", last)
    assert last.read_text() == "0" and sorted(os.listdir(tmp_path)) == ["0", "1", "last"]
