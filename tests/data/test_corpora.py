import gzip
import json
import sys
from collections import Counter

import pytest

from flm.data.corpora.pairs import PairCorpus
from flm.data.corpora.random_split import RandomSplitCorpus
from flm.data.corpora.text import TextCorpus
from flm.data.documents import pieces
from flm.schema import check
from flm.texts.detokenisers import Text8Normaliser
from flm.texts.pydoc import PydocCorpus, is_prose, prose


class ListCorpus(RandomSplitCorpus):
    def __init__(self, texts, **options):
        super().__init__(**options)
        self.texts = texts

    def source(self):
        return iter(self.texts)

    def source_fingerprint(self):
        return {"texts": self.texts}

    def describe(self):
        return "a list"


def both(corpus):
    return list(corpus.documents("train")), list(corpus.documents("valid"))


@pytest.fixture(scope="module")
def pydoc():
    return PydocCorpus()


def test_split_is_a_partition_of_the_wanted_size_in_corpus_order():
    texts = [f"document {i:03d}" for i in range(200)]
    train, valid = both(ListCorpus(texts, valid_fraction=0.1))
    assert len(valid) == 20 and sorted(train + valid) == sorted(texts)
    assert valid == [t for t in texts if t in set(valid)] and train == [t for t in texts if t in set(train)]


def test_split_is_fixed_by_seed_and_text_alone():
    texts = [f"document {i:03d}" for i in range(200)]
    valid = set(both(ListCorpus(texts, valid_fraction=0.1))[1])
    assert valid == set(both(ListCorpus(texts[::-1], valid_fraction=0.1))[1])
    other = set(both(ListCorpus(texts, valid_fraction=0.1, split_seed=-3))[1])
    assert len(other) == 20 and len(valid & other) < 10


def test_copies_of_a_document_stay_on_one_side():
    texts = [f"document {i % 40:02d}" for i in range(200)]
    train, valid = both(ListCorpus(texts, valid_fraction=0.25))
    assert not set(train) & set(valid) and len(set(valid)) == 10 and len(valid) == 50


@pytest.mark.parametrize("fraction", [1e-6, 1 - 1e-6])
def test_both_sides_get_at_least_one_document(fraction):
    train, valid = both(ListCorpus(["a", "b", "c"], valid_fraction=fraction))
    assert sorted([len(train), len(valid)]) == [1, 2]


def size(documents):
    return sum(map(len, documents))


def test_the_share_is_of_text_not_of_documents():
    """Texts of very different lengths, none most of a side: the share is met to within one of them, whatever the seed."""
    texts = [f"{i:04d}" + "x" * (i * i % 1900) for i in range(600)]
    for seed in range(8):
        for fraction in (0.05, 0.3, 0.9):
            train, valid = both(ListCorpus(texts, valid_fraction=fraction, split_seed=seed))
            assert sorted(train + valid) == sorted(texts)
            assert abs(size(valid) - fraction * size(texts)) <= 1900


@pytest.mark.parametrize("fraction", [0.02, 0.1, 0.5, 0.95])
def test_a_huge_document_is_cut_and_it_is_said(caplog, fraction):
    huge = "\n\n".join(f"Paragraph {i}. " + "word " * 40 + "end." for i in range(4000))
    texts = [huge, *(f"document {i}. " + "text " * 20 for i in range(60))]
    for seed in range(6):  # wherever the huge one would have fallen
        caplog.clear()
        train, valid = both(ListCorpus(texts, valid_fraction=fraction, split_seed=seed))
        smaller = min(fraction, 1 - fraction) * size(texts)
        assert abs(size(valid) - fraction * size(texts)) < smaller / 4 + 2500
        said = [record.message for record in caplog.records if "most of the" in record.message]
        assert len(said) == 1 and said[0].startswith("data: 1 documents of")
        words = [word for document in train + valid for word in document.split()]
        assert sorted(words) == sorted(word for document in texts for word in document.split())  # nothing lost, nothing twice
        again = both(ListCorpus(texts, valid_fraction=fraction, split_seed=seed))
        assert again == (train, valid)


def test_pairs_are_not_cut(tmp_path):
    lines = [{"prompt": f"p{i}", "response": "word " * (40_000 if i == 3 else 4)} for i in range(40)]
    path = write(tmp_path / "pairs.jsonl", "\n".join(map(json.dumps, lines)))
    corpus = PairCorpus(path, valid_fraction=0.1)
    found = [pair for split in ("train", "valid") for pair in corpus.pairs(split)]
    assert sorted(found) == sorted((f"{line['prompt']}\n", line["response"]) for line in lines)


def test_split_errors():
    with pytest.raises(ValueError, match="data.valid_fraction"):
        check(PydocCorpus, {"valid_fraction": 0.0}, "data")
    with pytest.raises(ValueError, match="at least 2"):
        next(ListCorpus(["a", "a"]).documents("train"))


def test_fingerprint_tells_apart_what_changes_the_documents():
    base = ListCorpus(["a", "b"])
    variants = [
        ListCorpus(["a", "c"]),
        ListCorpus(["a", "b"], valid_fraction=0.2),
        ListCorpus(["a", "b"], split_seed=1),
        ListCorpus(["a", "b"], normaliser=Text8Normaliser()),
    ]
    prints = [json.dumps(c.fingerprint(), sort_keys=True) for c in [base, *variants]]
    assert len(set(prints)) == 5
    assert prints[0] == json.dumps(ListCorpus(["a", "b"], wrap="bos_eos", cache_dir="x").fingerprint(), sort_keys=True)


def test_text8_spells_digits_and_keeps_27_symbols():
    normalise = Text8Normaliser()
    assert normalise("In 1906, Caf\u00e9\n\tOle!") == "in one nine zero six caf ole"
    assert normalise("\u212a \u0130 7") == "seven"  # Kelvin sign and dotted I are not a to z
    assert normalise("?! ") == ""
    train, valid = both(ListCorpus(["One", "?", "2", "Three"], normaliser=normalise))
    assert sorted(train + valid) == ["one", "three", "two"]


def test_pydoc_is_a_megabyte_of_ascii_english(pydoc):
    documents = list(pydoc.source())
    text = "\n".join(documents)
    assert len(documents) > 200 and len(text) > 800_000 and text.isascii()
    assert min(map(len, documents)) >= 200
    counts = Counter(text.lower())
    letters = {c: n / sum(counts[x] for x in "abcdefghijklmnopqrstuvwxyz") for c, n in counts.items() if c.isalpha()}
    # the order of English: e first, the eight most frequent letters those of ordinary prose
    assert max(letters, key=letters.get) == "e" and 0.11 < letters["e"] < 0.14
    assert set(sorted(letters, key=letters.get)[-8:]) == set("etaoinsr")
    assert 0.14 < counts[" "] / len(text) < 0.2
    assert sum(counts[c] for c in "{}[]|\\<>=_") / len(text) < 0.006
    lines = text.split("\n")
    assert all(line[-1] in ".!?:\"')" for line in lines) and len(set(lines)) == len(lines)
    for remnant in (">>>", "Traceback (", "  ", ":class:", "::="):
        assert remnant not in text
    assert "The for statement is used to iterate" in text.replace('"', "")


def test_pydoc_split_holds_out_text(pydoc):
    train, valid = both(pydoc)
    assert not set(train) & set(valid) and abs(size(valid) / (size(train) + size(valid)) - 0.05) < 0.01
    assert sum(map(len, valid)) > 10_000


def test_pydoc_without_topics_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(ValueError, match="data=text data.path"):
        next(PydocCorpus().documents("train"))


def test_prose_keeps_sentences_and_drops_the_rest():
    text = """
    The *first* paragraph is wrapped over
    two lines, and uses ``code`` in a sentence.

    foo(bar, baz) -> list of the things that it was given.

    >>> print("this is not a sentence that we want to have.")
    Heading Of The Section In Which It Is
    =====================================

    * An item of a list that goes on
      to the next line \u2013 it\u2019s kept.
    * A second item that is apart from the first.

        x = {k: v for k, v in zip(a, b)}; y = x.get("a") or [1, 2].

    Too short.
    """
    assert list(prose(text)) == [
        "The first paragraph is wrapped over two lines, and uses code in a sentence.",
        "An item of a list that goes on to the next line - it's kept.",
        "A second item that is apart from the first.",
    ]
    assert not is_prose("This is a sentence of seven words \u4e2d.")
    assert not is_prose("Red green blue yellow black white pink orange.")


def write(path, text):
    raw = text if isinstance(text, bytes) else text.encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


def test_folder_of_all_kinds(tmp_path):
    write(tmp_path / "b.txt", "\ufefftext b")
    write(tmp_path / "a" / "c.md.gz", "text c\r\nline two")
    write(tmp_path / "d.jsonl.gz", '{"text": "text d1", "author": 1}\n\n{"text": "text d2 \\u00e9"}\n{"text": " "}')
    write(tmp_path / ".hidden" / "e.txt", "text e")
    write(tmp_path / "f.csv", "text f")
    corpus = TextCorpus(tmp_path, valid_fraction=0.5)
    assert list(corpus.source()) == ["text c\r\nline two", "text b", "text d1", "text d2 \u00e9"]
    train, valid = both(corpus)
    assert train and valid and sorted(train + valid) == sorted(corpus.source())


def test_single_text_is_cut_into_pieces_that_hold_all_of_it(tmp_path):
    paragraphs = [f"Paragraph {i}. " + "word " * 60 + "end." for i in range(200)]
    text = "\n\n".join(paragraphs)
    train, valid = both(TextCorpus(write(tmp_path / "one.txt", text), valid_fraction=0.1))
    everything = train + valid
    assert sorted(p for d in everything for p in d.split("\n\n")) == sorted(paragraphs)
    assert all(2000 <= len(d) < 2400 for d in everything if "Paragraph 199." not in d) and valid


def test_pieces_without_blank_lines():
    words = " ".join(f"w{i}" for i in range(5000))
    parts = list(pieces(words))
    assert " ".join(parts) == words and all(2000 <= len(p) < 2010 for p in parts[:-1])
    solid = "x" * 20_000
    assert "".join(pieces(solid)) == solid and max(map(len, pieces(solid))) == 8000


def test_valid_path_is_the_held_out_text_and_nothing_else_is(tmp_path):
    train_path = write(tmp_path / "train.txt", "training " * 1000)
    valid_path = write(tmp_path / "valid.txt", "held out")
    corpus = TextCorpus(train_path, valid_path)
    assert both(corpus) == (["training " * 1000], ["held out"])
    before = corpus.fingerprint()
    write(valid_path, "held in!")
    assert corpus.fingerprint() != before


def test_fingerprint_follows_content_not_place(tmp_path):
    first = TextCorpus(write(tmp_path / "a" / "x.txt", "hello")).fingerprint()
    assert first == TextCorpus(write(tmp_path / "b" / "y.txt", "hello")).fingerprint()
    assert first != TextCorpus(write(tmp_path / "c" / "x.txt", "hellO")).fingerprint()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.txt", "  \n ", r"data\.path: .*x\.txt holds no text"),
        ("x.txt", b"abc\xff", r"data\.path: .*x\.txt: not UTF-8 \(.* at byte 3\)"),
        ("x.csv", "abc", r"data\.path: .*x\.csv is of no supported kind: \.txt, \.md, \.jsonl"),
        ("x.jsonl", '{"text": "a"}\n{"body": "b"}', r'x\.jsonl, line 2: .*"text"'),
        ("x.jsonl", '{"text": "a"}\n["text"]', r"x\.jsonl, line 2: needs a JSON object"),
        ("x.jsonl", '{"text": "a"}\n{"text": 3}', r'x\.jsonl, line 2: .*"text"'),
        ("x.jsonl", '{"text": "a"}\n\n{"text": ', r"x\.jsonl, line 3: no valid JSON"),
        ("x.jsonl", b'{"text": "a"}\n{"text": "\xe9"}', r"x\.jsonl, line 2: not UTF-8"),
        ("x.jsonl", '{"text": "a\\ud800"}', r"x\.jsonl, line 1: half a surrogate pair at character 1"),
    ],
)
def test_error_names_file_and_line(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=message) as caught:
        list(TextCorpus(write(tmp_path / name, content)).documents("train"))
    assert "\n" not in str(caught.value)


def test_missing_and_unreadable(tmp_path):
    with pytest.raises(ValueError, match=r"data\.path: no file or folder .*nowhere"):
        list(TextCorpus(tmp_path / "nowhere").documents("train"))
    write(tmp_path / "folder" / "x.csv", "a")
    with pytest.raises(ValueError, match=r"data\.path: folder .*folder holds no file of a supported kind"):
        list(TextCorpus(tmp_path / "folder").documents("train"))
    whole = gzip.compress(b"hello world " * 100)
    for damaged in (b"plain text", whole[:-12], whole[:20] + b"\x00\x01\x02" + whole[23:]):
        (tmp_path / "x.txt.gz").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"x\.txt\.gz is no readable gzip file"):
            list(TextCorpus(tmp_path / "x.txt.gz").documents("train"))
    good = write(tmp_path / "good.txt", "text")
    with pytest.raises(ValueError, match=r"data\.valid_path: no file or folder"):
        list(TextCorpus(good, tmp_path / "nowhere").documents("valid"))
