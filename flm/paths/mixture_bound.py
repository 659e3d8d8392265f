"""The generalized Kullback-Leibler divergence of discrete flow matching (arXiv 2412.03487), for any source.

A position that is noise jumps to its data y at the rate w = kappa' / (1 - kappa). The model's rates are w p, with p its
posterior of the data given the whole state. The relative entropy of the two along the path, for a position in state i, bounds
the likelihood of the model:

    -log p(y)  <=  int_0^1 dt w(t) E[ [i != y] (-log p_y) - p_i + [i = y] ].

V vocabulary, B batch, L length.
"""

import torch
from torch import Tensor

from flm.posterior import TokenPosterior
from flm.vocabulary_losses import of_logits


def generalized_kl(posterior: TokenPosterior, tokens: Tensor, state: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The value in E[...] above at every position, without w.

    Args:
        posterior: of the data given the state.
        tokens, state: (B, L); an id of `state` at or above V is noise that no prediction gives.
        weight: (B, L), constant.

    Returns:
        The weighted sum over tokens, a differentiable scalar, and each token's value (B, L), detached.
    """
    y, i = tokens.reshape(-1), state.reshape(-1)

    def value_and_slope(part: slice, logits: Tensor, with_slope: bool) -> tuple[Tensor, Tensor | None]:
        possible = i[part] < logits.shape[1]
        at_y, at_i = y[part, None], i[part, None].clamp(max=logits.shape[1] - 1)
        same = (y[part] == i[part]).to(logits.dtype)
        log_total = logits.logsumexp(-1)
        log_p_y = logits.gather(1, at_y)[:, 0] - log_total
        p_i = (logits.gather(1, at_i)[:, 0] - log_total).exp() * possible
        # for i = y near t = 1 the difference 1 - p_i would lose its digits
        kept = torch.where(same > 0, -torch.expm1(log_p_y), -p_i - log_p_y)
        if not with_slope:
            return kept, None
        slope = logits.sub_(log_total[:, None]).exp_().mul_((p_i + 1 - same)[:, None])
        slope.scatter_add_(1, at_i, -p_i[:, None])
        slope.scatter_add_(1, at_y, (same - 1)[:, None])
        return kept, slope

    return of_logits(posterior, value_and_slope, weight)


def unigram_generalized_kl(probabilities: Tensor, kappa: Tensor) -> Tensor:
    """The mean of E[...], without w, for a uniform source and the best prediction from a position's own state alone.

    Args:
        probabilities: (V,) float64, of tokens without context.
        kappa: (n,) float64 in [0, 1).

    Returns:
        (n,) nats.
    """
    size, kappa = len(probabilities), kappa[:, None]
    other = (1 - kappa) / size  # probability of a given state where the data is another token
    mass = probabilities * kappa + other  # of a given state at all, (n, V)
    kept = kappa + other
    p_i = probabilities * kept / mass  # that the data is the token seen
    entropies = torch.special.entr(probabilities)
    # sum over the data y other than i of p_y (-log p(y | i)), with p(y | i) = p_y other / mass_i
    surprise = (entropies.sum() - entropies) + (1 - probabilities) * (mass.log() - other.log())
    same = probabilities * kept * (1 - p_i)
    different = other * (surprise - (1 - probabilities) * p_i)
    return (same + different).sum(1)
