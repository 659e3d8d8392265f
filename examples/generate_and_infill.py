"""Writes texts, continues one and fills holes, with the model in the box or any other.

python examples/generate_and_infill.py
python examples/generate_and_infill.py outputs/examples/train_tiny
"""

import sys

import flm
from flm.measures.film import FilmStrip
from flm.samplers.canvas import Canvas

lm = flm.load(sys.argv[1] if len(sys.argv) > 1 else "builtin:text")
print(lm)

for steps in (1, 4, 16, 64):  # network evaluations: all positions are written in each
    print(f"{steps:3} steps:", repr(lm.generate(steps=steps, seed=1)[0]))

print("continued:", repr(lm.generate(prompt="The ", seed=2)[0]))
print("filled:   ", repr(lm.infill("The [6] of the [6].", seed=3)[0]))  # holes of 6 tokens; what surrounds them stays

# one generation as it happens: what the model would answer at each moment, and how sure it is
film = FilmStrip(count=6)
lm.fill(Canvas.from_pieces([[], lm.length], 1, lm.device), steps=32, seed=1, on_step=film)
for frame in film.frames:
    sure = sum(frame.probability) / len(frame.probability)
    print(f"tau {frame.tau:.2f}, mean probability {sure:.2f}: {lm.tokenizer.decode(frame.tokens)!r}")
