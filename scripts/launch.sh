# Sourced by the launchers of recipes: what they need from the environment, then `python main.py`.
set -euo pipefail

arguments=("$@") # a sourced file sees those of the script

# need NAME WHAT KEY...: ends the script with one line if the variable NAME is not set, nor any KEY among the arguments. A relative
# path is one of where it was called.
need() {
  local key argument
  for key in "${@:3}"; do
    for argument in ${arguments[@]+"${arguments[@]}"}; do
      case "$argument" in "$key="?*) return ;; esac
    done
  done
  if [ -z "${!1:-}" ]; then
    echo "error: $1 is not set: $2. Like this: $1=... bash scripts/$(basename "$0")" >&2
    exit 1
  fi
  case "${!1}" in /*) ;; *) [ ! -e "${!1}" ] || export "$1=$PWD/${!1}" ;; esac
}

# launch ARGUMENT...: needs first, then the environment, whose making takes minutes. LAUNCHER stands in the place of `python`:
# LAUNCHER="torchrun --standalone --nproc-per-node=8".
launch() {
  source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
  exec ${LAUNCHER:-python} main.py "$@"
}
