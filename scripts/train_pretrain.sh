#!/usr/bin/env bash
# Qwen3 becomes a flow language model, stage 1 of 3. NUM_GPUS, OUTPUT_DIR, CONFIG_FILE (an experiment), DATA_DIR (a folder of text
# for each source, in place of the hub). --include_stack_v1 or --include_stack_v2 adds code of The Stack. Other arguments override.
source "$(dirname "${BASH_SOURCE[0]}")/qwen_stage.sh"
need QWEN_PATH "a folder of Qwen3 with its tokenizer"
data=()
rest=()
for argument in "$@"; do
  case "$argument" in
    --include_stack_v1) data+=(data=qwen3_pretrain_code) ;;
    --include_stack_v2) data+=(data=qwen3_pretrain_stack_v2) ;;
    *) rest+=("$argument") ;;
  esac
done
[ ${#data[@]} -le 1 ] || { echo "error: --include_stack_v1 and --include_stack_v2 are the same code twice: take one" >&2; exit 1; }
stage qwen3_pretrain "$QWEN_PATH" ${data[@]+"${data[@]}"} ${rest[@]+"${rest[@]}"}
