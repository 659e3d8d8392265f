#!/usr/bin/env bash
# The older scheme on OpenWebText, second of two stages: FLM and residual compressed into one network. Arguments override.
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
need DATA_DIR "a folder for OpenWebText's tokens (and its files, where no network is reached: docs/recipes.md)" data.cache_dir
need TEACHER_PATH "a checkpoint of scripts/train_owt_flm_distill.sh, which holds its FLM as well" algo.teacher_g_path algo.teacher_path_g
launch experiment=owt_flm_distill_second ${DATA_DIR:+data.cache_dir="$DATA_DIR"} ${TEACHER_PATH:+algo.teacher_g_path="$TEACHER_PATH"} "$@"
