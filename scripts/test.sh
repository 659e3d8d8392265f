#!/usr/bin/env bash
# The test suite, with its environment. Arguments go to pytest: `bash scripts/test.sh -m slow`, `bash scripts/test.sh tests/paths`.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
python -m pytest "$@"
