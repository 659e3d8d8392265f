# Sourced by the launchers of the parameter-golf systems: their data, and what the track calls them.
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

# golf_recipe SYSTEM: sets `recipe` to the overrides of its training, small on the text inside Python where there are no shards.
golf_recipe() {
  export DATA_DIR="${DATA_DIR:-${DATA_PATH:-}}" TOKENIZER="${TOKENIZER:-${TOKENIZER_PATH:-}}"
  recipe=(experiment="pydoc_golf_$1")
  if [ -n "$DATA_DIR" ]; then
    need DATA_DIR "the folder with the track's shards"
    need TOKENIZER "the SentencePiece model the shards were written with"
    recipe=(experiment="golf_$1" data.path="$DATA_DIR" tokenizer.path="$TOKENIZER")
  fi
  recipe+=(${SEED:+seed="$SEED"} ${ITERATIONS:+trainer.max_steps="$ITERATIONS"} ${TRAIN_SEQ_LEN:+model.length="$TRAIN_SEQ_LEN"})
}
