"""What the benchmark adds to the core: a mode, which configs/mode/benchmark.yaml names, and its results."""

from flm.registry import Wing

WING = Wing(result_kinds={"benchmark": "flm.benchmark.result_kind:KIND"})
