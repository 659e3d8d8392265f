"""A disk that is full or read-only and a file where a folder belongs, for everything that is written: one line that names it.

A real file system of a few pages is mounted where that is allowed (as root); elsewhere folders without permission do.
"""

import os
import subprocess
from pathlib import Path

import pytest
from code_files import HUMAN_EVAL, write
from running import command, config_of, tiny, write_corpus

from flm.atomic import of_disk, writable_folder
from flm.code.cell import seccomp
from flm.ranges import takes_files
from flm.tasks.train import train

PAGE = 4096
QUICK = ["trainer.max_steps=2", "callbacks.sample=null", "callbacks.generation=null", "loader.eval_batch_size=2"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"), documents=20)


@pytest.fixture(scope="module")
def checkpoint(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    train(config_of(folder, *tiny(corpus, *QUICK, "algo=ar", f"data.cache_dir={folder / 'cache'}")))
    return folder / "checkpoints" / "last.ckpt"


@pytest.fixture
def disk(tmp_path):
    """A mounted disk of 2 MB; `fill(left)` leaves so many bytes on it, `lock()` makes it read-only."""
    place = tmp_path / "disk"
    place.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", place]).returncode:
        pytest.skip("no disk can be mounted here")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def fill(disk: Path, left: int) -> None:
    room = os.statvfs(disk)
    (disk / "filling").write_bytes(bytes(room.f_bavail * room.f_bsize - left))


def error_of(monkeypatch, capfd, *arguments: str) -> str:
    assert command(monkeypatch, *arguments) == 1
    printed = capfd.readouterr().err
    (line,) = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in printed
    return line


def evaluations(checkpoint: Path, tmp_path: Path) -> dict[str, list[str]]:
    """Commands that write results, by mode."""
    model = [f"eval.checkpoint_path={checkpoint}", "eval.max_examples=2", "loader.eval_batch_size=2", "trainer.accelerator=cpu"]
    sampled = ["sampling.steps=[1]", "sampling.num_sample_batches=1"]
    modes = {
        "sample_eval": [*model, *sampled],
        "ppl_eval": [*model, "eval.pilot_draws=0"],
        "frontier": [*model, *sampled, "frontier.steps=[1,2]"],
        "export": model[:1],
        "artifact": [*model[:1], "artifact.evaluation=null"],
        "report": [f"report.inputs=[{checkpoint.parents[1]}]"],
    }
    if seccomp.supported():
        problems = write(tmp_path / "problems.jsonl", HUMAN_EVAL)
        modes["code_eval"] = [f"code_eval.path={problems}", "code_eval.answers=reference", "code_eval.limits.wall_seconds=30"]
    return {mode: [f"mode={mode}", *arguments] for mode, arguments in modes.items()}


MODES = ["sample_eval", "ppl_eval", "frontier", "export", "artifact", "report", "code_eval"]


@pytest.mark.parametrize("mode", ["train", *MODES])
def test_a_disk_that_gets_full_is_one_line(monkeypatch, capfd, tmp_path, disk, corpus, checkpoint, mode):
    commands = evaluations(checkpoint, tmp_path) | {"train": tiny(corpus, *QUICK, "logger=none")}
    if mode not in commands:
        pytest.skip("generated code is only run where it can be confined")
    fill(disk, {"train": 200, "ppl_eval": 8}.get(mode, 1) * PAGE)  # these two keep tokens there first
    run = [f"hydra.run.dir={disk / 'run'}", "hydra.output_subdir=null"]
    line = error_of(monkeypatch, capfd, *commands[mode], *run)
    assert str(disk) in line and "free some room" in line, line
    assert "No space left on device" in line
    for kind in ("*.partial", "*.ckpt", "*.safetensors", "*.flmpack"):
        assert not list((disk / "run").rglob(kind)), "half a file"


def test_too_little_room_for_a_checkpoint_is_told_before_the_first_step(monkeypatch, capfd, disk, corpus):
    fill(disk, 30 * PAGE)
    line = error_of(monkeypatch, capfd, *tiny(corpus, *QUICK, "logger=none"), f"hydra.run.dir={disk / 'run'}")
    assert f"{disk / 'run'}: " in line and "KiB are free, and a checkpoint takes at least" in line
    assert line.endswith("free some room") and not (disk / "run" / "run.json").exists()


@pytest.mark.parametrize("what", ["full", "read-only"])
def test_a_run_folder_that_takes_nothing_is_told_before_work(monkeypatch, capfd, disk, corpus, what):
    if what == "full":
        (disk / "run").mkdir()
        fill(disk, 0)
    else:
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    line = error_of(monkeypatch, capfd, *tiny(corpus, *QUICK), f"hydra.run.dir={disk / 'run'}")
    assert str(disk) in line and line.endswith("free some room" if what == "full" else "choose a folder that is not read-only")


@pytest.mark.parametrize("what", ["full", "read-only", "a file", "below a file"])
@pytest.mark.parametrize("key", ["data.cache_dir", "callbacks.checkpoint_every_n_steps.dirpath", "callbacks.sample.folder"])
def test_other_folders_are_looked_at_before_work(monkeypatch, capfd, tmp_path, disk, corpus, key, what):
    place = disk / "place"
    if what == "full":
        fill(disk, 0)
    elif what == "read-only":
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    else:
        place.touch()
        place = place if what == "a file" else place / "sub" / "folder"
    run = tmp_path / "run"
    line = error_of(
        monkeypatch, capfd, *tiny(corpus, "trainer.max_steps=2", "logger=none"), f"{key}={place}", f"hydra.run.dir={run}"
    )
    assert line.startswith(f"error: {key} must be a folder to write to") and str(place) in line
    assert not takes_files(place)
    assert not (run / "checkpoints").exists() and not list(run.glob("run.json"))


def test_a_folder_without_permission(tmp_path, monkeypatch):
    """What the system refuses to all but root: there it is asked, and not done."""
    place = tmp_path / "closed"
    place.mkdir(mode=0o555)
    assert takes_files(place) == (not os.geteuid())
    if os.geteuid():
        with pytest.raises(ValueError, match="data.cache_dir=.*closed.* cannot be written .*: choose a folder"):
            writable_folder(place / "sub", "data.cache_dir")


def test_no_file_larger_than_the_system_allows(tmp_path):
    """A limit on the size of files, as batch systems set: a real write fails."""
    import resource

    child = os.fork()
    if not child:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        try:
            (tmp_path / "large").write_bytes(bytes(101))
            (tmp_path / "large").write_bytes(bytes(101))
        except OSError as error:
            said = of_disk(error, tmp_path / "large")
            os._exit(0 if said and said.endswith("takes no file so large") and "large" in said else 3)
        os._exit(4)
    assert os.waitpid(child, 0)[1] == 0
