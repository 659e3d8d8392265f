"""From one noise level to a lower one with fresh noise: the one family of steps of the Gaussian path.

From the state x at time t and an endpoint e, a point of the simplex for what lies behind the noise, to time s > t:

    x' = s e + sqrt((1-s)^2 - zeta^2) (x - t e) / (1-t) + zeta eps,        0 <= zeta <= 1 - s.

(x - t e) / (1-t) is the noise that e leaves in x; zeta of the new noise is fresh, the rest is kept (arXiv 2609.40235).

    zeta = 0                       straight on: an Euler step for e = D_t(x), a jump for e = delta_{t,s}(x)
    zeta = gamma (1-s)             churn of a flow map (arXiv 2602.16813)
    the same, gamma as of `churned`    churn of a flow (arXiv 2206.00364, algorithm 2): to a level below s and up to it again
    zeta = 1 - s                   everything is noised anew
    zeta = `bridge`                the posterior of x' given x and e under the path's own law (arXiv 2605.13681)

For e a vertex drawn from the exact joint posterior every zeta keeps the law of the path. B batch.
"""

import math

from flm.paths.gaussian import State, combine, step


def renoised(state: State, endpoint: State, t: float, s: float, zeta: float, noise: State | None = None) -> State:
    """x' of the family; `noise` are views of N(0, I), read where zeta is above 0."""
    if zeta == 0 or noise is None:
        return step(state, endpoint, t, s)
    kept = kept_noise(s, zeta) / (1 - t)
    return combine((kept, state), (s - t * kept, endpoint), (zeta, noise))


def kept_noise(s: float, zeta: float) -> float:
    """The standard deviation at time s of what is left of the noise before."""
    return math.sqrt(max(0.0, (1 - s) ** 2 - zeta**2))


def bridge(t: float, s: float) -> float:
    """zeta of the exact bridge, 0 <= t < s < 1: with it x' ~ N(a x + b e, zeta^2 I) is p(x_s | x_t = x, e)."""
    return (1 - s) * math.sqrt((s - t) * (s + t - 2 * s * t)) / (s * (1 - t))


def churned(churn: float) -> float:
    """gamma of a noise level (1-t)/t that is raised by the fraction `churn`, seen from the raised one."""
    return math.sqrt(1 - (1 + churn) ** -2)
