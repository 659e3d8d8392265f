"""Every algorithm on the stand-in: training steps, validation, bound, and each sampler.

`python walk.py all` adds each option of each sampler, full precision and Muon. Prints a line of JSON: how many calls were made,
and those that failed.
"""

import json
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import torch
from every_algorithm import CASES, IDS, G, L, V, build, ragged_batch

from flm.algos.algorithm import Algorithm, Batch
from flm.draws import Draws
from flm.likelihood.held_out import drawn_bounds
from flm.samplers.canvas import Canvas
from flm.samplers.options import sampler_for
from flm.schema import signature_of
from flm.training.average import Average
from flm.training.optimizers import AdamW, MuonWithAdamW
from flm.training.step_loss import DivergenceCheck

CUDA = torch.device("cuda", 0)
FURTHER = {"flow_lm": {"read_out": "categorical"}, "kl_flow_map": {"read_out": "argmax"}}


def calls_of(algorithm: Algorithm, name: str, is_all: bool) -> Iterator[tuple[str, Callable[[], Any]]]:
    batch = ragged_batch()
    batch = Batch(batch.tokens, batch.weight.float(), batch.documents).pin_memory().to(CUDA, non_blocking=True)
    yield "step", partial(step, algorithm, batch, AdamW, torch.bfloat16)
    if is_all:
        yield "step in full precision", partial(step, algorithm, batch, AdamW, None)
        yield "step of Muon", partial(step, algorithm, batch, MuonWithAdamW, torch.bfloat16)
    yield "validation", partial(validated, algorithm, batch)
    if algorithm.bound_kind is not None:
        yield "bound", lambda: list(drawn_bounds(algorithm.eval(), [batch], 2, seed=0))
    for solver in algorithm.samplers:
        base = ({"solver": solver} if solver else {}) | FURTHER.get(name, {})
        canvases = {"blank": Canvas.blank(3, L, CUDA), "holes": Canvas.from_pieces([[5], 3, [7, 2], 2], 3, CUDA)}
        for kind, canvas in canvases.items():
            for steps in (1, 2) if is_all or kind == "holes" else ():
                yield f"{solver}, {kind}, {steps} steps", partial(generated, algorithm, canvas, steps, base)
        for key, parameter in signature_of(algorithm.samplers[solver]).parameters.items() if is_all else ():
            for value in values_for(key, parameter.annotation):
                try:
                    sampler_for(algorithm, base | {key: value})
                except ValueError:
                    continue  # out of its range, or no use beside the others
                yield f"{solver}, {key}={value}", partial(generated, algorithm, canvases["holes"], 2, base | {key: value})


def step(algorithm: Algorithm, batch: Batch, optimizer: Any, precision: torch.dtype | None) -> None:
    """As `FlowModule` takes it."""
    algorithm.train()
    trained = [p for p in algorithm.parameters() if p.requires_grad]
    named = [(name, p) for name, p in algorithm.named_parameters() if p.requires_grad]
    made, average, watch = optimizer(named), Average(algorithm, 0.9), DivergenceCheck(3.0)
    for number in range(2):
        with torch.autocast("cuda", precision or torch.bfloat16, enabled=precision is not None):
            loss = algorithm.loss(batch, Draws(3, number, device=CUDA))
        watch.watch(loss)
        loss.total.backward()
        assert watch.problem() is None
        assert all(p.grad is None or p.grad.is_cuda for p in trained) and any(p.grad is not None for p in trained)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        made.step()
        made.zero_grad()
        average.update(algorithm)


def validated(algorithm: Algorithm, batch: Batch) -> None:
    algorithm.eval()
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        loss = algorithm.validation_loss(batch, Draws(3, places=range(G), total=G, device=CUDA))
    assert loss.sum.is_cuda and loss.sum.isfinite()


def generated(algorithm: Algorithm, canvas: Canvas, steps: int, options: dict[str, Any]) -> None:
    algorithm.eval()
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        tokens = algorithm.generate(canvas, steps, torch.Generator(CUDA).manual_seed(1), **options)
    assert tokens.is_cuda and 0 <= tokens.min() and tokens.max() < V and torch.equal(canvas.fill(tokens), tokens)


def values_for(key: str, annotation: Any) -> list[Any]:
    """Some that an option may have; those out of its range nobody uses."""
    found: list[Any] = [True, False] if annotation is bool else []
    for part in parts_of(annotation):
        if get_origin(part) is Literal:
            found += get_args(part)
    if "suppress" in key:
        return [[1, 4]]
    return [*dict.fromkeys(found), 0.5, 0.9, 2, 3.5] if not found else found


def parts_of(annotation: Any) -> Iterator[Any]:
    yield annotation
    if get_origin(annotation) is not Literal:
        for part in get_args(annotation):
            yield from parts_of(part)


def main(is_all: bool) -> None:
    count, faults = 0, {}
    for case, name in zip(CASES, IDS, strict=True):
        algorithm = build(*case).float().to(CUDA)
        for what, call in calls_of(algorithm, case[0], is_all):
            count += 1
            try:
                call()
            except Exception as error:
                frames = traceback.extract_tb(error.__traceback__)[-6:]
                where = " ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames)
                faults[f"{name}: {what}"] = f"{type(error).__name__}: {error} at {where}"
    print(json.dumps({"calls": count, "faults": faults}))


if __name__ == "__main__":
    main("all" in sys.argv)
