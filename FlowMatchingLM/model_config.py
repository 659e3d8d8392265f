"""The model's config, where the original keeps it."""

from flm.qwen.flow_matching import FlowMatchingConfig

__all__ = ["FlowMatchingConfig"]
