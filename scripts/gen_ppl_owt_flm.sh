#!/usr/bin/env bash
# How gpt2-large judges texts of an FLM on OpenWebText. STEPS, as 64 or [8,64]: others than the recipe's. Arguments override.
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
need CKPT_PATH "a checkpoint of scripts/train_owt_flm.sh, or published weights"
need DATA_DIR "a folder for OpenWebText's tokens (and its files, where no network is reached: docs/recipes.md)"
launch mode=sample_eval experiment=owt_flm eval.checkpoint_path="$CKPT_PATH" data.cache_dir="$DATA_DIR" \
  ${STEPS:+sampling.steps="$STEPS"} "$@"
