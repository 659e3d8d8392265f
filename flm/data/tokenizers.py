"""Tokenizers: text to ids and back, and the builders that configs name.

Each holds one `tokenizers.Tokenizer`. So a checkpoint stores it as a JSON string, and needs neither the training text nor a
download to restore it.
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

_IMPLIED = {"begins_documents": False, "reads_special": True}  # what a stored tokenizer without these keys means
_PARALLEL = "TOKENIZERS_PARALLELISM"
if _PARALLEL not in os.environ and hasattr(os, "register_at_fork"):
    # The library's threads do not survive a fork, so a forked process (a loader's worker) that uses them hangs. The library
    # itself only warns, in each process. So children start with threads switched off.
    os.register_at_fork(
        before=lambda: os.environ.__setitem__(_PARALLEL, "false"),
        after_in_parent=lambda: os.environ.pop(_PARALLEL, None),
    )


class Tokenizer:
    """A tokenizer with ids 0 .. V-1 without gaps, and the ids of begin, end and padding.

    Args:
        backend: does the work; truncation, padding and added begin or end tokens are switched off.
        name: for messages.
        kind: characters, bytes, bpe, sentencepiece or huggingface.
        bos_id: begins a framed block, and a document with begins_documents.
        eos_id: ends every document, unless begins_documents.
        pad_id: None: there is none.
        begins_documents: a document is stored as BOS and its tokens, without EOS.
        reads_special: a special token spelled out in a text becomes its id; otherwise it is ordinary text.
        chat_template: Jinja template for conversations; None: there is none. Not part of the fingerprint.

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
        """Ids of the text, without added begin or end tokens.

        Raises:
            ValueError: the text holds half a surrogate pair, which Python makes of bytes in arguments that are not UTF-8.
        """
        try:
            return self._backend.encode(text, add_special_tokens=False).ids
        except TypeError as error:
            raise ValueError(f"{text!r} holds half a surrogate pair, which is no character") from error

    def encode_after(self, text: str) -> list[int]:
        """Ids of text that stands behind other text, near or far.

        Some tokenizers add or strip a blank at the start of a text. If that would change what is written, the ids are those
        which the text has behind a letter.
        """
        anchor, whole, alone = self.encode(ANCHOR), self.encode(ANCHOR + text), self.encode(text)
        ways = [alone] + ([whole[len(anchor) :]] if whole[: len(anchor)] == anchor else [])
        # a tokenizer that has one kind of white space only is compared without regard to it
        for kept in (str, lambda written: " ".join(written.split())):
            for ids in ways:
                if kept(self.decode([*anchor, *ids])) == kept(ANCHOR + text):
                    return ids
        return alone

    def encode_exactly(self, text: str, name: str, goes_on: bool = False) -> list[int]:
        """Ids that decode to exactly this text, up to white space (WordPiece keeps none).

        Args:
            name: of the text, for errors.
            goes_on: whether other text stands before it.

        Raises:
            ValueError: the tokenizer cannot write the text (it lacks a character, or drops capitals).
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
        """Text of ids; special tokens are spelled out unless `skip_special`."""
        return self._backend.decode([int(i) for i in ids], skip_special_tokens=skip_special)

    def text_after(self, before: Sequence[int], ids: Sequence[int], skip_special: bool = False) -> str:
        """The text of `ids` where it follows that of `before`: decoded alone, some tokenizers drop its first space."""
        head, whole = (self.decode(part, skip_special) for part in (before, [*before, *ids]))
        return whole[len(head) :] if whole.startswith(head) else self.decode(ids, skip_special)

    def token(self, token_id: int) -> str:
        """The vocabulary entry of an id, in the tokenizer's own spelling; "" for an id that only the model has, as a mask."""
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
        # only if they differ from the default of older files, so that fingerprints and the names of token caches stay
        switches = {"begins_documents": self.begins_documents, "reads_special": self.reads_special}
        values |= {key: value for key, value in switches.items() if value != _IMPLIED[key]}
        return values if self.chat_template is None else values | {"chat_template": self.chat_template}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Tokenizer":
        """The inverse of `to_dict`. Raises ValueError if the values are no tokenizer's."""
        try:
            backend = tokenizers.Tokenizer.from_str(values["json"])
            ids = (values["bos_id"], values["eos_id"], values["pad_id"])
            switches = {key: bool(values.get(key, default)) for key, default in _IMPLIED.items()}
            return cls(backend, values["name"], values["kind"], *ids, **switches, chat_template=values.get("chat_template"))
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(f"not a stored tokenizer: {error!r}") from error

    def fingerprint(self) -> str:
        """SHA-256 of everything that determines ids and text; the name does not."""
        values = {key: value for key, value in self.to_dict().items() if key not in ("name", "chat_template")}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


class TokenizerBuilder:
    """Base of the builders that a config names."""

    def build(self, documents: Documents, cache_dir: Path | None = None, source: dict[str, Any] | None = None) -> Tokenizer:
        """A tokenizer for these training documents.

        Args:
            documents: starts a new pass over the training documents; called only if the tokenizer is learned.
            cache_dir: folder in which a learned tokenizer is kept; None: it is learned each time.
            source: the corpus's fingerprint, part of the name of a kept tokenizer.
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
            atomic.writable_folder(cache_dir, "data.cache_dir")  # fails before the learning, not after
            atomic.write_text(path, json.dumps(self.learn(documents()).to_dict()), shared=True)
        try:
            return Tokenizer.from_dict(read_json(path, VOCABULARY_BYTES))
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} is damaged: delete it and it will be made again ({error})") from error

    def learn(self, documents: Iterator[str]) -> Tokenizer:
        raise NotImplementedError


class CharacterTokenizer(LearnedTokenizer):
    """One id per character of the training text, in code-point order, after `<|end|>` (0) and `<unk>` (1).

    A character that only held-out text has becomes `<unk>`: decoding loses it, and its likelihood is too high.
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
    """The printable character for each byte value, as byte-level tokenizers spell it (GPT-2's convention)."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    spare = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(spare)) for byte in range(256)]
