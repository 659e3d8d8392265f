# Sourced by the launchers of the stages of Qwen3: where a stage begins, and what all of them take from the environment.
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

# stage EXPERIMENT START ARGUMENT...: trains; START is a model folder, or a checkpoint, which becomes a folder first. The same
# command goes on where it stopped, as OUTPUT_DIR is the same.
stage() {
  local experiment="$1" start="$2" out="${OUTPUT_DIR:-outputs/$1}"
  shift 2
  case "$out" in /*) ;; *) [ -z "${OUTPUT_DIR:-}" ] || out="$PWD/$out" ;; esac
  source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
  if [ -f "$start" ]; then
    python main.py mode=export eval.checkpoint_path="$start" eval.disable_ema=true trainer.accelerator=cpu hydra.run.dir="$out/start"
    start="$out/start"
  fi
  exec python main.py experiment="${CONFIG_FILE:-$experiment}" model.pretrained_path="$start" tokenizer.name_or_path="$QWEN_PATH" \
    ${NUM_GPUS:+trainer.devices="$NUM_GPUS"} ${DATA_DIR:+data.path="$DATA_DIR"} hydra.run.dir="$out" "$@"
}
