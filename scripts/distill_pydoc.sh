#!/usr/bin/env bash
# A flow map in one stage on the embedded corpus, from TEACHER_PATH (an experiment=pydoc_flm checkpoint). Arguments override.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
python main.py experiment=pydoc_fmlm algo.teacher_path="${TEACHER_PATH:?set TEACHER_PATH to a checkpoint of experiment=pydoc_flm}" "$@"
