#!/usr/bin/env bash
# What writes best in 1 to 8 network evaluations, at one training time for all, teachers included: flow maps of FLM by three
# objectives and in two stages, Duo's distillation, the map of KL-flow, Simplex-DMD, and DBTM and MPDC without a teacher, beside the
# teacher and masked diffusion (DFM) trained on for as long. On 4x4 Sudoku 105 seconds of one core's processor time a row and seed, about
# half an hour in all with what measures them. Steps are for the puzzle: on text they take longer, and BUDGET=200 is a better start.
# Arguments override every training: `bash scripts/few_step.sh model.hidden_size=96`.
#   TASK        sudoku4 (grids from nothing) or pydoc (text); sudoku4
#   BUDGET      percent of the steps below; 100
#   SEEDS       seeds of the trainings, "1 2 3"; "1"
#   ROWS        which of the rows; all
#   EVALUATION  overrides of what measures texts
#   OUT         folder for everything. Started again with the same OUT, it goes on where it stopped, also with more ROWS or SEEDS.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
source scripts/parts.sh
task="${TASK:-sudoku4}"
budget="${BUDGET:-100}"
out="${OUT:-outputs/few_step_$task}"
rows="${ROWS:-flm dfm fmlm fmlm_lagrangian fmlm_eulerian two_stage duo duo_distill kl_flow_map simplex_dmd dbtm mpdc mpdc_uniform}"
read -ra evaluation <<< "${EVALUATION:-}"
case $task in
  sudoku4 | pydoc) ;;
  *)
    echo "error: TASK must be sudoku4 or pydoc, not $task" >&2
    exit 1
    ;;
esac
begin "task $task, budget $budget, overrides: $*, evaluation: ${EVALUATION:-}"

scaled() { # scaled STEPS: of the budget, at least 5
  local found=$(($1 * budget / 100))
  echo $((found < 5 ? 5 : found))
}

train() { # train NAME STEPS ARGUMENT...
  local name=$1 steps
  steps=$(scaled "$2")
  shift 2
  part "$at/$name" "$@" "${with[@]}" trainer.max_steps="$steps" trainer.val_check_interval="$steps" ${given[@]+"${given[@]}"}
}

row() { # row NAME: trains it after its teachers. Steps that took one core the same time where this was measured (docs/few_step.md)
  local last=checkpoints/last.ckpt
  case $1 in
    flm | dfm) train "$1" 2450 experiment="${task}_$1" ;;
    fmlm)
      teacher
      train "$1" 720 experiment="${task}_fmlm" "$taught"
      ;;
    fmlm_lagrangian)
      teacher
      train "$1" 450 experiment="${task}_fmlm" algo.objective=lagrangian "$taught"
      ;;
    fmlm_eulerian)
      teacher
      train "$1" 430 experiment="${task}_fmlm" algo.objective=eulerian "$taught"
      ;;
    two_stage)
      teacher
      train two_stage_first 240 experiment="${task}_fmlm" algo=flm_distill "$taught"
      train "$1" 340 experiment="${task}_fmlm" algo=flm_distill_second algo.teacher_f_path="$out/$at/teacher/$last" \
        algo.teacher_g_path="$out/$at/two_stage_first/$last"
      ;;
    duo) train "$1" 1250 experiment="${task}_duo" algo.curriculum_end="$(scaled 625)" ;;
    duo_distill) # five rounds, the last over the whole clock: each begins with a larger loss
      row duo
      train "$1" 860 experiment="${task}_fmlm" algo=duo_distill algo.teacher_path="$out/$at/duo/$last" algo.first_steps=16 \
        algo.round_steps="$(scaled 172)" training.max_loss_rise=null
      ;;
    kl_flow_map)
      train kl_flow 1300 experiment="${task}_kl_flow"
      train "$1" 690 experiment="${task}_fmlm" algo=kl_flow_map algo.features="$features" algo.teacher_path="$out/$at/kl_flow/$last"
      ;;
    simplex_dmd)
      teacher
      train "$1" 800 experiment="${task}_simplex_dmd" "$taught"
      ;;
    dbtm) train "$1" 910 experiment="${task}_dbtm" ;;
    mpdc) train "$1" 1800 experiment="${task}_mpdc" ;;
    mpdc_uniform) train "$1" 1800 experiment="${task}_mpdc" algo.source=uniform ;;
    *)
      echo "error: ROWS has no $1" >&2
      exit 1
      ;;
  esac
}

teacher() {
  train teacher 1300 experiment="${task}_flm"
  taught="algo.teacher_path=$out/$at/teacher/checkpoints/last.ckpt"
}

given=("$@")
features=simplex
if [ "$task" = pydoc ]; then features=sharpened; fi
for seed in ${SEEDS:-1}; do
  at="seed$seed"
  with=(seed="$seed" data.cache_dir="$out/data" callbacks.generation=null callbacks.sample=null)
  for name in $rows; do
    row "$name"
    checkpoint="eval.checkpoint_path=$out/$at/$name/checkpoints/last.ckpt"
    if [ "$task" = sudoku4 ]; then
      part "$at/evaluation/$name" mode=solve_eval "$checkpoint" seed="$seed" 'sampling.steps=[1,2,4,8]' loader.eval_batch_size=250
    else
      part "$at/evaluation/$name" mode=frontier "$checkpoint" seed="$seed" 'frontier.steps=[1,2,4,8]' \
        'frontier.temperature=[0.6,0.8,1.0,1.2]' sampling.num_sample_batches=2 loader.eval_batch_size=64 \
        ${evaluation[@]+"${evaluation[@]}"}
    fi
  done
done
if [ "$task" = sudoku4 ]; then
  runs=()
  for name in $rows; do # all seeds that are there
    for folder in "$out"/seed*/evaluation/"$name"; do
      if [ -e "$folder/complete" ]; then runs+=("$folder"); fi
    done
  done
  python main.py mode=side_by_side "side_by_side.runs=[$(IFS=, && echo "${runs[*]}")]" hydra.run.dir="$out/side_by_side"
fi
report 'Few steps'
