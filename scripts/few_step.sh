#!/usr/bin/env bash
# What writes best in 1 to 8 network evaluations, at one training time for all, teachers included: flow maps of FLM by three
# objectives and in two stages, Duo's distillation, the map of KL-flow, Simplex-DMD of both flows, and DBTM and MPDC without a
# teacher, beside the teacher and masked diffusion (DFM) trained on for as long. On 4x4 Sudoku 105 seconds of one core's processor
# time a row and seed, about half an hour in all with what measures them; on words of Python's documentation (docs/clock.md), which
# all rows share, about as long. There FLM, its map and Simplex-DMD read evidence; what cannot is shown views, and learns from a
# teacher that is shown them too.
# Arguments override every training: `bash scripts/few_step.sh model.hidden_size=96`.
#   TASK        sudoku4 (grids from nothing) or pydoc (text); sudoku4
#   BUDGET      percent of the steps below; 100
#   SEEDS       seeds of the trainings, "1 2 3"; "1"
#   ROWS        which of the rows; all. fmlm_noised is fmlm with fresh noise before each further evaluation, as Simplex-DMD has it
#   EVALUATION  overrides of what measures texts
#   OUT         folder for everything. Started again with the same OUT, it goes on where it stopped, also with more ROWS or SEEDS.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
source scripts/parts.sh
task="${TASK:-sudoku4}"
budget="${BUDGET:-100}"
out="${OUT:-outputs/few_step_$task}"
all="flm dfm fmlm fmlm_noised fmlm_lagrangian fmlm_eulerian two_stage duo duo_distill kl_flow_map kl_simplex_dmd simplex_dmd dbtm mpdc mpdc_uniform"
rows="${ROWS:-$all}"
read -ra evaluation <<< "${EVALUATION:-}"
case $task in
  sudoku4 | pydoc) ;;
  *)
    echo "error: TASK must be sudoku4 or pydoc, not $task" >&2
    exit 1
    ;;
esac
begin "task $task, budget $budget, overrides: $*, evaluation: ${EVALUATION:-}"

scaled() { # scaled PUZZLE/TEXT: the task's steps, of the budget; at least 5
  local found=$(($(if [ "$task" = sudoku4 ]; then echo "${1%/*}"; else echo "${1#*/}"; fi) * budget / 100))
  echo $((found < 5 ? 5 : found))
}

train() { # train NAME PUZZLE/TEXT ARGUMENT...
  local name=$1 steps
  steps=$(scaled "$2")
  shift 2
  part "$at/$name" "$@" "${with[@]}" trainer.max_steps="$steps" trainer.val_check_interval="$steps" ${given[@]+"${given[@]}"}
}

row() { # row NAME: trains it after its teachers. Steps that took one core the same time where this was measured (docs/few_step.md)
  local last=checkpoints/last.ckpt
  case $1 in
    flm) train "$1" 2450/800 experiment="$flow" ;;
    dfm) train "$1" 2450/1000 experiment="${task}_dfm" ;;
    fmlm)
      teacher
      train "$1" 720/240 experiment="$map" "$taught"
      ;;
    fmlm_noised) row fmlm ;;
    fmlm_lagrangian)
      teacher_of_views
      train "$1" 450/150 experiment="$map" "$views" algo.objective=lagrangian "$taught"
      ;;
    fmlm_eulerian)
      teacher_of_views
      train "$1" 430/140 experiment="$map" "$views" algo.objective=eulerian "$taught"
      ;;
    two_stage)
      teacher_of_views
      train two_stage_first 240/80 experiment="${task}_fmlm" algo=flm_distill "$taught"
      train "$1" 340/110 experiment="${task}_fmlm" algo=flm_distill_second algo.teacher_f_path="${taught#*=}" \
        algo.teacher_g_path="$out/$at/two_stage_first/$last"
      ;;
    duo) train "$1" 1250/440 experiment="${task}_duo" algo.curriculum_end="$(scaled 625/220)" ;;
    duo_distill) # five rounds, the last over the whole clock: each begins with a larger loss
      row duo
      train "$1" 860/300 experiment="${task}_fmlm" algo=duo_distill algo.teacher_path="$out/$at/duo/$last" algo.first_steps=16 \
        algo.round_steps="$(scaled 172/60)" training.max_loss_rise=null
      ;;
    kl_flow_map)
      teacher_on_geodesics
      train "$1" 690/200 experiment="${task}_fmlm" algo=kl_flow_map algo.features="$features" "$taught"
      ;;
    kl_simplex_dmd)
      teacher_on_geodesics
      train "$1" 800/230 experiment="${task}_simplex_dmd" algo=kl_simplex_dmd algo.features="$features" "$taught"
      ;;
    simplex_dmd)
      teacher
      train "$1" 800/260 experiment="${task}_simplex_dmd" "$reads" "$taught"
      ;;
    dbtm) train "$1" 910/300 experiment="${task}_dbtm" ;;
    mpdc) train "$1" 1800/680 experiment="${task}_mpdc" ;;
    mpdc_uniform) train "$1" 1800/680 experiment="${task}_mpdc" algo.source=uniform ;;
    *)
      echo "error: ROWS has no $1" >&2
      exit 1
      ;;
  esac
}

teacher() {
  train teacher 1300/430 experiment="$flow"
  taught="algo.teacher_path=$out/$at/teacher/checkpoints/last.ckpt"
}

teacher_of_views() { # for objectives that differentiate a view: on text others read evidence
  if [ "$task" = sudoku4 ]; then
    teacher
    return
  fi
  train teacher_of_views 1300/430 experiment="$flow" "$views"
  taught="algo.teacher_path=$out/$at/teacher_of_views/checkpoints/last.ckpt"
}

teacher_on_geodesics() {
  train kl_flow 1300/400 experiment="${task}_kl_flow"
  taught="algo.teacher_path=$out/$at/kl_flow/checkpoints/last.ckpt"
}

given=("$@")
flow="${task}_flm" map="${task}_fmlm" reads=algo.reads=view views=algo.reads=view features=simplex words=()
if [ "$task" = pydoc ]; then
  flow=pydoc_flm_fitted map=pydoc_fmlm_fitted reads=algo.reads=evidence features=sharpened
  words=(tokenizer=bpe tokenizer.vocab_size=1024 model.length=32 model.neighbours=2)
fi
for seed in ${SEEDS:-1}; do
  at="seed$seed"
  with=(${words[@]+"${words[@]}"} seed="$seed" data.cache_dir="$out/data" callbacks.generation=null callbacks.sample=null)
  for name in $rows; do
    row "$name"
    if [ "$task" = pydoc ]; then continue; fi
    model="${name%_noised}"
    measured=(eval.checkpoint_path="$out/$at/$model/checkpoints/last.ckpt" eval.label="$name" seed="$seed" loader.eval_batch_size=250)
    if [ "$name" != "$model" ]; then measured+=(sampling.gamma=1.0); fi
    part "$at/evaluation/$name" mode=solve_eval "${measured[@]}" 'sampling.steps=[1,2,4,8]'
  done
  if [ "$task" = sudoku4 ]; then continue; fi
  checkpoints="" noise=() # of all rows that are there; fresh noise in between, where a sampler among them takes it
  for name in $all; do
    if [ ! -e "$out/$at/$name/complete" ]; then continue; fi
    checkpoints+="${checkpoints:+, }$name: $out/$at/$name/checkpoints/last.ckpt"
    case $name in fmlm* | two_stage | simplex_dmd) noise=('frontier.sweep={gamma: [0, 1]}') ;; esac
  done
  if [ "$(cat "$out/$at/evaluated" 2>/dev/null)" != "$checkpoints" ]; then rm -f "$out/$at/evaluation/complete"; fi
  part "$at/evaluation" mode=frontier "frontier.checkpoints={$checkpoints}" 'frontier.steps=[1,2,4,8]' \
    'frontier.temperature=[0.6,0.8,1.0,1.2]' ${noise[@]+"${noise[@]}"} seed="$seed" sampling.num_sample_batches=2 \
    loader.eval_batch_size=64 ${evaluation[@]+"${evaluation[@]}"}
  echo "$checkpoints" > "$out/$at/evaluated"
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
