#!/usr/bin/env bash
# Native flow x test-time training: each seed with and without the flow, scored from its checkpoint and from its artifact, and one
# report with means, deviations and differences. Arguments override the trainings. Started again with the same OUT, it goes on.
#   SEEDS       "1 2 3"
#   DATA_DIR    and TOKENIZER, as in scripts/golf_native_flow.sh
#   EVALUATION  overrides of both evaluations: EVALUATION="golf_eval.stride=16 golf_eval.max_tokens=8192"
#   PACKING     overrides of the artifacts: PACKING="artifact.kept_elements=4096"
#   OUT         folder for everything
source "$(dirname "${BASH_SOURCE[0]}")/golf.sh"
golf_recipe native_flow
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
source scripts/parts.sh
out="${OUT:-outputs/golf_matrix}"
read -ra evaluation <<< "${EVALUATION:-}"
read -ra packing <<< "${PACKING:-}"
begin "data ${DATA_DIR:-}, overrides: $*, evaluation: ${EVALUATION:-}, packing: ${PACKING:-}"
for seed in ${SEEDS:-1 2 3}; do
  for system in base flow; do
    run="${system}_seed$seed" without=()
    [ $system = flow ] || without=(algo.flow=null)
    part "$run" "${recipe[@]}" seed="$seed" data.cache_dir="$out/data" ${without[@]+"${without[@]}"} "$@"
    scored=(eval.checkpoint_path="$out/$run/checkpoints/last.ckpt" data.cache_dir="$out/data" ${evaluation[@]+"${evaluation[@]}"})
    part "scored/$run" mode=golf_eval "${scored[@]}"
    part "packed/$run" mode=artifact artifact.script=true artifact.calibration=16 "${scored[@]}" ${packing[@]+"${packing[@]}"}
  done
done
report "Native flow and test-time training"
