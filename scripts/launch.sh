# Sourced by the launchers of recipes: what they need from the environment, then `python main.py`.
set -euo pipefail

# need NAME WHAT: ends the script with one line if the variable NAME is not set. A relative path is one of where it was called.
need() {
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
