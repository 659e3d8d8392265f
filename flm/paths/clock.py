"""Clocks: maps between physical time t and the time tau that conditions a network and is sampled uniformly.

Both run from 0 (noise) to 1 (data). For one-hot data under Gaussian noise, x_t = (1-t) noise + t onehot, the tau of the
decoding-error clock (arXiv 2602.16813) is how much better than chance the arg-max of x_t guesses the token:

    m = t / (1-t),  z ~ N(0, 1),  tau(t) = V/(V-1) * (E[Phi(z + m)^(V-1)] - 1/V)

It depends on V alone. With g(x) = (V-1) Phi(x)^(V-2) phi(x) and P_c the expectation above, shifting the integration variable
gives dP_c/dm = E[g(z + m)] and d2P_c/dm2 = E[z g(z + m)].
"""

import functools
import math
from collections.abc import Callable
from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor, nn

_CELLS = 4096  # a power of two, so that t * _CELLS is exact; errors in tau are about 1e-11 for any V
_NEWTON_STEPS = 4  # three reach rounding, since the cubic is nearly straight within a cell; one to spare


class Clock(nn.Module):
    """A monotone map of [0, 1] onto itself.

    All three methods take a tensor of any shape and return one of the same shape, dtype and device; they compute in
    float64 and never wait for the device. Give float64 where differences of times matter: float32 cannot resolve
    1 - tau below 6e-8. Arguments outside [0, 1] count as the nearer end.
    """

    def tau(self, t: Tensor) -> Tensor:
        """Clock time at physical time t; exactly 0 at 0 and 1 at 1."""
        raise NotImplementedError

    def time(self, tau: Tensor) -> Tensor:
        """Physical time at clock time tau; exactly 0 at 0 and 1 at 1."""
        raise NotImplementedError

    def rate(self, t: Tensor) -> Tensor:
        """dtau/dt at physical time t, at least 0. It can underflow to 0: clamp before dividing by it."""
        raise NotImplementedError


class TimeLaw(nn.Module):
    """The distribution of clock times that a run trains at, which may adapt to its losses. The clock itself stays."""

    def forward(self, u: Tensor, step: int) -> Tensor:
        """Clock times (B,), a monotone function of uniform numbers u (B,), the same for all shares of a step's batch."""
        raise NotImplementedError

    def learn(self, tau: Tensor, nats: Tensor, counts: Tensor) -> None:
        """Adapts to the losses of sequences at clock times tau (B,): nats (B,), summed over counts (B,) tokens."""
        raise NotImplementedError


class IdentityClock(Clock):
    """tau = t."""

    def tau(self, t: Tensor) -> Tensor:
        return t.clamp(0, 1)

    def time(self, tau: Tensor) -> Tensor:
        return tau.clamp(0, 1)

    def rate(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)


class DecodingErrorClock(Clock):
    """The decoding-error clock of a vocabulary.

    tau is the cubic Hermite interpolant of the exact values and derivatives at 4097 points, which is monotone up to rounding.
    `time` inverts this interpolant, so tau(time(x)) = x up to rounding. From about t = 0.92 on, tau is 1 in float64, and
    `time` jumps from there to 1 at tau = 1.

    The tables stay float64 when a parent module is cast, are not saved in a state dict, and have values even if built under
    the meta device.

    Args:
        vocab_size: V, at least 2.
    """

    def __init__(self, vocab_size: Annotated[int, Ge(2)]):
        super().__init__()
        if vocab_size < 2:  # the data's, so no config was checked for it
            raise ValueError(f"vocab_size must be at least 2 for the decoding-error clock, not {vocab_size}")
        self.vocab_size = vocab_size
        tau, rate, curvature = _tables(vocab_size)
        self.register_buffer("_tau", tau, persistent=False)
        self.register_buffer("_rate", rate, persistent=False)
        self.register_buffer("_curvature", curvature, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "DecodingErrorClock":
        for name, buffer in self._buffers.items():
            self._buffers[name] = buffer.to(fn(buffer).device)  # takes part in moves between devices, not in casts
        return self

    def extra_repr(self) -> str:
        return f"vocab_size={self.vocab_size}"

    def tau(self, t: Tensor) -> Tensor:
        return _interpolate(self._tau, self._rate, t).clamp(0, 1).to(t.dtype)

    def rate(self, t: Tensor) -> Tensor:
        return _interpolate(self._rate, self._curvature, t).clamp(min=0).to(t.dtype)

    def time(self, tau: Tensor) -> Tensor:
        target = tau.to(torch.float64).clamp(0, 1)
        cell = (torch.searchsorted(self._tau, target, right=True) - 1).clamp(0, _CELLS - 1)
        start, linear, square, cube = _cubic(self._tau, self._rate, cell)
        target_rise = target - start
        u = target_rise / (linear + square + cube)
        low, high = torch.zeros_like(u), torch.ones_like(u)
        for _ in range(_NEWTON_STEPS):
            excess = u * (linear + u * (square + u * cube)) - target_rise
            low, high = torch.where(excess > 0, low, u), torch.where(excess > 0, u, high)
            newton = u - excess / (linear + u * (2 * square + u * 3 * cube))
            # the comparison is also false for 0/0, in flat cells near the ends: then halve the bracket
            u = torch.where((newton >= low) & (newton <= high), newton, (low + high) / 2)
        t = torch.where(target >= 1, torch.ones_like(u), (cell + u) / _CELLS)
        return t.to(tau.dtype)


def _interpolate(values: Tensor, slopes: Tensor, t: Tensor) -> Tensor:
    """Cubic Hermite interpolation at t in [0, 1] of knots at i / _CELLS; `slopes` are per unit t. Float64."""
    position = t.to(torch.float64).clamp(0, 1) * _CELLS
    cell = position.floor().clamp(max=_CELLS - 1).to(torch.int64)
    u = position - cell
    start, linear, square, cube = _cubic(values, slopes, cell)
    return start + u * (linear + u * (square + u * cube))


def _cubic(values: Tensor, slopes: Tensor, cell: Tensor) -> tuple[Tensor, ...]:
    """Coefficients in u = fraction of the cell, lowest power first."""
    start, rise = values[cell], values[cell + 1] - values[cell]
    left, right = slopes[cell] / _CELLS, slopes[cell + 1] / _CELLS
    return start, left, 3 * rise - 2 * left - right, left + right - 2 * rise


@functools.cache
def _tables(vocab_size: int) -> tuple[Tensor, ...]:
    """tau, dtau/dt and d2tau/dt2 on the knots."""
    exact: Any = {"dtype": torch.float64, "device": "cpu"}
    # The trapezoid rule converges exponentially here (analytic integrand, Gaussian decay); the narrowest feature,
    # Phi^(V-1) near x = sqrt(2 log V), is about 0.2 wide for the largest vocabularies in use.
    z = torch.arange(-12 * 32, 12 * 32 + 1, **exact) / 32
    weight = torch.exp(-z * z / 2)
    weight /= weight.sum()
    scale = vocab_size / (vocab_size - 1)
    at_chance = torch.exp((vocab_size - 1) * torch.special.log_ndtr(z))
    rows = []
    for t in (torch.arange(_CELLS, **exact) / _CELLS).split(256):
        stretch = 1 / (1 - t)  # dm/dt = stretch^2, d2m/dt2 = 2 stretch^3
        x = z + (t * stretch)[:, None]
        log_cdf = torch.special.log_ndtr(x)
        # E[Phi(z)^(V-1)] = 1/V: subtracting it under the integral makes tau exactly 0 at t = 0
        tau = scale * (torch.exp((vocab_size - 1) * log_cdf) - at_chance) @ weight
        density = torch.exp((vocab_size - 2) * log_cdf - x * x / 2) * ((vocab_size - 1) / math.sqrt(2 * math.pi))
        first, second = scale * density @ weight, scale * density @ (weight * z)
        rows.append(torch.stack([tau, first * stretch**2, second * stretch**4 + 2 * first * stretch**3]))
    tau, rate, curvature = torch.cat([*rows, torch.tensor([[1.0], [0.0], [0.0]], **exact)], dim=1)
    # near 1 rounding would break the order that searchsorted needs
    tau = torch.where(tau > 1 - 1e-15, 1.0, tau).cummax(0).values
    return tau, rate, curvature
