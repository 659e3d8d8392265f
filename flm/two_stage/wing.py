"""What two-stage distillation adds to the core: algorithms named by configs, and published residual networks."""

from flm.registry import Wing

WING = Wing(published_models={"flm_distill": "flm.two_stage.published:RESIDUAL"})
