"""Steps of the Gaussian path from one noise level to a lower one, with a share of fresh noise.

The step goes from the state x at time t to time s > t. It uses an endpoint e, a point of the simplex that predicts the data:

    x' = s e + sqrt((1-s)^2 - zeta^2) (x - t e) / (1-t) + zeta eps,        0 <= zeta <= 1 - s.

(x - t e) / (1-t) is the noise in x if e is right. Of the new noise, zeta is fresh and the rest is kept (arXiv 2609.40235).

    zeta = 0                    no fresh noise: an Euler step for e = D_t(x), a jump for e = delta_{t,s}(x)
    zeta = gamma (1-s)          churn of a flow map (arXiv 2602.16813)
    zeta = churned(c) (1-s)     churn c of a flow (arXiv 2206.00364, algorithm 2): to less noise than at s, then up to it again
    zeta = 1 - s                all noise is fresh
    zeta = bridge(t, s)         the posterior of x' given x and e under the path (arXiv 2605.13681)

If e is a vertex drawn from the exact joint posterior, every zeta keeps the distribution of the path. B batch.
"""

import math

from flm.paths.gaussian import State, combine, step


def renoised(state: State, endpoint: State, t: float, s: float, zeta: float, noise: State | None = None) -> State:
    """x' above. `noise`: views of N(0, I); None only if zeta is 0, where it is not read."""
    if zeta == 0 or noise is None:
        return step(state, endpoint, t, s)
    kept = kept_noise(s, zeta) / (1 - t)
    return combine((kept, state), (s - t * kept, endpoint), (zeta, noise))


def kept_noise(s: float, zeta: float) -> float:
    """The standard deviation, at time s, of the noise that is kept."""
    return math.sqrt(max(0.0, (1 - s) ** 2 - zeta**2))


def bridge(t: float, s: float) -> float:
    """zeta of the exact bridge, 0 <= t < s < 1: with it x' ~ N(a x + b e, zeta^2 I) is p(x_s | x_t = x, e)."""
    return (1 - s) * math.sqrt((s - t) * (s + t - 2 * s * t)) / (s * (1 - t))


def churned(churn: float) -> float:
    """gamma = zeta / (1-s) of a step whose noise level (1-s)/s was raised to its end value by the fraction `churn`."""
    return math.sqrt(1 - (1 + churn) ** -2)
