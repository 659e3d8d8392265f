#!/usr/bin/env bash
# What the network reads of the state (docs/clock.md), at equal training time: vocabularies x widths x rows x seeds, one report.
# Arguments override the config of every training: `bash scripts/ablate_reading.sh data=text data.path=FOLDER`.
#   VOCABULARIES  sizes; 97 stands for characters, all else for BPE. Default "97 512 2048 8192"
#   WIDTHS        model.hidden_size. Default "128 256"
#   SEEDS         default "1"
#   ROWS          default: all below. ..._map is the flow map of the row before it, as long again, at its rate / 3
#   TIME          of each training, DD:HH:MM:SS. Default 00:00:10:00
#   OUT           folder for everything. Started again with the same OUT, it goes on where it stopped.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
source scripts/parts.sh
out="${OUT:-outputs/ablate_reading}"
time="${TIME:-00:00:10:00}"
rows="${ROWS:-published published_map published_near evidence evidence_near evidence_near_map mdlm mdlm_near duo dfm kl_flow ar}"

begin "time $time, overrides: $*"

for vocabulary in ${VOCABULARIES:-97 512 2048 8192}; do
  tokens=(tokenizer=bpe tokenizer.vocab_size="$vocabulary")
  if [ "$vocabulary" = 97 ]; then tokens=(tokenizer=characters); fi
  for width in ${WIDTHS:-128 256}; do
    for row in $rows; do
      options=(algo="${row%%_near}")
      rate=3e-3
      case $row in
        published*) options=(algo=flm) ;;
        evidence*) options=(algo=flm algo.reads=evidence) ;;
      esac
      case $row in *_near*) options+=(model.neighbours=2) ;; esac
      for seed in ${SEEDS:-1}; do
        name="v${vocabulary}_d${width}_${row}_seed$seed"
        case $row in
          *_map)
            teacher="$out/v${vocabulary}_d${width}_${row%%_map}_seed$seed/checkpoints/last.ckpt"
            rate=1e-3 # starts from trained weights
            method=(algo=fmlm algo.teacher_path="$teacher" "${options[@]:1}")
            ;;
          *) method=("${options[@]}") ;;
        esac
        # a rate that does not fall, and an average: no schedule knows how many steps fit into the time
        part "$name" "${method[@]}" "${tokens[@]}" model.length=32 model.hidden_size="$width" model.num_blocks=4 \
          seed="$seed" loader.global_batch_size=16 optim.lr="$rate" lr_scheduler.warmup_steps=50 training.ema=0.999 \
          trainer.max_steps=1000000 trainer.max_time="$time" callbacks.sample=null data.cache_dir="$out/data_$vocabulary" "$@"
        part "evaluation/$name" mode=sample_eval eval.checkpoint_path="$out/$name/checkpoints/last.ckpt" \
          'sampling.steps=[1,4,16,64]' loader.eval_batch_size=64 sampling.num_sample_batches=4
        part "evaluation/${name}_frontier" mode=frontier eval.checkpoint_path="$out/$name/checkpoints/last.ckpt" \
          'frontier.steps=[1,4,16,64]' 'frontier.temperature=[0.8,0.9,1.0]' loader.eval_batch_size=64
      done
    done
  done
done
report 'What the network reads'
