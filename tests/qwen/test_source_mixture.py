import gzip
import json
import random
from collections import Counter, defaultdict
from functools import partialmethod

import huggingface_hub
import huggingface_hub.constants
import pyarrow
import pyarrow.parquet
import pytest
import torch
from chi_square import chi_square_limit
from fake_hub import FakeHub

from flm.data.module import TextDataModule
from flm.data.tokenizers import BPETokenizer, ByteTokenizer
from flm.qwen import source as source_module
from flm.qwen.examples import Texts
from flm.qwen.mixture import MixtureCorpus
from flm.qwen.source import Source

END, LENGTH = 256, 48


def words(count, low, high, alphabet, seed):
    rng = random.Random(seed)
    return sorted({"".join(rng.choices(alphabet, k=rng.randint(low, high))) for _ in range(count)})


SHORT = words(60, 3, 9, "abcdef", 1)
LONG = words(30, 90, 200, "012345", 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Short texts in two files of JSON lines, long ones in parquet under a key of their own."""
    pytest.importorskip("datasets")
    root = tmp_path_factory.mktemp("sources")
    (root / "short").mkdir()
    (root / "long").mkdir()
    (root / "short" / "a.jsonl").write_text("".join(json.dumps({"text": t, "n": 1}) + "\n" for t in SHORT[:35]))
    with gzip.open(root / "short" / "b.jsonl.gz", "wt") as stream:
        stream.writelines(json.dumps({"text": t}) + "\n" for t in [*SHORT[35:], "", SHORT[0]])  # empty, and a copy
    pyarrow.parquet.write_table(pyarrow.table({"content": LONG}), root / "long" / "train-0.parquet")
    return root


@pytest.fixture(autouse=True)
def small_windows(monkeypatch):
    monkeypatch.setattr(source_module, "WINDOW", 7)


@pytest.fixture
def build(folder):
    def make(corpus=None, **options):
        sources = {"short": {"hub": "some/short", "weight": 3}, "long": {"hub": "x/y", "weight": 1, "text_key": "content"}}
        corpus = {
            "sources": sources,
            "path": folder,
            "valid_fraction": 0.1,
            "valid_documents": 50,
            "readers": 4,
            **(corpus or {}),
        }
        options = {"length": LENGTH, "seed": 3, "global_batch_size": 8, **options}
        return TextDataModule(MixtureCorpus(**corpus), ByteTokenizer(), **options)

    return make


def held_out(texts):
    judge = Source("x", 1, Texts(), path=".", valid_fraction=0.1)
    return {text for text in texts if judge.is_held_out(text)}


def is_long(row):
    return bool((row[row != END] < ord("a")).all())


def test_tokens_are_drawn_by_weight_and_each_epoch_has_every_document_once(build):
    module = build()
    counts, streams = [], defaultdict(list)
    for batch in module.train_loader(0, 150):
        assert batch.tokens.shape == (8, LENGTH) and (batch.weight == 1).all()
        counts.append(sum(is_long(row) for row in batch.tokens))
        for index, row in enumerate(batch.tokens):
            streams[index // 2, is_long(row)] += row.tolist()
    assert set(counts) <= {1, 2, 3} and abs(sum(counts) - 300) < 30  # a quarter of the tokens, by documents it is 1 in 100
    for long, texts in ((True, LONG), (False, SHORT)):
        wanted = Counter(set(texts) - held_out(texts)) + Counter(
            {} if long else {SHORT[0]: 1} if SHORT[0] not in held_out(texts) else {}
        )
        readers = [bytes(t if t != END else 0 for t in streams[n, long]).decode().split("\0")[:-1] for n in range(4)]
        shortest = min(len(reader) for reader in readers)
        seen = Counter(text for reader in readers for text in reader)
        assert set(seen) == set(wanted), "documents are lost, cut, or held out and seen"
        epochs = shortest * 4 / sum(wanted.values())
        assert epochs > 2 and max(seen.values()) <= 3 * (epochs + 2) and min(seen.values()) >= int(epochs) - 2
        if long:  # one file: the readers' shares of one epoch make it up
            first = [
                reader[: sum((row + 0) % 4 == n for row in range(len(texts)) if texts[row] not in held_out(texts))]
                for n, reader in enumerate(readers)
            ]
            assert Counter(text for part in first for text in part) == wanted
            assert first[0] != sorted(first[0])


def test_documents_of_a_row_are_told_apart(build):
    batch = next(iter(build().train_loader(0, 1)))
    for tokens, documents in zip(batch.tokens, batch.documents, strict=True):
        ends = (tokens == END).long()
        assert torch.equal(documents, ends.cumsum(0) - ends)
    plain = next(iter(build({"isolate_documents": False}).train_loader(0, 1)))
    assert plain.documents is None and torch.equal(plain.tokens, batch.tokens)


def equal(left, right):
    pairs = list(zip(left, right, strict=True))
    return bool(pairs) and all(torch.equal(a.tokens, b.tokens) and torch.equal(a.documents, b.documents) for a, b in pairs)


def run(module, start, stop, state=None, rank=0, world=1):
    """Batches, and what a checkpoint then holds."""
    if state is not None:
        module.load_state_dict(json.loads(json.dumps(state)))
    batches = list(module.train_loader(start, stop, rank, world))
    return batches, module.state_dict()


def test_a_run_resumes_bit_for_bit_on_any_number_of_processes_and_workers(build):
    whole, _ = run(build(), 0, 40)
    first, state = run(build(num_workers=1), 0, 17)
    assert state["step"] == 17 and equal(first, whole[:17])
    rest, _ = run(build(), 17, 40, state)
    assert equal(rest, whole[17:])
    parts, states = zip(*(run(build(batch_size=2), 17, 30, state, rank, 2) for rank in range(2)), strict=True)
    for step in range(13):  # two micro-batches of two rows on each
        rows = [batch for part in parts for batch in part[2 * step : 2 * step + 2]]
        assert torch.equal(torch.cat([batch.tokens for batch in rows]), whole[17 + step].tokens)
    joined = {**states[0], "at": states[0]["at"] | states[1]["at"]}
    assert equal(run(build(), 30, 40, joined)[0], whole[30:])
    other, _ = run(build(seed=4), 0, 40)
    assert not equal(other, whole)


def test_more_processes_than_readers_share_them(build):
    """Four readers on eight processes, on two with micro-batches that cut a reader's rows, and on four again."""
    whole, _ = run(build(global_batch_size=16), 0, 24)
    parts, states = zip(*(run(build(global_batch_size=16), 0, 8, None, rank, 8) for rank in range(8)), strict=True)
    for step in range(8):
        assert torch.equal(torch.cat([part[step].tokens for part in parts]), whole[step].tokens)
    module = build(global_batch_size=16).corpus
    joined = json.loads(json.dumps({**states[0], "at": {key: at for state in states for key, at in state["at"].items()}}))
    assert len(joined["at"]) == 2 * module.mixture.readers
    for rank in range(2):
        part, _ = run(build(global_batch_size=16, batch_size=1), 8, 16, joined, rank, 2)
        for step in range(8):
            rows = torch.cat([batch.tokens for batch in part[8 * step : 8 * step + 8]])
            assert torch.equal(rows, whole[8 + step].tokens[8 * rank : 8 * rank + 8])
    assert equal(run(build(global_batch_size=16), 8, 24, joined)[0], whole[8:])


def test_what_positions_depend_on_is_checked(build, folder, tmp_path):
    _, state = run(build(), 0, 2)
    sources = {"short": {"hub": "some/short", "weight": 3}, "long": {"hub": "x/y", "weight": 1, "text_key": "content"}}
    changed = {
        r"data\.readers: .*which was 4 and is 2": build({"readers": 2}),
        r"data\.readers: .*which was 4 and is 8": build({"readers": 8}),
        r"seed: .*which was 3 and is 5": build(seed=5),
        r"data\.sources\.short \(valid_fraction\)": build({"valid_fraction": 0.2}),
        r"data\.sources\.long: ": build({"sources": {"short": sources["short"]}}),
        r"data\.sources\.more: ": build({"sources": {**sources, "more": sources["short"]}}),
        r"data\.sources\.short \(reader\)": build({"sources": {**sources, "short": {**sources["short"], "text_key": "n"}}}),
    }
    for name in ("short", "long"):
        (tmp_path / name).mkdir()
        for file in (folder / name).iterdir():
            (tmp_path / name / file.name).write_bytes(file.read_bytes())
    with (tmp_path / "short" / "a.jsonl").open("a") as file:
        file.write(json.dumps({"text": "new"}) + "\n")
    changed[r"data\.sources\.short \(sizes\)"] = build({"path": tmp_path})
    if not (folder / "more").exists():
        (folder / "more").symlink_to(folder / "short")
    for message, module in changed.items():
        with pytest.raises(ValueError, match=f"^{message}.*begin a new run with checkpointing") as caught:
            run(module, 2, 3, state)
        assert "\n" not in str(caught.value)
    other = build()
    other.builder = BPETokenizer(257)
    other.corpus.documents = lambda split: iter(["abc"])
    with pytest.raises(ValueError, match="^tokenizer: "):
        run(other, 2, 3, state)
    for harmless in (build({"isolate_documents": False}), build({"prompt_growth_steps": 9}), build(num_workers=1)):
        assert len(run(harmless, 2, 3, state)[0]) == 1


def test_a_state_of_before_these_records_goes_on(build):
    """Earlier versions wrote the file names of each source and where its readers stand."""
    whole, _ = run(build(), 0, 8)
    _, state = run(build(), 0, 4)
    names = {
        key.removeprefix("data.sources."): value["names"] for key, value in state["depends_on"].items() if "sources" in key
    }
    old = {"step": 4, "files": names, "at": state["at"]}
    assert equal(run(build(), 4, 8, old)[0], whole[4:])
    with pytest.raises(ValueError, match=r"^data\.readers: .*which was 4 and is 2"):
        run(build({"readers": 2}), 4, 8, old)
    with pytest.raises(ValueError, match=r"^data\.sources\.short \(names\)"):
        run(build(), 4, 8, old | {"files": names | {"short": "0"}})


FILES = 10  # for four readers: two for each alone, two that they share


@pytest.fixture
def many_files(tmp_path):
    pytest.importorskip("datasets")
    (tmp_path / "many").mkdir()
    texts = words(FILES * 12, 6, 12, "ghijkl", 5)
    for number in range(FILES):
        lines = (json.dumps({"text": text}) + "\n" for text in texts[number::FILES])
        (tmp_path / "many" / f"{number}.jsonl").write_text("".join(lines))
    return tmp_path


def test_readers_open_files_of_their_own_and_an_epoch_has_every_document_once(many_files, monkeypatch):
    source = Source("many", 1, Texts(), path=many_files / "many", valid_fraction=0.1)
    tokenizer = ByteTokenizer().build(lambda: iter(()))
    texts = [record["text"] for file in source.files() for record in source.read(file)]
    wanted = sorted(text for text in texts if not source.is_held_out(text))
    readers = [source_module.SourceReader(source, tokenizer, number, 4, 1, LENGTH) for number in range(4)]
    opened = defaultdict(list)  # by reader and epoch
    read = Source.read

    def noted(self, file, start=0):
        opened[reader.number, reader.at.epoch].append(file)
        return read(self, file, start)

    monkeypatch.setattr(Source, "read", noted)
    seen = defaultdict(list)
    for reader in readers:
        while True:
            reader._next_example()  # which opens what it needs
            if (epoch := reader.at.epoch) == 4:
                break
            seen[epoch].append(bytes(reader.take(LENGTH).tokens[:-1]).decode())
    for epoch in range(4):
        assert sorted(seen[epoch]) == wanted
        assert all(len(set(opened[number, epoch])) == len(opened[number, epoch]) == 4 for number in range(4))  # of ten
        own = [file for number in range(4) for file in opened[number, epoch][:2]]
        left_over = [set(opened[number, epoch][2:]) for number in range(4)]
        assert len(set(own)) == 8 and {*own, *left_over[0]} == set(source.files()) and left_over == [left_over[0]] * 4
    for number in range(4):  # an order of files serves four epochs, in which each reader has every file once
        alone = [file for epoch in range(4) for file in opened[number, epoch][:2]]
        assert len(set(alone)) == 8


def test_a_run_over_dealt_files_resumes_and_one_of_before_goes_on_as_it_began(build, many_files, monkeypatch):
    data = {"path": many_files, "sources": {"many": {"hub": "x/y", "weight": 1}}}
    whole, _ = run(build(data), 0, 30)
    first, state = run(build(data, num_workers=1), 0, 13)
    assert equal(first, whole[:13]) and equal(run(build(data), 13, 30, state)[0], whole[13:])
    make = source_module.SourceReader.__init__
    with monkeypatch.context() as before:
        before.setattr(source_module.SourceReader, "__init__", lambda self, *a: make(self, *a[:7], False))
        shared, _ = run(build(data), 0, 30)
        _, state = run(build(data), 0, 13)
    assert not equal(shared, whole)
    state["depends_on"].pop("files are dealt to readers")
    rest, after = run(build(data), 13, 20, state)
    assert equal(rest, shared[13:20]) and equal(run(build(data), 20, 30, after)[0], shared[20:])


def test_a_run_goes_on_with_the_commit_it_began_with(monkeypatch):
    hub = FakeHub("some/set", "main", "a" * 40, {"data/train-0.jsonl": b"{}"})
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(huggingface_hub.HfApi, "__init__", partialmethod(huggingface_hub.HfApi.__init__, endpoint=hub.url))

    def source():
        return Source("x", 1, Texts(), hub="some/set")

    try:
        first = source()
        assert first.files() == [f"hf://datasets/some/set@{'a' * 40}/data/train-0.jsonl"] and first.commit == "a" * 40
        hub.older, hub.commit = {"a" * 40}, "b" * 40  # the branch moves on
        assert source().files() == [f"hf://datasets/some/set@{'b' * 40}/data/train-0.jsonl"]
        again = source()
        again.go_on_with(first.commit)
        assert again.files() == first.files() and again.commit == "a" * 40
        late = source()
        late.files()
        late.go_on_with(first.commit)
        assert late.files() == first.files()
    finally:
        hub.close()


def test_each_row_is_drawn_by_the_weights(build):
    corpus = build({"sources": {name: {"hub": "x/y", "weight": w} for name, w in zip("abc", (5, 3, 2), strict=True)}}).corpus
    drawn = [corpus.mixture.drawn(0, step, 7) for step in range(4000)]
    for place in range(7):
        counts = Counter(step[place] for step in drawn)
        statistic = sum((counts[i] - 4000 * p) ** 2 / (4000 * p) for i, p in enumerate((0.5, 0.3, 0.2)))
        assert statistic < chi_square_limit(1e-5, 2)
    assert all(abs(step.count(i) - 7 * p) < 2 for step in drawn for i, p in enumerate((0.5, 0.3, 0.2)))


def test_validation_is_what_training_never_sees(build):
    module = build()
    held = held_out(SHORT) | held_out(LONG)
    copies = [SHORT[0]] if SHORT[0] in held else []
    assert sorted(module.valid_documents()) == sorted([*held, *copies]) and held_out(SHORT) and held_out(LONG)
    blocks = module.valid_blocks()
    rows = [blocks.row(index) for index in range(len(blocks))]
    text = "".join("\0" if t == END else chr(t) for row in rows for t in row.tokens[row.weight > 0].tolist())
    assert sorted(text.split("\0")[:-1]) == sorted([*held, *copies])
    for row in rows:
        padding = row.weight == 0
        assert (row.tokens[padding] == END).all() and (row.documents is None or torch.equal(row.documents == -1, padding))
    assert any((row.weight == 0).any() for row in rows)
    counts = module.token_counts()
    assert int(counts.sum()) == len(text) and int(counts[END]) == text.count("\0")
    size = len(text) - text.count("\0")
    assert module.bytes_per_token() == pytest.approx(size / len(text))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_source_that_fails_in_the_middle_stops_the_run_by_name(build, folder, tmp_path, workers):
    (tmp_path / "long").symlink_to(folder / "long")
    (tmp_path / "short").mkdir()
    lines = "".join(json.dumps({"text": text}) + "\n" for text in SHORT)
    (tmp_path / "short" / "a.jsonl").write_text(lines)
    module = build({"path": tmp_path, "valid_documents": 1}, num_workers=workers)
    loader = iter(module.train_loader(0, 60))
    (tmp_path / "short" / "a.jsonl").write_text(lines.replace('"text"', '"body"'))
    with pytest.raises(ValueError, match=r"^data\.sources\.short: .*a\.jsonl: no \"text\"[^\n]*$"):
        list(loader)


def test_what_a_user_can_mend(build, tmp_path):
    _, state = run(build(), 0, 2)
    with pytest.raises(ValueError, match="no position of the text streams"):
        run(build(), 3, 4, state)
    with pytest.raises(ValueError, match=r"data\.readers=3 must divide loader\.global_batch_size=8"):
        run(build({"readers": 3}), 0, 1)
    with pytest.raises(ValueError, match=r"data\.sources\.short: no folder"):
        build({"path": tmp_path}).valid_blocks()
    with pytest.raises(ValueError, match=r"data\.sources\.a\.wieght: .*did you mean data\.sources\.a\.weight"):
        build({"sources": {"a": {"hub": "x/y", "weight": 1, "wieght": 2}}})
    with pytest.raises(ValueError, match=r"data\.sources\.a\.weight must be a number above 0"):
        build({"sources": {"a": {"hub": "x/y", "weight": 0}}})
    with pytest.raises(ValueError, match="takes? a finished tokenizer"):
        next(build().corpus.documents("train"))
    with pytest.raises(ValueError, match=r"data\.sources\.short: none of its 62 records is held out"):
        build({"valid_fraction": 1e-9}).valid_blocks()
    with pytest.raises(ValueError, match=r"data\.sources names no source"):
        build({"sources": {"a": None}}).prepare()
