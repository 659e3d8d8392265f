"""The cache is built by any number of processes, interrupted anywhere, and is the same bytes each time."""

import errno
import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest

import flm.data.building as building
import flm.data.cache as cache_module
import flm.data.shard_processes as shard_processes
import flm.data.shards as shards
from flm.data.cache import open_cache
from flm.data.corpora.text import TextCorpus
from flm.data.tokenizers import BPETokenizer, ByteTokenizer
from flm.schema import check
from flm.texts.detokenisers import Text8Normaliser

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "text.jsonl"
    texts = [f"document {i} " + "caf\u00e9 and tea " * (i % 7) for i in range(60)]
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return path


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(shards, "SHARD_CHARACTERS", 400)  # six of training text, two of the rest


def corpus(source, processes=1, **options):
    return TextCorpus(source, valid_fraction=0.2, processes=processes, normaliser=Text8Normaliser(), **options)


def opened(source, root, processes=1):
    return open_cache(corpus(source, processes), ByteTokenizer().build(lambda: iter(())), root)


def contents(folder):
    """But for what was found sound, which goes by the times of the files."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.endswith("-sound.bin")}


@pytest.fixture
def expected(source, tmp_path):
    whole = contents(opened(source, tmp_path / "uninterrupted").folder)
    assert len(whole) > 9
    return whole


def in_a_child(act, *arguments):
    """Exit code of a forked process that does it; negative: the signal that ended it."""
    child = FORK.Process(target=act, args=arguments)
    child.start()
    child.join(60)
    return child.exitcode


def interrupt(at, how):
    """Calls `how` at the `at`-th step of building: a token run written, or a file made, renamed or removed.

    Building has ended where what was found sound is written.
    """
    count = 0

    def counted(function):
        def step(*arguments, **options):
            nonlocal count
            if not any("-sound.bin" in str(argument) for argument in arguments):
                count += 1
                if count == at:
                    how()
            return function(*arguments, **options)

        return step

    for name in ("replace", "rename", "write_text", "write_bytes", "unlink"):
        setattr(Path, name, counted(getattr(Path, name)))
    encode = shards._encode_run

    def slowly(*arguments):
        for ids in encode(*arguments):
            counted(lambda: None)()
            yield ids

    shards._encode_run = slowly
    return lambda: count


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def stop():
    raise KeyboardInterrupt


def disk_full():
    raise OSError(errno.ENOSPC, "No space left on device")


def _count_steps(source, root, answer):
    steps = interrupt(-1, kill)
    opened(source, root)
    answer.put(steps())


def _build_interrupted(source, root, at, how):
    interrupt(at, how)
    try:
        opened(source, root)
    except (KeyboardInterrupt, OSError):
        os._exit(1)


def test_interrupted_anywhere_it_ends_with_the_same_bytes(source, expected, tmp_path):
    answer = FORK.Queue()
    assert in_a_child(_count_steps, source, tmp_path / "counted", answer) == 0
    steps = answer.get()
    points = sorted(random.Random(5).sample(range(1, steps + 1), 10)) + [steps]
    assert steps > 60 and points[0] < steps / 5
    for number, at in enumerate(points):
        root = tmp_path / f"interrupted at {at}"
        how, code = ((kill, -signal.SIGKILL), (stop, 1), (disk_full, 1))[number % 3]
        if at == steps:  # the last step is the rename that ends it
            how, code = kill, -signal.SIGKILL
        assert in_a_child(_build_interrupted, source, root, at, how) == code
        assert not [path for path in root.iterdir() if path.is_dir() and path.suffix != ".draft"]
        folder = opened(source, root).folder
        assert contents(folder) == expected
        assert sorted(path.name for path in root.iterdir()) == [folder.name, f"{folder.name}.lock"]


def test_interrupted_again_and_again_it_goes_on(source, expected, tmp_path):
    tokenised = []
    for at in (20, 20, 20, 20, 20):
        if in_a_child(_build_interrupted, source, tmp_path / "cache", at, kill) == 0:
            break
        tokenised.append(len(list((tmp_path / "cache").glob("*.draft/*.json"))))
    assert contents(opened(source, tmp_path / "cache").folder) == expected
    assert tokenised == sorted(tokenised) and tokenised[-1] > tokenised[0]  # each starts where the last stopped


def test_finished_shards_are_kept_if_they_are_whole(source, expected, tmp_path, monkeypatch):
    root = tmp_path / "cache"
    monkeypatch.setattr(building, "_keep_only", lambda *_: stop())
    with pytest.raises(KeyboardInterrupt):
        opened(source, root)
    monkeypatch.undo()
    monkeypatch.setattr(shards, "SHARD_CHARACTERS", 400)
    (draft,) = root.glob("*.draft")
    raw = (draft / "train-00001.bin").read_bytes()
    (draft / "train-00001.bin").write_bytes(raw[:8] + bytes([raw[8] ^ 1]) + raw[9:])
    (draft / "train-00003.json").write_text('{"file": "train-00003.bin"')
    (draft / "train-00004.bin").unlink()
    record = json.loads((draft / "valid-00000.json").read_text())
    (draft / "valid-00000.json").write_text(json.dumps(record | {"source": "of other documents"}))
    (draft / "train-00099.bin").write_bytes(b"of a longer source")
    written = []
    write = shards.ShardWriter._write
    monkeypatch.setattr(
        shards.ShardWriter, "_write", lambda self, name, *rest: written.append(name) or write(self, name, *rest)
    )
    assert contents(opened(source, root).folder) == expected
    assert written == ["train-00001", "train-00003", "train-00004", "valid-00000"]


@pytest.mark.parametrize("processes", [2, 3])
def test_any_number_of_processes_writes_the_same_bytes(source, expected, tmp_path, processes, monkeypatch):
    started = []
    start = shard_processes._Process.__init__
    monkeypatch.setattr(shard_processes._Process, "__init__", lambda self, writer: started.append(self) or start(self, writer))
    assert contents(opened(source, tmp_path / "cache", processes).folder) == expected
    assert len(started) == processes and all(worker._process.poll() is not None for worker in started)


def test_a_small_corpus_starts_no_process(source, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_CHARACTERS", 1 << 26)
    monkeypatch.setattr(shard_processes, "_Process", lambda *_: pytest.fail("started"))
    assert len(opened(source, tmp_path / "cache", processes=8).manifest["splits"]["train"]["shards"]) == 1


def _killed_with_processes(source, root, pids):
    start = shard_processes._Process.__init__

    def noted(self, writer):
        start(self, writer)
        pids.put(self._process.pid)

    shard_processes._Process.__init__ = noted
    collect = shard_processes._collect
    finished = 0

    def counted(*arguments):
        nonlocal finished
        for result in collect(*arguments):
            finished += 1
            if finished == 3:
                kill()
            yield result

    shard_processes._collect = counted
    opened(source, root, processes=2)


def alive(pid):
    """Not even as a process that only waits to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_processes_end_with_a_killed_builder(source, expected, tmp_path):
    root, pids = tmp_path / "cache", FORK.SimpleQueue()
    assert in_a_child(_killed_with_processes, source, root, pids) == -signal.SIGKILL
    workers = [pids.get(), pids.get()]
    deadline = time.monotonic() + 300
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(alive, workers))
    assert 2 <= len(list(root.glob("*.draft/*.json"))) < 8
    assert contents(opened(source, root, processes=2).folder) == expected


def test_a_killed_process_is_told_and_leaves_the_rest(source, expected, tmp_path, monkeypatch):
    start = shard_processes._Process.__init__

    def doomed(self, writer):
        start(self, writer)
        self._process.kill()
        self._process.wait()

    with monkeypatch.context() as patch:
        patch.setattr(shard_processes._Process, "__init__", doomed)
        with pytest.raises(OSError, match="ended with status -9.*run again"):
            opened(source, tmp_path / "cache", processes=2)
    assert contents(opened(source, tmp_path / "cache", processes=2).folder) == expected


class Refusing:
    """A normaliser that takes no document numbered 31."""

    def __call__(self, text):
        if "document 31 " in text:
            raise ValueError("number 31")
        return text

    def fingerprint(self):
        return {"normaliser": "refusing"}


def test_errors_of_a_process_are_those_of_the_builder(source, tmp_path):
    refusing = TextCorpus(source, valid_fraction=0.2, processes=2, normaliser=Refusing())
    tokenizer = ByteTokenizer().build(lambda: iter(()))
    with pytest.raises(ValueError, match="^number 31$"):
        open_cache(refusing, tokenizer, tmp_path / "cache")

    class Local(Refusing):
        pass

    refusing.normaliser = Local()
    with pytest.raises(ValueError, match=r"data\.normaliser cannot be sent .*data\.processes=1"):
        open_cache(refusing, tokenizer, tmp_path / "cache")


def test_wrong_number_of_processes(source):
    with pytest.raises(ValueError, match=r"data\.processes must be"):
        check(TextCorpus, {"path": str(source), "processes": 0}, "data")


def _open(path, root, start, results):
    start.wait()
    text = TextCorpus(path, valid_fraction=0.2, processes=2)
    tokenizer = BPETokenizer(300).build(lambda: text.documents("train"), root, text.fingerprint())
    cache = open_cache(text, tokenizer, root)
    results.put((cache.folder.name, cache.tokens("train").read(0, 50).tolist()))


def test_processes_building_at_once_end_with_one_whole_cache(source, tmp_path, monkeypatch):
    build = cache_module.build

    def noted(*arguments):
        (tmp_path / f"built by {os.getpid()}").touch()
        build(*arguments)

    monkeypatch.setattr(cache_module, "build", noted)  # the forked processes inherit it
    start, results = FORK.Event(), FORK.Queue()
    root = tmp_path / "cache"
    processes = [FORK.Process(target=_open, args=(source, root, start, results)) for _ in range(3)]
    for process in processes:
        process.start()
    start.set()
    answers = [results.get(timeout=600) for _ in processes]
    for process in processes:
        process.join()
    assert answers[0] == answers[1] == answers[2] and len(list(tmp_path.glob("built by *"))) == 1
    assert [path.name for path in root.iterdir() if path.is_dir()] == [answers[0][0]]
    assert len(list(root.glob("tokenizer-*.json"))) == 1 and len(list(root.iterdir())) == 3


def test_without_locks_the_first_to_finish_wins(source, expected, tmp_path, monkeypatch):
    class NoLock:
        def __init__(self, path):
            pass

        acquire = release = lambda self, timeout=None: None

    build = cache_module.build

    def overtaken(text, tokenizer, fingerprint, folder):
        build(text, tokenizer, fingerprint, folder)
        build(text, tokenizer, fingerprint, folder)
        assert contents(folder) == expected

    monkeypatch.setattr(cache_module, "FileLock", NoLock)
    monkeypatch.setattr(cache_module, "build", overtaken)
    opened(source, tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_drafts_nobody_came_back_to_are_cleared_away(source, tmp_path):
    root = tmp_path / "cache"
    ages = {"old": building.ABANDONED_SECONDS + 60, "held": building.ABANDONED_SECONDS + 60, "new": 60}
    for name, age in ages.items():
        (root / f"{name}.draft").mkdir(parents=True)
        (root / f"{name}.draft" / "train-00000.bin").touch()
        os.utime(root / f"{name}.draft", (time.time() - age,) * 2)
    with building.FileLock(root / "held.lock"):
        opened(source, root)
    assert sorted(path.name for path in root.glob("*.draft")) == ["held.draft", "new.draft"]
