"""What texts with rules of their own add to the core: corpora, normalisers and a tokenizer that configs name."""

from flm.registry import Wing

WING = Wing()
