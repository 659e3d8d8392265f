#!/usr/bin/env bash
# Trains a flow language model on the prose that ships with Python, distils it to one step, samples from both and ends in a
# report. Ten to fifteen minutes on two idle CPU cores. Arguments override the config of both trainings:
# `bash scripts/quickstart.sh trainer.max_steps=200`. OUT names the folder for everything.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
out="${OUT:-outputs/quickstart/$(date +%Y-%m-%d_%H-%M-%S)}"
flm="$out/flm/checkpoints/last.ckpt"
fmlm="$out/fmlm/checkpoints/last.ckpt"

echo "== 1/5 training the flow language model"
python main.py experiment=pydoc_flm hydra.run.dir="$out/flm" data.cache_dir="$out/data" "$@"
echo "== 2/5 distilling its flow map"
python main.py experiment=pydoc_fmlm algo.teacher_path="$flm" hydra.run.dir="$out/fmlm" data.cache_dir="$out/data" "$@"
echo "== 3/5 sampling: the flow model in many steps, its flow map in one"
python main.py mode=sample_eval eval.checkpoint_path="$flm" 'sampling.steps=[1,8,64,256]' sampling.film=true \
  loader.eval_batch_size=32 hydra.run.dir="$out/flm_samples"
python main.py mode=sample_eval eval.checkpoint_path="$fmlm" 'sampling.steps=[1,8]' sampling.film=true \
  loader.eval_batch_size=32 hydra.run.dir="$out/fmlm_samples"
echo "== 4/5 quality against diversity, and the likelihood bound"
python main.py mode=frontier "frontier.checkpoints={flm: $flm, fmlm: $fmlm}" 'frontier.steps=[1,8,32]' \
  'frontier.temperature=[0.8,0.9,1.0,1.1]' loader.eval_batch_size=32 hydra.run.dir="$out/frontier"
python main.py mode=ppl_eval eval.checkpoint_path="$flm" eval.max_examples=64 data.cache_dir="$out/data" \
  hydra.run.dir="$out/flm_likelihood"
echo "== 5/5 report"
python main.py mode=report "report.inputs=[$out]" hydra.run.dir="$out/report"
echo "everything was written under $out; open $out/report/report.html"
