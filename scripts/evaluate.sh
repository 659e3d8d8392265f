#!/usr/bin/env bash
# pass@k of a stage's checkpoint. BENCHMARK=humaneval (or mbpp, all), from DATA_DIR/HumanEval.jsonl.gz and DATA_DIR/mbpp.jsonl;
# MODEL_PATH may be an exported folder; code_eval.chat=true asks an instruction-tuned model in its own chat template.
# NUM_STEPS=32, TEMPERATURE=0.0 (0: the first choice always), NUM_SAMPLES=1, NEW_TOKENS=512, OUTPUT_DIR. Arguments override.
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
need MODEL_PATH "a checkpoint of one of the stages, or a folder exported from one"
need DATA_DIR "a folder with the benchmarks' files"
case "${BENCHMARK:=humaneval}" in
  humaneval | mbpp) benchmarks=("$BENCHMARK") ;;
  all) benchmarks=(humaneval mbpp) ;;
  *) echo "error: BENCHMARK=$BENCHMARK must be humaneval, mbpp or all" >&2; exit 1 ;;
esac
out="${OUTPUT_DIR:-outputs/qwen3_evaluation}"
case "$out" in /*) ;; *) [ -z "${OUTPUT_DIR:-}" ] || out="$PWD/$out" ;; esac
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
for benchmark in "${benchmarks[@]}"; do
  case "$benchmark" in
    humaneval) file=(code_eval.path="$DATA_DIR/HumanEval.jsonl.gz") ;;
    mbpp) file=(code_eval.path="$DATA_DIR/mbpp.jsonl" code_eval.first=11 code_eval.last=510 code_eval.shots=3) ;;
  esac
  python main.py mode=code_eval eval.checkpoint_path="$MODEL_PATH" eval.disable_ema=null "${file[@]}" \
    code_eval.samples="${NUM_SAMPLES:-1}" code_eval.new_tokens="${NEW_TOKENS:-512}" sampling.solver=top_probability sampling.temperature="${TEMPERATURE:-0.0}" \
    sampling.steps="${NUM_STEPS:-32}" hydra.run.dir="$out/$benchmark" "$@"
done
