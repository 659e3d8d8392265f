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

    basic jumps from time to time, m <- m + (s' - s) p_{t,t'}(x_t). sampling jumps to the end from each time, takes the
    arg-max there, one sample of all positions together, and noises it for the next time. hybrid is the one, then the other.

    Args:
        scheme, t_split: as in GeodesicSampler.
        read_out: of the state at max_t: "state", its own arg-max, N network evaluations in all (wrong for about one token in a
            hundred, by the choice of max_t); "argmax" or "categorical", one evaluation more.
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
                "sampling.suppress and begin_suppress are of predictions, and sampling.read_out=state reads the state: "
                "take read_out=argmax or categorical"
            )

    def _guess(self, state: State, posterior: TokenPosterior, to_end: float, generator: torch.Generator) -> Tensor:
        """Where the jump to the end lands."""
        gain = torch.full_like(state.t, to_end)
        return most_probable(Moved(state.logits, posterior, gain), state.tokens.shape)
