import os
import pickle
import resource
import signal
import subprocess
import sys
import zipfile

import pytest
import torch

from flm.checkpoints import files


def content(seed=0):
    return {"weights": torch.randn(50_000, generator=torch.Generator().manual_seed(seed)), "plain": [1, "a", None, 2.5]}


def test_round_trip(tmp_path):
    path = tmp_path / "deep" / "x.ckpt"
    files.save(content(), path)
    found = files.load(path)
    assert torch.equal(found["weights"], content()["weights"]) and found["plain"] == [1, "a", None, 2.5]
    assert os.listdir(path.parent) == ["x.ckpt"]


def test_a_full_disk_leaves_the_old_file_whole(tmp_path):
    path = tmp_path / "x.ckpt"
    files.save(content(0), path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match=r"x.ckpt cannot be written \(File too large\): [^\n]+"):
            files.save(content(1), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert torch.equal(files.load(path)["weights"], content(0)["weights"])
    assert os.listdir(tmp_path) == ["x.ckpt"]


def test_a_process_killed_while_writing_leaves_the_old_file_whole(tmp_path):
    path = tmp_path / "x.ckpt"
    files.save(content(0), path)
    # dies in the middle of writing: after some bytes, before the rest
    code = f"""
import os, signal, torch
from flm.checkpoints import files
class Deadly(dict):
    def __reduce__(self):
        os.kill(os.getpid(), signal.SIGKILL)
files.save([torch.zeros(1000), Deadly()], {str(path)!r})
"""
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    died = subprocess.run([sys.executable, "-c", code], cwd=root, env={**os.environ, "PYTHONPATH": root})
    assert died.returncode == -signal.SIGKILL
    assert torch.equal(files.load(path)["weights"], content(0)["weights"])
    files.save(content(1), path)
    assert os.listdir(tmp_path) == ["x.ckpt"]  # what the dead process left was used up


def test_unpicklable_content_is_not_half_written(tmp_path):
    with pytest.raises(Exception, match="pickle|local"):
        files.save({"f": lambda: None}, tmp_path / "x.ckpt")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.999])
def test_cut_short(tmp_path, keep):
    path = tmp_path / "x.ckpt"
    files.save(content(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: keep if keep > 1 else int(keep * len(whole))])
    with pytest.raises(ValueError, match=r"x.ckpt: .*(cut short|not a readable)") as caught:
        files.load(path)
    assert "\n" not in str(caught.value)


def test_one_flipped_bit_among_the_weights(tmp_path):
    path = tmp_path / "x.ckpt"
    files.save(content(), path)
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match="x.ckpt: damaged: the checksum"):
        files.load(path)


def test_other_files(tmp_path):
    (tmp_path / "text.ckpt").write_text("hello")
    with pytest.raises(ValueError, match="text.ckpt: not a checkpoint"):
        files.load(tmp_path / "text.ckpt")
    with zipfile.ZipFile(tmp_path / "zip.ckpt", "w") as archive:
        archive.writestr("hello", "hello")
    with pytest.raises(ValueError, match="zip.ckpt: not a readable checkpoint") as caught:
        files.load(tmp_path / "zip.ckpt")
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="none.ckpt: no such"):
        files.load(tmp_path / "none.ckpt")


class Bomb:
    def __init__(self, flag):
        self.flag = flag

    def __reduce__(self):
        return os.system, (f"touch {self.flag}",)


@pytest.mark.parametrize("legacy", [False, True])
def test_nothing_in_a_file_runs(tmp_path, legacy):
    flag, path = tmp_path / "ran", tmp_path / "x.ckpt"
    torch.save({"state_dict": {}, "x": Bomb(flag)}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match="x.ckpt: (refused|not a checkpoint)") as caught:
        files.load(path)
    assert "\n" not in str(caught.value) and not flag.exists()
    # and the bomb is live: an unsafe load does run it
    torch.load(path, weights_only=False)
    assert flag.exists()


def test_a_bare_pickle_does_not_run(tmp_path):
    flag, path = tmp_path / "ran", tmp_path / "x.ckpt"
    path.write_bytes(pickle.dumps(Bomb(flag)))
    with pytest.raises(ValueError, match="x.ckpt"):
        files.load(path)
    assert not flag.exists()


def test_weights_alone_are_told_to_lie_in_a_folder(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(ValueError, match=r"model\.safetensors: weights alone do not say of what: name the exported folder, "):
        files.load(tmp_path / "model.safetensors")
