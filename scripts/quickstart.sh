#!/usr/bin/env bash
# About twelve minutes on two idle CPU cores. On one of them: models of one training time that write 4x4 Sudoku grids from nothing:
# a flow map in one network evaluation, beside masked diffusion, Duo and AR. On the other: a flow language model on the prose
# that ships with Python, and its flow map. Then what they write, and a report.
# Arguments override the config of every training: `bash scripts/quickstart.sh trainer.max_steps=100`. OUT names the folder.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
out="${OUT:-outputs/quickstart/$(date +%Y-%m-%d_%H-%M-%S)}"
mkdir -p "$out"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"  # two trainings at a time

words() {
  python main.py experiment=pydoc_flm trainer.max_steps=2000 trainer.val_check_interval=1000 hydra.run.dir="$out/flm" \
    data.cache_dir="$out/data" "$@"
  python main.py experiment=pydoc_fmlm trainer.max_steps=800 algo.teacher_path="$out/flm/checkpoints/last.ckpt" \
    hydra.run.dir="$out/fmlm" data.cache_dir="$out/data" "$@"
}
puzzle() { # MODEL ARGUMENT...: trains, and measures by network evaluations
  local model=$1
  shift
  echo "== puzzle: $model"
  python main.py experiment="sudoku4_$model" hydra.run.dir="$out/sudoku4_$model" "$@"
  python main.py mode=solve_eval eval.checkpoint_path="$out/sudoku4_$model/checkpoints/last.ckpt" \
    'sampling.steps=[1,2,4,16]' loader.eval_batch_size=250 hydra.run.dir="$out/solved/$model"
}

echo "== text: training in the background, log in $out/text.log"
words "$@" > "$out/text.log" 2>&1 &
text=$!
trap 'kill $text 2>/dev/null || true' EXIT
# steps that take a core the same time: FLM and its flow map together as long as each of the others
SECONDS=0
puzzle flm "$@"
echo "== about $(((SECONDS * 7 + 59) / 60)) minutes in all, as fast as this machine was for the first of them"
puzzle fmlm algo.teacher_path="$out/sudoku4_flm/checkpoints/last.ckpt" "$@"
puzzle mdlm "$@"
puzzle duo "$@"
puzzle ar "$@"
runs=$(printf ",$out/solved/%s" fmlm flm mdlm duo ar)
python main.py mode=side_by_side "side_by_side.runs=[${runs:1}]" \
  hydra.run.dir="$out/solved/side_by_side"
echo "== text: waiting for its flow map"
if ! wait $text; then
  tail -n 5 "$out/text.log" >&2
  exit 1
fi
python main.py mode=sample_eval eval.checkpoint_path="$out/flm/checkpoints/last.ckpt" 'sampling.steps=[1,8,64]' \
  sampling.film=true loader.eval_batch_size=32 hydra.run.dir="$out/flm_samples"
python main.py mode=sample_eval eval.checkpoint_path="$out/fmlm/checkpoints/last.ckpt" 'sampling.steps=[1,8]' \
  sampling.film=true loader.eval_batch_size=32 hydra.run.dir="$out/fmlm_samples"
echo "== report"
python main.py mode=report "report.inputs=[$out]" hydra.run.dir="$out/report"
echo "everything was written under $out; open $out/report/report.html"
