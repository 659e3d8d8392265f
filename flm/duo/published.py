"""Checkpoints of Duo as its authors published them."""

from flm.checkpoints.foreign import Kind

TITLE = "Duo (uniform-state diffusion, arXiv 2506.10892)"
DUO = Kind(TITLE, "flm.duo.duo.Duo", two_times=False, names=("duo", "duo_base", "distillation"))
