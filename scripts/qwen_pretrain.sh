#!/usr/bin/env bash
# Qwen3 becomes a flow language model, stage 1 of 3. NUM_GPUS, OUTPUT_DIR, CONFIG_FILE (an experiment), DATA_DIR (a folder of text
# for each source, in place of the hub). data=qwen3_pretrain_code adds The Stack v1. Arguments override.
source "$(dirname "${BASH_SOURCE[0]}")/qwen_stage.sh"
need QWEN_PATH "a folder of Qwen3 with its tokenizer"
stage qwen3_pretrain "$QWEN_PATH" "$@"
