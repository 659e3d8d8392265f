"""The package name of the project that the Qwen3 retrofit comes from, with its public names: its examples run unchanged.

All of it is `flm.qwen.flow_matching`; new code imports that, or `flm.load`.
"""

from flm.qwen.flow_matching import (
    DiscreteFlowPath,
    FlowMatchingConfig,
    FlowMatchingGenerationConfig,
    FlowMatchingLanguageModel,
    FlowMatchingSampler,
    TimeEmbedding,
)

__all__ = [
    "DiscreteFlowPath",
    "FlowMatchingConfig",
    "FlowMatchingGenerationConfig",
    "FlowMatchingLanguageModel",
    "FlowMatchingSampler",
    "TimeEmbedding",
]
