"""Generative perplexity: the perplexity of sampled text under a judge, which is an autoregressive language model.

It is exp(sum of -log p over all scored tokens of all texts / their number). No text is left out. A `ScoringProtocol` says
which tokens are scored:

`PublishedProtocol`, as in the tables of MDLM (arXiv 2406.07524), Duo (2506.10892) and FLM (2602.16813): the judge tokenises
    the text, special tokens spelled out in it included. The tokens are cut after `max_tokens`, padded to that length with the
    judge's end token, and split into pieces of the judge's context. In each piece the first token is only context. Scored are
    all tokens that are not the end token, and the first end token. So a text without an end token has its first padding token
    scored: the judge is asked whether the text ends there. Published code pads to the longest text of a set, not to
    max_tokens. There the longest text lacks that one token unless it fills max_tokens, and the result depends on how the
    samples were split into sets. Here it does not.

`WholeTextProtocol`: nothing is cut or added. Windows of the judge's context slide over the text; every token but the
    first is scored exactly once, with at least context - stride tokens before it from the second window on.

B batch, L length.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from flm.data.tokenizers import Tokenizer
from flm.likelihood.bits_per_byte import perplexity
from flm.measures.diversity import TokenRows, token_rows
from flm.measures.estimate import Estimate


@dataclass(frozen=True)
class Window:
    """Tokens that the judge reads at once, and which of them are scored; scored[0] is False."""

    ids: list[int]
    scored: list[bool]


class ScoringProtocol(Protocol):
    """Which tokens of a text are scored, and with which context."""

    def windows(self, ids: list[int], context: int, eos_id: int) -> Iterable[Window]:
        """Windows of at most `context` tokens over one text; none if nothing is scored."""
        ...

    def describe(self, context: int) -> str:
        """One line for result files."""
        ...


@dataclass(frozen=True)
class PublishedProtocol:
    """See the module; max_tokens is usually the model length."""

    max_tokens: int

    def __post_init__(self):
        if self.max_tokens < 2:
            raise ValueError(f"generative perplexity needs max_tokens of at least 2, not {self.max_tokens}")

    def windows(self, ids: list[int], context: int, eos_id: int) -> Iterable[Window]:
        for start in range(0, min(len(ids), self.max_tokens), context):
            size = min(context, self.max_tokens - start)
            piece = ids[start : start + size]
            if len(piece) < size:
                piece = [*piece, eos_id]  # the first padding token; later ones are not scored and change nothing
            end = piece.index(eos_id) if eos_id in piece else None
            scored = [i > 0 and (token != eos_id or i == end) for i, token in enumerate(piece)]
            if any(scored):
                yield Window(piece, scored)

    def describe(self, context: int) -> str:
        return f"published: first {self.max_tokens} tokens, up to the first end token, context {context}"


@dataclass(frozen=True)
class WholeTextProtocol:
    """See the module.

    Args:
        stride: tokens from one window to the next, in [1, context - 1]; None: half the context.
    """

    stride: int | None = None

    def windows(self, ids: list[int], context: int, eos_id: int) -> Iterable[Window]:
        stride = self._stride(context)
        start, done = 0, 1
        while done < len(ids):
            piece = ids[start : start + context]
            yield Window(piece, [start + i >= done for i in range(len(piece))])
            done = start + len(piece)
            start += stride

    def describe(self, context: int) -> str:
        return f"whole text: windows of {context} tokens, {self._stride(context)} apart"

    def _stride(self, context: int) -> int:
        stride = context // 2 if self.stride is None else self.stride
        if not 1 <= stride < context:
            raise ValueError(f"a window's stride must be in [1, {context - 1}] (the context less one), not {stride}")
        return stride


@dataclass(frozen=True)
class ScoreResult:
    """The scores of N texts by a judge.

    Attributes:
        scorer: name of the judge.
        revision: its commit; None for a local folder, or if unknown.
        dtype: that the judge computed in.
        protocol: which tokens were scored.
        ppl: perplexity over all texts; None if no token was scored.
        nats_per_token: its logarithm.
        standard_error: of nats_per_token, over texts (ratio estimator); None with fewer than two scored texts. That of
            ppl is ppl times this.
        num_samples: N, all texts given.
        num_without_scored_tokens: texts too short to have a scored token; they do not enter the mean.
        num_scored_tokens: tokens in the mean.
        nll_per_sample: (N,) sums in nats, in the order given.
        tokens_per_sample: (N,) scored tokens.
    """

    scorer: str
    revision: str | None
    dtype: str
    protocol: str
    ppl: float | None
    nats_per_token: float | None
    standard_error: float | None
    num_samples: int
    num_without_scored_tokens: int
    num_scored_tokens: int
    nll_per_sample: list[float]
    tokens_per_sample: list[int]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


class Scorer:
    """A judge. Subclasses define `encode` and `token_nll`.

    Args:
        name: for result files.
        context: most tokens it reads at once, at least 2.
        eos_id: its end token, also used as padding.
        batch_size: windows scored at once; changes speed and memory only.
        device: of the ids that `token_nll` gets.
        dtype: for result files.
        revision: for result files; None: unknown.
    """

    def __init__(
        self,
        name: str,
        context: int,
        eos_id: int,
        batch_size: int,
        device: torch.device | str = "cpu",
        dtype: str = "float32",
        revision: str | None = None,
    ):
        if batch_size < 1:
            raise ValueError(f"a scorer's batch_size must be at least 1, not {batch_size}")
        if context < 2:
            raise ValueError(f"a scorer's context must be at least 2 tokens, not {context}")
        self.name, self.context, self.eos_id, self.batch_size = name, context, eos_id, batch_size
        self.device, self.dtype, self.revision = torch.device(device), dtype, revision

    def encode(self, texts: list[str]) -> list[list[int]]:
        """All of the judge's tokens of each text."""
        raise NotImplementedError

    def token_nll(self, ids: Tensor) -> Tensor:
        """-log p of each token given those before it in its row, (B, L) nats; column 0 is not read."""
        raise NotImplementedError

    def score(self, texts: Sequence[str], protocol: ScoringProtocol) -> ScoreResult:
        """Scores texts, which the judge tokenises."""
        return self.score_tokens(self.encode(list(texts)), protocol)

    @torch.no_grad()
    def score_tokens(self, tokens: TokenRows, protocol: ScoringProtocol) -> ScoreResult:
        """Scores token ids of the judge's own tokenizer.

        Raises:
            ValueError: the judge's output is not finite or has the wrong shape.
        """
        rows = token_rows(tokens)
        windows = [
            (owner, window) for owner, row in enumerate(rows) for window in protocol.windows(row, self.context, self.eos_id)
        ]
        windows.sort(key=lambda item: -len(item[1].ids))  # little padding; and memory, if it runs out, does so at once
        sums, counts = [0.0] * len(rows), [0] * len(rows)
        for start in range(0, len(windows), self.batch_size):
            batch = windows[start : start + self.batch_size]
            for (owner, window), nll in zip(batch, self._window_nll([w for _, w in batch]), strict=True):
                sums[owner] += nll
                counts[owner] += sum(window.scored)
        pooled = Estimate.ratio(sums, counts) if any(counts) else None
        return ScoreResult(
            scorer=self.name,
            revision=self.revision,
            dtype=self.dtype,
            protocol=protocol.describe(self.context),
            ppl=None if pooled is None else perplexity(pooled.mean),
            nats_per_token=None if pooled is None else pooled.mean,
            standard_error=None if pooled is None else pooled.standard_error,
            num_samples=len(rows),
            num_without_scored_tokens=counts.count(0),
            num_scored_tokens=sum(counts),
            nll_per_sample=sums,
            tokens_per_sample=counts,
        )

    def _window_nll(self, windows: list[Window]) -> list[float]:
        """Sum of -log p over the scored tokens of each window. Padding is on the right, where no scored token sees it."""
        length = max(len(window.ids) for window in windows)
        ids = torch.full((len(windows), length), self.eos_id, dtype=torch.int64)
        scored = torch.zeros(len(windows), length, dtype=torch.bool)
        for row, window in enumerate(windows):
            ids[row, : len(window.ids)] = torch.tensor(window.ids)
            scored[row, : len(window.ids)] = torch.tensor(window.scored)
        nll = self.token_nll(ids.to(self.device))
        if nll.shape != ids.shape:
            raise ValueError(f"scorer {self.name} gave {tuple(nll.shape)} values for {tuple(ids.shape)} tokens")
        nll = nll.double().cpu().where(scored, 0.0)
        if not nll.isfinite().all():
            raise ValueError(f"scorer {self.name} gave values that are not finite in {self.dtype}: try dtype float32")
        return nll.sum(-1).tolist()


class TokenScorer(Scorer):
    """A judge given as a function, for instance an autoregressive model of this project, without any download.

    Args:
        nll: maps ids (B, L) int64 to -log p of each token given those before it, (B, L) nats. Column 0 is not read and may be
            NaN. A value must not depend on later tokens.
        tokenizer: the judge's own; its end token pads.
        others: as in `Scorer`.
    """

    def __init__(
        self,
        nll: Callable[[Tensor], Tensor],
        tokenizer: Tokenizer,
        name: str,
        context: int,
        batch_size: int = 16,
        device: torch.device | str = "cpu",
        dtype: str = "float32",
        revision: str | None = None,
    ):
        super().__init__(name, context, tokenizer.eos_id, batch_size, device, dtype, revision)
        self._nll, self._tokenizer = nll, tokenizer

    def encode(self, texts: list[str]) -> list[list[int]]:
        return self._tokenizer.encode_batch(texts)

    def token_nll(self, ids: Tensor) -> Tensor:
        return self._nll(ids)
