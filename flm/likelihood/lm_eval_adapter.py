"""A model behind the interface of lm-evaluation-harness (pip install lm-eval), which brings its own tasks and metrics.

import flm, lm_eval
from flm.likelihood.lm_eval_adapter import adapter
lm_eval.simple_evaluate(model=adapter(flm.load("RUN/checkpoints/last.ckpt"), steps=64), tasks=["humaneval"])
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch

from flm.algos.algorithm import Batch
from flm.draws import Draws


class TextModel(Protocol):
    """What `flm.load` gives."""

    algorithm: Any
    tokenizer: Any
    length: int
    device: torch.device
    generate: Callable[..., list[str]]


def adapter(model: TextModel, new_tokens: int = 256, draws: int = 32, seed: int = 0, **options: Any) -> Any:
    """An `lm_eval.api.model.LM`.

    generate_until writes at most new_tokens after each context (its last tokens, where it is too long) and cuts the answer at
    the first stop string. loglikelihood is minus the algorithm's bound on the continuation; whether that is the
    greedy one is not told, so False.

    Args:
        new_tokens: unless a request says max_gen_toks.
        draws: of the bound, for each request.
        seed: of both.
        options: of `generate`: steps and what the sampler takes.

    Raises:
        ImportError: lm_eval is not installed.
    """
    from lm_eval.api.model import LM

    class Adapter(LM):
        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            return [self._answer(*request.args) for request in requests]

        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
            return [(-conditional_nats(model, *request.args, draws, seed), False) for request in requests]

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
            return [-conditional_nats(model, "", request.args[0], draws, seed) for request in requests]

        def _answer(self, context: str, wanted: dict[str, Any]) -> str:
            count = min(wanted.get("max_gen_toks", new_tokens), model.length - 1)
            ids = model.tokenizer.encode(context)[-(model.length - count) :]
            prompt = model.tokenizer.decode(ids)
            (text,) = model.generate(prompt=prompt, length=len(ids) + count, seed=seed, **options)
            return cut(text.removeprefix(prompt), wanted.get("until", []))

    return Adapter()


def cut(text: str, until: str | list[str]) -> str:
    """The text before the first of the stop strings."""
    stops = [until] if isinstance(until, str) else until
    return text[: min((place for stop in stops if stop and (place := text.find(stop)) >= 0), default=len(text))]


@torch.no_grad()
def conditional_nats(model: TextModel, context: str, continuation: str, draws: int, seed: int) -> float:
    """The bound on -log p(continuation | context) in nats, a mean over draws; the context is read, and not scored.

    Raises:
        ValueError: the continuation has no tokens or does not fit, or the algorithm's validation loss is not a likelihood.
    """
    algorithm = model.algorithm
    if algorithm.bound_kind is None or algorithm.validation_metric not in ("nelbo_nats", "nll_nats"):
        raise ValueError(f"{type(algorithm).__name__} gives no likelihood of a continuation")
    text = model.tokenizer.encode(continuation)
    if not 0 < len(text) <= model.length:
        raise ValueError(f"a continuation of {len(text)} tokens; the model reads 1 to {model.length}")
    given = model.tokenizer.encode(context)
    given = given[max(0, len(given) + len(text) - model.length) :]
    tokens = torch.tensor(given + text, device=model.device).expand(draws, -1)
    weight = torch.zeros(tokens.shape, device=model.device)
    weight[:, len(given) :] = 1
    loss = algorithm.validation_loss(Batch(tokens, weight), Draws(seed, device=model.device))
    return loss.per_sequence.double().mean().item() * len(text)
