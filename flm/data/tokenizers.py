"""Tokenizers: text to ids and back, and where most kinds come from.

All are one `tokenizers.Tokenizer` inside, so a checkpoint stores any of them as one JSON string and needs neither
the training text nor a download to bring it back. Builders are what a config names; their arguments are its keys.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import tokenizers
from annotated_types import Ge
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from flm import atomic
from flm.handed_in import VOCABULARY_BYTES, read_json

END = "<|end|>"
UNKNOWN = "<unk>"
ANCHOR = "a"  # a letter that text may stand behind

Documents = Callable[[], Iterator[str]]
log = logging.getLogger(__name__)

_IMPLIED = {"begins_documents": False, "reads_special": True}  # by a stored tokenizer that does not say
_PARALLEL = "TOKENIZERS_PARALLELISM"
if _PARALLEL not in os.environ and hasattr(os, "register_at_fork"):
    # The library's threads do not survive a fork: a forked process (a loader's worker) that still counts on them hangs,
    # and left to itself the library prints a warning in each. So a child is born with them switched off.
    os.register_at_fork(
        before=lambda: os.environ.__setitem__(_PARALLEL, "false"),
        after_in_parent=lambda: os.environ.pop(_PARALLEL, None),
    )


class Tokenizer:
    """Ids 0 .. V-1 without gaps, and the ids that stand for begin, end and padding.

    Args:
        backend: does the work; truncation, padding and added begin or end tokens are switched off.
        name: for people.
        kind: characters, bytes, bpe, sentencepiece or huggingface.
        bos_id: begins a block where blocks are framed, and a document with begins_documents.
        eos_id: ends every document, unless begins_documents.
        pad_id: None where there is none.
        begins_documents: a document is stored as BOS and its tokens, without EOS.
        reads_special: a special token written out in a text becomes its id; otherwise it is text like any other.
        chat_template: in Jinja, how conversations are written; None: it came without one. No part of the fingerprint.

    Raises:
        ValueError: the ids have gaps.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        name: str,
        kind: str,
        bos_id: int,
        eos_id: int,
        pad_id: int | None = None,
        begins_documents: bool = False,
        reads_special: bool = True,
        chat_template: str | None = None,
    ):
        ids = set(backend.get_vocab(with_added_tokens=True).values())
        missing = next((i for i in range(len(ids)) if i not in ids), None)
        if missing is not None:
            raise ValueError(f"tokenizer {name}: id {missing} is unused but {max(ids)} is not: ids must have no gaps")
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = not reads_special
        self._backend = backend
        self.name, self.kind = name, kind
        self.bos_id, self.eos_id, self.pad_id = bos_id, eos_id, pad_id
        self.begins_documents, self.reads_special = begins_documents, reads_special
        self.chat_template = chat_template
        self.vocab_size = len(ids)

    def encode(self, text: str) -> list[int]:
        """Ids of the text alone. With `reads_special`, a special token written out in the text becomes its id.

        Raises:
            ValueError: the text holds half a surrogate pair, as a shell makes of bytes that are no UTF-8.
        """
        try:
            return self._backend.encode(text, add_special_tokens=False).ids
        except TypeError as error:
            raise ValueError(f"{text!r} holds half a surrogate pair, which is no character") from error

    def encode_after(self, text: str) -> list[int]:
        """Ids of text that goes on behind other text, near or far.

        At the start of a text some tokenizers put a blank, and some take it away: where that would change what is written, the
        ids are those behind a letter.
        """
        anchor, whole, alone = self.encode(ANCHOR), self.encode(ANCHOR + text), self.encode(text)
        ways = [alone] + ([whole[len(anchor) :]] if whole[: len(anchor)] == anchor else [])
        for kept in (str, lambda written: " ".join(written.split())):  # of a tokenizer that has one kind of white space, that
            for ids in ways:
                if kept(self.decode([*anchor, *ids])) == kept(ANCHOR + text):
                    return ids
        return alone

    def encode_exactly(self, text: str, name: str, goes_on: bool = False) -> list[int]:
        """Ids that decode to this very text, up to white space (WordPiece keeps none).

        Args:
            name: what errors call the text.
            goes_on: whether other text stands before it.

        Raises:
            ValueError: the tokenizer cannot write it (a character it lacks, capitals it drops).
        """
        try:
            ids = self.encode_after(text) if goes_on else self.encode(text)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        written = self.decode(ids)
        if "".join(written.split()) != "".join(text.split()):
            raise ValueError(f"{name}: the tokenizer {self.name} cannot write {text!r}; it makes {written!r} of it")
        return ids

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """As `encode`, for many texts at once, on all cores."""
        return [encoding.ids for encoding in self._backend.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, ids: Iterable[int], skip_special: bool = False) -> str:
        """Text of ids; special tokens are written out unless `skip_special`."""
        return self._backend.decode([int(i) for i in ids], skip_special_tokens=skip_special)

    def text_after(self, before: Sequence[int], ids: Sequence[int], skip_special: bool = False) -> str:
        """What the ids add to the text: some tokenizers drop a space at the beginning of whatever they decode."""
        head, whole = (self.decode(part, skip_special) for part in (before, [*before, *ids]))
        return whole[len(head) :] if whole.startswith(head) else self.decode(ids, skip_special)

    def token(self, token_id: int) -> str:
        """The vocabulary entry of one id, in the tokenizer's own spelling; "" for one that only the model has, as a mask."""
        return self._backend.id_to_token(token_id) or ""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values from which `from_dict` makes the same tokenizer."""
        values = {
            "name": self.name,
            "kind": self.kind,
            "bos_id": self.bos_id,
            "eos_id": self.eos_id,
            "pad_id": self.pad_id,
            "json": self._backend.to_str(),
        }
        # only where they differ from what older files imply: fingerprints, and the token caches named by them, stay
        switches = {"begins_documents": self.begins_documents, "reads_special": self.reads_special}
        values |= {key: value for key, value in switches.items() if value != _IMPLIED[key]}
        return values if self.chat_template is None else values | {"chat_template": self.chat_template}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Tokenizer":
        """Raises ValueError where the values are no tokenizer's."""
        try:
            # Exception: the library raises nothing narrower for text that is not its own
            backend = tokenizers.Tokenizer.from_str(values["json"])
            ids = (values["bos_id"], values["eos_id"], values["pad_id"])
            switches = {key: bool(values.get(key, default)) for key, default in _IMPLIED.items()}
            return cls(backend, values["name"], values["kind"], *ids, **switches, chat_template=values.get("chat_template"))
        except Exception as error:
            raise ValueError(f"not a stored tokenizer: {error!r}") from error

    def fingerprint(self) -> str:
        """SHA-256 of what decides ids and text; the name has no part in it."""
        values = {key: value for key, value in self.to_dict().items() if key not in ("name", "chat_template")}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


class TokenizerBuilder:
    """Base of what a config names: `build` gives the tokenizer of a corpus."""

    def build(self, documents: Documents, cache_dir: Path | None = None, source: dict[str, Any] | None = None) -> Tokenizer:
        """A tokenizer for these training documents.

        Args:
            documents: starts a new pass over the training documents; not called where they do not matter.
            cache_dir: folder to keep a learned tokenizer in; None: learn it anew.
            source: the corpus's fingerprint; with `cache_dir`, tells learned tokenizers apart.
        """
        raise NotImplementedError


class LearnedTokenizer(TokenizerBuilder):
    """A tokenizer that depends on the training text, kept in `cache_dir` once it has been learned."""

    def build(self, documents: Documents, cache_dir: Path | None = None, source: dict[str, Any] | None = None) -> Tokenizer:
        if cache_dir is None or source is None:
            return self.learn(documents())
        key = {"builder": type(self).__name__, "options": vars(self), "source": source}
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        path = Path(cache_dir) / f"tokenizer-{digest[:16]}.json"
        if not path.exists():
            atomic.writable_folder(cache_dir, "data.cache_dir")  # before the long part
            atomic.write_text(path, json.dumps(self.learn(documents()).to_dict()), shared=True)
        try:
            return Tokenizer.from_dict(read_json(path, VOCABULARY_BYTES))
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} is damaged: delete it and it will be made again ({error})") from error

    def learn(self, documents: Iterator[str]) -> Tokenizer:
        raise NotImplementedError


class CharacterTokenizer(LearnedTokenizer):
    """One id per character of the training text, in code-point order, after `<|end|>` (0) and `<unk>` (1).

    A character of held-out text that training text lacks is `<unk>`: lost in decoding, and cheaper than it should be.
    """

    def learn(self, documents: Iterator[str]) -> Tokenizer:
        alphabet: set[str] = set()
        for document in documents:
            alphabet.update(document)
        vocabulary = {token: i for i, token in enumerate([END, UNKNOWN, *sorted(alphabet)])}
        # BPE without merges is the library's fastest way to single characters
        backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=UNKNOWN, fuse_unk=False))
        backend.decoder = decoders.Fuse()
        backend.add_special_tokens([_special(END), _special(UNKNOWN)])
        return Tokenizer(backend, "characters", "characters", bos_id=0, eos_id=0)


class ByteTokenizer(TokenizerBuilder):
    """The 256 bytes of UTF-8, id = value of the byte, and `<|end|>` (256)."""

    def build(self, documents: Documents, cache_dir: Path | None = None, source: dict[str, Any] | None = None) -> Tokenizer:
        spelling = {character: byte for byte, character in enumerate(_byte_spelling())}
        backend = tokenizers.Tokenizer(models.BPE(vocab=spelling, merges=[]))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.decoder = decoders.ByteLevel()
        backend.add_special_tokens([_special(END)])
        return Tokenizer(backend, "bytes", "bytes", bos_id=256, eos_id=256)


class BPETokenizer(LearnedTokenizer):
    """Byte-level byte-pair encoding learned on the training documents; `<|end|>` is id 0, the bytes follow.

    Args:
        vocab_size: V, at least 257; a small corpus may give fewer, with a warning.
    """

    def __init__(self, vocab_size: Annotated[int, Ge(257)] = 1024):
        self.vocab_size = vocab_size

    def learn(self, documents: Iterator[str]) -> Tokenizer:
        backend = tokenizers.Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocab_size,
            special_tokens=[_special(END)],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=True,
        )
        backend.train_from_iterator(documents, trainer)
        tokenizer = Tokenizer(backend, "bpe", "bpe", bos_id=0, eos_id=0)
        if tokenizer.vocab_size < self.vocab_size:
            log.warning("tokenizer.vocab_size=%d: the text has pairs for %d only", self.vocab_size, tokenizer.vocab_size)
        return tokenizer


def _special(token: str) -> AddedToken:
    return AddedToken(token, special=True, normalized=False)


def _byte_spelling() -> list[str]:
    """The printable character by which byte-level tokenizers (GPT-2's convention) spell each byte, by byte value."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    spare = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(spare)) for byte in range(256)]
