"""What further methods of few network evaluations add to the core: algorithms alone, found by the paths in their YAMLs."""

from flm.registry import Wing

WING = Wing()
