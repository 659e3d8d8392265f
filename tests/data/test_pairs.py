import gzip
import json
import random
from collections import Counter

import hydra
import pytest
import torch
from chi_square import chi_square_limit
from tasks.running import config_of
from tokenizers import normalizers

from flm.data.corpora.pairs import PairCorpus, Pairs
from flm.data.layouts import LineLayout, ResponseLayout, ScatterLayout, SpanLayout, _parts, hidden_count
from flm.data.module import TextDataModule
from flm.data.tokenizers import ByteTokenizer, CharacterTokenizer, Tokenizer

END = 256


def some_pairs(count=40):
    return [(f"question {i}?", f"answer {i * i}\n  line {i}\n\nlast {i}") for i in range(count)]


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps({"prompt": p, "response": r}) + "\n" for p, r in some_pairs()))
    return file


@pytest.fixture
def build(path, tmp_path):
    def make(layout=None, tokenizer=None, corpus=None, **options):
        corpus = {"path": path, "valid_fraction": 0.2, "cache_dir": tmp_path / "cache", "layout": layout, **(corpus or {})}
        options = {"length": 64, "seed": 3, "global_batch_size": 8, **options}
        return TextDataModule(PairCorpus(**corpus), tokenizer or ByteTokenizer(), **options)

    return make


def rows_of(module, split="train"):
    blocks = module.train_blocks() if split == "train" else module.valid_blocks()
    return [blocks.row(i) for i in range(len(blocks))]


def text(tokens):
    return bytes(token for token in tokens.tolist() if token != END).decode()


@pytest.mark.parametrize("padding", ["target", "excluded"])
def test_every_pair_is_one_row_of_prompt_response_end_and_padding(build, padding):
    module = build(ResponseLayout(padding))
    found = []
    for split in ("train", "valid"):
        for row in rows_of(module, split):
            size = int((row.tokens != END).sum())
            assert (row.tokens[size:] == END).all() and len(row.tokens) == 64
            prompt = int((row.weight == 0).nonzero()[0][0] == 0) and int(row.weight.argmax())
            found.append((text(row.tokens[:prompt]), text(row.tokens[prompt:])))
            assert (row.weight[prompt : size + 1] == 1).all() and (row.weight[:prompt] == 0).all()
            if padding == "target":
                assert row.documents is None and (row.weight[size + 1 :] == 1).all()
            else:
                assert (row.weight[size + 1 :] == 0).all()
                assert row.documents.tolist() == [0] * (size + 1) + [-1] * (63 - size)
    assert sorted(found) == sorted((prompt + "\n", response) for prompt, response in some_pairs())


def test_the_split_is_by_pair_and_by_content(build, path):
    module = build()
    held_out = sorted(module.corpus.pairs("valid"))
    assert len(held_out) == 8 and not set(held_out) & set(module.corpus.pairs("train"))
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(reversed(lines)))
    assert sorted(build().corpus.pairs("valid")) == held_out


def test_batches_of_a_run(build):
    """Whatever the workers, the ranks and where it was interrupted; and the documents reach the batch."""

    def loaded(start, stop, rank=0, world=1, **options):
        return list(build(LineLayout(16, levels=4), length=128, **options).train_loader(start, stop, rank, world))

    whole = loaded(0, 20)
    assert 20 * 8 > 32 * 4 and all(batch.documents is not None for batch in whole)  # crosses an epoch
    for other in (loaded(0, 20, num_workers=2), loaded(0, 7) + loaded(7, 20)):
        for ours, theirs in zip(whole, other, strict=True):
            assert all(torch.equal(getattr(ours, name), getattr(theirs, name)) for name in ("tokens", "weight", "documents"))
    halves = [loaded(0, 5, rank, 2) for rank in range(2)]
    for step in range(5):
        assert torch.equal(torch.cat([half[step].weight for half in halves]), whole[step].weight)
    seeds = [torch.cat([row.weight for row in rows_of(build(SpanLayout(), seed=seed))]) for seed in (1, 1, 2)]
    assert torch.equal(seeds[0], seeds[1]) and not torch.equal(seeds[1], seeds[2])


def test_lines_in_slots(build):
    module = build(LineLayout(16, levels=4), length=128)
    shares = []
    for index, row in enumerate(rows_of(module)):
        level = index % 4
        prompt, response = module.train_blocks().pair(index // 4)
        lines = bytes(response).decode().split("\n")
        inside, out, slots = row.documents >= 0, [], 0
        place = len(prompt)
        assert row.tokens[:place].tolist() == prompt and not row.weight[:place].any()
        for number, line in enumerate(lines):
            if number:
                assert row.tokens[place] == ord("\n") and row.weight[place] == 0
                place += 1
            hidden = bool(row.weight[place]) and row.documents[place] == 0
            size = 16 if hidden else len(line)
            piece = row.tokens[place : place + size]
            assert text(piece) == line and (row.weight[place : place + size] == hidden).all()
            if hidden:
                assert line.strip() and (piece[len(line) :] == END).all()
                slots += 1
            out.append(hidden)
            place += size
        assert row.tokens[place] == END and row.weight[place] == 0 and inside.sum() == place + 1
        assert slots == hidden_count(3, level, 4) == [1, 1, 2, 3][level]
        shares.append(tuple(out))
    assert len(set(shares)) > 5  # chosen by chance


def test_spans_hide_what_they_say_and_leave_the_rest_in_place(build):
    module = build(SpanLayout(levels=5, max_spans=3))
    places, spans = Counter(), Counter()
    for index, row in enumerate(rows_of(module)):
        prompt, response = module.train_blocks().pair(index // 5)
        whole = [*prompt, *response, END]
        assert row.tokens.tolist() == whole + [END] * (64 - len(whole))
        assert not row.weight[: len(prompt)].any() and not row.weight[len(whole) - 1 :].any()
        inside = row.weight[len(prompt) : len(whole) - 1]
        assert inside.sum() == hidden_count(len(response), index % 5, 5)
        starts = int((inside.diff(prepend=torch.zeros(1)) == 1).sum())
        assert 1 <= starts <= 3
        if index % 5 == 2:
            spans[starts] += 1
            places.update(inside.nonzero()[:, 0].tolist())
    assert set(spans) == {1, 2, 3} and len(places) > 20


def test_parts_are_all_equally_likely():

    rng = random.Random(0)
    counts = Counter(tuple(_parts(3, 3, rng)) for _ in range(10_000))
    assert len(counts) == 10 and all(sum(parts) == 3 for parts in counts)
    statistic = sum((count - 1000) ** 2 / 1000 for count in counts.values())
    assert statistic < chi_square_limit(1e-4, 9)


def test_counts_are_of_what_is_to_be_written(build):
    module = build(ResponseLayout("excluded"))
    expected = Counter()
    for _, response in module.corpus.pairs("train"):
        expected.update([*response.encode(), END])
    counts = module.token_counts()
    assert {token: int(count) for token, count in enumerate(counts) if count} == dict(expected)


def test_pairs_that_do_not_fit_are_left_out_and_said(build, caplog):
    everything = len(build().train_blocks())
    sizes = [len(p) + len(r) + 1 for p, r in build().corpus.pairs("train")]
    limit = sorted(sizes)[len(sizes) // 2]
    with caplog.at_level("WARNING"):
        blocks = build(length=limit).train_blocks()
    assert len(blocks) == sum(size <= limit for size in sizes) < everything
    assert f"model.length={limit}" in caplog.text
    with pytest.raises(ValueError, match=r"none of the .* pairs .* fits model\.length=4"):
        build(length=4).train_blocks()
    assert len(build(LineLayout(8), length=512).train_blocks()) < len(build(LineLayout(16), length=512).train_blocks())


def test_keys_nested_compressed_and_without_prompts(build, tmp_path):
    file = tmp_path / "more" / "x.jsonl.gz"
    file.parent.mkdir()
    with gzip.open(file, "wt") as stream:
        for p, r in some_pairs(10):
            stream.write(json.dumps({"translation": {"de": p, "en": r}}) + "\n\n")
    keys = {"path": file.parent, "prompt_key": "translation.de", "response_key": "translation.en", "separator": " -> "}
    module = build(corpus=keys)
    assert sorted([*module.corpus.pairs("train"), *module.corpus.pairs("valid")]) == sorted(
        (p + " -> ", r) for p, r in some_pairs(10)
    )
    alone = build(corpus=keys | {"prompt_key": None})
    row = alone.train_blocks().row(0)
    assert (row.weight == 1).all() and text(row.tokens) in dict((r, p) for p, r in some_pairs(10))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "a"}', 'line 2: needs a string under "response"'),
        ('{"prompt": "", "response": "b"}', "line 2: an empty prompt"),
        ('{"prompt": "a", "response": ""}', "line 2: an empty response"),
        ('{"prompt": "a", "response": "b\\u001e"}', "U\\+001E"),
        ('{"prompt": "a", "response": "\\ud800"}', "surrogate"),
        ("[1]", "line 2: needs a JSON object"),
        ("{", "line 2: no valid JSON"),
    ],
)
def test_lines_that_are_no_pair(build, path, line, message):
    path.write_text('{"prompt": "a", "response": "b"}\n' + line + "\n")
    with pytest.raises(ValueError, match=message):
        build().prepare()


class Strips(ByteTokenizer):
    """Drops white space at both ends, as WordPiece does."""

    def build(self, *args, **kwargs):
        tokenizer = super().build(*args, **kwargs)
        tokenizer._backend.normalizer = normalizers.Strip()
        return tokenizer


class Begins(ByteTokenizer):
    def build(self, *args, **kwargs):
        values = super().build(*args, **kwargs).to_dict()
        return Tokenizer.from_dict(values | {"begins_documents": True})


@pytest.mark.parametrize("layout", [SpanLayout(), ScatterLayout(), LineLayout()])
def test_responses_without_tokens_are_left_out_where_something_is_to_be_hidden(build, path, layout, caplog):
    pairs = [(p, r if i % 4 == 0 else " " * (i % 4)) for i, (p, r) in enumerate(some_pairs())]
    path.write_text("".join(json.dumps({"prompt": p, "response": r}) + "\n" for p, r in pairs))
    rows = [row for split in ("train", "valid") for row in rows_of(build(layout, Strips(), length=400), split)]
    assert len(rows) == 10 * layout.variants and all("answer" in text(row.tokens) for row in rows)
    assert any("do not fit" in line for line in caplog.messages)


def test_a_tokenizer_without_ends_is_refused(build):
    with pytest.raises(ValueError, match="the tokenizer bytes puts nothing behind a text"):
        build(tokenizer=Begins()).prepare()


def test_a_text_that_spells_the_end_is_refused(build, path):
    path.write_text(path.read_text() + json.dumps({"prompt": "a", "response": "x<|end|>y"}) + "\n")
    with pytest.raises(ValueError, match=r"spells '<\|end\|>'"):
        module = build(tokenizer=CharacterTokenizer())
        module.train_blocks(), module.valid_blocks()


@pytest.mark.parametrize("name", ["pairs", "pairs_lines", "pairs_spans", "pairs_scattered", "lamini", "wmt14_de_en"])
def test_configs(name, tmp_path):
    config = config_of(tmp_path, f"data={name}", f"data.path={tmp_path}")
    assert isinstance(hydra.utils.instantiate(config.data), Pairs)


def test_scattered_holes_are_anywhere_and_as_many_as_the_level_says(build):
    module = build(ScatterLayout(levels=5))
    places = Counter()
    for index, row in enumerate(rows_of(module)):
        prompt, response = module.train_blocks().pair(index // 5)
        whole = [*prompt, *response, END]
        assert row.tokens.tolist() == whole + [END] * (64 - len(whole))
        assert not row.weight[: len(prompt)].any() and not row.weight[len(whole) - 1 :].any()
        inside = row.weight[len(prompt) : len(whole) - 1]
        assert inside.sum() == hidden_count(len(response), index % 5, 5)
        places.update(inside.nonzero()[:, 0].tolist() if index % 5 == 2 else [])
    assert len(places) > 20
