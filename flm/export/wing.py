"""What export adds to the core: a mode, which configs/mode/export.yaml names."""

from flm.registry import Wing

WING = Wing()
