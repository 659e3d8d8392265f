"""The model, where the original keeps it."""

from flm.qwen.flow_matching import FlowMatchingLanguageModel

__all__ = ["FlowMatchingLanguageModel"]
