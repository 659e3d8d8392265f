"""A model behind lm-evaluation-harness: what it answers, and likelihoods that are those of the model."""

import json
import math
from functools import partial

import pytest
import torch

from flm.algos.ar import AR
from flm.algos.flm import FLM
from flm.data.tokenizers import BPETokenizer, ByteTokenizer
from flm.language_model import LanguageModel
from flm.models.dit import DiT
from flm.samplers.canvas import Canvas
from flm.serving.lm_eval_adapter import adapter, answer, conditional_nats, cut, encoded, windows
from flm.texts.sentencepiece import SentencePieceTokenizer

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


@pytest.mark.parametrize("kind", [BPETokenizer, SentencePieceTokenizer, ByteTokenizer])
def test_context_and_continuation_are_tokens_of_the_whole_text(kind):
    """Encoded apart, the words of a continuation would be spelled as at the start of a text."""
    if kind is SentencePieceTokenizer:
        pytest.importorskip("sentencepiece")
    texts = ["the cat sees the dog and the rain", "кошка видит дождь", "猫は雨を見る", "🙂 the rain 🙂"] * 20
    options = {} if kind is ByteTokenizer else {"vocab_size": 360}
    tokenizer = kind(**options).build(lambda: iter(texts))
    for text in texts[:4]:
        for cut_at in range(len(text) + 1):
            context, continuation = text[:cut_at], text[cut_at:]
            before, ids = encoded(tokenizer, context, continuation)
            apart = tokenizer.encode(context) + tokenizer.encode(continuation)
            assert before + ids in (tokenizer.encode(text), apart)
            # at a blank nothing is spelled differently, on whichever side of the cut the harness puts it
            if text[cut_at : cut_at + 1] == " " or context.endswith(" "):
                assert before + ids == tokenizer.encode(text)
    with_blank, without = (encoded(tokenizer, *pair) for pair in (("the cat ", "sees"), ("the cat", " sees")))
    assert (with_blank == without) == (kind is not ByteTokenizer)


TASKS = {
    "answers": {
        "output_type": "generate_until",
        "doc_to_text": "{{text}}",
        "doc_to_target": "{{target}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 6, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    },
    "nothing to write": {
        "output_type": "generate_until",
        "doc_to_text": "{{text}}",
        "doc_to_target": "",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 0},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    },
    "choices": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{label}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    },
    "whole texts": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}} {{target}}",
        "metric_list": [{"metric": metric} for metric in ("bits_per_byte", "byte_perplexity")],
    },
}
DOCUMENTS = [
    {"text": text, "target": target, "choices": [target, "no"], "label": 0}
    for text, target in [
        ("the cat sees", "the dog, and the dog hears the rain, and the rain hears nothing at all"),  # longer than the model
        ("кошка видит", "дождь"),
        ("猫は", "雨を見る"),
        ("🙂🙂", "🙃"),
        ("", "a text without a context"),
    ]
]


def test_the_harness_runs_tasks_of_files_on_local_data(tmp_path):
    """lm_eval.simple_evaluate on task files of all three kinds of request; its numbers are those of the model."""
    pytest.importorskip("lm_eval")
    import lm_eval
    from lm_eval.tasks import TaskManager

    (tmp_path / "data.jsonl").write_text("".join(json.dumps(document) + "\n" for document in DOCUMENTS), encoding="utf-8")
    data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(tmp_path / "data.jsonl")}}}
    for name, task in TASKS.items():
        content = {"task": name, **data, "test_split": "test", **task}
        (tmp_path / f"{name.replace(' ', '_')}.yaml").write_text(json.dumps(content), encoding="utf-8")  # JSON is YAML
    model = language_model()
    found = lm_eval.simple_evaluate(
        model=adapter(model, new_tokens=8, draws=4),
        tasks=list(TASKS),
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        bootstrap_iters=0,
    )
    results, samples = found["results"], found["samples"]
    assert all(len(samples[name]) == len(DOCUMENTS) for name in TASKS)
    written = {sample["doc"]["text"]: sample["resps"][0][0] for sample in samples["answers"]}
    assert written == {d["text"]: answer(model, d["text"], 6, ["\n"], 0) for d in DOCUMENTS}
    assert results["nothing to write"]["exact_match,none"] == 1.0
    right = 0
    for document in DOCUMENTS:
        first, second = (conditional_nats(model, document["text"], f" {choice}", 4, 0) for choice in document["choices"])
        right += first < second
    assert results["choices"]["acc,none"] == pytest.approx(right / len(DOCUMENTS))
    texts = [f"{document['text']} {document['target']}" for document in DOCUMENTS]
    nats = sum(conditional_nats(model, "", text, 4, 0) for text in texts)
    bits = nats / math.log(2) / sum(len(text.encode()) for text in texts)
    assert results["whole texts"]["bits_per_byte,none"] == pytest.approx(bits, rel=1e-6)
