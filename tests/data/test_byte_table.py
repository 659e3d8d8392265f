"""The bytes that tokens stand for add up to the text as the tokenizer normalises it, whatever the vocabulary."""

import io
import os
import random
from pathlib import Path

import pytest
import tokenizers
import torch
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers

from flm.data.byte_table import ByteTable
from flm.data.pretrained_tokenizer import HuggingFaceTokenizer
from flm.data.tokenizers import BPETokenizer, ByteTokenizer, CharacterTokenizer, Tokenizer
from flm.texts.sentencepiece import SentencePieceModel

# a folder with gpt2/vocab.json and merges.txt
SHARED = Path(os.environ.get("FLM_DATA_FIXTURES", "fixtures-not-here"))
WORDS = ["cat", "dog", "bird", "sees", "likes", "rain", "sea", "the", "one", "under", "caf\u00e9", "12", "345", "don't", "York"]
MARK = "\u2581"


def documents():
    rng = random.Random(0)
    return [
        rng.choice([" ", " ", "    "]).join(rng.choices(WORDS, k=rng.randint(3, 20))) + rng.choice([".", "!", " ."])
        for _ in range(400)
    ]


def texts(count, seed, alphabet="abcdehinorstuvy  .,'12\u00e9\u2603\ufb01\t\n<>\u3042\U0001f600\u2581"):
    """Random characters, and words with none, one or several spaces between and around them."""
    rng = random.Random(seed)
    for _ in range(count):
        yield "".join(rng.choices(alphabet, k=rng.randint(0, 25)))
        yield rng.choice(["", " ", "  "]).join(rng.choices([*WORDS, " ", "   "], k=rng.randint(0, 8)))
    yield from ("", " ", "   ", " a", "a ", MARK, f"a{MARK}", "<unk>", "<0x41>", "<s>")


def counted(tokenizer, ids):
    return ByteTable.of(tokenizer).of_text(torch.tensor(ids, dtype=torch.long), tokenizer.bos_id)


MODELS = {
    "bpe": {},
    "no prefix": {"add_dummy_prefix": False},
    "spaces stay": {"remove_extra_whitespaces": False},
    "no prefix, spaces stay": {"add_dummy_prefix": False, "remove_extra_whitespaces": False},
    "identity": {"normalization_rule_name": "identity"},
    "folded": {"normalization_rule_name": "nmt_nfkc_cf"},
    "unknown": {"byte_fallback": False, "vocab_size": 100},
    "across words": {"split_by_whitespace": False, "vocab_size": 400},
    "across words, spaces stay": {"split_by_whitespace": False, "remove_extra_whitespaces": False, "vocab_size": 400},
    "pieces of spaces": {"allow_whitespace_only_pieces": True, "remove_extra_whitespaces": False},
    "digits": {"split_digits": True},
    "marks behind": {"treat_whitespace_as_suffix": True, "add_dummy_prefix": False},
    "characters": {"model_type": "char", "vocab_size": 300},
    "unigram": {"model_type": "unigram", "vocab_size": 300},
    "unigram across words": {"model_type": "unigram", "split_by_whitespace": False, "vocab_size": 400},
    "unigram unknown": {"model_type": "unigram", "byte_fallback": False, "vocab_size": 52, "add_dummy_prefix": False},
}


def train(options):
    sentencepiece = pytest.importorskip("sentencepiece")
    written = io.BytesIO()
    fixed = {"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3, "num_threads": 1, "minloglevel": 2, "character_coverage": 1.0}
    options = {"model_type": "bpe", "vocab_size": 330, "byte_fallback": True, **options}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(documents()), model_writer=written, **fixed, **options)
    return written.getvalue()


@pytest.mark.parametrize("name", MODELS)
def test_sentencepiece_models_trained_with_other_options(name):
    """Ids are the library's, and their bytes are those of its normalised text, but for what unknown tokens lose."""
    import sentencepiece

    raw = train(MODELS[name])
    library = sentencepiece.SentencePieceProcessor(model_proto=raw)
    tokenizer = Tokenizer.from_dict(SentencePieceModel.parse(raw).tokenizer(name).to_dict())
    table = ByteTable.of(tokenizer)
    prefixed = MODELS[name].get("add_dummy_prefix", True)
    inner = lost_any = 0
    for text in texts(60, len(name)):
        ids, pieces, normal = library.encode(text), library.encode(text, out_type=str), library.normalize(text)
        assert tokenizer.encode(text) == ids, text
        lost = sum(len(piece.encode()) for piece, token in zip(pieces, ids, strict=True) if token == library.unk_id())
        size = len(normal.replace(MARK, " ").encode()) - (prefixed and normal != "")
        assert table.of_text(torch.tensor(ids, dtype=torch.long), 1) == size - lost, (text, pieces)
        inner += sum(MARK in piece[1:] for piece in pieces)
        lost_any += lost
    assert (inner > 0) == (name in ("across words", "across words, spaces stay", "pieces of spaces", "marks behind",
                                    "unigram across words")), "no piece showed what this model is here for"  # fmt: skip
    assert (lost_any > 0) == ("unknown" in name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"treat_whitespace_as_suffix": True}, "treat_whitespace_as_suffix"),
        ({"user_defined_symbols": ["<sep>"]}, "user-defined"),
        ({"model_type": "word", "vocab_size": 275}, "another type"),
    ],
)
def test_models_whose_ids_would_not_be_the_librarys_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SentencePieceModel.parse(train(options))


def byte_level(prefix):
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        documents(), trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, show_progress=False)
    )
    backend.add_special_tokens([AddedToken("<s>", special=True)])
    backend.add_tokens([AddedToken("naive", normalized=False)])
    return Tokenizer(backend, "x", "huggingface", *[backend.token_to_id("<s>")] * 2, reads_special=False)


def as_llama():
    """Spaces as marks by normaliser and decoder alone, as published files of Llama have it."""
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(MARK), normalizers.Replace(" ", MARK)])
    special = ["<unk>", "<s>", *(f"<0x{i:02X}>" for i in range(256)), MARK]
    backend.train_from_iterator(
        documents(), trainers.BpeTrainer(vocab_size=500, special_tokens=special, show_progress=False, max_token_length=8)
    )
    values = backend.to_str()
    backend = tokenizers.Tokenizer.from_str(values)
    plain = tokenizers.Tokenizer(backend.model)
    plain.normalizer = backend.normalizer
    undo = [decoders.Replace(MARK, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    plain.decoder = decoders.Sequence(undo)
    plain.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in ("<unk>", "<s>")])
    return Tokenizer(plain, "x", "huggingface", 1, 1, reads_special=False)


def as_t5():
    """Unigram pieces behind a Metaspace."""
    backend = tokenizers.Tokenizer(models.Unigram())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=["<s>", "<unk>"], unk_token="<unk>", show_progress=False)
    backend.train_from_iterator(documents(), trainer)
    return Tokenizer(backend, "x", "huggingface", 0, 0, reads_special=False)


@pytest.mark.parametrize(
    ("tokenizer", "takes_first"),
    [
        (ByteTokenizer().build(lambda: iter(())), False),
        (BPETokenizer(300).learn(iter(documents())), False),
        (byte_level(False), False),
        (byte_level(True), True),  # a space that it puts before a text cannot be told from one of the text's own
        (as_llama(), False),
    ],
    ids=["bytes", "bpe", "byte level", "byte level with a prefix", "llama"],
)
def test_lossless_tokenizers_count_the_whole_text(tokenizer, takes_first):
    table = ByteTable.of(tokenizer)
    for text in texts(100, 7):
        text = text.replace(MARK, "") + " naive" * (len(text) % 5 == 0)
        ids = tokenizer.encode(text)
        own = len(text.encode()) - (takes_first and text.startswith(" "))
        assert table.of_text(torch.tensor(ids, dtype=torch.long), tokenizer.bos_id) == own, text


def test_pieces_behind_a_metaspace():
    tokenizer = as_t5()
    unknown = tokenizer.encode("\u2603")[-1]
    for text in texts(100, 7, "abcdehinorstuvy  .'12"):
        ids = tokenizer.encode(text)
        if unknown not in ids and "<" not in text:
            assert counted(tokenizer, ids) == len(tokenizer.decode(ids).encode()), text
    ids = tokenizer.encode("a \u2603 b")
    assert counted(tokenizer, ids) == len(b"a  b")  # the space behind an unknown token is text, the token itself counts nothing


def test_characters_count_their_bytes_and_unknown_ones_nothing():
    tokenizer = CharacterTokenizer().learn(iter(["caf\u00e9 \u2603"]))
    assert counted(tokenizer, tokenizer.encode("c\u00e9 x\u2603")) == 1 + 2 + 1 + 3


def test_tokenizers_that_do_not_spell_their_text_are_refused():
    ends = tokenizers.Tokenizer(models.BPE({"a": 0, "a</w>": 1, "b": 2, "b</w>": 3, "<s>": 4}, [], end_of_word_suffix="</w>"))
    ends.pre_tokenizer, ends.decoder = pre_tokenizers.Whitespace(), decoders.BPEDecoder("</w>")
    words = tokenizers.Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    bare = tokenizers.Tokenizer(models.BPE({"a": 0, "b": 1}, []))
    blanks = tokenizers.Tokenizer(models.BPE({chr(i): i for i in range(128)}, []))
    blanks.pre_tokenizer, blanks.decoder = pre_tokenizers.WhitespaceSplit(), decoders.Fuse()  # looks like characters, is not
    blanks.decoder = decoders.Sequence([decoders.Fuse(), decoders.Strip("T", 1, 0)])
    for backend in (ends, words, bare, blanks):
        with pytest.raises(ValueError, match=r"^tokenizer x: (bytes are counted for|its tokens do not add up)[^\n]*$"):
            ByteTable.of(Tokenizer(backend, "x", "huggingface", 0, 0))


@pytest.mark.skipif(not (SHARED / "gpt2").is_dir(), reason="FLM_DATA_FIXTURES names no folder with gpt2")
def test_gpt2():
    tokenizer = HuggingFaceTokenizer(SHARED / "gpt2").build(lambda: iter(()))
    table = ByteTable.of(tokenizer)
    for text in texts(200, 3):
        assert table.of_text(torch.tensor(tokenizer.encode(text), dtype=torch.long), 50256) == len(text.encode())
