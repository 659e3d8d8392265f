"""What checkpoints that all processes write add to the core: how their folders are read, and made into one file."""

from flm.registry import Wing

WING = Wing(
    model_files={"split": "flm.split_checkpoints.split_folder:SplitFolder"},
    commands={"join": "flm.split_checkpoints.join:join"},
)
