#!/usr/bin/env bash
# Trains the embedding flow of the parameter-golf track; then its likelihood bound and denoising curve, each beside no network at
# all. Arguments override the config of the training: `bash scripts/golf_flow_lm.sh algo.param=x1`.
#   DATA_DIR, TOKENIZER  as in scripts/golf_native_flow.sh, by the track's names too; not set: small, on the text inside Python
#   OUT                  folder for everything
#   VAR_EVAL_STEPS       times of the curve
source "$(dirname "${BASH_SOURCE[0]}")/golf.sh"
golf_recipe flow_lm
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
out="${OUT:-outputs/golf_flow_lm/$(date +%Y-%m-%d_%H-%M-%S)}"
python main.py "${recipe[@]}" hydra.run.dir="$out/train" data.cache_dir="$out/data" "$@"
python main.py mode=flow_lm_eval eval.checkpoint_path="$out/train/checkpoints/last.ckpt" eval.max_examples=64 \
  ${VAR_EVAL_STEPS:+flow_lm_eval.points="$VAR_EVAL_STEPS"} data.cache_dir="$out/data" hydra.run.dir="$out/eval"
echo "everything was written under $out"
