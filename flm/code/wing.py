"""What running generated programs adds to the core."""

from flm.registry import Wing

WING = Wing()
