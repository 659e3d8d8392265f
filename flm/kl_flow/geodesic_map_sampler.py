"""Generation with the flow map of the KL geodesic: jumps in place of steps. B batch, L length, V vocabulary."""

from typing import Any, Literal

import torch
from torch import Tensor

from flm.kl_flow.geodesic_sampler import GeodesicSampler, Scheme, most_probable
from flm.kl_flow.geodesic_state import Moved, State
from flm.posterior import TokenPosterior
from flm.ranges import NonNegative


class GeodesicMapSampler(GeodesicSampler):
    """N jumps, even on the clock -log(1 - t).

    basic jumps between times, m <- m + (s' - s) p_{t,t'}(x_t). sampling jumps from each time to the end, takes the arg-max
    there, which is a joint sample of all positions, and noises it for the next time. hybrid is first basic, then sampling.

    Args:
        scheme, t_split: as in GeodesicSampler.
        read_out: of the state at max_t: "state", its own arg-max, with N network evaluations in all (wrong for about one token
            in a hundred, by the choice of max_t); "argmax" or "categorical", with one evaluation more.
    """

    def __init__(
        self,
        scheme: Scheme = "basic",
        t_split: NonNegative | None = None,
        read_out: Literal["state", "argmax", "categorical"] = "state",
        **policy: Any,
    ):
        super().__init__(scheme, t_split, **policy)
        self.read_out = read_out
        if read_out == "state" and (self.suppress or self.begin_suppress):
            raise ValueError(
                "sampling.suppress and begin_suppress act on predictions, and sampling.read_out=state reads the state: "
                "take read_out=argmax or categorical"
            )

    def _guess(self, state: State, posterior: TokenPosterior, to_end: float, generator: torch.Generator) -> Tensor:
        """The arg-max of the state at the end of the jump."""
        gain = torch.full_like(state.t, to_end)
        return most_probable(Moved(state.logits, posterior, gain), state.tokens.shape)
