#!/usr/bin/env bash
# The older scheme on LM1B, first of two stages: a residual network beside a trained FLM. Arguments override.
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
need DATA_DIR "a folder for LM1B's tokens (and its files, where no network is reached: docs/recipes.md)" data.cache_dir
need TEACHER_PATH "a checkpoint of scripts/train_lm1b_flm.sh" algo.teacher_path
launch experiment=lm1b_flm_distill ${DATA_DIR:+data.cache_dir="$DATA_DIR"} ${TEACHER_PATH:+algo.teacher_path="$TEACHER_PATH"} "$@"
