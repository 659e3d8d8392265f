"""Small models with random weights, as `flm.load` would hand them over."""

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
