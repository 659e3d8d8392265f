"""What serving adds to the core: nothing in files or configs; `flm serve` and `flm demo` call it by name."""

from flm.registry import Wing

WING = Wing()
