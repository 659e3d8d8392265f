"""What the flow along KL geodesics adds to the core: nothing by name; a config's `_target_` finds its algorithms."""

from flm.registry import Wing

WING = Wing()
