"""The Gaussian diffusion underneath uniform-state diffusion (Duo, arXiv 2506.10892, section 3).

Let w = a onehot(y) + b n, n ~ N(0, I_V), with signal ratio m = a / b. The arg-max of w is the token y with a probability
P(m), and any other token with equal probabilities: the uniform-state marginal of kappa = (V P - 1) / (V - 1). Of the gamma
in which Duo's schedule is linear, m = exp(-gamma / 2). Where w loses signal with the noise n held fixed, its arg-max changes
once, from y to the largest of the other V - 1 noises: a deterministic trajectory of the discrete diffusion.

Of n only few numbers matter: the one at y, and the largest of the others, which are drawn as what they are, order statistics.
Nothing of size (B, L, V) is drawn for a large vocabulary.

B batch, L length, D width, V vocabulary, K largest noises kept.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from flm.draws import Source, rand, randint, randn, scattered

_REACH, _POINTS = 9.0, 289  # a normal density beyond 9 is 1e-18; the trapezoid rule is exact to rounding at this spacing


class ArgmaxTransform:
    """kappa of the arg-max of a Gaussian diffusion with signal ratio m >= 0, by quadrature in float64.

    1 - P(m) = int phi(x) (1 - Phi(x + m)^(V-1)) dx, the diffusion transformation operator of arXiv 2506.10892, equation 10.

    Args:
        vocab_size: V >= 2.
    """

    def __init__(self, vocab_size: int):
        self.vocab_size = vocab_size

    def noise(self, ratio: Tensor) -> Tensor:
        """1 - kappa, with all its digits."""
        _, weight, log_below = self._grid(ratio)
        return self.vocab_size / (self.vocab_size - 1) * (-torch.expm1(log_below) * weight).sum(-1)

    def kappa(self, ratio: Tensor) -> Tensor:
        return 1 - self.noise(ratio)

    def derivative(self, ratio: Tensor) -> Tensor:
        """d kappa / dm."""
        x, weight, log_below = self._grid(ratio)
        return self.vocab_size / (self.vocab_size - 1) * (x * log_below.exp() * weight).sum(-1)

    def inverse(self, kappa: Tensor) -> Tensor:
        """The m at which kappa in [0, 1) is reached, by bisection."""
        low = torch.zeros_like(kappa, dtype=torch.float64)
        high = torch.full_like(low, 20.0)  # beyond it no vocabulary has noise left
        for _ in range(60):
            middle = (low + high) / 2
            below = self.kappa(middle) < kappa
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2

    def _grid(self, ratio: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Points x, phi(x) dx there, and log Phi(x + m)^(V-1), (..., points)."""
        x = torch.linspace(-_REACH, _REACH, _POINTS, dtype=torch.float64, device=ratio.device)
        weight = torch.exp(-x.square() / 2) * (2 * _REACH / (_POINTS - 1) / math.sqrt(2 * math.pi))
        return x, weight, (self.vocab_size - 1) * torch.special.log_ndtr(ratio.double()[..., None] + x)


def largest_normals(count: int, top: int, shape: tuple[int, ...], source: Source) -> Tensor:
    """The `top` largest of `count` standard normals, in descending order, float64 (*shape, top).

    Order statistics of uniforms by their spacings: the largest of n is U^(1/n), the largest of those below it again a power.
    """
    u = rand(source, *shape, top, dtype=torch.float64)
    left = torch.arange(count, count - top, -1, dtype=torch.float64, device=u.device)
    log_u = (torch.log1p(-u) / left).cumsum(-1)
    # by the upper tail: Phi(z) itself would round to 1
    return -torch.special.ndtri(-torch.expm1(log_u))


def other_tokens(tokens: Tensor, count: int, vocab_size: int, source: Source) -> Tensor:
    """`count` different tokens in uniformly random order, none of them the one given: (B, L, count) for tokens (B, L)."""
    flat = tokens.reshape(-1, 1)
    others = vocab_size - 1
    if 4 * count > others:
        drawn = rand(source, *tokens.shape, others).argsort(-1)[..., :count].flatten(0, 1)
    else:
        drawn = randint(source, others, *tokens.shape, count).flatten(0, 1)
        again_seed, turn = randint(source, 1 << 53, *tokens.shape).reshape(-1, 1), 0
        rows, slots = torch.arange(len(flat), device=tokens.device), torch.arange(count, device=tokens.device)
        # a slot that repeats an earlier one is drawn again: each ends at the first of its draws that no earlier slot holds,
        # as if they were drawn one after the other without replacement
        while len(rows):
            ordered, order = drawn[rows].sort(dim=-1, stable=True)
            again = torch.zeros_like(ordered, dtype=torch.bool)
            again.scatter_(1, order[:, 1:], ordered[:, 1:] == ordered[:, :-1])
            repeated = again.any(-1)
            rows, again = rows[repeated], again[repeated]
            # not from the source: how often this comes depends on who else is in the batch
            fresh = scattered(again_seed[rows], slots + turn * count) % others
            drawn[rows], turn = torch.where(again, fresh, drawn[rows]), turn + 1
    return (drawn + (drawn >= flat)).view(*tokens.shape, count)


def coupled_states(
    tokens: Tensor, ratio: Tensor, ratio_cleaner: Tensor, vocab_size: int, source: Source
) -> tuple[Tensor, Tensor]:
    """Two states (B, L) on one trajectory, at the signal ratios (B,) and at higher ones (B,); tokens (B, L)."""
    own = randn(source, *tokens.shape, dtype=torch.float64)
    top = largest_normals(vocab_size - 1, 1, tuple(tokens.shape), source)[..., 0]
    other = other_tokens(tokens, 1, vocab_size, source)[..., 0]
    noisier, cleaner = (torch.where(own + m.double()[:, None] > top, tokens, other) for m in (ratio, ratio_cleaner))
    return noisier, cleaner


def relaxed(
    tokens: Tensor, ratio: Tensor, temperature: float, table: Tensor, top: int, source: Source
) -> tuple[Tensor, Tensor]:
    """The view softmax(w / temperature) @ table (B, L, D) of tokens (B, L), and the state (B, L) that is the arg-max of w.

    w has a^2 + b^2 = 1, at the signal ratios (B,). Of the noises that are not the token's own the `top` largest are drawn.
    Those below enter with the expectation of their sum of exponentials given that they are below, spread evenly over
    their tokens; a vocabulary of at most top + 1 has none below. Differentiable in `table`.
    """
    scale = (1 + ratio.double().square()).rsqrt() / temperature  # b / temperature
    others = table.shape[0] - 1
    draw = _all if others <= top else _largest
    return draw(tokens, ratio.double(), scale, table, min(top, others), source)


def _all(tokens: Tensor, ratio: Tensor, scale: Tensor, table: Tensor, top: int, source: Source) -> tuple[Tensor, Tensor]:
    shape = (*tokens.shape, table.shape[0])
    w = randn(source, *shape, dtype=torch.float64)
    w.scatter_add_(-1, tokens[..., None], ratio[:, None, None].expand(*tokens.shape, 1))
    share = (w * scale[:, None, None]).softmax(-1).to(table.dtype)
    with torch.autocast(table.device.type, enabled=False):
        return share @ table, w.argmax(-1)


def _largest(tokens: Tensor, ratio: Tensor, scale: Tensor, table: Tensor, top: int, source: Source) -> tuple[Tensor, Tensor]:
    shape, others = tuple(tokens.shape), table.shape[0] - 1
    own = ratio[:, None] + randn(source, *shape, dtype=torch.float64)
    z = largest_normals(others, top, shape, source)
    ids = other_tokens(tokens, top, table.shape[0], source)
    state = torch.where(own > z[..., 0], tokens, ids[..., 0])
    s, least = scale[:, None], z[..., -1]
    # E[exp(s x) | x < c] = exp(s^2 / 2) Phi(c - s) / Phi(c)
    log_each = s.square() / 2 + torch.special.log_ndtr(least - s) - torch.special.log_ndtr(least)
    rest = log_each + math.log(others - top)
    shares = torch.cat((own[..., None] * s[..., None], z * s[..., None], rest[..., None]), dim=-1).softmax(-1)
    each = shares[..., -1:] / (others - top)
    # sum_k share_k W_k + each * (the sum of W over tokens not drawn)
    bags = torch.cat((tokens[..., None], ids), dim=-1).flatten(0, 1)
    drawn = (shares[..., :-1] - each).to(table.dtype).flatten(0, 1)
    view = embedding_bag(bags, table, per_sample_weights=drawn, mode="sum").view(*shape, -1)
    return view + each.to(table.dtype) * table.sum(0), state
