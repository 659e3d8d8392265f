"""What the flow along KL geodesics adds to the core: only algorithms, which their YAMLs name by path."""

from flm.registry import Wing

WING = Wing()
