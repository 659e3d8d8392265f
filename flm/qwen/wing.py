"""What the retrofit of Qwen3 adds to the core."""

from flm.registry import Wing

WING = Wing(
    transformers_models={"qwen3": "flm.qwen.transformers_model:transformers_model"},
    resolvers={"architecture_of": "flm.qwen.backbone:architecture_of"},
)
