"""What published weights of FLM and FMLM (arXiv 2602.16813) were trained and are sampled with, where their files are silent.

Their code had the output softcap from its first commit on, except from 25 February to 7 April 2026. A file of those weeks has
the same names and shapes as one of before or after. Its logits are wrong without a word if they are bent by a softcap that it
was not trained with, and so are the others' if theirs are not.
"""

import logging
import re
from pathlib import Path
from typing import Any

from flm.published.layout import Layout

RELEASED = ("lm1b_flm.ckpt", "lm1b_fmlm.ckpt", "owt_flm.ckpt", "owt_fmlm.ckpt")
_RELEASED_ALGORITHM = "dos_denoiser"  # of the private branch that the released files come from, as is algo.time_condition
_CAPPED_AGAIN = (2, 6)  # Lightning's version since the code that has the softcap again
# as the authors' scripts evaluate, by V; the numbers of steps of their table
_FMLM_GAMMA = {30522: 0.8, 50257: 1.0, 50258: 1.0}
_FMLM_STEPS = [1, 2, 4, 8, 16, 32]
_TWO_STAGE_STEPS = [1, 2, 4]

log = logging.getLogger(__name__)


def check_softcap_known(layout: Layout, name: str) -> None:
    """Raises ValueError if an FLM or FMLM in a file called `name` may be of the weeks without an output softcap."""
    if layout.algorithm == _RELEASED_ALGORITHM or layout.time_condition is not None:
        return
    if Path(name).name in RELEASED:
        log.warning("%s: taken by its name for the published weights, which have an output softcap", name)
        return
    version = re.match(r"(\d+)\.(\d+)", layout.lightning or "")
    if version is not None and (int(version[1]), int(version[2])) >= _CAPPED_AGAIN and not layout.several_averages:
        return
    raise ValueError(
        f"{name}: may be of FLM's code of 25 February to 7 April 2026, which had no output softcap: set eval.output_softcap to "
        "null if it is, else to 30 (mode=import writes it down, also for use as a teacher)"
    )


def generation(layout: Layout) -> dict[str, Any]:
    """The `sampling` that numbers of a flow map were published with; empty where none is known."""
    if any(key.startswith("loss_weight.") for key in layout.weights):  # two stages: one deterministic jump a step
        return {"steps": _TWO_STAGE_STEPS, "gamma": 0.0}
    gamma = _FMLM_GAMMA.get(layout.vocab_size)
    return {} if gamma is None else {"steps": _FMLM_STEPS, "gamma": gamma}
