"""What published checkpoints of FLM, FMLM and MDLM add to the core: their layout and kinds, and a mode that rewrites them."""

from flm.registry import Wing

WING = Wing(
    checkpoint_layouts={"published": "flm.published.imported:PublishedLayout"},
    published_models={
        "flm": "flm.published.imported:FLM",
        "fmlm": "flm.published.imported:FMLM",
        "mdlm": "flm.published.imported:MDLM",
    },
)
