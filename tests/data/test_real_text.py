"""Real text to hold samples against is made of rows as a model is trained on, whatever the corpus."""

import json

import pytest
from code_files import write
from running import command

from flm.data.corpora.pairs import PairCorpus
from flm.data.corpora.text import TextCorpus
from flm.data.layouts import LineLayout, ResponseLayout, SpanLayout
from flm.data.module import TextDataModule
from flm.data.tokenizers import ByteTokenizer, CharacterTokenizer
from flm.puzzles.permutation import Permutation
from flm.tasks import held_out as real_text
from flm.tasks.held_out import held_out_blocks

L = 32
PAIRS = [{"prompt": f"ask {word}", "response": f"{word}\n{word * 2}"} for word in "ab cde fgh ij k".split()]


def rows_of(corpus, tokenizer, length=L):
    """Of the validation split as training has it, without repeats."""
    data = TextDataModule(corpus, tokenizer, length)
    blocks = data.valid_blocks()
    return data.tokenizer, [tuple(blocks[index].tolist()) for index in range(len(blocks))]


@pytest.mark.parametrize(
    "layout", [ResponseLayout(), ResponseLayout("excluded"), SpanLayout(levels=3), LineLayout(line_length=8, levels=3)]
)
def test_pairs_are_the_rows_of_training(layout, tmp_path):
    path = write(tmp_path / "pairs.jsonl", PAIRS)
    corpus = PairCorpus(path, path, layout=layout, cache_dir=tmp_path / "data")
    tokenizer, rows = rows_of(corpus, ByteTokenizer())
    found = held_out_blocks(corpus, tokenizer, L, 3)
    assert len(found.blocks) == len(PAIRS) and len(found.rows) == 3  # each pair once, however often training shows it
    assert {tuple(row) for row in found.blocks} <= set(rows)
    for row, pair in zip(found.blocks, PAIRS, strict=True):
        text = tokenizer.decode(row, skip_special=True)
        assert text == pair["prompt"] + "\n" + pair["response"]
        assert row[-1] == tokenizer.eos_id  # the end, and padding as far as the row goes


def test_a_long_split_is_cut_between_pairs(tmp_path, monkeypatch):
    monkeypatch.setattr(real_text, "MAX_TOKENS", 100)
    path = write(tmp_path / "pairs.jsonl", PAIRS * 200)
    corpus = PairCorpus(path, path, cache_dir=tmp_path / "data")
    tokenizer = ByteTokenizer().build(lambda: iter(()))
    found = held_out_blocks(corpus, tokenizer, L, 10)
    assert len(found.blocks) == 100 // L
    assert tokenizer.decode(found.blocks[0], skip_special=True) == "ask ab\nab\nabab"


def test_puzzles_are_whole_answers_and_text_is_cut_into_blocks(tmp_path):
    corpus = Permutation(5, train=None, valid=None, held_out=0.2)
    tokenizer = CharacterTokenizer().build(lambda: corpus.documents("train"))
    found = held_out_blocks(corpus, tokenizer, 5, 4)
    assert ["".join(tokenizer.token(token) for token in row) for row in found.blocks] == [
        puzzle.answer for puzzle in corpus.puzzles("valid")
    ]
    (tmp_path / "text.txt").write_text("".join(f"line {n}\n\n" for n in range(200)))
    corpus = TextCorpus(tmp_path / "text.txt", tmp_path / "text.txt", cache_dir=tmp_path / "data")
    tokenizer, rows = rows_of(corpus, ByteTokenizer())
    assert [tuple(row) for row in held_out_blocks(corpus, tokenizer, L, 5).blocks] == rows


RUN = ["debug=tiny", "tokenizer=bytes", f"model.length={L}", "trainer.max_steps=6", "logger=none", "model.hidden_size=16"]


@pytest.mark.parametrize("padding", ["target", "excluded"])
def test_samples_are_held_against_such_rows(padding, tmp_path, monkeypatch):
    """mode=sample_eval writes them; before, it held samples against pairs run together and cut anywhere."""
    path = write(tmp_path / "pairs.jsonl", PAIRS)
    data = ["data=pairs", f"data.path={path}", f"data.valid_path={path}", f"data.layout.padding={padding}"]
    assert command(monkeypatch, *RUN, *data, f"hydra.run.dir={tmp_path}/run") == 0
    evaluated = ["mode=sample_eval", f"eval.checkpoint_path={tmp_path}/run", "sampling.steps=2", "trainer.accelerator=cpu"]
    assert command(monkeypatch, *evaluated, f"hydra.run.dir={tmp_path}/samples") == 0
    real = [json.loads(line) for line in (tmp_path / "samples" / "real.jsonl").read_text().splitlines()]
    assert [row["text"].partition("<|end|>")[0] for row in real] == [p["prompt"] + "\n" + p["response"] for p in PAIRS]
    assert all(len(row["tokens"]) == L for row in real)


def test_what_scores_all_of_a_text_refuses_rows_of_which_a_part_is_given(tmp_path, monkeypatch, capfd):
    """mode=golf_eval read prompts and responses as one text, and scored both."""
    path = write(tmp_path / "pairs.jsonl", PAIRS)
    data = ["data=pairs", f"data.path={path}", f"data.valid_path={path}"]
    assert command(monkeypatch, *RUN, *data, "algo=ar", f"hydra.run.dir={tmp_path}/run") == 0
    capfd.readouterr()
    for more in ([], ["eval.real_data=current", "data=permutation"]):
        asked = [
            "mode=golf_eval",
            f"eval.checkpoint_path={tmp_path}/run",
            f"hydra.run.dir={tmp_path}/golf",
            "golf_eval.stride=8",
            *more,
        ]
        assert command(monkeypatch, *asked) == 1
        (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
        assert line.endswith("a part is given: take mode=ppl_eval")
