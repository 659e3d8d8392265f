"""The Gaussian path to one-hot vectors, seen only through input tables (FLM, arXiv 2602.16813, section 3).

The state of a position is x_t = (1 - t) n + t onehot(token), n ~ N(0, I_V). A network reads it through a bias-free table
W (V, D), so only the view x_t W = (1 - t) n W + t W[token] is computed. Here n W ~ N(0, W^T W). Let O (V, D) be an orthonormal
basis of the columns of all tables W_k that read the same state. Then, jointly for all k,

    n W_k  =  (n O) O^T W_k  =  g O^T W_k,    g ~ N(0, I_D).

The gradient of a loss by W_k, given the views, is E[n | g]^T dL/d(view) = O g^T dL/d(view). It is the dense gradient averaged
over the part of the noise that no table sees, so it is unbiased for every loss and has no more variance. O = M C^-T, with
M = [W_1 | W_2 | ...] and C the Cholesky factor of M^T M, is never built.

B batch, L length, D width, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from flm.draws import Source, randn


@dataclass(frozen=True)
class State:
    """A noised sequence, as one view (B, L, d_k) for each table.

    Attributes:
        clean: (B, L) bool, positions at t = 1 whatever the time of the others; None: none.
    """

    views: tuple[Tensor, ...]
    clean: Tensor | None = None


class OneHot:
    """The identity as a table: the view through it is x itself, V numbers a position.

    Args:
        like: a table (V, D), for V, dtype and device.
    """

    requires_grad = False

    def __init__(self, like: Tensor):
        self.shape, self.device = (like.shape[0], like.shape[0]), like.device
        self.dtype = torch.promote_types(like.dtype, torch.float32)


Table = Tensor | OneHot


def combine(*terms: tuple[float | Tensor, State]) -> State:
    """The affine combination sum_i a_i * state_i; a_i is a number, or (B,) with one for each sequence."""

    def scaled(coefficient: float | Tensor, view: Tensor) -> Tensor:
        if isinstance(coefficient, Tensor) and coefficient.ndim:
            coefficient = coefficient.to(view.dtype)[:, None, None]
        return coefficient * view

    views = []
    for parts in zip(*(state.views for _, state in terms), strict=True):
        total = scaled(terms[0][0], parts[0])
        for (coefficient, _), view in zip(terms[1:], parts[1:], strict=True):
            total = total + scaled(coefficient, view)
        views.append(total)
    return State(tuple(views))


def embed(tokens: Tensor, tables: Sequence[Table]) -> State:
    """The views of onehot(tokens); tokens (B, L)."""

    def rows(table: Table) -> Tensor:
        if isinstance(table, OneHot):
            return torch.nn.functional.one_hot(tokens, table.shape[0]).to(table.dtype)
        return torch.nn.functional.embedding(tokens, table)

    return State(tuple(map(rows, tables)))


def where(mask: Tensor, state: State, other: State) -> State:
    """`state` where mask (B, L) is true, `other` elsewhere."""
    pairs = zip(state.views, other.views, strict=True)
    return State(tuple(torch.where(mask[..., None], a, b) for a, b in pairs))


def expected(posterior, tables: Sequence[Table]) -> State:
    """The views of a posterior's probability vectors, without gradient."""
    if isinstance(tables[0], OneHot):
        return State((posterior.probabilities(),))
    return State(posterior.expected(tables))


@dataclass(frozen=True)
class Given:
    """Tokens that are known in advance.

    Attributes:
        tokens: (B, L).
        mask: (B, L) bool, where they are known.
        clean: whether networks see them without noise at all times; else they are noised like all others.
    """

    tokens: Tensor
    mask: Tensor
    clean: bool

    def rows(self, index: slice) -> "Given":
        return Given(self.tokens[index], self.mask[index], self.clean)

    def seen(self, state: State, tables: Sequence[Table]) -> State:
        """The state as networks see it: given tokens replace it if `clean`."""
        if not self.clean:
            return state
        return State(where(self.mask, embed(self.tokens, tables), state).views, self.mask)

    def point(self, posterior, tables: Sequence[Table]) -> State:
        """The views of predicted points of the simplex, and of the token at given positions, which keeps them on their path."""
        return where(self.mask, embed(self.tokens, tables), expected(posterior, tables))


def noise_for(tables: Sequence[Table]) -> "Noise":
    """The distribution of noise views of these tables. It must be made anew when a table has changed.

    If V is at most the sum of the widths, n itself is drawn: that is cheaper, and M^T M would be singular.
    """
    key = tuple(map(id, tables))  # a law holds its tables, so their ids are not reused
    if _shared_laws is not None and key in _shared_laws:
        return _shared_laws[key]
    width = sum(table.shape[1] for table in tables)
    law = DenseNoise(tables) if tables[0].shape[0] <= width else ProjectedNoise(tables)
    if _shared_laws is not None:
        _shared_laws[key] = law
    return law


Laws = dict[tuple[int, ...], "Noise"]  # by the identities of their tables
_shared_laws: Laws | None = None


@contextmanager
def shared_laws(laws: Laws) -> Iterator[None]:
    """Inside, `noise_for` keeps each law in `laws` and returns it again; `laws` must be emptied when weights change."""
    global _shared_laws
    before, _shared_laws = _shared_laws, laws
    try:
        yield
    finally:
        _shared_laws = before


class DenseNoise:
    """Views of n ~ N(0, I_V) by drawing n itself, for small vocabularies."""

    def __init__(self, tables: Sequence[Table]):
        self.tables = tuple(tables)

    def first(self, count: int) -> "DenseNoise":
        """The law of the first `count` tables alone."""
        return DenseNoise(self.tables[:count])

    def sample(self, batch: int, length: int, source: Source) -> State:
        table = self.tables[0]
        noise = randn(source, batch, length, table.shape[0], dtype=table.dtype)
        with torch.autocast(table.device.type, enabled=False):
            return State(tuple(noise if isinstance(table, OneHot) else noise @ table for table in self.tables))


class ProjectedNoise:
    """Views of n ~ N(0, I_V) drawn in D dimensions, with the projected gradient for every table that requires one."""

    # Columns are normalised before factoring, so the jitter is relative to each column's length. It only matters for columns
    # that nearly depend on others. O^T O <= I still holds, so noise and gradients stay bounded. Gram matrix and factor are
    # float64: in float32 rounding errors alone can exceed the jitter, and there would be no factor.
    JITTER = 1e-6
    ROWS = 8192  # rows of the tables in float64 at once
    COLUMNS = 192  # columns of the Gram matrix at once

    def __init__(self, tables: Sequence[Tensor]):
        self.tables = tuple(tables)
        first = self.tables[0]
        if any(table.shape[0] != first.shape[0] for table in self.tables):
            raise ValueError("tables that read one state need the same number of rows (vocabulary)")
        # A later table of the first one's shape enters as its difference from it. A student's table is at first nearly its
        # teacher's, and the difference keeps digits that the joint Gram matrix would lose.
        self.relative = tuple(k > 0 and table.shape == first.shape for k, table in enumerate(self.tables))
        with torch.no_grad(), torch.autocast(first.device.type, enabled=False):
            gram = self._gram()
            scale = gram.diagonal().sqrt()
            self.inverse_scale = torch.where(scale > 0, 1 / scale, torch.zeros_like(scale))
            correlation = gram * self.inverse_scale[:, None] * self.inverse_scale
            correlation.diagonal().fill_(1 + (self.JITTER if first.dtype != torch.float64 else self.JITTER * 1e-6))
            # `cholesky` would wait for the device to check for failure
            self.exact_factor, _ = torch.linalg.cholesky_ex(correlation)
            self.factor, self.scale = self.exact_factor.to(first.dtype), scale.to(first.dtype)

    def first(self, count: int) -> "ProjectedNoise":
        """The law of the first `count` tables alone, whose Cholesky factor is the leading block of this one's."""
        law = object.__new__(ProjectedNoise)
        law.tables, law.relative = self.tables[:count], self.relative[:count]
        width = sum(table.shape[1] for table in law.tables)
        law.exact_factor, law.factor = self.exact_factor[:width, :width], self.factor[:width, :width]
        law.inverse_scale, law.scale = self.inverse_scale[:width], self.scale[:width]
        return law

    def _gram(self) -> Tensor:
        """M^T M, (D, D) float64, with the `relative` tables as differences."""
        width = sum(table.shape[1] for table in self.tables)
        gram = torch.zeros(width, width, dtype=torch.float64, device=self.tables[0].device)
        for rows in zip(*(table.detach().split(self.ROWS) for table in self.tables), strict=True):
            exact = [part.double() for part in rows]
            block = torch.cat(
                [part - exact[0] if relative else part for part, relative in zip(exact, self.relative, strict=True)], dim=1
            )
            # only on and above the diagonal, since these products are the main cost
            for start in range(0, width, self.COLUMNS):
                own = slice(start, min(start + self.COLUMNS, width))
                gram[own, start:].addmm_(block[:, own].T, block[:, start:])
        return gram.triu() + gram.triu(1).T

    def sample(self, batch: int, length: int, source: Source) -> State:
        white = randn(source, batch, length, self.scale.shape[0], dtype=self.scale.dtype)
        return State(_ProjectNoise.apply(white, self, *self.tables))

    def views(self, white: Tensor) -> tuple[Tensor, ...]:
        """g (..., D) to the view of each table."""
        with torch.autocast(white.device.type, enabled=False):
            coloured = (white @ self.factor.T) * self.scale
        parts = coloured.split([table.shape[1] for table in self.tables], dim=-1)
        return tuple(parts[0] + part if relative else part for part, relative in zip(parts, self.relative, strict=True))

    def lift(self, moments: Tensor) -> Tensor:
        """O @ moments for moments (D, d): (V, d), without building O."""
        solved = torch.linalg.solve_triangular(self.exact_factor.T, moments.double(), upper=True)
        solved = (solved * self.inverse_scale[:, None]).to(moments.dtype)
        parts = list(solved.split([table.shape[1] for table in self.tables], dim=0))
        for k, relative in enumerate(self.relative):
            if relative:  # column block k is W_k - W_0
                parts[0] = parts[0] - parts[k]
        lifted = self.tables[0] @ parts[0]
        for table, part in zip(self.tables[1:], parts[1:], strict=True):
            lifted.addmm_(table, part)
        return lifted


Noise = DenseNoise | ProjectedNoise
TF32_ON = {"cuda"}


@contextmanager
def tf32(device: torch.device) -> Iterator[None]:
    """Inside, float32 products on devices of TF32_ON use ten bits of the mantissa, much faster: for gradients, not draws."""
    before = torch.get_float32_matmul_precision()
    if device.type in TF32_ON:
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class _ProjectNoise(torch.autograd.Function):
    @staticmethod
    def forward(ctx, white, noise, *tables):
        ctx.save_for_backward(white)
        ctx.noise = noise
        return noise.views(white)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *grads):
        (white,) = ctx.saved_tensors
        flat = white.reshape(-1, white.shape[-1])
        with torch.autocast(white.device.type, enabled=False), tf32(white.device):
            to_tables = [
                ctx.noise.lift(flat.T @ grad.reshape(-1, grad.shape[-1]).to(flat.dtype)) if needed else None
                for grad, needed in zip(grads, ctx.needs_input_grad[2:], strict=True)
            ]
        return None, None, *to_tables


def corrupt(tokens: Tensor, t: Tensor, tables: Sequence[Table], source: Source, law: Noise | None = None) -> State:
    """x_t of tokens (B, L) at physical times t (B,), as views. `law`: noise_for(tables) if already made; None: it is made."""
    noise = (noise_for(tables) if law is None else law).sample(*tokens.shape, source)
    return combine((t, embed(tokens, tables)), (1 - t, noise))


def step(state: State, target: State, t: float | Tensor, t_next: float | Tensor) -> State:
    """A straight step towards a predicted point of the simplex: x + (t' - t) (target - x) / (1 - t); t < 1.

    With target = D_t(x) this is an Euler step of the flow; with target = delta_{t,t'}(x) it is the exact jump.
    """
    fraction = (t_next - t) / (1 - t)
    return combine((1 - fraction, state), (fraction, target))


@torch.no_grad()
def context_free_cross_entropy(token_counts: Tensor, t: Tensor, generator: torch.Generator, num_draws: int = 2048) -> Tensor:
    """Cross-entropy in nats of the best decoder that sees only one position's x_t and the unigram frequencies; (len(t),).

    Its posterior is softmax(log pi + t x / (1 - t)^2), with logits log pi_k + t n_k / (1 - t) + [k = y] t^2 / (1 - t)^2. Monte
    Carlo over y ~ pi and n. It reads all of x_t, so a decoder without context that reads x_t W cannot be better.
    """
    log_prior = (token_counts.double() / token_counts.sum()).log()
    tokens = torch.multinomial(log_prior.exp(), num_draws, replacement=True, generator=generator)
    total = torch.zeros_like(t, dtype=torch.float64)
    rows = max(1, 2**22 // len(log_prior))
    for part in tokens.split(rows):
        noise = torch.randn(len(part), len(log_prior), generator=generator, device=t.device, dtype=torch.float64)
        for i, signal in enumerate((t / (1 - t)).double()):
            logits = log_prior + signal * noise
            logits[torch.arange(len(part)), part] += signal**2
            total[i] -= logits.log_softmax(-1)[torch.arange(len(part)), part].sum()
    return total / num_draws
