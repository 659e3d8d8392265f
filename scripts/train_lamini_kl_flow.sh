#!/usr/bin/env bash
# KL-flow at the published size on LaMini-instruction, with all GPUs of this machine. Arguments override.
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
need DATA_DIR "a folder for the tokens (and the files, where no network is reached: docs/recipes.md)" data.cache_dir
launch experiment=lamini_kl_flow ${DATA_DIR:+data.cache_dir="$DATA_DIR"} "$@"
