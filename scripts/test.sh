#!/usr/bin/env bash
# The test suite, with its environment. Arguments go to pytest: `bash scripts/test.sh -m slow`, `bash scripts/test.sh tests/paths`.
# Without any, each core runs whole files, where pytest-xdist is there.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
if [ $# = 0 ] && python -c 'import xdist' 2>/dev/null; then
  set -- --numprocesses auto --maxprocesses 8 --dist loadfile
fi
python -m pytest "$@"
