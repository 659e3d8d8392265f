# Sourced by the launchers of the stages of Qwen3: where a stage begins, and what all of them take from the environment.
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

# stage EXPERIMENT START ARGUMENT...: trains; START is a model folder, or a checkpoint, which becomes a folder first. The same
# command goes on where it stopped, as OUTPUT_DIR is the same.
stage() {
  local experiment="${CONFIG_FILE:-$1}" start="$2" out="${OUTPUT_DIR:-outputs/$1}"
  shift 2
  case "$experiment" in
    */* | *.yaml)
      echo "error: CONFIG_FILE=$experiment must name a recipe of configs/experiment, such as qwen3_pretrain: put the file there, or" \
        "give its keys as arguments (learning_rate=1e-4 optim.weight_decay=0.1)" >&2
      exit 1
      ;;
  esac
  case "$out" in /*) ;; *) [ -z "${OUTPUT_DIR:-}" ] || out="$PWD/$out" ;; esac
  source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
  if [ -f "$start" ]; then
    python main.py mode=export eval.checkpoint_path="$start" eval.disable_ema=true trainer.accelerator=cpu hydra.run.dir="$out/start"
    start="$out/start"
  fi
  exec python main.py experiment="$experiment" model.pretrained_path="$start" tokenizer.name_or_path="$QWEN_PATH" \
    ${NUM_GPUS:+trainer.devices="$NUM_GPUS"} ${DATA_DIR:+data.path="$DATA_DIR"} hydra.run.dir="$out" "$@"
}
