"""What recorded evaluations add to the core."""

from flm.registry import Wing

WING = Wing(accelerations={"cuda_graphs": "flm.cuda_graphs.captured:cuda_graphs"})
