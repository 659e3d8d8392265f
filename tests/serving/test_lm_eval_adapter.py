"""A model behind lm-evaluation-harness: what it answers, and likelihoods that are those of the model."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch

from flm.algos.ar import AR
from flm.algos.flm import FLM
from flm.data.tokenizers import ByteTokenizer
from flm.language_model import LanguageModel
from flm.models.dit import DiT
from flm.samplers.canvas import Canvas
from flm.serving.lm_eval_adapter import adapter, answer, conditional_nats, cut, windows

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
    with pytest.raises(ValueError, match="without tokens"):
        conditional_nats(model, "x", "", 2, 0)
    assert conditional_nats(language_model(FLM), "x", "y", 4, 0) > 0


@pytest.mark.parametrize(
    "given, text, length", [(0, 5, 8), (6, 5, 8), (0, 8, 8), (3, 30, 8), (0, 31, 8), (2, 5, 1), (9, 100, 7)]
)
def test_windows_score_each_token_once(given, text, length):
    before, ids = list(range(-given, 0)), list(range(text))
    found = list(windows(before, ids, length))
    assert [token for _, scored in found for token in scored] == ids
    for context, scored in found:
        assert 0 < len(context) + len(scored) <= length
        assert context + scored == list(range(context[0] if context else scored[0], scored[-1] + 1))  # what stands before it
    assert all(len(context) == length // 2 for context, _ in found[1:])


def test_a_text_longer_than_the_model_is_scored_in_windows():
    model = language_model()
    text = "the cat sees the dog, and the dog hears the rain."
    ids = model.tokenizer.encode(text)
    half, by_hand = LENGTH // 2, 0.0
    by_hand += conditional_nats(model, "", text[:LENGTH], 1, 0)
    for start in range(LENGTH, len(ids), half):
        by_hand += conditional_nats(model, text[start - half : start], text[start : start + half], 1, 0)
    assert conditional_nats(model, "", text, 1, 0) == pytest.approx(by_hand, rel=1e-6)


SCRIPTS = ["a cat ", "кошка ", "猫は", "🙂🙂 ", ""]


@pytest.mark.parametrize("context", SCRIPTS)
def test_answers_end_and_contexts_are_cut_by_tokens(context):
    model = language_model()
    ids = model.tokenizer.encode(context)
    written = answer(model, context, 6, [], 0)
    count = min(6, LENGTH)
    kept = ids[max(0, len(ids) + count - LENGTH) :]
    row = model.fill(Canvas.from_pieces([kept, count], 1), seed=0)[0, len(kept) :].tolist()
    row = row[: row.index(model.tokenizer.eos_id)] if model.tokenizer.eos_id in row else row
    assert written == model.tokenizer.text_after(kept, row)
    assert answer(model, context, 0, [], 0) == ""
    # no room for a context: all of it is cut, and the model writes all that it can
    assert answer(model, context * 9, 10_000, ["zzz"], 0) == answer(model, "", LENGTH, ["zzz"], 0)


def test_an_answer_ends_at_the_end_token():
    model = language_model()
    seeds = [seed for seed in range(400) if model.tokenizer.eos_id in model.fill(Canvas.blank(1, 8), seed=seed)[0].tolist()]
    assert seeds, "no seed ends early: raise the count"
    (row,) = model.fill(Canvas.blank(1, 8), seed=seeds[0]).tolist()
    assert answer(model, "", 8, [], seeds[0]) == model.tokenizer.decode(row[: row.index(model.tokenizer.eos_id)])


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
