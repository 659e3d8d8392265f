"""What the retrofit of Qwen3 adds to the core."""

from flm.registry import Wing

WING = Wing(
    commands={"adapter": "flm.qwen.adapters:adapter"},
    model_files={"adapter": "flm.qwen.adapters:AdapterFolder"},
    transformers_models={"qwen3": "flm.qwen.transformers_model:transformers_model"},
    resolvers={"architecture_of": "flm.qwen.backbone:architecture_of"},
)
