"""What uniform-state diffusion adds to the core: algorithms named by configs, and the published checkpoints of Duo."""

from flm.registry import Wing

WING = Wing(published_models={"duo": "flm.duo.published:DUO"})
