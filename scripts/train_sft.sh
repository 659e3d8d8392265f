#!/usr/bin/env bash
# Stage 3 of 3: answers in conversations, from MIDTRAIN_CHECKPOINT. NUM_GPUS, OUTPUT_DIR, CONFIG_FILE, DATA_DIR as in stage 1.
source "$(dirname "${BASH_SOURCE[0]}")/qwen_stage.sh"
need QWEN_PATH "a folder of Qwen3, for its tokenizer and chat template"
need MIDTRAIN_CHECKPOINT "a checkpoint of scripts/train_midtrain.sh, or a folder exported from one"
stage qwen3_sft "$MIDTRAIN_CHECKPOINT" data.reader.template="$QWEN_PATH" "$@"
