"""Trains a small flow language model on the documentation that ships with Python, and lets it write.

python examples/train_tiny.py                    # about five minutes of a laptop's CPU
python examples/train_tiny.py debug=tiny         # seconds: it learns nothing
"""

import sys
from pathlib import Path

import flm
from flm.__main__ import main

RUN = Path("outputs/examples/train_tiny")


def train(*overrides: str) -> flm.LanguageModel:
    """The same as `flm train experiment=pydoc_flm ...` in a shell; stopped and called again, it goes on where it was."""
    if main(["train", "experiment=pydoc_flm", f"hydra.run.dir={RUN}", *overrides]):
        sys.exit(1)
    return flm.load(RUN)  # the last checkpoint of a run folder


if __name__ == "__main__":
    lm = train(*sys.argv[1:])
    print(lm)
    for text in lm.generate(n=2, steps=64):
        print("from nothing:", text)
    print("continued:   ", lm.generate(prompt="The ", steps=64)[0])
