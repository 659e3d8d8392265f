"""What stands next to a position, handed over before the first block. B batch, L positions, D width, H heads."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Neighbours(nn.Module):
    """Adds to each position a linear map of every position up to `reach` away, one map a distance.

    Attention finds who stands where only after a while: it has to build positions out of rotations of features that carry none
    at the start. What stands next to a position is most of what short contexts say, and this hands it over at once.
    """

    def __init__(self, width: int, reach: int):
        super().__init__()
        self.reach = reach
        bound = (width * (2 * reach + 1)) ** -0.5
        self.weight = nn.Parameter(torch.empty(2 * reach + 1, width, width).uniform_(-bound, bound))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x (B, L, D), and a mask as `attention` takes it, the same for all heads: who may not be seen is left out."""
        length, total = x.shape[1], x
        for index, weight in enumerate(self.weight):
            distance = index - self.reach
            if abs(distance) >= length:
                continue
            here, there = (
                slice(max(0, -distance), length - max(0, distance)),
                slice(max(0, distance), length + min(0, distance)),
            )
            moved = F.linear(x[:, there], weight)
            if mask is not None:
                seen = mask.expand(*mask.shape[:-2], length, length).diagonal(distance, -2, -1)
                moved = moved * seen[:, 0, :, None].to(moved.dtype)
            total = total + F.pad(moved, (0, 0, here.start, length - here.stop))
        return total
