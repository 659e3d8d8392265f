#!/usr/bin/env bash
# The native-flow system of the parameter-golf track. Arguments override; ablations: one --multirun, the part in it, such as
# `bash scripts/golf_native_flow.sh --multirun algo.flow.t_eval=0.3,0.6,1.0` or `--multirun model.exclusive=true,false`.
#   DATA_DIR   folder with the track's shards (*_train_*.bin, *_val_*.bin); not set: small, on the text that ships with Python
#   TOKENIZER  the SentencePiece model the shards were written with
# The track's own DATA_PATH, TOKENIZER_PATH, SEED, ITERATIONS and TRAIN_SEQ_LEN do the same as what they are called here.
source "$(dirname "${BASH_SOURCE[0]}")/golf.sh"
golf_recipe native_flow
launch "${recipe[@]}" "$@"
