"""A variational upper bound on -log p(tokens) from a denoiser of the uniform-state path.

The state jumps from i to j, on its way to data, at rates proportional to X_j / X_i with X = V kappa onehot(y) + 1 - kappa; a
denoiser p gives a model whose rates have p in place of onehot(y). Their relative entropy along the path, with all jumps
summed over instead of drawn (arXiv 2412.10193, equation 13; arXiv 2506.10892, equation 6), and with Y the same of p, is

    -log p(y)  <=  prior  +  int_{kappa_0}^1 d kappa / (V kappa)  E  sum_{j != i} g(X_j / X_i, Y_j / Y_i),
    g(r, s) = r log(r / s) - r + s >= 0,

summed over positions, i the state there. The p that makes it tight is the posterior of a position's token given the rest
of the state, without the position's own: then Y_j / Y_i is the true ratio of marginals.

In u = V kappa / (1 - kappa) and h_j = log(1 + u p_j) the factors 1 - kappa of X and Y cancel, which keeps the digits of the
small ones. B batch, L length, V vocabulary.
"""

import torch
from torch import Tensor

from flm.posterior import TokenPosterior
from flm.vocabulary_losses import of_logits


def bound_density(
    posterior: TokenPosterior, tokens: Tensor, state: Tensor, kappa: Tensor, noise: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Nats per unit of kappa, of each token, given one state.

    Args:
        tokens, state: (B, L), data and what the posterior was asked about.
        kappa, noise: (B,) float64, kappa in (0, 1) and 1 - kappa.
        weight: (B, L), constant.

    Returns:
        The weighted sum over tokens, a differentiable scalar, and each token's density (B, L), detached.
    """
    size = posterior.vocab_size
    y, i = tokens.reshape(-1), state.reshape(-1)
    signal, u, rest = (x.repeat_interleave(tokens.shape[1]) for x in (size * kappa, size * kappa / noise, size / noise))

    def value_and_slope(part: slice, logits: Tensor, with_slope: bool) -> tuple[Tensor, Tensor | None]:
        same = y[part] == i[part]
        at_y, at_i = y[part, None], i[part, None]
        v, c, per = (x[part].to(logits.dtype) for x in (u, rest, 1 / signal))
        p = logits.softmax(-1)
        p_i, p_y = p.gather(1, at_i)[:, 0], p.gather(1, at_y)[:, 0]
        h_i, h_y, log_top = torch.log1p(v * p_i), torch.log1p(v * p_y), torch.log1p(v)
        h = torch.log1p(p * v[:, None])
        differences = h.neg_().add_(h_i[:, None]).sum(-1)  # sum_j (h_i - h_j)
        other = v * (h_i - h_y) + differences + (1 + v) * log_top - c * v * p_i / (1 + v * p_i)
        own = (differences - (size - 1) * log_top + c * v * (1 - p_i) / (1 + v * p_i)) / (1 + v)
        value = torch.where(same, own, other) * per
        if not with_slope:
            return value, None
        # by p: -k u / (1 + u p_j), and more at i and y; then through the softmax
        k = torch.where(same, 1 / (1 + v), torch.ones_like(v))
        q_i, q_y = v / (1 + v * p_i), v / (1 + v * p_y)
        extra = torch.where(same, torch.zeros_like(v), v)
        by_p = torch.addcmul(torch.ones_like(p), p, v[:, None].expand_as(p)).reciprocal_().mul_((-k * v)[:, None])
        by_p.scatter_add_(1, at_i, ((k * size + extra) * q_i - c * v / (1 + v * p_i) ** 2)[:, None])
        by_p.scatter_add_(1, at_y, (-extra * q_y)[:, None])
        by_p.sub_(torch.linalg.vecdot(p, by_p)[:, None]).mul_(p).mul_(per[:, None])
        return value, by_p

    return of_logits(posterior, value_and_slope, weight)


def uniform_density(same: Tensor, kappa: Tensor, noise: Tensor, vocab_size: int) -> Tensor:
    """`bound_density` of p = 1 / V: what a position contributes if its state is its token (`same` (B, L) bool) or not.

    This p is exact for uniform data, where the whole bound is log V: a control variate with a known mean.
    """
    kappa, noise = kappa[:, None], noise[:, None]
    u = vocab_size * kappa / noise
    other = (1 + u) * torch.log1p(u) / (vocab_size * kappa) - 1 / noise
    own = (vocab_size - 1) * (u - torch.log1p(u)) / ((1 + u) * vocab_size * kappa)
    return torch.where(same, own, other)


def prior_nats(kappa: Tensor, vocab_size: int) -> Tensor:
    """KL of a position's state at kappa < 1 from the uniform law that sampling starts with, in nats; shape of kappa."""
    kept = kappa + (1 - kappa) / vocab_size
    return kept * torch.log1p((vocab_size - 1) * kappa) + (1 - kept) * torch.log1p(-kappa)
