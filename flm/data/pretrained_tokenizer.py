"""Published tokenizers by Hugging Face name, folder, or the bare vocabulary files of GPT-2 and BERT; and chat templates."""

import json
import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import tokenizers
from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

from flm.data.corpora.download import REACH_SECONDS
from flm.data.tokenizers import Documents, Tokenizer, TokenizerBuilder
from flm.handed_in import VOCABULARY_BYTES, regular_file
from flm.ranges import Text
from flm.samplers.canvas import Text as Written

PAD = "[PAD]"


class HuggingFaceTokenizer(TokenizerBuilder):
    """A published tokenizer, unchanged.

    BOS and EOS are its own. If it has only one of them, that one serves as both; if it has neither (BERT), both are the first
    id that it puts before a text ([CLS], 101). So BERT gives 101 twice and GPT-2 50256 twice, as in the packed LM1B and
    OpenWebText data of the masked-diffusion literature.

    Args:
        name_or_path: name on the Hugging Face hub, or a folder: one saved by `save_pretrained`, or one with GPT-2's
            vocab.json and merges.txt alone, or with BERT's vocab.txt alone. Code in either is never run. A name is looked for
            as a folder in the `cache_dir` given to `build`, then among earlier downloads, then on the hub.
        add_pad: appends `[PAD]` as the last id if the tokenizer has no padding token (GPT-2: V = 50258).

    Raises:
        ValueError: on `build`: it cannot be found or read, or has no token to end a document with.
    """

    def __init__(self, name_or_path: Text | os.PathLike[str], add_pad: bool = False):
        self.name_or_path, self.add_pad = os.fspath(name_or_path), add_pad

    def build(self, documents: Documents, cache_dir: Path | None = None, source: dict[str, Any] | None = None) -> Tokenizer:
        backend, bos_id, eos_id, pad_id, template = self._load(self._place(cache_dir))
        backend = tokenizers.Tokenizer.from_str(backend.to_str())  # a copy, since padding and truncation get switched off
        first = next(iter(backend.encode("").ids), None)
        begin = next((i for i in (bos_id, eos_id, first) if i is not None), None)
        end = next((i for i in (eos_id, bos_id, first) if i is not None), None)
        if begin is None or end is None:
            raise ValueError(f"tokenizer.name_or_path={self.name_or_path}: no token to begin or end a document with")
        if self.add_pad and pad_id is None:
            backend.add_special_tokens([AddedToken(PAD, special=True, normalized=False)])
            pad_id = backend.token_to_id(PAD)
        return Tokenizer(backend, self.name_or_path, "huggingface", begin, end, pad_id, chat_template=template)

    def _place(self, cache_dir: Path | None) -> str:
        """A folder, or a name on the hub."""
        kept = None if cache_dir is None else Path(cache_dir) / self.name_or_path
        return str(kept) if kept is not None and kept.is_dir() and not Path(self.name_or_path).is_dir() else self.name_or_path

    def _load(self, place: str) -> "_Loaded":
        folder = Path(place)
        self._check_sizes(folder)
        if folder.is_dir() and not (folder / "tokenizer.json").exists():
            if (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
                return _gpt2(folder)
            if (folder / "vocab.txt").exists():
                return _bert(folder)
        return self._load_with_transformers(place)

    def _check_sizes(self, folder: Path) -> None:
        """Raises ValueError for a file larger than such files are, before a parser reads it whole."""
        for file in sorted(folder.iterdir()) if folder.is_dir() else ():
            if file.suffix in (".json", ".txt", ".model", ".jinja"):
                try:
                    regular_file(file, VOCABULARY_BYTES)
                except (OSError, ValueError) as error:
                    raise ValueError(f"tokenizer.name_or_path={self.name_or_path}: {file}: {error}") from error

    def _load_with_transformers(self, place: str) -> "_Loaded":
        from huggingface_hub import HfApi
        from transformers import AutoTokenizer

        try:
            try:  # an earlier download needs no network; without one, the hub's client retries for a minute
                loaded = AutoTokenizer.from_pretrained(place, local_files_only=True, trust_remote_code=False)
            except (OSError, ValueError):
                if Path(place).exists():
                    raise
                HfApi().model_info(place, timeout=REACH_SECONDS)  # raises within seconds where the hub is out of reach
                loaded = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
        except Exception as error:  # the hub, the network and the parsers each raise their own
            raise ValueError(
                f"tokenizer.name_or_path={self.name_or_path} is no readable tokenizer folder and could not be fetched "
                f"from the Hugging Face hub ({_first_line(error)}): without network, give a local folder, or put "
                "one of that name into data.cache_dir"
            ) from error
        if not loaded.is_fast:
            raise ValueError(f"tokenizer.name_or_path={self.name_or_path} has no tokenizer.json: only fast tokenizers")
        template = loaded.chat_template
        if isinstance(template, dict):  # several by name
            template = template.get("default")
        return loaded.backend_tokenizer, loaded.bos_token_id, loaded.eos_token_id, loaded.pad_token_id, template


# backend, begin, end and padding id, chat template
_Loaded = tuple[tokenizers.Tokenizer, int | None, int | None, int | None, str | None]


class ChatTemplate:
    """Writes conversations as one prompt. A template may come from anyone, so Jinja's sandbox fills it in.

    Args:
        text: of the template. It reads `messages`, `add_generation_prompt`, and the tokenizer's `bos_token` and `eos_token`,
            and may refuse a conversation by `raise_exception(line)`; tojson, strftime_now and generation blocks are there too.
        tokenizer: of the model.
        name: its origin, for errors.

    Raises:
        ValueError: the text is no template.
    """

    def __init__(self, text: str, tokenizer: Tokenizer, name: str):
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[LoopControlExtension, _Answers]
        )
        # as transformers has them, by which models are trained: Jinja's own tojson is for pages, and writes ' as \u0027
        environment.globals |= {"raise_exception": _refuse, "strftime_now": lambda form: datetime.now().strftime(form)}
        environment.filters["tojson"] = _json
        self._known = {"bos_token": tokenizer.token(tokenizer.bos_id), "eos_token": tokenizer.token(tokenizer.eos_id)}
        try:
            self._template = environment.from_string(text)
        except TemplateError as error:
            raise ValueError(f"{name}: no chat template: {_line(error)}") from error

    def __call__(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The prompt that asks a model for the next message of a conversation.

        Raises:
            ValueError: the template refuses the conversation, or does something unsafe.
        """
        try:
            return self._template.render(messages=list(messages), add_generation_prompt=True, **self._known)
        except SecurityError as error:
            raise ValueError(f"the chat template does what it may not: {_line(error)}") from error
        except (TemplateError, TypeError, ValueError, AttributeError, KeyError, ArithmeticError) as error:
            raise ValueError(f"the chat template refuses this conversation: {_line(error)}") from error

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "ChatTemplate":
        """The tokenizer's own template.

        Raises:
            ValueError: it has none.
        """
        if tokenizer.chat_template is None:
            raise ValueError(f"the tokenizer {tokenizer.name} has no chat template: take a chat model's")
        return cls(tokenizer.chat_template, tokenizer, tokenizer.name)


def prompt_of_chat(tokenizer: Tokenizer, chat: Sequence[Mapping[str, str]], other: Any = None) -> str:
    """A conversation as one prompt, by the tokenizer's own template.

    Args:
        other: prompt or suffix that the user gave beside the conversation, which is an error.

    Raises:
        ValueError: there is such another; or there is no template, or it refuses the conversation.
    """
    if other:
        raise ValueError("chat is the whole prompt: leave out prompt and suffix")
    return ChatTemplate.of(tokenizer)(chat)


def answer_in(tokenizer: Tokenizer, ids: list[int], start: int) -> Written:
    """What was written after a prompt of `start` tokens, up to EOS."""
    end = tokenizer.eos_id
    answer = ids[start : ids.index(end, start) if end in ids[start:] else len(ids)]
    return Written.of(tokenizer.text_after(ids[max(0, start - 8) : start], answer), answer)


def _refuse(line: str) -> None:
    raise TemplateError(str(line))


def _json(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class _Answers(Extension):
    """{% generation %} blocks, by which some templates mark what a model wrote: their text."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _gpt2(folder: Path) -> _Loaded:
    try:
        backend = tokenizers.Tokenizer(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(
            f"tokenizer.name_or_path={folder}: vocab.json and merges.txt are not a byte-pair vocabulary ({_first_line(error)})"
        ) from error
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<|endoftext|>", special=True, normalized=False)])
    end = backend.token_to_id("<|endoftext|>")
    return backend, end, end, None, None


def _bert(folder: Path) -> _Loaded:
    try:
        vocabulary = models.WordPiece.read_file(str(folder / "vocab.txt"))
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(
            f"tokenizer.name_or_path={folder}: vocab.txt is not a WordPiece vocabulary ({_first_line(error)})"
        ) from error
    special = [token for token in (PAD, "[UNK]", "[CLS]", "[SEP]", "[MASK]") if token in vocabulary]
    if not {"[UNK]", "[CLS]"} <= set(special):
        raise ValueError(f"tokenizer.name_or_path={folder}: vocab.txt has no [UNK] or no [CLS]")
    uncased = not any(token.lower() != token for token in vocabulary if not token.startswith("["))
    backend = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=uncased)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return backend, vocabulary["[CLS]"], vocabulary["[CLS]"], vocabulary.get(PAD), None


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
