#!/usr/bin/env bash
# Trains a flow language model on the prose that ships with Python and samples from it. About five minutes of training on two
# CPU cores. Arguments override the config of the training: `bash scripts/quickstart.sh trainer.max_steps=200`.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
out="${OUT:-outputs/quickstart/$(date +%Y-%m-%d_%H-%M-%S)}"
python main.py experiment=pydoc_flm hydra.run.dir="$out/flm" "$@"
python main.py mode=sample_eval eval.checkpoint_path="$out/flm/checkpoints/last.ckpt" sampling.steps=[1,8,64,256] \
  loader.eval_batch_size=4 hydra.run.dir="$out/samples"
echo "everything was written under $out"
