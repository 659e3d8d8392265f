#!/usr/bin/env bash
# FLM on OpenWebText as published, with all GPUs of this machine. Arguments override.
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
need DATA_DIR "a folder for OpenWebText's tokens (and its files, where no network is reached: docs/recipes.md)" data.cache_dir
launch experiment=owt_flm ${DATA_DIR:+data.cache_dir="$DATA_DIR"} "$@"
