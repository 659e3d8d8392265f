"""What answers are held against: chance, what follows without search, search, and masked diffusion without error.

B answers, L positions, M solutions.
"""

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from flm.puzzles.rules import HOLE, Puzzle, Rules

_ROWS = 64  # answers at a time: B x M x L booleans are compared


def random_fill(puzzle: Puzzle, symbols: str, rng: random.Random) -> str:
    """Every hole with a symbol of its own, all equally likely."""
    return "".join(rng.choice(symbols) if given == HOLE else given for given in puzzle.givens)


def propagated(puzzle: Puzzle, rules: Rules) -> str | None:
    """What follows from the givens without search; holes may be left. None: nobody wrote that for these rules."""
    return rules.propagate(puzzle.givens)


def searched(puzzle: Puzzle, rules: Rules) -> str | None:
    """The first solution the solver finds; None: nobody wrote one, or there is no solution."""
    found = rules.solve(puzzle.givens, 1)
    return found[0] if found else None


class IdealMaskedDiffusion:
    """Masked diffusion that knows the posterior of every position exactly, with its holes filled in random order.

    Each evaluation writes an equal share of the holes, each from its own posterior given what stands so far. So it bounds
    what a trained model can do in as many evaluations: the positions of one evaluation do not know of each other.

    Args:
        solutions: all answers there are, equally likely.
    """

    def __init__(self, solutions: Sequence[str]):
        self.symbols = "".join(sorted(set("".join(solutions))))
        self.solutions = torch.tensor([[self.symbols.index(symbol) for symbol in answer] for answer in solutions])

    def __call__(self, givens: Sequence[str], steps: int, generator: torch.Generator) -> list[str]:
        """Answers to givens of one length; where what stands fits no solution any more, the rest is HOLE."""
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
