#!/usr/bin/env bash
# AR, MDLM, Duo, FLM and its flow map on one corpus with one budget, and they, KL-flow and DFM on a puzzle with one training
# time, side by side in one report: about two hours on two CPU cores.
# Arguments override the config of every training on text: `bash scripts/compare.sh data=text data.path=FOLDER tokenizer=bpe`.
#   BUDGET      optimiser steps of each training on text; the flow map's come on top of its teacher's
#   PUZZLE      overrides of every training on the puzzle: PUZZLE="seed=2"; their steps take all models the same time, the
#               flow map with its teacher's
#   EVALUATION  overrides of what measures them: EVALUATION="eval.gen_ppl_eval_model_name_or_path=gpt2-large"
#   OUT         folder for everything. Started again with the same OUT, it goes on where it stopped.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
budget="${BUDGET:-2800}"
out="${OUT:-outputs/compare}"
steps='[1,4,16,64,256]'
read -ra evaluation <<< "loader.eval_batch_size=32 ${EVALUATION:-}"

read -ra puzzle <<< "${PUZZLE:-}"

asked="budget $budget, overrides: $*, evaluation: ${EVALUATION:-}, puzzle: ${PUZZLE:-}"
if [ "$(cat "$out/asked" 2>/dev/null || echo "$asked")" != "$asked" ]; then
  echo "error: $out holds a comparison with $(cat "$out/asked"): set OUT to another folder, or remove this one" >&2
  exit 1
fi
mkdir -p "$out"
echo "$asked" > "$out/asked"

part() { # part NAME ARGUMENT...: writes $out/NAME, unless that is there in full
  local folder="$out/$1"
  shift
  if [ -e "$folder/complete" ]; then return; fi
  echo "== $folder"
  python main.py "$@" hydra.run.dir="$folder"
  mkdir -p "$folder" && touch "$folder/complete"
}

for model in ar mdlm duo flm; do
  more=()
  if [ $model = duo ]; then more=(algo.curriculum_end=$((budget / 2))); fi # as published
  part $model experiment=pydoc_$model trainer.max_steps="$budget" data.cache_dir="$out/data" ${more[@]+"${more[@]}"} "$@"
done
part fmlm experiment=pydoc_fmlm algo.teacher_path="$out/flm/checkpoints/last.ckpt" trainer.max_steps="$budget" \
  data.cache_dir="$out/data" "$@"
for model in ar mdlm duo flm fmlm; do
  checkpoint="$out/$model/checkpoints/last.ckpt"
  part "evaluation/${model}_samples" mode=sample_eval eval.checkpoint_path="$checkpoint" sampling.steps="$steps" \
    sampling.num_sample_batches=2 "${evaluation[@]}"
  part "evaluation/${model}_frontier" mode=frontier eval.checkpoint_path="$checkpoint" frontier.steps="$steps" \
    'frontier.temperature=[0.8,0.9,1.0,1.1]' "${evaluation[@]}"
done
for model in ar mdlm duo flm; do # a flow map has no likelihood bound
  part "evaluation/${model}_likelihood" mode=ppl_eval eval.checkpoint_path="$out/$model/checkpoints/last.ckpt" \
    data.cache_dir="$out/data" "${evaluation[@]}"
done
for model in ar mdlm duo dfm kl_flow flm fmlm; do
  more=()
  if [ $model = fmlm ]; then more=(algo.teacher_path="$out/sudoku4_flm/checkpoints/last.ckpt"); fi
  part sudoku4_$model experiment=sudoku4_$model ${more[@]+"${more[@]}"} ${puzzle[@]+"${puzzle[@]}"}
  part "evaluation/sudoku4_$model" mode=solve_eval eval.checkpoint_path="$out/sudoku4_$model/checkpoints/last.ckpt" \
    'sampling.steps=[1,2,4,8,16,64]' loader.eval_batch_size=250
done
runs=$(printf ",$out/evaluation/sudoku4_%s" ar mdlm duo dfm kl_flow flm fmlm)
python main.py mode=side_by_side hydra.run.dir="$out/side_by_side" "side_by_side.runs=[${runs:1}]"
python main.py mode=report "report.inputs=[$out]" "report.title='AR, MDLM, Duo, FLM and FMLM'" hydra.run.dir="$out/report"
echo "everything was written under $out; open $out/report/report.html"
