# Sourced by the other scripts: makes and enters the virtual environment .venv (or $FLM_VENV), once per requirements.txt.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv="${FLM_VENV:-.venv}"
python="${PYTHON:-python3}"
"$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' || {
  echo "error: $("$python" --version) found, Python 3.11 or 3.12 needed: name one with PYTHON=python3.11" >&2
  exit 1
}
stamp="$venv/installed-$(sha256sum requirements.txt | cut -c1-16)"
if [ ! -e "$stamp" ]; then
  echo "installing requirements into $venv (once)"
  "$python" -m venv "$venv"
  # torch first and by itself: where several builds are offered, the machine's own index decides
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r requirements.txt
  touch "$stamp"
fi
PATH="$(cd "$venv" && pwd)/bin:$PATH"
export PATH
# threads that wait for work must not spin: on a busy machine they take it from those that have some
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}"
