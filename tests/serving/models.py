"""Small models with random weights, as `flm.load` would hand them over."""

import math
import threading
from functools import partial

import torch

from flm.algos.flm import FLM
from flm.data.tokenizers import CharacterTokenizer
from flm.language_model import LanguageModel
from flm.models.dit import DiT

TEXT = "the cat sat on a mat. 0123456789"


def tiny(kind=FLM, length: int = 16) -> LanguageModel:
    """Characters of TEXT; the weights are not trained, but given and written tokens are told apart all the same."""
    torch.manual_seed(0)
    tokenizer = CharacterTokenizer().learn(iter([TEXT]))
    options = {"length": length, "hidden_size": 32, "num_blocks": 1, "num_heads": 2, "cond_dim": 8}
    algorithm = kind(backbone=partial(DiT, **options), vocab_size=tokenizer.vocab_size, length=length)
    for parameter in algorithm.parameters():
        if parameter.requires_grad and parameter.ndim > 1:
            parameter.data.normal_(0, 0.3)
    return LanguageModel(algorithm, tokenizer, steps=4)


class Gate:
    """Where the evaluations of a model's network wait: what else happens meanwhile does not depend on how fast it is."""

    def __init__(self, lm: LanguageModel):
        self._changed, self._left = threading.Condition(), math.inf
        lm.algorithm.backbone.register_forward_pre_hook(self._pass)

    def _pass(self, *_) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self._left > 0, timeout=600)
            self._left -= 1

    def let(self, evaluations: float) -> None:
        """So many may pass from now on."""
        with self._changed:
            self._left = evaluations
            self._changed.notify_all()
