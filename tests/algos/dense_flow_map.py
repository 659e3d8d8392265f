"""The flow map's training targets written the textbook way, on dense (B, L, V) states: what the V-free code is held to.

Derivatives are central differences along the line of times and states; float64.
"""

from functools import partial

import torch
from torch.nn.functional import softmax

from flm.models.dit import DiT


def rough(network, seed=0, size=0.4):
    """The network with all its weights disturbed, so that its prediction depends on everything."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator).to(parameter))
    return network


def small_dit(vocab_size, length, width=8, softcap=3.0, **options):
    """What an algorithm takes as `backbone`; the softcaps bite."""
    options = {"cond_dim": 8, "dropout": 0.0, "output_softcap": softcap, "attention_softcap": 5.0} | options
    return partial(DiT, length=length, hidden_size=width, num_blocks=2, num_heads=2, **options)


def raw_output(posterior):
    return posterior.hidden @ posterior.table.T + posterior.bias


def dense(network, x, *times):
    """Probabilities (B, L, V) from the dense state x (B, L, V), differentiable."""
    posterior = network(x @ network.input_table, *times)
    logits = raw_output(posterior)
    if posterior.softcap is not None:
        logits = posterior.softcap * torch.tanh(logits / posterior.softcap)
    return softmax(logits, -1)


def column(x):
    return x[:, None, None]


def dense_jump(x, target, s, t):
    """(1-t)/(1-s) x + (t-s)/(1-s) target."""
    return column((1 - t) / (1 - s)) * x + column((t - s) / (1 - s)) * target


def nearest_on_simplex(values):
    """By bisection on the threshold."""
    low, high = values.amin(-1, keepdim=True) - 1, values.amax(-1, keepdim=True)
    for _ in range(100):
        middle = (low + high) / 2
        over = (values - middle).clamp_min(0).sum(-1, keepdim=True) > 1
        low, high = torch.where(over, middle, low), torch.where(over, high, middle)
    return (values - low).clamp_min(0)


def physical(clock, pairs):
    """s, u, t of clock times."""
    return (clock.time(tau) for tau in (pairs.start, pairs.middle, pairs.end))


def told(pairs):
    """The clock times as networks are told them: rounded to float32."""
    return (tau.float().double() for tau in (pairs.start, pairs.middle, pairs.end))


@torch.no_grad()
def dense_target(objective, network, clock, x, pairs, denoise=None, point=lambda p: p):
    """Target of delta_{s,t}(x); `denoise(x, tau)` predicts at the start of the jump, by default the network. `point(p)` puts
    known tokens into a prediction that the state moves towards."""
    (s, u, t), (tau_s, tau_u, tau_t) = physical(clock, pairs), told(pairs)
    delta = partial(dense, network)
    if objective == "semigroup":
        first = delta(x, tau_s, tau_u)
        share = column((1 - t) * (u - s) / ((1 - u) * (t - s)))
        return share * first + (1 - share) * delta(dense_jump(x, point(first), s, u), tau_u, tau_t)
    h = 1e-5
    here = delta(x, tau_s, tau_t)
    if objective == "lagrangian":
        change = (delta(x, tau_s, tau_t + h) - delta(x, tau_s, tau_t - h)) / (2 * h) * column(clock.rate(t))
        endpoint = delta(dense_jump(x, point(here), s, t), tau_t, tau_t)
        return nearest_on_simplex(endpoint - column((1 - t) * (t - s) / (1 - s)) * change)
    start = delta(x, tau_s, tau_s) if denoise is None else denoise(x, tau_s)
    velocity, rate = (point(start) - x) / column(1 - s), clock.rate(s)
    ahead = delta(x + h * velocity, tau_s + h * rate, tau_t)
    change = (ahead - delta(x - h * velocity, tau_s - h * rate, tau_t)) / (2 * h)
    coefficient = (1 - s) * (t - s) / (1 - t)
    damping = 1 / (1 + coefficient * rate.clamp_min(1))
    return nearest_on_simplex(here + column(damping) * (start + column(coefficient) * change - here))


class Evaluations:
    """What a network is asked, call by call: (number of sequences, whether gradients were recorded)."""

    def __init__(self, network):
        self.calls = []
        network.register_forward_pre_hook(lambda _, inputs: self.calls.append((len(inputs[0]), torch.is_grad_enabled())))
