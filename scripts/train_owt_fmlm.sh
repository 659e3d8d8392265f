#!/usr/bin/env bash
# The flow map of a trained FLM on OpenWebText in one stage. Arguments override.
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
need DATA_DIR "a folder for OpenWebText's tokens (and its files, where no network is reached: docs/recipes.md)" data.cache_dir
need TEACHER_PATH "a checkpoint of scripts/train_owt_flm.sh" algo.teacher_path
launch experiment=owt_fmlm ${DATA_DIR:+data.cache_dir="$DATA_DIR"} ${TEACHER_PATH:+algo.teacher_path="$TEACHER_PATH"} "$@"
