"""What the report adds to the core: it reads result files, so it has none of its own kind."""

from flm.registry import Wing

WING = Wing()
