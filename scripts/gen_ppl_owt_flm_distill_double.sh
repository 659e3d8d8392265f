#!/usr/bin/env bash
# As gen_ppl_owt_fmlm.sh, of the older scheme's second stage; its teachers are not needed any more. Arguments override.
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
need CKPT_PATH "a checkpoint of scripts/train_owt_flm_distill_second.sh" eval.checkpoint_path
need DATA_DIR "a folder for OpenWebText's tokens (and its files, where no network is reached: docs/recipes.md)" data.cache_dir
launch mode=sample_eval experiment=owt_flm_distill_second algo.teacher_g_path=null ${CKPT_PATH:+eval.checkpoint_path="$CKPT_PATH"} \
  ${DATA_DIR:+data.cache_dir="$DATA_DIR"} ${STEPS:+sampling.steps="$STEPS"} "$@"
