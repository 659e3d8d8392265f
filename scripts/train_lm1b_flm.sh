#!/usr/bin/env bash
# FLM on LM1B as published, with all GPUs of this machine. Arguments override.
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
need DATA_DIR "a folder for LM1B's tokens (and its files, where no network is reached: docs/recipes.md)" data.cache_dir
launch experiment=lm1b_flm ${DATA_DIR:+data.cache_dir="$DATA_DIR"} "$@"
