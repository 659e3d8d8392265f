"""An upper bound on -log p(tokens) of the text that a denoiser or a flow map writes in N steps, in N network evaluations.

The sampler starts from noise. At the first N - 1 times of a grid uniform in tau, it takes the exact bridge step
(`flm.paths.renoising`) to the predicted point delta_i of the simplex; at the last it draws tokens from delta_{N-1}. For any
delta_i that a network computes from the state, this is a latent-variable model, and the path of the true tokens is a posterior
of its latent states. With m = t / (1 - t),

    -log p(y)  <=  sum_{i < N-1} (m_{i+1}^2 - m_i^2) / 2  E|onehot(y) - delta_i|^2  -  E log delta_{N-1}[y].

The bridges of posterior and model have the same covariance v, and means that differ by b (onehot(y) - delta_i), with
b^2 / v = m_{i+1}^2 - m_i^2. The first state is noise under both. Other shares of fresh noise give a higher bound. The bound
does not hold for a deterministic map. The denoiser's point has the least squared error, so jumps of a flow map have a higher
bound. B batch, L length.
"""

import torch
from torch import Tensor

from flm.draws import Draws
from flm.paths.gaussian import corrupt
from flm.paths.gaussian_bound import GaussianDenoiser, token_errors


@torch.no_grad()
def steps_estimate(
    denoiser: GaussianDenoiser, tokens: Tensor, steps: int, draws: Draws, scored: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """One unbiased draw of the bound of tokens (B, L), for the scored ones (B, L) bool, in `steps` evaluations.

    Returns:
        Nats (B,) float64, and nats (B,) of each part: the steps, and the tokens drawn at their end.
    """
    tau = torch.linspace(0, 1, steps + 1, dtype=torch.float64, device=tokens.device)
    t = denoiser.clock.time(tau)
    ratio = t[:-1] / (1 - t[:-1])
    path = torch.zeros(len(tokens), dtype=torch.float64, device=tokens.device)
    for i in range(steps):
        here, now, then = (value.to(denoiser.table.dtype).expand(len(tokens)) for value in (t[i], tau[i], tau[i + 1]))
        posterior = denoiser.predict(corrupt(tokens, here, (denoiser.table,), draws.rows), now, then)
        squared, surprise = ((values * scored).sum(1) for values in token_errors(posterior, tokens))
        if i < steps - 1:
            path += (ratio[i + 1] ** 2 - ratio[i] ** 2) / 2 * squared
    return path + surprise, {"steps": path, "drawn tokens": surprise}
