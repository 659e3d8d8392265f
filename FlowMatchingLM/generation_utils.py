"""The sampler and its config, where the original keeps them."""

from flm.qwen.flow_matching import FlowMatchingGenerationConfig, FlowMatchingSampler

__all__ = ["FlowMatchingGenerationConfig", "FlowMatchingSampler"]
