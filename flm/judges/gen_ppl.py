"""Generative perplexity: how a judge, an autoregressive language model, likes sampled text.

Perplexity is exp(sum of -log p over all scored tokens of all texts / their number), pooled, no text left out. Which
tokens are scored is a `ScoringProtocol`:

`PublishedProtocol`, behind the tables of MDLM (arXiv 2406.07524), Duo (2506.10892) and FLM (2602.16813): the text is
    tokenised again by the judge, special tokens written out in it included; cut after `max_tokens` of the judge's
    tokens; padded to that length with the judge's end token; split into pieces of the judge's context. In each piece
    the first token is context only; scored are all tokens that are not the end token, and the first end token. Later
    end tokens are read, not scored. So a text without an end token has its first padding token scored: the judge is
    asked whether the text ends there. Public code pads to the longest text of the set it is given, not to max_tokens:
    there the longest text misses that one token unless it fills max_tokens, and the number depends on how the samples
    were split into sets. Here it does not.

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
    """Tokens the judge reads at once, and which of them are scored; scored[0] is False."""

    ids: list[int]
    scored: list[bool]


class ScoringProtocol(Protocol):
    """Which tokens of a text are scored, with what before them."""

    def windows(self, ids: list[int], context: int, eos_id: int) -> Iterable[Window]:
        """Windows of at most `context` tokens over one text; none where nothing is scored."""
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
                piece = [*piece, eos_id]  # the first of the padding: what follows is not scored and changes nothing
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
    """What a judge says of N texts.

    Attributes:
        scorer: name of the judge.
        revision: its commit; None for a local folder or an unknown one.
        dtype: the judge's computation.
        protocol: which tokens were scored.
        ppl: pooled perplexity; None where no token was scored.
        nats_per_token: its logarithm.
        standard_error: of nats_per_token, over texts (ratio estimator); None with fewer than two scored texts. That of
            ppl is ppl times this.
        num_samples: N, all texts given.
        num_without_scored_tokens: texts too short to have a scored token; they count nothing in the mean.
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
    """A judge. Subclasses say how it tokenises and what it finds improbable.

    Args:
        name: for result files.
        context: most tokens it reads at once, at least 2.
        eos_id: its end token, also used as padding.
        batch_size: windows scored at once; changes speed and memory only.
        device: where ids are put.
        dtype: for result files.
        revision: likewise; None where not known.
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
        """The judge's tokens of each text, none cut off."""
        raise NotImplementedError

    def token_nll(self, ids: Tensor) -> Tensor:
        """-log p of each token given those before it in its row, (B, L) nats; column 0 is not read."""
        raise NotImplementedError

    def score(self, texts: Sequence[str], protocol: ScoringProtocol) -> ScoreResult:
        """Of texts, tokenised by the judge."""
        return self.score_tokens(self.encode(list(texts)), protocol)

    @torch.no_grad()
    def score_tokens(self, tokens: TokenRows, protocol: ScoringProtocol) -> ScoreResult:
        """Of token ids of the judge's own tokenizer, without a detour by way of text.

        Raises:
            ValueError: the judge's answer is not finite or has the wrong shape.
        """
        rows = token_rows(tokens)
        windows = [
            (owner, window) for owner, row in enumerate(rows) for window in protocol.windows(row, self.context, self.eos_id)
        ]
        windows.sort(key=lambda item: -len(item[1].ids))  # little padding, and out of memory at once or never
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
        """Sum of -log p over the scored tokens of each window. Padding is to the right: nothing scored sees it."""
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
    """A judge given as a function, for instance an autoregressive model of this project: nothing to download.

    Args:
        nll: ids (B, L) int64 to -log p of each token given those before it, (B, L) nats. Column 0 is not read (0 and
            NaN are as good). A value must not depend on later tokens.
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
