"""What the systems of the parameter-golf track register: a kind of model file and three kinds of results."""

from flm.registry import Wing

WING = Wing(
    model_files={"packed": "flm.golf.packed:PackedFile"},
    result_kinds={
        "golf_eval": "flm.golf.result_kinds:GOLF_EVAL",
        "flow_lm_eval": "flm.golf.result_kinds:FLOW_LM_EVAL",
        "artifact": "flm.golf.result_kinds:ARTIFACT",
    },
)
