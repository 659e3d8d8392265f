#!/usr/bin/env bash
# Trains the embedding flow of the parameter-golf track, small, on the prose that ships with Python; then its likelihood bound
# and denoising curve, each beside no network at all. Arguments override the config of the training:
# `bash scripts/golf_flow_lm.sh algo.param=x1`. OUT names the folder for everything; VAR_EVAL_STEPS=32: times of the curve.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
out="${OUT:-outputs/golf_flow_lm/$(date +%Y-%m-%d_%H-%M-%S)}"
python main.py experiment=pydoc_golf_flow_lm hydra.run.dir="$out/train" data.cache_dir="$out/data" "$@"
python main.py mode=flow_lm_eval eval.checkpoint_path="$out/train/checkpoints/last.ckpt" eval.max_examples=64 \
  ${VAR_EVAL_STEPS:+flow_lm_eval.points="$VAR_EVAL_STEPS"} data.cache_dir="$out/data" hydra.run.dir="$out/eval"
echo "everything was written under $out"
