"""An upper bound on -log p(tokens) in few network evaluations: of what a denoiser or a flow map writes in N steps.

The sampler: noise; at N - 1 times of a grid uniform in tau the exact bridge to the predicted point delta_i of the simplex
(`flm.paths.renoising`); tokens drawn from the last one. Whatever delta_i a network computes from the state, this is a model
with latent states, and the path of the tokens a posterior for them. With m = t / (1 - t),

    -log p(y)  <=  sum_{i < N-1} (m_{i+1}^2 - m_i^2) / 2  E|onehot(y) - delta_i|^2  -  E log delta_{N-1}[y]:

both bridges have one covariance v, their means differ by b (onehot(y) - delta_i), and b^2 / v = m_{i+1}^2 - m_i^2; the first
state is noise under both. Of all shares of fresh noise the bridge's gives the lowest bound. It says nothing of a deterministic
map's own likelihood, and of all points the denoiser's gives the least squared error: jumps cost. B batch, L length.
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
    """One unbiased draw of the bound for tokens (B, L), of those that are scored (B, L) bool, in `steps` evaluations.

    Returns:
        Nats (B,) float64, and the same by part: the steps, and the tokens drawn at their end.
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
