"""An MDLM that has learned a small world perfectly, and the law of its samplers step by step, from their definitions."""

import itertools

import torch
from algos.exact_world import ExactWorld
from torch import nn

from flm.algos.mdlm import MDLM
from flm.posterior import TokenPosterior

CERTAIN = 80.0  # log evidence of a visible token: what contradicts it keeps e^-80


class ExactMaskedBackbone(nn.Module):
    """p(token | what is visible) of a world; reads one-hot rows, the last one the mask."""

    def __init__(self, world: ExactWorld):
        super().__init__()
        self.world = world
        self.register_buffer("input_table", torch.eye(world.vocab_size + 1, dtype=torch.float64))

    def forward(self, embedded, tau):
        assert (tau == 0).all()
        log_p = self.world.log_marginals(CERTAIN * embedded[..., :-1])
        return TokenPosterior(torch.cat((log_p, log_p.new_zeros(*log_p.shape[:-1], 1)), -1), self.input_table)


def exact_mdlm(joint, **options) -> MDLM:
    """joint: probabilities above 0, one axis of size V a position."""
    world = ExactWorld(joint)
    algorithm = MDLM(lambda vocab_size: ExactMaskedBackbone(world), world.vocab_size, world.length, **options)
    return algorithm.eval()


def conditional(joint: torch.Tensor, state: tuple[int, ...], position: int) -> torch.Tensor:
    """p(token at a position | visible tokens of a state), where V is the mask; (V,)."""
    index = tuple(slice(None) if token == joint.shape[0] else slice(token, token + 1) for token in state)
    part = joint[index]
    others = [axis for axis in range(joint.ndim) if axis != position]
    marginal = part.sum(others) if others else part
    return marginal / marginal.sum()


def sampler_law(joint, kappas, sigmas=None, order=None, temperature=1.0, start=None) -> torch.Tensor:
    """Probability of each sequence after all steps, (V,) * L.

    Args:
        kappas: shares known at the steps + 1 times.
        sigmas: of each step, the probability that what is written is masked again; None: 0.
        order: (conditionals of masked positions, step) -> positions to write now, for samplers that choose them; None: each
            independently.
        start: the state to begin with; None: all masks.
    """
    joint = torch.tensor(joint, dtype=torch.float64)
    mask, length = joint.shape[0], joint.ndim
    start = (mask,) * length if start is None else start
    free = [token == mask for token in start]
    law = {start: 1.0}
    for i, (now, after) in enumerate(itertools.pairwise(kappas)):
        sigma = sigmas[i] if sigmas else 0.0
        rate = (after - (1 - sigma) * now) / (1 - now)
        following: dict[tuple[int, ...], float] = {}
        for state, mass in law.items():
            laws = {j: conditional(joint, state, j) ** (1 / temperature) for j in range(length) if state[j] == mask}
            laws = {j: p / p.sum() for j, p in laws.items()}
            chosen = None if order is None else order(laws, i)
            columns = []
            for j, token in enumerate(state):
                if token == mask:
                    write = rate if chosen is None else float(j in chosen)
                    columns.append([(v, write * p) for v, p in enumerate(laws[j].tolist())] + [(mask, 1 - write)])
                else:
                    columns.append([(token, 1 - sigma), (mask, sigma)] if free[j] else [(token, 1.0)])
            for outcome in itertools.product(*columns):
                probability = mass
                for _, p in outcome:
                    probability *= p
                if probability > 0:
                    reached = tuple(token for token, _ in outcome)
                    following[reached] = following.get(reached, 0.0) + probability
        law = following
    found = torch.zeros_like(joint)
    for state, mass in law.items():
        assert mask not in state or mass < 1e-12
        if mask not in state:
            found[state] = mass
    return found
