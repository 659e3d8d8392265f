#!/usr/bin/env bash
# AR, MDLM, Duo, FLM and its flow map on one corpus with one budget, and they, KL-flow and DFM on two puzzles with one training
# time, side by side in one report: about two and a half hours of one CPU core for each seed.
# Arguments override the config of every training on text: `bash scripts/compare.sh data=text data.path=FOLDER tokenizer=bpe`.
#   TASKS       which of text, sudoku4 (grids from nothing) and sudoku4_clues (held-out puzzles); all three
#   SEEDS       seeds of the trainings, "1 2 3"; "1"
#   BUDGET      optimiser steps of each training on text; the flow map's come on top of its teacher's
#   SHARE       percent of the training time on puzzles, which is the same for all models, teachers included; 100: 150 s of a core
#   PUZZLE      overrides of every training on puzzles
#   EVALUATION  overrides of what measures texts: EVALUATION="eval.gen_ppl_eval_model_name_or_path=gpt2-large"
#   OUT         folder for everything. Started again with the same OUT, it goes on where it stopped, also with more TASKS or SEEDS.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
source scripts/parts.sh
budget="${BUDGET:-2800}"
out="${OUT:-outputs/compare}"
tasks="${TASKS:-text sudoku4 sudoku4_clues}"
seeds="${SEEDS:-1}"
share="${SHARE:-100}"
steps='[1,4,16,64,256]'
read -ra evaluation <<< "loader.eval_batch_size=32 ${EVALUATION:-}"
read -ra puzzle <<< "${PUZZLE:-}"

for task in $tasks; do
  case $task in
    text | sudoku4 | sudoku4_clues) ;;
    *)
      echo "error: TASKS must be some of text, sudoku4, sudoku4_clues, not $task" >&2
      exit 1
      ;;
  esac
done
begin "budget $budget, overrides: $*, evaluation: ${EVALUATION:-}, share $share, puzzle: ${PUZZLE:-}"

text() { # text SEED OVERRIDE...
  local at="seed$1" with=(seed="$1" data.cache_dir="$out/data") model checkpoint more
  shift
  for model in ar mdlm duo flm; do
    more=()
    if [ $model = duo ]; then more=(algo.curriculum_end=$((budget / 2))); fi # as published
    part "$at/$model" experiment=pydoc_$model trainer.max_steps="$budget" "${with[@]}" ${more[@]+"${more[@]}"} "$@"
  done
  part "$at/fmlm" experiment=pydoc_fmlm algo.teacher_path="$out/$at/flm/checkpoints/last.ckpt" trainer.max_steps="$budget" \
    "${with[@]}" "$@"
  for model in ar mdlm duo flm fmlm; do
    checkpoint="$out/$at/$model/checkpoints/last.ckpt"
    part "$at/evaluation/${model}_samples" mode=sample_eval eval.checkpoint_path="$checkpoint" sampling.steps="$steps" \
      sampling.num_sample_batches=2 "${evaluation[@]}"
    part "$at/evaluation/${model}_frontier" mode=frontier eval.checkpoint_path="$checkpoint" frontier.steps="$steps" \
      'frontier.temperature=[0.8,0.9,1.0,1.1]' "${evaluation[@]}"
  done
  for model in ar mdlm duo flm; do # a flow map has no likelihood bound
    part "$at/evaluation/${model}_likelihood" mode=ppl_eval eval.checkpoint_path="$out/$at/$model/checkpoints/last.ckpt" \
      data.cache_dir="$out/data" "${evaluation[@]}"
  done
}

steps_of() { # steps_of TASK_MODEL: what took one core 150 s where this was measured; the flow map with its teacher
  local steps
  case $1 in
    sudoku4_clues_ar) steps=2200 ;; # rows of twice the length
    *_ar | *_ar_in_place) steps=3970 ;;
    *_mdlm) steps=3300 ;;
    *_duo) steps=3350 ;;
    *_dfm) steps=3500 ;;
    *_kl_flow) steps=3430 ;;
    *_flm) steps=3580 ;;
    *_teacher) steps=2000 ;;
    *_fmlm) steps=900 ;;
  esac
  steps=$((steps * share / 100))
  echo $((steps < 4 ? 4 : steps))
}

learn() { # learn TASK SEED MODEL EXPERIMENT OVERRIDE...: one training on puzzles
  local task=$1 seed=$2 model=$3 experiment=$4 steps
  shift 4
  steps=$(steps_of "${task}_$model")
  if [ "$model" = duo ]; then set -- algo.curriculum_end=$((steps / 2)) "$@"; fi # as published
  part "seed$seed/${task}_$model" experiment="${task}_$experiment" seed="$seed" trainer.max_steps="$steps" \
    trainer.val_check_interval="$steps" "$@" ${puzzle[@]+"${puzzle[@]}"}
}

solve() { # solve TASK SEED MODEL...
  local task=$1 seed=$2 model counts
  shift 2
  for model in "$@"; do
    if [ "$model" = fmlm ]; then
      learn "$task" "$seed" teacher flm
      learn "$task" "$seed" fmlm fmlm algo.teacher_path="$out/seed$seed/${task}_teacher/checkpoints/last.ckpt"
    else
      learn "$task" "$seed" "$model" "$model"
    fi
    counts='[1,2,4,16]'
    if [ "$model" = kl_flow ]; then counts='[1,3,15]'; fi # its read-out is one evaluation more
    part "seed$seed/evaluation/${task}_$model" mode=solve_eval seed="$seed" sampling.steps="$counts" loader.eval_batch_size=250 \
      eval.checkpoint_path="$out/seed$seed/${task}_$model/checkpoints/last.ckpt"
  done
}

for seed in $seeds; do
  for task in $tasks; do
    case $task in
      text) text "$seed" "$@" ;;
      sudoku4) solve $task "$seed" ar mdlm duo dfm kl_flow flm fmlm ;;
      sudoku4_clues) solve $task "$seed" ar ar_in_place mdlm duo dfm kl_flow flm fmlm ;;
    esac
  done
done
for task in sudoku4 sudoku4_clues; do # all seeds that are there
  runs=()
  for model in ar ar_in_place mdlm duo dfm kl_flow flm fmlm; do
    for folder in "$out"/seed*/evaluation/"${task}_$model"; do
      if [ -e "$folder/complete" ]; then runs+=("$folder"); fi
    done
  done
  if [ ${#runs[@]} -gt 0 ]; then
    python main.py mode=side_by_side hydra.run.dir="$out/side_by_side/$task" \
      "side_by_side.runs=[$(IFS=, && echo "${runs[*]}")]"
  fi
done
report 'Side by side'
