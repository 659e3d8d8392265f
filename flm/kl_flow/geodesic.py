"""The KL geodesic from a Dirichlet prior to smoothed tokens: a straight line in logit space (KL-flow, arXiv 2411.16821).

A position's state is a point of the simplex, x_t = softmax(l_t) with l_t = (1 - t) log E + t c onehot(token): E_j ~ Exp(1)
makes E / sum(E) uniform on the simplex, and c is the logit gap of the target (1 - beta) onehot + beta/V. In

    m = l / (1 - t) = log E + s onehot(token),    s = c t / (1 - t),

the time enters only through the signal s, the nats by which the token exceeds unit noise. The flow of the whole distribution is
dm/ds = p(token | x_t), for correlated positions too, since the target is affine in the one-hot vector. Logits are known up to a
constant for each position. B batch, L length, V vocabulary, N = B * L, n tokens of a chunk.
"""

import math
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from flm.paths.clock import Clock

Number = TypeVar("Number", float, Tensor)

IDENTIFIABLE = 0.99  # without max_t, the path ends where this share of tokens is known from their own noisy point


@dataclass(frozen=True)
class Geodesic:
    """The path of one vocabulary.

    Attributes:
        vocab_size: V, at least 2.
        max_t: physical time in (0, 1) at which training and sampling stop.
        smoothing: beta in (0, 1), the mass of the target spread evenly.
        concentration: of the Dirichlet prior, above 0; 1 is uniform on the simplex.
    """

    vocab_size: int
    max_t: float
    smoothing: float = 0.01
    concentration: float = 1.0

    @classmethod
    def of(cls, vocab_size: int, max_t: float | None = None, smoothing: float = 0.01, concentration: float = 1.0) -> "Geodesic":
        """The path; max_t None: it ends where 99% of the tokens are the arg-max of their noisy point.

        Raises:
            ValueError: max_t is None and concentration not 1, for which there is no closed form.
        """
        if vocab_size < 2:
            raise ValueError(f"vocab_size must be at least 2, not {vocab_size}")
        gap = target_gap(vocab_size, smoothing)
        if max_t is None:
            if concentration != 1:
                raise ValueError("algo.max_t must be given: null is only for algo.concentration=1")
            signal = identifying_signal(vocab_size, IDENTIFIABLE)
            max_t = signal / (signal + gap)
        return cls(vocab_size, max_t, smoothing, concentration)

    @property
    def gap(self) -> float:
        """c, the logit of the token over every other one in the smoothed target."""
        return target_gap(self.vocab_size, self.smoothing)

    def signal(self, t: Number) -> Number:
        """s at physical time t in [0, 1)."""
        return self.gap * t / (1 - t)


def target_gap(vocab_size: int, smoothing: float) -> float:
    """c = log(V / beta - V + 1)."""
    return math.log(vocab_size / smoothing - vocab_size + 1)


class GeodesicClock(Clock):
    """tau = log(1 - t) / log(1 - max_t), in which the logits obey dl/dtau ~ target - l, and steps are even.

    It reaches 1 at t = max_t, where the path ends, not at t = 1.
    """

    def __init__(self, max_t: float):
        super().__init__()
        self.max_t, self.span = max_t, -math.log1p(-max_t)

    def tau(self, t: Tensor) -> Tensor:
        return (-torch.log1p(-t.double()) / self.span).clamp(0, 1).to(t.dtype)

    def time(self, tau: Tensor) -> Tensor:
        return -torch.expm1(-tau.double().clamp(0, 1) * self.span).to(tau.dtype)

    def rate(self, t: Tensor) -> Tensor:
        return (1 / ((1 - t.double()) * self.span)).to(t.dtype)

    def extra_repr(self) -> str:
        return f"max_t={self.max_t:.4f}"


def log_noise(
    shape: tuple[int, ...], concentration: float, generator: torch.Generator, dtype: torch.dtype = torch.float32
) -> Tensor:
    """log E with E ~ Gamma(concentration), which is Exp(1) for 1: logits of a Dirichlet draw, always finite."""
    return log_noise_(torch.empty(shape, dtype=dtype, device=generator.device), concentration, generator)


def log_noise_(out: Tensor, concentration: float, generator: torch.Generator) -> Tensor:
    """`log_noise` in place."""
    if concentration == 1:
        return out.exponential_(generator=generator).clamp_min_(1e-20).log_()
    # Gamma(a) = Gamma(a + 1) U^(1/a), in logs, since Gamma(a) itself underflows for small a
    out.copy_(torch._standard_gamma(out.fill_(concentration + 1), generator=generator))
    uniform = torch.rand(out.shape, generator=generator, dtype=out.dtype, device=out.device)
    return out.log_().add_(torch.log1p_(uniform.neg_()), alpha=1 / concentration)


# One token by itself ---------------------------------------------------------------------------------------------------


def log_evidence(m: Tensor, signal: Tensor, concentration: float = 1.0) -> Tensor:
    """log p(m | token) up to a constant a row, for every token; m (n, V), signal s (n, 1).

    -V a log(1 - u_i (1 - e^-s)) with u = softmax(m) for the Dirichlet prior of concentration a: dividing entry i of u by
    e^s gives the prior's point, and the change of variables and the density each leave a power of the normaliser.
    """
    u = torch.softmax(m, -1)
    return torch.log1p(u.mul_(torch.expm1(-signal))).mul_(-m.shape[-1] * concentration)


def identifiability(vocab_size: int, signal: float) -> float:
    """P(arg-max of x_t is the token) = Gamma(1+r) Gamma(V) / Gamma(V+r), r = e^-s, for the uniform prior.

    The token's entry e^s E_i beats V - 1 others with probability E[(1 - e^(-e^s E))^(V-1)], a Beta integral.
    """
    r = math.exp(-signal)
    return math.exp(math.lgamma(1 + r) + math.lgamma(vocab_size) - math.lgamma(vocab_size + r))


def identifying_signal(vocab_size: int, probability: float) -> float:
    """The signal s at which `identifiability` is this probability in (1/V, 1)."""
    low, high = 0.0, 60.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if identifiability(vocab_size, middle) < probability else (low, middle)
    return (low + high) / 2


@torch.no_grad()
def context_free_cross_entropy(
    path: Geodesic, token_counts: Tensor, t: Tensor, generator: torch.Generator, num_draws: int = 2048
) -> Tensor:
    """Cross-entropy in nats of the best decoder that sees only one position's x_t and the unigram frequencies; (len(t),).

    Monte Carlo over tokens and noise, which are the same at every time.
    """
    log_prior = (token_counts.double() / token_counts.sum()).log()
    tokens = torch.multinomial(log_prior.exp(), num_draws, replacement=True, generator=generator)
    total = torch.zeros_like(t, dtype=torch.float64)
    for part in tokens.split(max(1, 2**22 // len(log_prior))):
        rows = torch.arange(len(part), device=part.device)
        noise = log_noise((len(part), len(log_prior)), path.concentration, generator, torch.float64)
        for i, signal in enumerate(path.signal(t.double())):
            m = noise.clone()
            m[rows, part] += signal
            logits = log_prior + log_evidence(m, signal, path.concentration)
            total[i] -= logits.log_softmax(-1)[rows, part].sum()
    return total / num_draws
