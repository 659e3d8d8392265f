"""What the Qwen3 retrofit registers: a command, a kind of model file, and its network for transformers."""

from flm.registry import Wing

WING = Wing(
    commands={"adapter": "flm.qwen.adapters:adapter"},
    model_files={"adapter": "flm.qwen.adapters:AdapterFolder"},
    transformers_models={"qwen3": "flm.qwen.transformers_model:transformers_model"},
    resolvers={"architecture_of": "flm.qwen.backbone:architecture_of"},
)
