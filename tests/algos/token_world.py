"""A discrete flow model that has learned a small world perfectly, and the law of its jumps, state by state."""

import itertools

import torch
from algos.exact_world import ExactWorld
from torch import nn

from flm.algos.dfm import DFM
from flm.paths.mixture import Polynomial
from flm.posterior import TokenPosterior

CERTAIN = 80.0  # log evidence of a visible token: what contradicts it keeps e^-80


class ExactTokens(nn.Module):
    """p(token | state) of a world; V is the mask, if there is one. Knows the time; keeps what it was asked."""

    def __init__(self, world: ExactWorld, schedule, masked: bool):
        super().__init__()
        self.world, self.schedule = world, schedule
        self.real_vocab_size, self.mask_id = world.vocab_size, world.vocab_size if masked else None
        self.register_buffer("table", torch.eye(world.vocab_size, dtype=torch.float64))
        self.asked: list[tuple] = []

    def forward(self, tokens, t=None, documents=None):
        self.asked.append((tokens, t, documents))
        onehot = nn.functional.one_hot(tokens, self.real_vocab_size + 1)[..., :-1].double()
        if self.mask_id is not None:
            evidence = CERTAIN * onehot
        else:
            kappa = self.schedule.kappa(t.double())[:, None, None]
            evidence = (kappa * onehot + (1 - kappa) / self.real_vocab_size).clamp_min(1e-35).log()
        return TokenPosterior(self.world.log_marginals(evidence), self.table)


def exact_dfm(joint, source: str = "mask", schedule=None, **options) -> DFM:
    """joint: probabilities above 0, one axis of size V a position."""
    world, schedule = ExactWorld(joint), schedule or Polynomial()
    make = lambda vocab_size: ExactTokens(world, schedule, source == "mask")
    return DFM(make, world.vocab_size, world.length, source, schedule, **options).eval()


def posterior(joint: torch.Tensor, state: tuple[int, ...], kappa: float, masked: bool) -> torch.Tensor:
    """p(token at a position | state), (L, V), straight from Bayes' rule."""
    size, scores = joint.shape[0], joint.clone()
    for position, token in enumerate(state):
        if masked:
            evidence = torch.ones(size) if token == size else torch.eye(size)[token]
        else:
            evidence = kappa * torch.eye(size)[token] + (1 - kappa) / size
        shape = [1] * joint.ndim
        shape[position] = size
        scores = scores * evidence.double().reshape(shape)
    rows = [scores.sum([a for a in range(joint.ndim) if a != i]) if joint.ndim > 1 else scores for i in range(joint.ndim)]
    return torch.stack(rows) / scores.sum()


def jump_law(joint, kappas, jumps, noises, masked: bool) -> torch.Tensor:
    """Probability of each sequence after all steps, (V,) * L.

    Args:
        kappas: shares of data at the start of each step.
        jumps: probabilities of a jump to a draw; with a mask source at masks alone.
        noises: of turning to noise, at what was data before the step (mask), or did not jump (uniform).
    """
    joint = torch.as_tensor(joint, dtype=torch.float64)
    size, length = joint.shape[0], joint.ndim
    states = size + 1 if masked else size
    law = torch.zeros((states,) * length, dtype=torch.float64)
    if masked:
        law[(size,) * length] = 1
    else:
        law[:] = 1 / size**length
    for kappa, jump, noise in zip(kappas, jumps, noises, strict=True):
        following = torch.zeros_like(law)
        for state in itertools.product(range(states), repeat=length):
            mass = law[state]
            if mass == 0:
                continue
            p, outer = posterior(joint, state, kappa, masked), mass
            for position, token in enumerate(state):
                row = torch.zeros(states, dtype=torch.float64)
                stay = torch.eye(states, dtype=torch.float64)[token]
                if masked and token == size:
                    row[:size] = jump * p[position]
                    row += (1 - jump) * stay
                elif masked:
                    row += (1 - noise) * stay
                    row[size] += noise
                else:
                    row += jump * p[position] + (1 - jump) * ((1 - noise) * stay + noise / size)
                outer = outer[..., None] * row
            following += outer
        law = following
    return law[(slice(size),) * length]
