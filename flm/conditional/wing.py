"""What evaluation of responses to prompts adds to the core: a mode, its results, and published sets of pairs."""

from flm.registry import Wing

WING = Wing(result_kinds={"conditional_eval": "flm.conditional.result_kind:KIND"})
