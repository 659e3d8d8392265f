#!/usr/bin/env bash
# The two-stage scheme on the embedded corpus, from TEACHER_PATH (an experiment=pydoc_flm checkpoint). Arguments override both.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
teacher="${TEACHER_PATH:?set TEACHER_PATH to a checkpoint of experiment=pydoc_flm}"
out="${OUT:-outputs/two_stage/$(date +%Y-%m-%d_%H-%M-%S)}"
python main.py experiment=pydoc_flm_distill algo.teacher_path="$teacher" hydra.run.dir="$out/first" "$@"
python main.py experiment=pydoc_flm_distill_second algo.teacher_f_path="$teacher" \
  algo.teacher_g_path="$out/first/checkpoints/last.ckpt" hydra.run.dir="$out/second" "$@"
echo "both stages were written under $out"
