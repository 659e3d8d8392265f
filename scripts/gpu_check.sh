#!/usr/bin/env bash
# What a GPU must do right and how fast it does it, in at most nine minutes on one: sections print as they end, and can be named:
# `bash scripts/gpu_check.sh correct step`. --device cpu --small runs all of it on a CPU, at toy sizes, in seconds.
# FLM_VENV=none takes the Python that is there and installs nothing. What such machines often lack is pure Python and small: make the
# wheels elsewhere, `pip wheel --no-deps -w wheels hydra-core omegaconf antlr4-python3-runtime==4.9.3`, and install them from there.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
missing="$(python -c 'import importlib.util as u
print(*(name for module, name in (("hydra", "hydra-core"), ("omegaconf", "omegaconf"), ("antlr4", "antlr4-python3-runtime==4.9.*"),
("yaml", "pyyaml"), *((name, name.replace("_", "-")) for name in ("lightning", "pydantic", "annotated_types", "safetensors",
"tokenizers", "sentencepiece", "huggingface_hub", "filelock", "rich", "jinja2", "numpy"))) if u.find_spec(module) is None))')"
[ -z "$missing" ] || {
  echo "error: this Python lacks $missing. With a network: pip install $missing. Without: pip wheel --no-deps -w wheels $missing" \
    "where there is one, bring the folder, and pip install --no-index --no-deps wheels/*" >&2
  exit 1
}
exec python -u scripts/gpu_check.py "$@"
