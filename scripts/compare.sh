#!/usr/bin/env bash
# AR, MDLM, Duo, DFM, KL-flow, FLM and its flow map on text and on two puzzles, at one training time for all, teachers included,
# side by side in one report: about an hour and a half of one CPU core for each seed.
# Arguments override the config of every training on text: `bash scripts/compare.sh data=text data.path=FOLDER`.
#   TASKS       which of text (words), sudoku4 (grids from nothing) and sudoku4_clues (held-out puzzles); all three
#   SEEDS       seeds of the trainings, "1 2 3"; "1"
#   SHARE       percent of the training time; 100: 150 s of a core for each model
#   PUZZLE      overrides of every training on puzzles
#   EVALUATION  overrides of what measures texts: EVALUATION="eval.gen_ppl_eval_model_name_or_path=gpt2-large"
#   OUT         folder for everything. Started again with the same OUT, it goes on where it stopped, also with more TASKS or SEEDS.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
source scripts/parts.sh
out="${OUT:-outputs/compare}"
tasks="${TASKS:-text sudoku4 sudoku4_clues}"
share="${SHARE:-100}"
read -ra evaluation <<< "loader.eval_batch_size=64 ${EVALUATION:-}"
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
begin "share $share, overrides: $*, evaluation: ${EVALUATION:-}, puzzle: ${PUZZLE:-}"

steps_of() { # steps_of TASK_MODEL: what took one core 150 s where this was measured; the flow map with its teacher
  local steps
  case $1 in
    sudoku4_clues_ar) steps=2200 ;; # rows of twice the length
    text_ar) steps=1650 ;;
    text_mdlm) steps=1590 ;;
    text_duo) steps=1240 ;;
    text_dfm) steps=1580 ;;
    text_kl_flow) steps=1160 ;;
    text_flm) steps=1310 ;;
    text_teacher) steps=780 ;;
    text_fmlm) steps=340 ;;
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

words() { # words MODEL: experiment=pydoc_MODEL on words in place of characters, as pydoc_flm_fitted is
  case $1 in
    flm | fmlm) with=(experiment="pydoc_$1_fitted") ;;
    *) with=(experiment="pydoc_$1" tokenizer=bpe tokenizer.vocab_size=1024 model.length=32 optim.lr=3e-3) ;;
  esac
  case $1 in
    ar | flm | fmlm) ;; # AR may not see what follows
    *) with+=(model.neighbours=2) ;;
  esac
  with+=(data.cache_dir="$out/data" callbacks.generation=null)
}

train() { # train TASK MODEL OVERRIDE...: with seed $seed
  local task=$1 model=$2 kind=${2/teacher/flm} steps with
  shift 2
  steps=$(steps_of "${task}_$model")
  if [ "$task" = text ]; then words "$kind"; else with=(experiment="${task}_$kind"); fi
  if [ "$model" = duo ]; then with+=(algo.curriculum_end=$((steps / 2))); fi # as published
  part "seed$seed/${task}_$model" "${with[@]}" seed="$seed" trainer.max_steps="$steps" trainer.val_check_interval="$steps" "$@"
}

measure() { # measure TASK MODEL
  local at="seed$seed/evaluation/$1_$2" counts='[1,4,16,64]'
  local with=(eval.checkpoint_path="$out/seed$seed/$1_$2/checkpoints/last.ckpt" seed="$seed")
  if [ "$1" != text ]; then
    counts='[1,2,4,16]'
    if [ "$2" = kl_flow ]; then counts='[1,3,15]'; fi # its read-out is one evaluation more
    part "$at" mode=solve_eval "${with[@]}" sampling.steps="$counts" loader.eval_batch_size=250
    return
  fi
  if [ "$2" = kl_flow ]; then counts='[1,3,15,63]'; fi
  part "${at}_samples" mode=sample_eval "${with[@]}" sampling.steps="$counts" sampling.num_sample_batches=2 "${evaluation[@]}"
  part "${at}_frontier" mode=frontier "${with[@]}" frontier.steps="$counts" 'frontier.temperature=[0.7,0.85,1.0]' \
    "${evaluation[@]}"
  part "${at}_likelihood" mode=ppl_eval "${with[@]}" data.cache_dir="$out/data" "${evaluation[@]}"
}

for seed in ${SEEDS:-1}; do
  for task in $tasks; do
    overrides=("$@")
    if [ "$task" != text ]; then overrides=(${puzzle[@]+"${puzzle[@]}"}); fi
    for model in ar ar_in_place mdlm duo dfm kl_flow flm teacher fmlm; do
      taught=()
      case $task-$model in
        text-ar_in_place | sudoku4-ar_in_place) continue ;; # only holes have an order of their own
        *-fmlm) taught=(algo.teacher_path="$out/seed$seed/${task}_teacher/checkpoints/last.ckpt") ;;
      esac
      train "$task" $model ${taught[@]+"${taught[@]}"} ${overrides[@]+"${overrides[@]}"}
      if [ $model != teacher ]; then measure "$task" $model; fi
    done
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
