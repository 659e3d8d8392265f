"""Rounding with error feedback: weights that are rounded later compensate for the errors of those rounded before.

This is GPTQ (Frantar et al., arXiv 2210.17323). An output is w . x for a row w of weights. Rounding w to q costs
E[((w - q) . x)^2] = (w - q) M (w - q)^T, where M = E[x x^T] are the second moments of the inputs. Rounding each weight by
itself takes only the diagonal of M into account. Here the weights are rounded one input after the other, inputs with the
largest moments first. Let M^-1 = U^T U with U upper triangular. An error e = w_i - q_i at input i is best compensated by adding
-e U[i, i+1:] / U[i, i] to the weights that are not rounded yet.

R rows (outputs), I inputs.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from flm.algos.algorithm import Algorithm, Batch
from flm.draws import Draws

_BLOCK = 128  # inputs whose errors are passed on to all later inputs in one matrix product
DAMPING = 0.01  # times the mean moment is added to the diagonal, so that inputs that are always 0 change nothing


def rounded_with_feedback(rows: Tensor, steps: Tensor, moments: Tensor, largest: int = 127) -> Tensor:
    """The codes (R, I) of weights `rows` (R, I): whole numbers in float32, at most `largest` in absolute value.

    Args:
        steps: (R,), a weight is about its code times the step of its row; 0 for a row of zeros.
        moments: (I, I), second moments of the inputs.
    """
    order = moments.diagonal().argsort(descending=True)
    factor = _factor(moments[order][:, order])
    free = rows.t()[order].contiguous()  # (I, R), an input's weights together
    codes, inverse = torch.empty_like(free), torch.where(steps > 0, 1 / steps, 0.0)
    for start in range(0, len(free), _BLOCK):
        stop = min(start + _BLOCK, len(free))
        part, errors = free[start:stop], torch.empty_like(free[start:stop])
        for i in range(stop - start):
            line = factor[start + i, start:stop]
            codes[start + i] = (part[i] * inverse).round_().clamp_(-largest, largest)
            errors[i] = (part[i] - codes[start + i] * steps) / line[i]
            part[i + 1 :] -= line[i + 1 :, None] * errors[i]
        free[stop:] -= factor[start:stop, stop:].t() @ errors
    return torch.empty_like(codes).index_copy_(0, order, codes).t()


def _factor(moments: Tensor) -> Tensor:
    """U (I, I), float32 and upper triangular, such that U^T U is the inverse of the damped moments."""
    damped = moments.double()
    mean = damped.diagonal().mean()
    damped = damped + torch.eye(len(damped), dtype=damped.dtype) * (DAMPING * mean if mean > 0 else 1.0)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True).float()


@torch.no_grad()
def input_moments(algorithm: Algorithm, batches: Iterable[Batch], seed: int) -> dict[str, Tensor]:
    """Second moments E[x x^T] (I, I), float32 on the CPU, of the inputs of linear layers, by the name of the layer's weight.

    The inputs are those that layers read when the training loss of the batches is computed in evaluation mode. A layer that
    is not called is left out.

    Args:
        seed: for the random numbers of the loss.
    """
    sums, counts = dict[str, Tensor](), dict[str, int]()
    first = dict[int, str]()  # by the id of a weight; one with several names goes by the first

    def hook(name: str):
        def add(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].detach().reshape(-1, inputs[0].shape[-1]).float()
            counts[name] = counts.get(name, 0) + len(x)
            with torch.autocast(x.device.type, enabled=False):
                sums[name] = sums.get(name, 0) + (x.t() @ x)

        return add

    hooks = []
    for path, layer in algorithm.named_modules():
        if isinstance(layer, nn.Linear):
            name = first.setdefault(id(layer.weight), f"{path}.weight")
            hooks.append(layer.register_forward_pre_hook(hook(name)))
    device, training = next(algorithm.parameters()).device, algorithm.training
    algorithm.eval()
    try:
        with torch.compiler.set_stance("force_eager"):  # a compiled block does not call the hooks of its layers
            for index, batch in enumerate(batches):
                algorithm.loss(batch.to(device), Draws(seed, index, device=device))
    finally:
        algorithm.train(training)
        for one in hooks:
            one.remove()
    return {name: (total / counts[name]).cpu() for name, total in sums.items()}
