#!/usr/bin/env bash
# What a GPU must do right and how fast it does it, in at most nine minutes on one: sections print as they end, and can be named:
# `bash scripts/gpu_check.sh correct step`. --device cpu --small runs all of it on a CPU, at toy sizes, in seconds.
# A machine that has torch and not hydra-core, omegaconf and antlr4-python3-runtime needs these three brought to it (pure Python).
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
missing="$(python -c 'import importlib.util as u
print(*(name for module, name in (("hydra", "hydra-core"), ("omegaconf", "omegaconf"), ("antlr4", "antlr4-python3-runtime==4.9.*"),
("lightning", "lightning"), ("pydantic", "pydantic"), ("safetensors", "safetensors")) if u.find_spec(module) is None))')"
[ -z "$missing" ] || { echo "error: this Python lacks $missing: pip install them, or bring their wheels" >&2; exit 1; }
python -m pytest -q -m gpu tests || true
exec python -u scripts/gpu_check.py "$@"
