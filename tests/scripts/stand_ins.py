"""Small files in the layout of LM1B and OpenWebText and of their tokenizers, where the recipes look for them."""

import json
import random
from pathlib import Path

WORDS = "the a one old small cat dog bird man house sea sees hears likes keeps fish rain bread stone and or but".split()


def documents(count: int, sentences: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    texts = []
    for _ in range(count):
        made = [" ".join(rng.choices(WORDS, k=rng.randint(5, 9))) for _ in range(sentences)]
        texts.append(" ".join(f"{one} ." for one in made))
    return texts


def write_lines(path: Path, texts: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")


def write_lm1b(data_dir: Path) -> int:
    """Sentences as JSON lines, and BERT's vocabulary as its one file; how many tokens that has."""
    write_lines(data_dir / "lm1b" / "train.jsonl", documents(300, 1, seed=0))
    write_lines(data_dir / "lm1b" / "test.jsonl", documents(100, 1, seed=1))
    letters = [chr(c) for c in range(33, 127) if not chr(c).isupper()]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters), *WORDS]
    pieces = list(dict.fromkeys(pieces))
    folder = data_dir / "bert-base-uncased"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    return len(pieces)


def write_openwebtext(data_dir: Path) -> int:
    """Documents as parquet, and GPT-2's vocabulary and merges: bytes, and a few pairs; how many tokens that has."""
    import pyarrow
    import pyarrow.parquet

    (data_dir / "openwebtext").mkdir(parents=True, exist_ok=True)
    table = pyarrow.table({"text": documents(120, 6, seed=2)})
    pyarrow.parquet.write_table(table, data_dir / "openwebtext" / "train-00000.parquet")
    merges = [("t", "h"), ("th", "e"), ("\u0120", "the"), ("a", "n"), ("\u0120", "a")]
    pieces = [*byte_letters(), *("".join(pair) for pair in merges), "<|endoftext|>"]
    folder = data_dir / "gpt2"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({piece: index for index, piece in enumerate(pieces)}), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return len(pieces)


def byte_letters() -> list[str]:
    """A visible letter for each byte, as GPT-2 writes them: itself where it is visible, else one from 256 on."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {byte: chr(byte) for byte in visible}
    letters |= {byte: chr(256 + place) for place, byte in enumerate(b for b in range(256) if b not in letters)}
    return [letters[byte] for byte in range(256)]
