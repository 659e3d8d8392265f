"""Modes: one file each, and the parts that they share."""

import logging
import math
from collections.abc import Sequence
from typing import Any

from omegaconf import OmegaConf

from flm.tasks.wings import take_in
from flm.training.schedules import warm_up


def positions(grid: Any, otherwise: int) -> int:
    """The number of cells of `model.grid`, or `otherwise` if there is no grid.

    Used in configs as `${positions:${oc.select:model.grid,null},32}`. The values are checked later.
    """
    is_board = isinstance(grid, Sequence) and bool(grid) and all(isinstance(size, int) for size in grid)
    return math.prod(grid) if is_board else otherwise


OmegaConf.register_new_resolver("warm_up", warm_up, replace=True)
OmegaConf.register_new_resolver("positions", positions, replace=True)
take_in()
logging.getLogger("matplotlib").setLevel(logging.ERROR)  # Lightning imports it; it warns at length of folders it cannot write
