"""Time features and the path of corruption, where the original keeps them."""

from flm.qwen.flow_matching import DiscreteFlowPath, TimeEmbedding

__all__ = ["DiscreteFlowPath", "TimeEmbedding"]
