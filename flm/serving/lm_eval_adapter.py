"""A model behind the interface of lm-evaluation-harness (pip install lm-eval), which brings its own tasks and metrics.

import flm, lm_eval
from flm.serving.lm_eval_adapter import adapter
lm_eval.simple_evaluate(model=adapter(flm.load("RUN/checkpoints/last.ckpt"), steps=64), tasks=["humaneval"])
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from flm.algos.algorithm import Batch
from flm.likelihood.held_out import drawn_bounds
from flm.samplers.canvas import Canvas


class TextModel(Protocol):
    """The part of `LanguageModel` that is used here."""

    algorithm: Any
    tokenizer: Any
    length: int
    device: torch.device
    fill: Callable[..., Tensor]


def adapter(model: TextModel, new_tokens: int = 256, draws: int = 32, seed: int = 0, **options: Any) -> Any:
    """An `lm_eval.api.model.LM`.

    generate_until writes at most new_tokens after each context; a context that is too long loses its first tokens. An answer
    ends at the end token or before the first stop string. Other settings of a request (do_sample, temperature) are not read:
    the sampler's options are those given here. loglikelihood is minus the algorithm's bound on the continuation, and reports
    False for "is greedy", which is unknown. Texts longer than the model are scored in windows (`windows`).

    Args:
        new_tokens: unless a request has max_gen_toks.
        draws: Monte Carlo draws of the bound for each request.
        seed: of sampling and of the bound.
        options: of `LanguageModel.fill`: steps, and options of the sampler.

    Raises:
        ImportError: lm_eval is not installed.
    """
    from lm_eval.api.model import LM

    class Adapter(LM):
        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            return [
                answer(model, context, _count(wanted, new_tokens), wanted.get("until") or [], seed, **options)
                for context, wanted in (request.args for request in requests)
            ]

        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
            return [(-conditional_nats(model, *request.args, draws, seed), False) for request in requests]

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
            return [-conditional_nats(model, "", request.args[0], draws, seed) for request in requests]

    return Adapter()


def _count(wanted: Mapping[str, Any], new_tokens: int) -> int:
    """The most tokens to write. A request of 0 tokens is obeyed; null counts as no request."""
    found = wanted.get("max_gen_toks")
    return new_tokens if found is None else found


def answer(model: TextModel, context: str, count: int, until: str | list[str], seed: int, **options: Any) -> str:
    """The model's text after a context: at most `count` tokens, up to its end token or the first stop string.

    A context that leaves too little room loses its first tokens. What remains of it is not encoded again.
    """
    count = min(count, model.length)
    if count < 1:
        return ""
    ids = model.tokenizer.encode(context)
    ids = ids[max(0, len(ids) + count - model.length) :]
    (row,) = model.fill(Canvas.from_pieces([ids, count], 1, model.device), seed=seed, **options).tolist()
    written = row[len(ids) :]
    written = written[: written.index(model.tokenizer.eos_id)] if model.tokenizer.eos_id in written else written
    return cut(model.tokenizer.text_after(ids, written), until)


def cut(text: str, until: str | list[str]) -> str:
    """The text before the first of the stop strings."""
    stops = [until] if isinstance(until, str) else until
    return text[: min((place for stop in stops if stop and (place := text.find(stop)) >= 0), default=len(text))]


def windows(given: list[int], text: list[int], length: int) -> Iterator[tuple[list[int], list[int]]]:
    """Pairs of context tokens and scored tokens, at most `length` together. Each token of the text is scored once.

    A text of at most `length` tokens makes one window, with as much of the given tokens as fits. A longer text makes several,
    each with half a window of context. The sum of their nats is -log p of the text if tokens need no longer context.
    """
    if len(text) <= length:
        yield given[max(0, len(given) + len(text) - length) :], text
        return
    context, done = given[-(length // 2) :] if length > 1 else [], 0
    while done < len(text):
        part = text[done : done + length - len(context)]
        yield context, part
        done += len(part)
        context = (context + part)[-(length // 2) :] if length > 1 else []


def encoded(tokenizer: Any, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Token ids of the context and of the continuation.

    The whole text is encoded, and split where the context's own ids end, if it begins with these. A blank at the end of the
    context may go to the continuation, since many tokenizers join it to the next word. Else the two are encoded separately.
    """
    whole = tokenizer.encode(context + continuation)
    for end in (len(context), len(context.rstrip())):
        before = tokenizer.encode(context[:end])
        if whole[: len(before)] == before:
            return before, whole[len(before) :]
    return tokenizer.encode(context), tokenizer.encode(continuation)


@torch.no_grad()
def conditional_nats(model: TextModel, context: str, continuation: str, draws: int, seed: int) -> float:
    """The bound on -log p(continuation | context) in nats, as a mean over draws.

    Raises:
        ValueError: the continuation has no tokens, or the algorithm has no likelihood.
    """
    algorithm = model.algorithm
    if algorithm.bound_kind is None:
        raise ValueError(f"{type(algorithm).__name__} gives no likelihood of a continuation")
    before, text = encoded(model.tokenizer, context, continuation)
    if not text:
        raise ValueError("a continuation without tokens has no likelihood")
    rows = 1 if algorithm.bound_kind == "exact" else draws
    batches = []
    for given, scored in windows(before, text, model.length):
        weight = torch.tensor([0.0] * len(given) + [1.0] * len(scored))
        batches.append(Batch(torch.tensor(given + scored).expand(rows, -1), weight.expand(rows, -1)))
    return sum(drawn.nats[:, 0].mean().item() for drawn in drawn_bounds(algorithm, batches, 1, seed))
