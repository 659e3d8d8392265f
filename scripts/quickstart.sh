#!/usr/bin/env bash
# About eleven minutes on two idle CPU cores. On one of them: models of one training time that write 4x4 Sudoku grids from nothing:
# a flow map in one network evaluation, beside masked diffusion, Duo and AR. On the other: a flow language model on the words of the
# prose that ships with Python, and its flow map. Then what they write, and a report.
# Arguments override the config of every training: `bash scripts/quickstart.sh trainer.max_steps=100`. OUT names the folder.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
out="${OUT:-outputs/quickstart/$(date +%Y-%m-%d_%H-%M-%S)}"
mkdir -p "$out/solved"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"  # two trainings at a time

words() {
  python main.py experiment=pydoc_flm_fitted trainer.max_steps=2000 trainer.val_check_interval=1000 hydra.run.dir="$out/flm" \
    data.cache_dir="$out/data" "$@"
  python main.py experiment=pydoc_fmlm_fitted trainer.max_steps=800 algo.teacher_path="$out/flm/checkpoints/last.ckpt" \
    hydra.run.dir="$out/fmlm" data.cache_dir="$out/data" "$@"
}
train() { # MODEL ARGUMENT...
  local model=$1
  shift
  echo "== puzzle: training $model ($((++trained)) of 5)"
  python main.py experiment="sudoku4_$model" hydra.run.dir="$out/sudoku4_$model" "$@"
}
solve() { # MODEL: 1,000 grids in 1, 2, 4 and 16 network evaluations each
  python main.py mode=solve_eval eval.checkpoint_path="$out/sudoku4_$1/checkpoints/last.ckpt" 'sampling.steps=[1,2,4,16]' \
    loader.eval_batch_size=250 hydra.run.dir="$out/solved/$1"
}

echo "== everything goes to $out"
echo "== text: two trainings in the background; to watch them: tail -f $out/text.log"
set -m # a group of its own, so that nothing of it is left behind where this script ends early
words "$@" > "$out/text.log" 2>&1 &
text=$!
set +m
trap 'kill -- -$text 2>/dev/null || true' EXIT
# steps that take a core the same time: FLM and its flow map together as long as each of the others
SECONDS=0 trained=0
train flm "$@"
solve flm > "$out/solved/flm.log"
echo "== about $(((SECONDS * 6 + 59) / 60)) more minutes, as fast as this machine was so far"
train fmlm algo.teacher_path="$out/sudoku4_flm/checkpoints/last.ckpt" "$@"
echo "== puzzle: grids of the flow map, in 1, 2, 4 and 16 network evaluations from the same noise"
solve fmlm
for model in mdlm duo ar; do
  train $model "$@"
  solve $model > "$out/solved/$model.log"
done
echo "== puzzle: all five, trained for the same time"
runs=$(printf ",$out/solved/%s" fmlm flm mdlm duo ar)
python main.py mode=side_by_side "side_by_side.runs=[${runs:1}]" hydra.run.dir="$out/solved/side_by_side"
if kill -0 $text 2>/dev/null; then echo "== text: waiting for its trainings; tail -f $out/text.log"; fi
if ! wait $text; then
  tail -n 5 "$out/text.log" >&2
  exit 1
fi
echo "== text: what the flow model writes in 4, 16 and 64 evaluations, and its flow map in 1, 4 and 8"
python main.py mode=sample_eval eval.checkpoint_path="$out/flm/checkpoints/last.ckpt" 'sampling.steps=[4,16,64]' \
  sampling.film=true loader.eval_batch_size=32 hydra.run.dir="$out/flm_samples"
python main.py mode=sample_eval eval.checkpoint_path="$out/fmlm/checkpoints/last.ckpt" 'sampling.steps=[1,4,8]' \
  sampling.film=true loader.eval_batch_size=32 hydra.run.dir="$out/fmlm_samples"
echo "== report"
python main.py mode=report "report.inputs=[$out]" hydra.run.dir="$out/report"
echo "everything was written under $out; open $out/report/report.html"
