"""What the benchmark adds to the core: a mode, which configs/mode/benchmark.yaml names."""

from flm.registry import Wing

WING = Wing()
