#!/usr/bin/env bash
# How gpt2-large judges texts of a flow map on OpenWebText. STEPS, as 4 or [1,4]: others than the recipe's. Arguments override.
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
need CKPT_PATH "a checkpoint of scripts/train_owt_fmlm.sh, or published weights"
need DATA_DIR "a folder for OpenWebText's tokens (and its files, where no network is reached: docs/recipes.md)"
launch mode=sample_eval experiment=owt_fmlm eval.checkpoint_path="$CKPT_PATH" data.cache_dir="$DATA_DIR" \
  ${STEPS:+sampling.steps="$STEPS"} "$@"
