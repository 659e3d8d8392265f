"""What further methods of few network evaluations add to the core: only algorithms, which their YAMLs name by path."""

from flm.registry import Wing

WING = Wing()
