"""What the systems of the parameter-golf track add to the core."""

from flm.registry import Wing

WING = Wing(model_files={"packed": "flm.golf.packed:PackedFile"})
