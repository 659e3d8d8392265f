"""Distribution matching along the KL geodesic: the mean of the noise, and losses on it in chunks of tokens.

A clean point delta of the simplex is noised to

    m = log E + s delta,   E_k ~ Gamma(alpha),   x = softmax(m),   s the signal of the time.

Dividing x_k by e^(s delta_k) gives the noise's own point n = E / sum(E). So, for any distribution of delta,

    score_k = d log p(x) / d m_k = alpha - alpha V E[n_k | x].

For the data as for a student, the score needs only the mean noise. With d m = s d delta, reverse KL has the gradient

    E[ alpha V s  sum_k (N_k(D) - N_k(F)) d delta_k ],     N_k(p) = x_k (sum_y p_y g_y - a p_k g_k),  g_y = 1 / (1 - a x_y),

with a = 1 - e^-s. N(p) is the mean noise if the clean point is a token with probabilities p. Everything is in float64, since
g_k is e^s where x_k is nearly 1, and terms of this size cancel. B batch, L length, V vocabulary, n tokens of a chunk.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from flm.kl_flow.geodesic_state import Logits, per_token
from flm.outputs import Output
from flm.posterior import TokenPosterior
from flm.vocabulary_losses import ValueAndSlope, of_logits

SMALLEST = 1e-30  # least probability of the noise


def in_chunks(
    posterior: TokenPosterior, noise: Logits, delta: Output, signal: Tensor, weight: Tensor, of: Callable[..., ValueAndSlope]
) -> tuple[Tensor, Tensor]:
    """A loss of each token's logits that depends on its state and its noise.

    Args:
        noise: log E.
        delta: the clean point.
        signal: s (B,).
        weight: (B, L), constant.
        of: called with a slice of the flattened token axis and its x and n (n, V) and a (n, 1), in float64; gives the loss of
            these tokens.

    Returns:
        The weighted sum, a differentiable scalar, and each token's value (B, L), detached.
    """
    flat, weights, totals, values = posterior.hidden.flatten(0, 1), weight.reshape(-1), [], []
    s = per_token(signal.double(), weight.shape)[:, None]
    for part, log_noise in noise.chunks():
        log_noise = log_noise.double()
        with torch.no_grad():
            x = (log_noise + s[part] * delta.chunk(part)).softmax(-1)
        found = of(part, x, log_noise.softmax(-1), -torch.expm1(-s[part]))
        total, value = of_logits(replace(posterior, hidden=flat[part][None]), found, weights[part][None])
        totals.append(total)
        values.append(value[0])
    return torch.stack(totals).sum(), torch.cat(values).view(weight.shape)


def geodesic_matching(
    student: TokenPosterior, real: Output, fake: Output, noise: Logits, signal: Tensor, weight: Tensor, scale: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """scale s <N(D) - N(F), delta> at every token, with D and F constant.

    Its gradient is that of reverse KL; its value has no meaning.

    Args:
        student: delta, from which x was made.
        real, fake: D and F.
        noise, signal: log E, and s (B,).
        weight: (B, L), constant.
        scale: alpha V.

    Returns:
        The weighted sum, a differentiable scalar; and for each token (B, L), detached: "score_gap", the squared difference of
        scores; and "student_entropy_nats".
    """
    about = {
        name: torch.zeros(weight.numel(), dtype=torch.float64, device=weight.device)
        for name in ("score_gap", "student_entropy_nats")
    }

    def matched(part: slice, x: Tensor, n: Tensor, a: Tensor) -> ValueAndSlope:
        upward = scale * mean_noise(real.chunk(part).double() - fake.chunk(part).double(), x, a)
        about["score_gap"][part] = upward.square().sum(-1)

        def value_and_slope(sub: slice, logits: Tensor, with_slope: bool) -> tuple[Tensor, Tensor | None]:
            p, up = logits.softmax(-1), upward[sub].to(logits.dtype)
            about["student_entropy_nats"][part][sub] = torch.special.entr(p).sum(-1).double()
            value = torch.linalg.vecdot(p, up)
            return value, p * (up - value[:, None]) if with_slope else None

        return value_and_slope

    total, _ = in_chunks(student, noise, student.detach(), signal, weight * signal[:, None].to(weight), matched)
    return total, {name: values.view(weight.shape) for name, values in about.items()}


def mean_noise(p: Tensor, x: Tensor, a: Tensor) -> Tensor:
    """N(p), (n, V): the noise's mean point for probabilities p (n, V) of the token, given x (n, V); a (n, 1)."""
    gained = p / (1 - a * x)
    return x * (gained.sum(-1, keepdim=True) - a * gained)


def noise_divergence(x: Tensor, n: Tensor, a: Tensor) -> ValueAndSlope:
    """KL(n | N(p)) as a function of p's logits, with its slope; x, n (n, V) and a (n, 1), float64."""

    def value_and_slope(sub: slice, logits: Tensor, with_slope: bool) -> tuple[Tensor, Tensor | None]:
        p, point, noise, share = logits.double().softmax(-1), x[sub], n[sub], a[sub]
        mean = mean_noise(p, point, share).clamp_min(SMALLEST)
        value = (noise * (noise.clamp_min(SMALLEST).log() - mean.log())).sum(-1)
        if not with_slope:
            return value.to(logits.dtype), None
        ratio = noise * point / mean
        upward = (share * ratio - ratio.sum(-1, keepdim=True)) / (1 - share * point)
        slope = p * (upward - torch.linalg.vecdot(p, upward)[:, None])
        return value.to(logits.dtype), slope.to(logits.dtype)

    return value_and_slope
