#!/usr/bin/env bash
# How gpt2-large judges texts of an FLM on OpenWebText. STEPS, as 64 or [8,64]: others than the recipe's. Arguments override.
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
need CKPT_PATH "a checkpoint of scripts/train_owt_flm.sh, or published weights" eval.checkpoint_path
need DATA_DIR "a folder for OpenWebText's tokens (and its files, where no network is reached: docs/recipes.md)" data.cache_dir
launch mode=sample_eval experiment=owt_flm ${CKPT_PATH:+eval.checkpoint_path="$CKPT_PATH"} ${DATA_DIR:+data.cache_dir="$DATA_DIR"} \
  ${STEPS:+sampling.steps="$STEPS"} "$@"
