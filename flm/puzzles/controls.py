"""Controls for answers: random symbols, propagation without search, an exact solver, and ideal masked diffusion.

B answers, L positions, M solutions.
"""

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from flm.puzzles.rules import HOLE, Puzzle, Rules

_ROWS = 64  # answers at a time: B x M x L booleans are compared


def random_fill(puzzle: Puzzle, symbols: str, rng: random.Random) -> str:
    """Fills every hole with a random symbol, all equally likely."""
    return "".join(rng.choice(symbols) if given == HOLE else given for given in puzzle.givens)


def propagated(puzzle: Puzzle, rules: Rules) -> str | None:
    """The givens with everything that follows without search; holes may be left. None: these rules have no propagation."""
    return rules.propagate(puzzle.givens)


def searched(puzzle: Puzzle, rules: Rules) -> str | None:
    """The first solution that the solver finds; None: these rules have no solver, or there is no solution."""
    found = rules.solve(puzzle.givens, 1)
    return found[0] if found else None


class IdealMaskedDiffusion:
    """Masked diffusion with the exact posterior of every position, which fills holes in random order.

    Each evaluation fills an equal share of the holes, each from its own posterior given the symbols so far. Positions of one
    evaluation are drawn independently, so a trained model with as many evaluations can hardly do better.

    Args:
        solutions: all possible answers, equally likely.
    """

    def __init__(self, solutions: Sequence[str]):
        self.symbols = "".join(sorted(set("".join(solutions))))
        self.solutions = torch.tensor([[self.symbols.index(symbol) for symbol in answer] for answer in solutions])

    def __call__(self, givens: Sequence[str], steps: int, generator: torch.Generator) -> list[str]:
        """Answers to givens of one length; holes are left where no solution fits the symbols so far."""
        start = torch.tensor([[-1 if g == HOLE else self.symbols.index(g) for g in given] for given in givens])
        rows = torch.cat([self._fill(part, steps, generator) for part in start.split(_ROWS)])
        return ["".join(HOLE if s < 0 else self.symbols[s] for s in row) for row in rows.tolist()]

    def _fill(self, state: Tensor, steps: int, generator: torch.Generator) -> Tensor:
        holes = state < 0
        order = torch.rand(state.shape, generator=generator).masked_fill(~holes, 2.0).argsort(1).argsort(1)
        share = (order * steps).div(holes.sum(1, keepdim=True).clamp_min(1), rounding_mode="floor")
        for step in range(steps):
            now = holes & (share == step)
            if not now.any():
                continue
            fits = ((state[:, None] < 0) | (state[:, None] == self.solutions)).all(-1).double()  # (B, M)
            drawn = torch.full_like(state, -1)
            one_hot = torch.nn.functional.one_hot(self.solutions, len(self.symbols)).double()  # (M, L, V)
            chance = torch.einsum("bm,mlv->blv", fits, one_hot)
            alive = fits.sum(1) > 0
            place = now & alive[:, None]
            if place.any():
                drawn[place] = torch.multinomial(chance[place], 1, generator=generator)[:, 0]
            state = torch.where(now, drawn, state)
        return state
