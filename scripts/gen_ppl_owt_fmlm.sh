#!/usr/bin/env bash
# Generative perplexity and entropy of a flow map on OpenWebText by gpt2-large; STEPS, as 4 or [1,4], instead of the recipe's. Arguments override.
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
need CKPT_PATH "a checkpoint of scripts/train_owt_fmlm.sh, or published weights"
need DATA_DIR "a folder for OpenWebText's tokens (and its files, where no network is reached: docs/recipes.md)"
launch mode=sample_eval experiment=owt_fmlm eval.checkpoint_path="$CKPT_PATH" data.cache_dir="$DATA_DIR" \
  ${STEPS:+sampling.steps="$STEPS"} "$@"
