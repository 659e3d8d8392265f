"""Puzzles generated from a seed, as a corpus. L positions of a row, V vocabulary."""

import hashlib
import random
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Le
from torch import Tensor
from torch.utils.data import Dataset

from flm.data.corpora.corpus import Corpus, Split
from flm.data.layouts import Row, scattered
from flm.data.tokenizers import Tokenizer
from flm.draws import mix_seed
from flm.puzzles.rules import HOLE, Puzzle, Rules
from flm.ranges import BelowOne, Count, Folder, Seed

_SEED = {"train": 0, "valid": 1}
_UNKNOWN = "?"  # in a read answer, a token that is no symbol of a puzzle


class PuzzleCorpus(Corpus):
    """Base of puzzles with one token per symbol: subclasses define `rules`, `draw` and `givens_of`, and may override the rest.

    Args:
        train: number of puzzles to learn from; None: all that exist.
        valid: number of held-out puzzles; None: all that exist.
        held_out: share of the families of puzzles, in [0, 1), that is held out; 0: none, and validation puzzles are drawn from
            all. A family holds answers that are equal up to the puzzle's symmetries, see `family`.
        seed: of the puzzles and of the choice of held-out families.
        givens: none: nothing is given. own: every puzzle has its givens. scattered: each training puzzle has `masks` rows, in
            which random positions are given; held-out puzzles have their own givens.
        masks: rows of a puzzle with scattered givens.
        variants: puzzles for each held-out answer, with different givens, if there are so many.
        layout: holes: a row is the answer, some of whose positions are given. prompt: a row is the givens, with holes as a
            symbol, and then the answer, so that a model that writes from left to right reads all givens first.
        cache_dir: folder of a learned tokenizer.

    Attributes:
        columns: symbols in a line of the board when it is shown; None: all are in one line.
    """

    conditional = True
    rules: Rules
    columns: int | None = None

    def __init__(
        self,
        train: Count | None,
        valid: Count | None,
        held_out: BelowOne = 0.1,
        seed: Seed = 0,
        givens: Literal["none", "own", "scattered"] = "own",
        masks: Count = 64,
        layout: Literal["holes", "prompt"] = "holes",
        variants: Annotated[int, Ge(1), Le(1000)] = 1,
        cache_dir: Folder | None = None,
    ):
        super().__init__(cache_dir=cache_dir)
        self.train, self.valid, self.held_out, self.seed = train, valid, held_out, seed
        self.givens, self.masks, self.layout, self.variants = givens, masks, layout, variants
        self._options: dict[str, Any] = {}
        self._made: dict[Split, list[Puzzle]] = {}
        self._kept_back: set[Hashable] | None = None

    def draw(self, rng: random.Random) -> str:
        """A random answer."""
        raise NotImplementedError

    def givens_of(self, answer: str, rng: random.Random) -> str:
        """A puzzle's own givens, for givens="own", and for held-out puzzles with "scattered"."""
        raise NotImplementedError

    def family(self, answer: str) -> Hashable:
        """A key that answers have in common if they are equal up to the puzzle's symmetries; a family is not split."""
        return answer

    def families(self) -> Sequence[Hashable] | None:
        """All families, if they can be listed; None: each is held out at random by its hash."""
        whole = self.everything()
        return None if whole is None else sorted({self.family(answer) for answer in whole}, key=repr)

    def everything(self) -> list[str] | None:
        """All possible answers, if they are few enough to be listed; else None."""
        return None

    def space_size(self) -> int | None:
        """The number of possible answers; None: unknown."""
        whole = self.everything()
        return None if whole is None else len(whole)

    def is_held_out(self, answer: str) -> bool:
        family = self.family(answer)
        if self._kept_back is None:
            known = self.families() if self.held_out else []
            count = max(1, round(self.held_out * len(known))) if known else 0
            if known and count >= len(known):
                raise ValueError(f"data.held_out={self.held_out} leaves none of {len(known)} families of puzzles to learn from")
            self._kept_back = set(random.Random(mix_seed(self.seed, 2)).sample(list(known), count)) if known else set()
            self._by_chance = known is None
        if self._by_chance:
            digest = hashlib.sha256(f"{self.seed} {family!r}".encode()).digest()
            return int.from_bytes(digest[:8], "big") < self.held_out * 2**64
        return family in self._kept_back

    def puzzles(self, split: Split) -> list[Puzzle]:
        """The puzzles of a split, always the same. None occurs twice, and an answer only as variants."""
        if split not in self._made:
            rng = random.Random(mix_seed(self.seed, _SEED[split]))
            own = self.givens != "none" and (self.givens == "own" or split == "valid")
            blank = self.givens_of if own else lambda answer, rng: HOLE * len(answer)
            answers = list(self._answers(split, rng))
            rounds = self.variants if own and split == "valid" else 1
            made = (Puzzle(blank(answer, rng), answer) for _ in range(rounds) for answer in answers)
            self._made[split] = list(dict.fromkeys(made))
        return self._made[split]

    def raw_documents(self, split: Split) -> Iterator[str]:
        for puzzle in self.puzzles(split):
            yield puzzle.givens + puzzle.answer if self.layout == "prompt" else puzzle.answer

    def source_fingerprint(self) -> dict[str, Any]:
        hidden = ("normaliser", "wrap", "cache_dir", "processes", "rules", "columns")
        return {key: value for key, value in vars(self).items() if key not in hidden and not key.startswith("_")}

    def request(self, puzzle: Puzzle, tokenizer: Tokenizer, length: int) -> tuple[list[int], list[bool]]:
        """Token ids of a row as in training, 0 where they are to be written, and whether each is to be written.

        Raises:
            ValueError: a row of this puzzle does not have `length` positions.
        """
        ids = symbols_to_ids(tokenizer, puzzle.answer)
        written = [given == HOLE for given in puzzle.givens]
        ids = [0 if hole else token for token, hole in zip(ids, written, strict=True)]
        if self.layout == "prompt":
            ids, written = symbols_to_ids(tokenizer, puzzle.givens) + ids, [False] * len(ids) + written
        if len(ids) != length:
            raise ValueError(f"model.length={length}: rows of these puzzles have {len(ids)} positions")
        return ids, written

    def read(self, row: Sequence[int], puzzle: Puzzle, tokenizer: Tokenizer) -> str:
        """The answer in a row that a model filled."""
        ids = row[len(row) // 2 :] if self.layout == "prompt" else row
        symbols = (tokenizer.token(int(token)) for token in ids)
        return "".join(symbol if len(symbol) == 1 else _UNKNOWN for symbol in symbols)

    def open(self, tokenizer: Tokenizer, root: Path) -> "PuzzleTable":
        return PuzzleTable(self, tokenizer)

    def blocks(self, cache: "PuzzleTable", split: Split, length: int, tokenizer: Tokenizer, seed: int) -> "PuzzleRows":
        scatter = self.givens == "scattered" and split == "train"
        return PuzzleRows(self.puzzles(split), self.request, tokenizer, length, self.masks if scatter else 0, seed)

    def _answers(self, split: Split, rng: random.Random) -> Iterator[str]:
        wanted, whole = (self.train if split == "train" else self.valid), self.everything()
        mine = self.is_held_out if split == "valid" and self.held_out else lambda answer: not self.is_held_out(answer)
        if whole is not None:
            chosen = [answer for answer in whole if mine(answer)]
            rng.shuffle(chosen)
            yield from chosen[:wanted]
            return
        if wanted is None:
            raise ValueError(f"data.{split} must be a number: there are too many of {self.describe()} to list them")
        seen: set[str] = set()
        for _ in range(1000 * (wanted + 100)):
            if len(seen) == wanted:
                return
            answer = self.draw(rng)
            if answer not in seen and mine(answer):
                seen.add(answer)
                yield answer
        raise ValueError(f"data.{split}={wanted}: only {len(seen)} of {self.describe()} were found: lower data.{split}")


class PuzzleTable:
    """Stands for the `TokenCache` of a corpus. It stores nothing, since puzzles are generated."""

    def __init__(self, corpus: PuzzleCorpus, tokenizer: Tokenizer):
        self._corpus, self.tokenizer, self.vocab_size = corpus, tokenizer, tokenizer.vocab_size

    def bytes_per_token(self, split: Split) -> float:
        return 1.0  # symbols are ASCII


class PuzzleRows(Dataset[Tensor]):
    """Rows (L,) int64 of puzzles: given symbols have weight 0, symbols to write 1.

    Args:
        request: `PuzzleCorpus.request`.
        masks: rows of each puzzle, each with a random number of givens in random places; 0: one row, with its own givens.
        seed: of the masks, which depend on it and the row's number only.

    Raises:
        ValueError: there is no puzzle, or rows have another length than L.
    """

    def __init__(
        self,
        puzzles: Sequence[Puzzle],
        request: Callable[[Puzzle, Tokenizer, int], tuple[list[int], list[bool]]],
        tokenizer: Tokenizer,
        length: int,
        masks: int = 0,
        seed: int = 0,
    ):
        if not puzzles:
            raise ValueError("data: no puzzle is on this side of the split: change data.held_out")
        self.puzzles, self.request, self.tokenizer = puzzles, request, tokenizer
        self.length = self.payload = length
        self.masks, self.seed = masks, seed
        self.variants = max(1, masks)
        request(puzzles[0], tokenizer, length)  # raises now if rows do not fit

    def __len__(self) -> int:
        return len(self.puzzles) * max(1, self.masks)

    def __getitem__(self, index: int) -> Tensor:
        return self.row(index).tokens

    def row(self, index: int) -> Row:
        """Tokens and their weight."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} is not in [0, {len(self)})")
        puzzle = self.puzzles[index // max(1, self.masks)]
        if self.masks:
            rng, count = random.Random(mix_seed(self.seed, index)), len(puzzle.answer)
            holes = scattered(count, rng.randint(1, count), rng)
            puzzle = Puzzle("".join(HOLE if hole else c for c, hole in zip(puzzle.answer, holes, strict=True)), puzzle.answer)
        ids, written = self.request(puzzle, self.tokenizer, self.length)
        answer = symbols_to_ids(self.tokenizer, puzzle.answer)
        tokens = ids[: len(ids) - len(answer)] + answer
        return Row(torch.tensor(tokens), torch.tensor(written, dtype=torch.float))

    def token_counts(self, vocab_size: int) -> Tensor:
        """How often each id is a target, int64 (V,), in evenly spaced puzzles, at most about 20,000."""
        counts = torch.zeros(vocab_size, dtype=torch.long)
        step = max(1, len(self.puzzles) // 20_000)
        for puzzle in self.puzzles[::step]:
            ids = torch.tensor(symbols_to_ids(self.tokenizer, puzzle.answer))
            if not self.masks:
                ids = ids[torch.tensor([given == HOLE for given in puzzle.givens])]
            counts += torch.bincount(ids, minlength=vocab_size)
        return counts


def symbols_to_ids(tokenizer: Tokenizer, symbols: str) -> list[int]:
    """One id for each symbol.

    Raises:
        ValueError: the tokenizer makes another number of ids.
    """
    ids = tokenizer.encode(symbols)
    if len(ids) != len(symbols):
        raise ValueError(f"tokenizer {tokenizer.name}: makes {len(ids)} tokens of {symbols!r}: set tokenizer=characters")
    return ids
