#!/usr/bin/env bash
# Stage 2 of 3: more code and harder masks, from PRETRAIN_CHECKPOINT. NUM_GPUS, OUTPUT_DIR, CONFIG_FILE, DATA_DIR as in stage 1.
source "$(dirname "${BASH_SOURCE[0]}")/qwen_stage.sh"
need QWEN_PATH "a folder of Qwen3, for its tokenizer"
need PRETRAIN_CHECKPOINT "a checkpoint of scripts/train_pretrain.sh, or a folder exported from one"
stage qwen3_midtrain "$PRETRAIN_CHECKPOINT" "$@"
