#!/usr/bin/env bash
# Writes code: PROMPT is continued up to MAX_LENGTH=256 tokens, prompt included; or the INFILL_LENGTH=32 tokens between PREFIX and
# SUFFIX are written. NUM_STEPS=32. Arguments go to `python -m flm`: --option temperature=0.7 --option top_p=0.95, -n 4.
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
need MODEL_PATH "a checkpoint of one of the stages, or a folder exported from one"
[ -n "${PROMPT:-}${PREFIX:-}${SUFFIX:-}" ] || { echo "error: set PROMPT, or PREFIX and SUFFIX" >&2; exit 1; }
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
common=("$MODEL_PATH" --steps "${NUM_STEPS:-32}")
if [ -f "$MODEL_PATH" ]; then common+=(--last-weights); fi # no average is kept
if [ -n "${PROMPT:-}" ]; then
  exec python -m flm generate "${common[@]}" --prompt "$PROMPT" --length "${MAX_LENGTH:-256}" "$@"
fi
# as prompt and suffix, and not as a template with a hole: code has brackets of its own
exec python -m flm generate "${common[@]}" --prompt "${PREFIX:-}" --suffix "${SUFFIX:-}" --between "${INFILL_LENGTH:-32}" "$@"
