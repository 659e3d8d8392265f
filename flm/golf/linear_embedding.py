"""The straight path from Gaussian noise to the embeddings of tokens, some positions given, and a likelihood bound on it.

x_t = (1 - t) noise + t e with e the embeddings; a given position stays at its embedding. The constant velocity of the path
is e - noise, and a predicted velocity v points at z1 = x_t + (1 - t) v. t in [0, 1]: 0 is noise. B batch, L length, D width.

With signal-to-noise ratio t^2 / (1-t)^2 the continuous-time diffusion bound (Kingma et al., arXiv 2107.00630, section 4) is,
for any t1 in (0, 1),

    -log p(w | given) <= E[-log p(w | x_t1, given)]  +  integral_0^t1 t / (1-t) E|(e - noise) - v|^2 dt,

without a prior term, because x_0 is the noise itself. docs/flow_lm_bound.md derives it.
"""

import math

import torch
from torch import Tensor


def corrupt(clean: Tensor, noise: Tensor, t: Tensor, given: Tensor) -> Tensor:
    """The state (B, L, D) at t (B,): on the path where given (B, L) is False, clean where it is True."""
    t = t.to(clean.dtype)[:, None, None]
    return torch.where(given[..., None], clean, (1 - t) * noise + t * clean)


def clean_of(state: Tensor, velocity: Tensor, t: Tensor) -> Tensor:
    """Where the velocity points: z1 = x_t + (1 - t) v."""
    return state + (1 - t.to(state.dtype))[:, None, None] * velocity


def toward(state: Tensor, clean: Tensor, t: float, t_next: float) -> Tensor:
    """One Euler step from t to t_next along v = (z1 - x_t) / (1 - t)."""
    share = (t_next - t) / (1 - t)
    return torch.lerp(state, clean, share)


def diffusion_times(u: Tensor, t1: float) -> Tensor:
    """t = 1 - (1 - t1)^u of uniform u: density proportional to 1 / (1 - t) on [0, t1], which the weight's pole asks for."""
    check_end(t1)
    return -torch.expm1(u.double() * math.log1p(-t1))


def diffusion_nats(squared_velocity_error: Tensor, t: Tensor, t1: float) -> Tensor:
    """What one draw of `diffusion_times` says about the integral above: -ln(1 - t1) t |v* - v|^2, in nats.

    Args:
        squared_velocity_error: (B,) summed over the positions and dimensions that count.
        t: (B,) the times drawn.
    """
    return -math.log1p(-t1) * t.double() * squared_velocity_error.double()


def zero_velocity_factor(t1: float) -> float:
    """-t1 - ln(1 - t1), the integral of the weight: for v = 0 the integral is (|e|^2 + D) times it, per token."""
    check_end(t1)
    return -t1 - math.log1p(-t1)


def check_end(t1: float) -> None:
    """Raises ValueError unless t1 lies in (0, 1): at 1 the weight of the bound is infinite."""
    if not 0 < t1 < 1:
        raise ValueError(f"where the bound ends, t1={t1}, must lie between 0 and 1")
