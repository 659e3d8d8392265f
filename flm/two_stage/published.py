"""Checkpoints of the residual network, as the authors of two-stage FMLM published them."""

from flm.checkpoints.foreign import Kind

RESIDUAL = Kind(
    "the residual network of two-stage FMLM (arXiv 2602.16813, first version)",
    "flm.two_stage.flm_distill.FLMDistill",
    two_times=True,
    output_softcap=30.0,
    attention_softcap=50.0,
    network="residual",
    loss_weight=True,
    uncapped_for_weeks=True,
)
