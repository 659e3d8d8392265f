import json
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from flm.data.pretrained_tokenizer import HuggingFaceTokenizer
from flm.data.tokenizers import END, BPETokenizer, ByteTokenizer, CharacterTokenizer, Tokenizer
from flm.schema import check

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
TEXT = (
    "The quick brown fox jumps over the lazy dog.\n\n  Two  spaces,\ttabs, na\u00efve caf\u00e9s \u2013 "
    "\U0001f600 and \x00 too.\r\n"
)


def documents():
    return iter([TEXT, "the dog and the fox " * 50])


@pytest.fixture(params=[CharacterTokenizer(), ByteTokenizer(), BPETokenizer(300)], ids=["characters", "bytes", "bpe"])
def tokenizer(request):
    return request.param.build(documents)


@pytest.mark.parametrize("text", ["", " ", TEXT, TEXT * 40, f"a{END}the\n", "  \n\n"])
def test_round_trip(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode_batch([text, "the"]) == [ids, tokenizer.encode("the")]
    assert all(0 <= i < tokenizer.vocab_size for i in ids)


def test_end_is_written_out_unless_skipped(tokenizer):
    ids = [*tokenizer.encode("the"), tokenizer.eos_id, *tokenizer.encode("dog")]
    assert tokenizer.eos_id == tokenizer.bos_id and tokenizer.pad_id is None
    assert tokenizer.decode(ids) == f"the{END}dog" and tokenizer.decode(ids, skip_special=True) == "thedog"
    assert tokenizer.token(tokenizer.eos_id) == END


def test_plain_values_bring_it_back(tokenizer):
    values = json.loads(json.dumps(tokenizer.to_dict()))
    again = Tokenizer.from_dict(values)
    assert again.encode(TEXT) == tokenizer.encode(TEXT) and again.decode(range(3)) == tokenizer.decode(range(3))
    assert again.fingerprint() == tokenizer.fingerprint()
    assert vars(again).keys() == vars(tokenizer).keys() and again.vocab_size == tokenizer.vocab_size
    changed = Tokenizer.from_dict({**values, "eos_id": 1})
    assert changed.fingerprint() != tokenizer.fingerprint()
    assert Tokenizer.from_dict({**values, "name": "other"}).fingerprint() == tokenizer.fingerprint()


def test_damaged_values_are_refused(tokenizer):
    values = tokenizer.to_dict()
    for damaged in ({**values, "json": "{}"}, {k: v for k, v in values.items() if k != "eos_id"}):
        with pytest.raises(ValueError, match="not a stored tokenizer"):
            Tokenizer.from_dict(damaged)


def test_byte_ids_are_the_bytes():
    tokenizer = ByteTokenizer().build(documents)
    assert tokenizer.encode(TEXT) == list(TEXT.encode()) and tokenizer.vocab_size == 257
    assert tokenizer.decode([0xC3, 0xA9]) == "\u00e9"


def test_characters_are_those_of_training_text_in_order():
    tokenizer = CharacterTokenizer().build(lambda: iter(["cab", "\u00e9a"]))
    assert tokenizer.vocab_size == 6 and tokenizer.encode("abc\u00e9") == [2, 3, 4, 5]
    assert tokenizer.encode("axxb") == [2, 1, 1, 3]  # unknown characters are not merged into one


def test_bpe_is_the_same_each_time_and_shorter_than_bytes():
    first, second = (BPETokenizer(300).build(documents) for _ in range(2))
    assert first.to_dict() == second.to_dict() and first.vocab_size == 300
    assert len(first.encode("the dog and the fox")) < 10


def test_bpe_size(caplog):
    with pytest.raises(ValueError, match="tokenizer.vocab_size must be a whole number of at least 257, not 256"):
        check(BPETokenizer, {"vocab_size": 256}, "tokenizer")
    small = BPETokenizer(1000).build(lambda: iter(["ab ab"]))
    assert small.vocab_size < 300 and "tokenizer.vocab_size=1000" in caplog.text


@pytest.mark.parametrize("builder", [BPETokenizer(280), CharacterTokenizer()])
def test_learned_tokenizer_is_kept_per_source_and_options(tmp_path, builder):
    passes = []

    def counted():
        passes.append(1)
        return documents()

    first = builder.build(counted, tmp_path, {"corpus": 1})
    again = builder.build(counted, tmp_path, {"corpus": 1})
    assert len(passes) == 1 and again.fingerprint() == first.fingerprint()
    builder.build(counted, tmp_path, {"corpus": 2})
    assert len(passes) == 2
    BPETokenizer(290).build(counted, tmp_path, {"corpus": 1})
    assert len(passes) == 3 and len(list(tmp_path.iterdir())) == 3
    for path in tmp_path.iterdir():
        path.write_text("{")
    with pytest.raises(ValueError, match="tokenizer-.*delete it"):
        builder.build(counted, tmp_path, {"corpus": 1})


LETTERS = [("<unk>", 0.0), *((letter, -3.0) for letter in "\u2581abcdeghmnorstuTx.,")]


def prefixed():
    """Puts a blank before every text, as Llama's does."""
    backend = tokenizers.Tokenizer(models.Unigram([*LETTERS, ("\u2581sat", -1.0), ("\u2581on", -1.0)], 0, False))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    return Tokenizer(backend, "prefixed", "huggingface", 0, 0)


def stripped():
    """Takes blanks away at the start, as learned SentencePiece models do here."""
    backend = tokenizers.Tokenizer(models.Unigram([*LETTERS, ("\u2581sat", -1.0), ("\u2581on", -1.0)], 0, False))
    blanks = normalizers.Replace(tokenizers.Regex(r"\A +| +\z"), "")
    backend.normalizer = normalizers.Sequence([blanks, normalizers.Replace(tokenizers.Regex(r"[ \n]+"), "\u2581")])
    backend.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.Fuse()])
    return Tokenizer(backend, "stripped", "huggingface", 0, 0)


@pytest.mark.parametrize(
    "kind", [prefixed, stripped, lambda: ByteTokenizer().build(documents)], ids=["prefixed", "strip", "bytes"]
)
@pytest.mark.parametrize("text", [" sat on the mat.", ", then", "about", ""])
def test_text_behind_a_hole_keeps_the_blank_before_it_and_gets_none(kind, text):
    tokenizer = kind()
    ids = tokenizer.encode_exactly(text, "text", goes_on=True)
    for word in (" xx", " cat", "a"):
        assert tokenizer.decode([*tokenizer.encode("The" + word), *ids]) == f"The{word}{text}"
        assert tokenizer.encode("The" + word + text)[-len(ids) :] == ids or not text


def test_white_space_of_one_kind_parts_words_still():
    tokenizer = stripped()
    assert tokenizer.decode([*tokenizer.encode("The"), *tokenizer.encode_after("\nsat on")]) == "The sat on"


def test_gaps_in_the_ids_are_refused():
    backend = tokenizers.Tokenizer(models.WordLevel({"a": 0, "b": 2}, unk_token="a"))
    with pytest.raises(ValueError, match="id 1 is unused"):
        Tokenizer(backend, "x", "x", 0, 0)


def test_unknown_name_without_network(monkeypatch):
    # offline at once, rather than after the minute of retries that a machine without network waits
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="tokenizer.name_or_path=no-such/tokenizer .*local folder") as caught:
        HuggingFaceTokenizer("no-such/tokenizer").build(documents)
    assert "\n" not in str(caught.value)


def test_unreadable_folders(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="tokenizer.name_or_path=.*empty is no readable tokenizer folder"):
        HuggingFaceTokenizer(tmp_path / "empty").build(documents)
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "gpt2" / "vocab.json").write_text("{")
    (tmp_path / "gpt2" / "merges.txt").write_text("")
    with pytest.raises(ValueError, match="not a byte-pair vocabulary"):
        HuggingFaceTokenizer(tmp_path / "gpt2").build(documents)
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "vocab.txt").write_text("hello\n")
    with pytest.raises(ValueError, match=r"has no \[UNK\]"):
        HuggingFaceTokenizer(tmp_path / "bert").build(documents)


def test_saved_folder_with_its_own_end(tmp_path):
    from transformers import PreTrainedTokenizerFast

    backend = tokenizers.Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "hi": 2, "<unk>": 3}, unk_token="<unk>"))
    saved = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    saved.save_pretrained(tmp_path / "both")
    tokenizer = HuggingFaceTokenizer(tmp_path / "both", add_pad=True).build(documents)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.vocab_size) == (0, 1, 4, 5)
    one = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", pad_token="<unk>")
    one.save_pretrained(tmp_path / "one")
    tokenizer = HuggingFaceTokenizer(tmp_path / "one", add_pad=True).build(documents)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.vocab_size) == (1, 1, 3, 4)
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(tmp_path / "none")
    with pytest.raises(ValueError, match="no token to begin or end"):
        HuggingFaceTokenizer(tmp_path / "none").build(documents)


@pytest.mark.skipif(not (SHARED / "gpt2").is_dir(), reason="GPT-2's vocabulary is not here")
def test_gpt2():
    plain = HuggingFaceTokenizer(SHARED / "gpt2").build(documents)
    assert (plain.vocab_size, plain.bos_id, plain.eos_id, plain.pad_id) == (50257, 50256, 50256, None)
    padded = HuggingFaceTokenizer(SHARED / "gpt2", add_pad=True).build(documents)
    assert (padded.vocab_size, padded.pad_id, padded.eos_id) == (50258, 50257, 50256)
    assert plain.encode("Hello world") == [15496, 995]  # published ids
    assert padded.encode(TEXT) == plain.encode(TEXT) and padded.decode(padded.encode(TEXT)) == TEXT
    assert Tokenizer.from_dict(padded.to_dict()).fingerprint() == padded.fingerprint() != plain.fingerprint()


@pytest.mark.skipif(not (SHARED / "bert").is_dir(), reason="BERT's vocabulary is not here")
def test_bert(tmp_path):
    from transformers import BertTokenizerFast

    tokenizer = HuggingFaceTokenizer(SHARED / "bert").build(documents)
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (30522, 101, 101, 0)
    assert tokenizer.encode("Hello, world!") == [7592, 1010, 2088, 999]  # published ids; no [CLS], no [SEP]
    assert tokenizer.decode([7592, 1010, 2088, 999]) == "hello, world!"
    # the folder as transformers saves it gives the same conventions and ids
    BertTokenizerFast(vocab=str(SHARED / "bert" / "vocab.txt")).save_pretrained(tmp_path / "bert")
    saved = HuggingFaceTokenizer(tmp_path / "bert").build(documents)
    assert (saved.vocab_size, saved.bos_id, saved.eos_id, saved.pad_id) == (30522, 101, 101, 0)
    assert saved.encode(TEXT) == tokenizer.encode(TEXT)
