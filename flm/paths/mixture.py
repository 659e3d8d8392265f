"""Paths from a source of noise to data that replace tokens one by one, and their schedules.

At time t each position, independently, shows its data token with probability kappa(t), and otherwise a draw from the source. t
runs from 0 (source) to 1 (data). Diffusion papers write alpha for kappa, with a time s = 1 - t that runs the other way. Masked
diffusion (arXiv 2406.07524), uniform-state diffusion (arXiv 2412.10193, 2506.10892) and discrete flow matching (arXiv
2407.15595) all have these marginals. They differ in the source and in the transitions between times.

A probability or kappa is a number, or (B,) with one for each sequence, or anything that broadcasts against (B, L). Random
numbers are float64. B batch, L length, V vocabulary.
"""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Protocol

import torch
from annotated_types import Ge, Lt
from torch import Tensor, nn

from flm.draws import Source as Randomness
from flm.draws import rand, randint
from flm.ranges import Positive


class Schedule(nn.Module):
    """kappa(t), increasing, exactly 1 at t = 1. A module without parameters, so that a config may name it.

    All methods take and return tensors of any shape; t and kappa lie in [0, 1]. Use float64 where 1 - t matters.
    """

    def kappa(self, t: Tensor) -> Tensor:
        raise NotImplementedError

    def derivative(self, t: Tensor) -> Tensor:
        """d kappa / dt."""
        raise NotImplementedError

    def inverse(self, kappa: Tensor) -> Tensor:
        """The t at which kappa is reached; 0 below kappa(0)."""
        raise NotImplementedError

    def rate(self, t: Tensor) -> Tensor:
        """kappa' / (1 - kappa), the rate at which remaining noise becomes data, and the weight of the bound. Infinite at 1."""
        raise NotImplementedError


class Polynomial(Schedule):
    """kappa = t^exponent, exponent > 0; 1 is the linear schedule."""

    def __init__(self, exponent: Positive = 1.0):
        super().__init__()
        self.exponent = exponent

    def kappa(self, t: Tensor) -> Tensor:
        return t**self.exponent

    def derivative(self, t: Tensor) -> Tensor:
        return self.exponent * t ** (self.exponent - 1)

    def inverse(self, kappa: Tensor) -> Tensor:
        return kappa ** (1 / self.exponent)

    def rate(self, t: Tensor) -> Tensor:
        # the difference 1 - t^n would lose all digits near t = 1; abs since -0 would give minus infinity
        return self.derivative(t) / torch.expm1(self.exponent * t.log()).abs()


class Cosine(Schedule):
    """kappa = 1 - cos(pi t / 2) (arXiv 2406.04329): slow at first, while little is known."""

    def kappa(self, t: Tensor) -> Tensor:
        return 1 - torch.sin(math.pi / 2 * (1 - t))  # exact at both ends

    def derivative(self, t: Tensor) -> Tensor:
        return math.pi / 2 * torch.sin(math.pi / 2 * t)

    def inverse(self, kappa: Tensor) -> Tensor:
        return (4 / math.pi * torch.asin((kappa / 2).sqrt())).clamp(max=1)

    def rate(self, t: Tensor) -> Tensor:
        return self.derivative(t) / torch.sin(math.pi / 2 * (1 - t))


class LogLinear(Schedule):
    """kappa = eps + (1 - eps) t (arXiv 2406.07524): in the diffusion's time s = 1 - t, -log kappa = -log(1 - (1 - eps) s).

    It is linear but starts at eps; samplers begin there with pure noise all the same. Its rate is 1 / (1 - t).
    """

    def __init__(self, eps: Annotated[float, Ge(0), Lt(1)] = 1e-3):
        super().__init__()
        self.eps = eps

    def kappa(self, t: Tensor) -> Tensor:
        return 1 - (1 - self.eps) * (1 - t)

    def derivative(self, t: Tensor) -> Tensor:
        return torch.full_like(t, 1 - self.eps)

    def inverse(self, kappa: Tensor) -> Tensor:
        return (1 - (1 - kappa) / (1 - self.eps)).clamp_min(0)

    def rate(self, t: Tensor) -> Tensor:
        return 1 / (1 - t)


def jump_probability(kappa: Tensor | float, kappa_next: Tensor | float) -> Tensor | float:
    """The exact probability that a position that is noise at kappa < 1 shows data at kappa_next >= kappa."""
    return (kappa_next - kappa) / (1 - kappa)


def euler_jump_probability(schedule: Schedule, t: Tensor, t_next: Tensor) -> Tensor:
    """The same probability with the rate frozen at t < 1. It is too small, but exact in the limit of small steps."""
    return -torch.expm1(-(t_next - t) * schedule.rate(t))


def mix(tokens: Tensor, other: Tensor, probability: Tensor | float, randomness: Randomness) -> Tensor:
    """Tokens (B, L), each replaced with this probability by the token of `other` (B, L), independently."""
    u = rand(randomness, *tokens.shape, dtype=torch.float64)
    return torch.where(u < _per_position(probability), other, tokens)


class Source(Protocol):
    """The distribution of noise tokens.

    Attributes:
        num_states: number of ids that a state may hold, as rows of a network's input table.
        visible: whether noise can be told from data.
    """

    num_states: int
    visible: bool

    def noise(self, u: Tensor) -> Tensor:
        """Noise (B, L) as a function of uniform numbers u (B, L) in [0, 1), float64."""
        ...

    def sample(self, like: Tensor, randomness: Randomness) -> Tensor:
        """Noise of the shape and on the device of `like` (B, L)."""
        ...

    def step(
        self,
        tokens: Tensor,
        clean: Tensor,
        kappa: Tensor | float,
        kappa_next: Tensor | float,
        generator: torch.Generator,
        own: Tensor | None = None,
    ) -> Tensor:
        """A state at kappa_next > kappa, by the reverse diffusion from the state at kappa.

        Args:
            tokens: (B, L) state at kappa.
            clean: (B, L) tokens drawn, at every position, from the prediction p.
            own: None: p is the posterior of the data given the whole state, for which the step is exact. (B, L):
                probabilities that p gives to `tokens`; then p is inserted as a vector into the reverse posterior
                q(next | now, data = p), as uniform-state diffusion does. That is exact if p is the posterior given the
                state without the position's own token. With masks the two are the same.
        """
        ...


@dataclass(frozen=True)
class MaskSource:
    """A mask, as in absorbing diffusion: one more id, or an id of the vocabulary that no data has.

    Args:
        mask_id: its id.
        vocab_size: V, number of ids of the data.
    """

    mask_id: int
    vocab_size: int
    visible: ClassVar[bool] = True

    @property
    def num_states(self) -> int:
        return max(self.vocab_size, self.mask_id + 1)

    def noise(self, u: Tensor) -> Tensor:
        return torch.full_like(u, self.mask_id, dtype=torch.long)

    def is_noise(self, tokens: Tensor) -> Tensor:
        """Whether each of tokens (B, L) is a mask, bool."""
        return tokens == self.mask_id

    def sample(self, like: Tensor, randomness: Randomness) -> Tensor:
        return torch.full_like(like, self.mask_id)

    def step(
        self,
        tokens: Tensor,
        clean: Tensor,
        kappa: Tensor | float,
        kappa_next: Tensor | float,
        generator: torch.Generator,
        own: Tensor | None = None,
    ) -> Tensor:
        return torch.where(self.is_noise(tokens), mix(tokens, clean, jump_probability(kappa, kappa_next), generator), tokens)


@dataclass(frozen=True)
class UniformSource:
    """A token drawn uniformly, so that noise cannot be told from data.

    Args:
        vocab_size: V.
    """

    vocab_size: int
    visible: ClassVar[bool] = False

    @property
    def num_states(self) -> int:
        return self.vocab_size

    def noise(self, u: Tensor) -> Tensor:
        return (u * self.vocab_size).long()

    def sample(self, like: Tensor, randomness: Randomness) -> Tensor:
        return randint(randomness, self.vocab_size, *like.shape)

    def step(
        self,
        tokens: Tensor,
        clean: Tensor,
        kappa: Tensor | float,
        kappa_next: Tensor | float,
        generator: torch.Generator,
        own: Tensor | None = None,
    ) -> Tensor:
        # With a = kappa, b = kappa_next, r = a / b and the state z, V q(y | z, p) is proportional to
        #     [y = z] (V a p_z + r (1 - b))  +  (1 - r) b p_y  +  (1 - r) (1 - b) / V,
        # a mixture of staying, of a draw from p and of a uniform draw (arXiv 2412.10193, equation 12).
        own = (clean == tokens).double() if own is None else own.double()
        a, b = (_per_position(torch.as_tensor(k, dtype=torch.float64, device=tokens.device)) for k in (kappa, kappa_next))
        moves = 1 - a / b
        stay = self.vocab_size * a * own + (a / b) * (1 - b)
        moved = mix(self.sample(tokens, generator), clean, b, generator)
        return mix(tokens, moved, moves / (stay + moves), generator)


def corrupt(tokens: Tensor, kappa: Tensor | float, source: Source, randomness: Randomness) -> Tensor:
    """A state (B, L) that shows each of `tokens` with probability kappa, and noise of the source otherwise."""
    return mix(source.sample(tokens, randomness), tokens, kappa, randomness)


def _per_position(probability: Tensor | float) -> Tensor | float:
    """(B,) as (B, 1)."""
    return probability[:, None] if isinstance(probability, Tensor) and probability.ndim == 1 else probability
