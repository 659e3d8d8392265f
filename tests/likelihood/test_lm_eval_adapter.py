"""A model behind lm-evaluation-harness: what it answers, and likelihoods that are those of the model."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch

from flm.algos.ar import AR
from flm.algos.flm import FLM
from flm.data.tokenizers import ByteTokenizer
from flm.language_model import LanguageModel
from flm.likelihood.lm_eval_adapter import adapter, conditional_nats, cut
from flm.models.dit import DiT

LENGTH = 24


def language_model(kind=AR):
    tokenizer = ByteTokenizer().build(lambda: iter(()))
    torch.manual_seed(0)
    backbone = partial(DiT, length=LENGTH, hidden_size=16, num_blocks=1, num_heads=2, cond_dim=8)
    algorithm = kind(backbone, tokenizer.vocab_size, LENGTH)
    with torch.no_grad():
        for parameter in algorithm.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return LanguageModel(algorithm, tokenizer, steps=2)


def test_stop_strings_end_an_answer():
    assert cut("return x\nclass A", ["\ndef", "\nclass"]) == "return x"
    assert cut("a END b STOP", ["STOP", "END"]) == "a "
    assert cut("whole", ["\n"]) == "whole" and cut("whole", []) == "whole" and cut("a\nb", "\n") == "a"


def test_likelihoods_of_parts_add_up_to_the_whole():
    model = language_model()
    first, second = "a cat ", "sees."
    whole = conditional_nats(model, "", first + second, 2, 0)
    assert whole == pytest.approx(model.nll(first + second).nats, rel=1e-5)
    parts = conditional_nats(model, "", first, 2, 0) + conditional_nats(model, first, second, 2, 0)
    assert parts == pytest.approx(whole, rel=1e-5)
    tail = conditional_nats(model, "x" * 30, second, 2, 0)  # of a context too long, what fits beside the continuation
    assert tail == pytest.approx(conditional_nats(model, "x" * 19, second, 2, 0))
    for text in ("", "y" * (LENGTH + 1)):
        with pytest.raises(ValueError, match="the model reads 1 to 24"):
            conditional_nats(model, "x", text, 2, 0)
    with pytest.raises(ValueError, match="FLM gives no likelihood"):
        conditional_nats(language_model(FLM), "x", "y", 2, 0)


def test_harness_requests():
    pytest.importorskip("lm_eval")
    model = language_model()
    harness = adapter(model, new_tokens=8)
    (text,) = harness.generate_until([SimpleNamespace(args=("a cat ", {"until": ["\n"]}))])
    assert "\n" not in text
    ((value, greedy),) = harness.loglikelihood([SimpleNamespace(args=("a ", "cat"))])
    assert value == pytest.approx(-conditional_nats(model, "a ", "cat", 32, 0)) and greedy is False
    (value,) = harness.loglikelihood_rolling([SimpleNamespace(args=("cat",))])
    assert value == pytest.approx(-model.nll("cat").nats, rel=1e-5)
