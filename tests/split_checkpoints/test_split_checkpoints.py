"""Checkpoints that two processes write, each its part, while training goes on; under gloo, on CPUs."""

import itertools
import json
import os
import shutil
import threading
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
from lightning.pytorch import Callback
from ranks import fit
from two_processes import free_ports, run_two

from flm.__main__ import main
from flm.checkpoints import files
from flm.checkpoints.load import load_algorithm, read_checkpoint, read_description, read_model
from flm.split_checkpoints import strategy as split_strategy
from flm.split_checkpoints.split_folder import whole_content
from flm.split_checkpoints.strategy import SplitCheckpoints
from flm.training.checkpointing import CheckpointEvery
from flm.training.sharding import FullyShardedStrategy

WRITE = split_strategy._Writer.write_data


MOVED_ON = threading.Event()


class TellWhenMovedOn(Callback):
    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step >= 3:
            MOVED_ON.set()


def slow(writer, plan, planner):
    """A step passes before the parts are written: what is written must not be what the weights are by then."""
    assert MOVED_ON.wait(60)
    return WRITE(writer, plan, planner)


def both_ways(rank: int, folder: Path, port: int) -> None:
    os.environ["MASTER_PORT"] = str(port)
    found = {}
    split_strategy._Writer.write_data = slow
    for name, strategy in (("split", SplitCheckpoints), ("one file", FullyShardedStrategy)):
        saving = CheckpointEvery(folder / name, 2)
        found[name] = fit(folder, "flm", callbacks=[saving, TellWhenMovedOn()], devices=2, strategy=strategy())
        found[name]["last"] = saving.last_path
    for origin in ("split", "one file"):
        path = folder / origin / "step_0000002.ckpt"
        found[f"from {origin}"] = fit(folder, "flm", path=path, devices=2, strategy=SplitCheckpoints())
    pruned = [CheckpointEvery(folder / "pruned", 1, keep=2, keep_best=True)]
    fit(folder, "flm", callbacks=pruned, devices=2, strategy=SplitCheckpoints())
    try:
        (folder / "no_folder_here").touch()
        refuse = [CheckpointEvery(folder / "no_folder_here", 1)]
        fit(folder, "flm", callbacks=refuse, devices=2, strategy=SplitCheckpoints())
    except OSError as error:
        found["refused"] = str(error)
    torch.save(found, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def dying(rank: int, folder: Path, port: int) -> None:
    """The second process is killed in the middle of the second checkpoint."""
    os.environ["MASTER_PORT"] = str(port)

    def write(writer, plan, planner):
        if "0000004" in str(writer.path):
            WRITE(writer, plan, planner) if rank else time.sleep(1)
            os._exit(9)
        return WRITE(writer, plan, planner)

    split_strategy._Writer.write_data = write
    fit(folder, "flm", callbacks=[CheckpointEvery(folder, 2)], devices=2, strategy=SplitCheckpoints())


def going_on(rank: int, folder: Path, port: int) -> None:
    os.environ["MASTER_PORT"] = str(port)
    saving = [CheckpointEvery(folder, 2)]
    found = fit(folder, "flm", callbacks=saving, path=folder / "last.ckpt", devices=2, strategy=SplitCheckpoints())
    torch.save(found, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("split")


@pytest.fixture(scope="module")
def two(folder):
    run_two(both_ways, folder, free_ports(1)[0])
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


def same(a, b) -> bool:
    """Bit for bit, whatever is in them."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b) and a.dtype == b.dtype
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return len(a) == len(b) and all(map(same, a, b)) if isinstance(a, list | tuple) else a == b


def test_the_folder_holds_what_the_one_file_does(two, folder):
    for name in ("step_0000002.ckpt", "step_0000004.ckpt"):
        split, one = whole_content(folder / "split" / name), files.load(folder / "one file" / name)
        assert split["state_dict"].keys() == one["state_dict"].keys() and len(split["optimizer_states"][0]["state"]) > 5
        for key in ("state_dict", "optimizer_states", "lr_schedulers", "flm", "global_step"):
            assert same(split[key], one[key]), (name, key)
    shards = list((folder / "split" / "step_0000004.ckpt").glob("*.safetensors"))
    assert len(shards) == 2 and max(s.stat().st_size for s in shards) < 1.5 * min(s.stat().st_size for s in shards)
    assert (folder / "split" / "last.ckpt").samefile(folder / "split" / "step_0000004.ckpt")
    assert two[0]["split"]["last"] == two[1]["split"]["last"] == folder / "split" / "step_0000004.ckpt"
    assert not list((folder / "split").glob(".*"))


def test_a_run_goes_on_bit_for_bit_from_a_folder_or_a_file(two):
    for process in two:
        for part in ("weights", "average"):
            assert same(process["split"][part], process["one file"][part])
            assert same(process["from split"][part], process["split"][part])
            assert same(process["from one file"][part], process["split"][part])
        assert process["from split"]["losses"] == process["split"]["losses"][2:]


def test_older_folders_go_and_what_cannot_be_written_is_told_on_both(two, folder):
    kept = sorted(path.name for path in (folder / "pruned").iterdir())
    best = ["best_validation.ckpt", "best_validation.json"]
    assert kept == [*best, "last.ckpt", "step_0000003.ckpt", "step_0000004.ckpt"]
    for process in two:
        assert "no_folder_here" in process["refused"] and "last good checkpoint: none" in process["refused"]


def test_it_is_a_model_file_and_one_command_joins_it(two, folder, capsys):
    last, plain = folder / "split", folder / "one file" / "step_0000004.ckpt"
    assert read_model(last).path == last / "last.ckpt"
    for average in (True, False):
        (found, source), (wanted, _) = (load_algorithm(path, average) for path in (last, plain))
        assert same(found.state_dict(), wanted.state_dict())
    assert len(source.sha256) == 64 and source.step == 4
    assert read_description(last / "last.ckpt").step == 4 and read_checkpoint(plain).step == 4
    with pytest.raises(ValueError, match="flm join .*step_0000002.ckpt FILE"):
        files.load(last / "step_0000002.ckpt")
    assert main(["join", str(last / "last.ckpt"), str(folder / "joined.ckpt")]) == 0
    assert "joined.ckpt" in capsys.readouterr().out
    assert same(files.load(folder / "joined.ckpt")["optimizer_states"], files.load(plain)["optimizer_states"])
    alone = fit(folder, "flm", path=folder / "joined.ckpt", steps=5, accumulate_grad_batches=2)
    assert alone["step"] == 5 and len(alone["losses"]) == 2


def test_what_is_missing_or_damaged_is_named(two, folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder / "split" / "step_0000002.ckpt", copy)
    first, second = sorted(copy.glob("*.safetensors"))
    second.rename(tmp_path / "aside")
    with pytest.raises(ValueError, match="copy: not a whole checkpoint: "):
        read_model(copy)
    second.write_bytes((tmp_path / "aside").read_bytes()[:100])
    with pytest.raises(ValueError, match="copy: not a whole checkpoint: "):
        read_model(copy)


FIRST, LAST = "shard-00001-model-00001-of-00002.safetensors", "shard-00002-model-00002-of-00002.safetensors"


def part(begin, size, name="/a"):
    where = json.dumps({name: {"saved_offsets": begin}})
    return safetensors.torch.save({name: torch.ones(size)}, {"DCP_SHARDING_INFO": where})


@pytest.mark.parametrize(
    "mark,parts",
    [
        (5, ()),
        (["/a"], ()),
        ([["/a"], [4]], ()),
        (["/a", "x"], (part([0], 4),)),
        (["/a", [10**12]], (part([0], 4),)),
        (["/a", [4]], (part([0, 0], 4),)),
        (["/a", [4]], (part([0], 3), part([3], 2))),
        (["/a", [4]], (part([0], 1), part([2], 2), part([3], 1))),
        (["/a", [4, 2]], (part([0, 0], (4, 1)), part([0, 1], (4, 1)))),  # no process holds columns
        (["/a", [4]], (part([0], 2), part([3], 1), part([2], 1, "/b"))),
    ],
    ids=itertools.count(),
)
def test_marks_and_parts_that_do_not_fit_are_one_line(mark, parts, tmp_path):
    """Parts that overlap left the rest of a tensor to what stood in memory."""
    files.save({"a": {"split tensor": mark}}, tmp_path / "rest.ckpt")
    for name, content in zip((FIRST, LAST, FIRST.replace("1-m", "3-m")), parts, strict=False):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError) as caught:
        whole_content(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}: not a whole checkpoint") and "\n" not in str(caught.value)


def test_parts_that_fit_are_one_tensor(tmp_path):
    files.save({"a": {"split tensor": ["/a", [4, 2]]}}, tmp_path / "rest.ckpt")
    (tmp_path / FIRST).write_bytes(part([0, 0], (3, 2)))
    (tmp_path / LAST).write_bytes(part([3, 0], (1, 2)))
    assert torch.equal(whole_content(tmp_path)["a"], torch.ones(4, 2))


def test_a_kill_while_writing_costs_no_whole_checkpoint(two, folder):
    killed = folder / "killed"
    with pytest.raises(Exception, match="exit code 9|signal"):
        run_two(dying, killed, free_ports(1)[0])
    assert (killed / "last.ckpt").samefile(killed / "step_0000002.ckpt") and not (killed / "step_0000004.ckpt").exists()
    assert [path.name for path in killed.glob(".*")] == [".step_0000004.ckpt.partial"]
    run_two(going_on, killed, free_ports(1)[0])
    for rank, process in enumerate(two):
        assert same(torch.load(killed / f"{rank}.pt", weights_only=False)["weights"], process["split"]["weights"])
    assert (killed / "last.ckpt").samefile(killed / "step_0000004.ckpt") and not list(killed.glob(".*"))
