"""What running generated programs adds to the core."""

from flm.registry import Wing

WING = Wing(result_kinds={"code_eval": "flm.code.result_kinds:CODE_EVAL"})
