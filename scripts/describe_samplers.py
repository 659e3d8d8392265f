"""Writes docs/samplers.md from the signatures of the samplers: python scripts/describe_samplers.py"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from flm.atomic import write_text  # noqa: E402
from flm.tasks.sampler_help import markdown  # noqa: E402

if __name__ == "__main__":
    write_text(ROOT / "docs" / "samplers.md", markdown())
