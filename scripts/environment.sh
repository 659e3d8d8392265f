# Sourced by the other scripts: enters a Python with what requirements.txt names.
# - FLM_VENV=none: the `python` that is found first, as it is (a container, a module of a cluster).
# - an active virtual or conda environment that has the packages: that one.
# - else the virtual environment .venv (or FLM_VENV=FOLDER), which is made here, once per requirements.txt.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

supported() {
  "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || {
    echo "error: $("$1" --version) found, Python 3.11, 3.12 or 3.13 needed: name one with PYTHON=python3.11" >&2
    exit 1
  }
}

complete() { # whether this Python has the packages; looked up, not imported, which takes seconds
  "$1" -c 'import importlib.util as u, sys
sys.exit(not all(map(u.find_spec, ("torch", "lightning", "hydra", "tokenizers", "transformers", "rich"))))' 2>/dev/null
}

if [ "${FLM_VENV:-}" = none ] ||
  { [ -z "${FLM_VENV:-}" ] && [ -n "${VIRTUAL_ENV:-${CONDA_PREFIX:-}}" ] && complete python; }; then
  supported python
else
  venv="${FLM_VENV:-.venv}"
  python="${PYTHON:-python3}"
  supported "$python"
  stamp="$venv/installed-$(sha256sum requirements.txt | cut -c1-16)"
  if [ ! -e "$stamp" ]; then
    echo "installing requirements into $venv (once; FLM_VENV=none takes the python that is found first)"
    "$python" -m venv "$venv"
    # torch first and by itself: where several builds are offered, the machine's own index decides
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r requirements.txt -c requirements.lock
    touch "$stamp"
  fi
  PATH="$(cd "$venv" && pwd)/bin:$PATH"
  export PATH
fi
# threads that wait for work must not spin: on a busy machine they take it from those that have some
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}"
