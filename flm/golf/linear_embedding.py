"""The straight path from Gaussian noise to token embeddings, where some positions may be given, and a likelihood bound on it.

The path is x_t = (1 - t) noise + t e, where e are the embeddings and t goes from 0, noise, to 1. A given position stays at its
embedding. The velocity of the path is constant, e - noise, and a predicted velocity v leads to z1 = x_t + (1 - t) v.
B batch, L length, D width.

The signal-to-noise ratio is t^2 / (1-t)^2. With it the continuous-time diffusion bound (Kingma et al., arXiv 2107.00630,
section 4) is, for any t1 in (0, 1),

    -log p(w | given) <= E[-log p(w | x_t1, given)]  +  integral_0^t1 t / (1-t) E|(e - noise) - v|^2 dt,

without a prior term, because x_0 is the noise itself. docs/flow_lm_bound.md derives it.
"""

import math

import torch
from torch import Tensor


def corrupt(clean: Tensor, noise: Tensor, t: Tensor, given: Tensor) -> Tensor:
    """The state (B, L, D) at times t (B,): on the path where `given` (B, L) is False, clean where it is True."""
    t = t.to(clean.dtype)[:, None, None]
    return torch.where(given[..., None], clean, (1 - t) * noise + t * clean)


def clean_of(state: Tensor, velocity: Tensor, t: Tensor) -> Tensor:
    """The clean state (B, L, D) to which a velocity leads from the state at t (B,): z1 = x_t + (1 - t) v."""
    return state + (1 - t.to(state.dtype))[:, None, None] * velocity


def toward(state: Tensor, clean: Tensor, t: float, t_next: float) -> Tensor:
    """One Euler step from t to t_next along v = (z1 - x_t) / (1 - t), where z1 is `clean`."""
    share = (t_next - t) / (1 - t)
    return torch.lerp(state, clean, share)


def diffusion_times(u: Tensor, t1: float) -> Tensor:
    """Times t = 1 - (1 - t1)^u, in float64, for uniform u in [0, 1).

    Their density on [0, t1] is proportional to 1 / (1 - t), as is the weight of the bound near t = 1. Raises as `check_end`.
    """
    check_end(t1)
    return -torch.expm1(u.double() * math.log1p(-t1))


def diffusion_nats(squared_velocity_error: Tensor, t: Tensor, t1: float) -> Tensor:
    """An unbiased estimate (B,) of the integral in the bound, in nats, from one draw: -ln(1 - t1) t |(e - noise) - v|^2.

    Args:
        squared_velocity_error: (B,), |(e - noise) - v|^2 summed over dimensions and target positions.
        t: (B,), drawn by `diffusion_times`.
    """
    return -math.log1p(-t1) * t.double() * squared_velocity_error.double()


def zero_velocity_factor(t1: float) -> float:
    """The integral of the bound's weight, -t1 - ln(1 - t1). For v = 0 the bound's integral is (|e|^2 + D) times it, per token.

    Raises as `check_end`.
    """
    check_end(t1)
    return -t1 - math.log1p(-t1)


def check_end(t1: float) -> None:
    """Raises ValueError unless t1 lies in (0, 1). At 1 the weight of the bound is infinite."""
    if not 0 < t1 < 1:
        raise ValueError(f"where the bound ends, t1={t1}, must lie between 0 and 1")
