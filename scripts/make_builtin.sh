#!/usr/bin/env bash
# The models in the box: what `builtin:text` and `builtin:puzzle` are, trained, packed and measured, about twenty minutes of one CPU core.
# OUT names the folder; TEXT and PUZZLE take checkpoints that are there already. Arguments override the config of both trainings.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
out="${OUT:-outputs/builtin}"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
mkdir -p "$out"

pack() { # NAME CHECKPOINT STEPS: into flm/box/NAME.flmpack
  python main.py mode=artifact eval.checkpoint_path="$2" artifact.steps="$3" artifact.kept_elements=4096 artifact.limit_bytes=null \
    artifact.evaluation=null hydra.run.dir="$out/$1_pack"
  cp "$out/$1_pack/model.flmpack" "${BOX:-flm/box}/$1.flmpack"
}

if [ -z "${TEXT:-}" ]; then
  python main.py experiment=pydoc_flm_fitted tokenizer.vocab_size=2048 trainer.max_steps=3600 trainer.val_check_interval=1200 \
    hydra.run.dir="$out/text_teacher" "$@"
  python main.py experiment=pydoc_fmlm_fitted tokenizer.vocab_size=2048 algo.teacher_path="$out/text_teacher/checkpoints/last.ckpt" \
    trainer.max_steps=1000 trainer.val_check_interval=1000 hydra.run.dir="$out/text" "$@"
  TEXT="$out/text/checkpoints/last.ckpt"
fi
pack text "$TEXT" 8
if [ -z "${PUZZLE:-}" ]; then
  python main.py experiment=sudoku4_clues_flm optim=muon optim.lr=0.02 optim.adamw_lr=3e-3 trainer.max_steps=1000 \
    trainer.val_check_interval=1000 hydra.run.dir="$out/puzzle_teacher" "$@"
  python main.py experiment=sudoku4_clues_fmlm algo.teacher_path="$out/puzzle_teacher/checkpoints/last.ckpt" trainer.max_steps=750 \
    trainer.val_check_interval=750 hydra.run.dir="$out/puzzle" "$@"
  PUZZLE="$out/puzzle/checkpoints/last.ckpt"
fi
pack puzzle "$PUZZLE" 4
python main.py mode=sample_eval eval.checkpoint_path="$out/text_pack/model.flmpack" 'sampling.steps=[1,2,4,16]' sampling.num_sample_batches=2 \
  loader.eval_batch_size=64 hydra.run.dir="$out/text_samples"
python main.py mode=solve_eval eval.checkpoint_path="$out/puzzle_pack/model.flmpack" 'sampling.steps=[1,2,4,16]' \
  hydra.run.dir="$out/puzzle_solved"
