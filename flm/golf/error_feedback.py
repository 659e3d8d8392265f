"""Rounding that makes up for itself: what one weight of a row is off by, the weights of later inputs take back.

Frantar et al., arXiv 2210.17323 (GPTQ). An output is w . x; with inputs of second moments M = E[x x^T] rounding w to q costs
E[(w - q) . x]^2 = (w - q) M (w - q)^T, where rounding each weight by itself heeds the diagonal alone. Inputs are taken one
after the other, those with the largest moments first; with M^-1 = U^T U, U upper triangular, the error e of input i moves the
weights that are still free by -e U[i, i+1:] / U[i, i], their best answer.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from flm.algos.algorithm import Algorithm, Batch
from flm.draws import Draws

_BLOCK = 128  # inputs whose errors reach the others in one product
DAMPING = 0.01  # of the mean moment, added to each: inputs that were never seen must not move anything


def rounded_with_feedback(rows: Tensor, steps: Tensor, moments: Tensor, largest: int = 127) -> Tensor:
    """Codes (R, I), float32 whole numbers of at most `largest` in absolute value, of weights `rows` (R, I).

    Args:
        steps: (R,) of each row; 0 for a row of zeros.
        moments: (I, I) of the inputs.
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
    """U (I, I) float32, upper triangular, with U^T U the inverse of the damped moments."""
    damped = moments.double()
    mean = damped.diagonal().mean()
    damped = damped + torch.eye(len(damped), dtype=damped.dtype) * (DAMPING * mean if mean > 0 else 1.0)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True).float()


@torch.no_grad()
def input_moments(algorithm: Algorithm, batches: Iterable[Batch], seed: int) -> dict[str, Tensor]:
    """E[x x^T] (I, I), float32 on the CPU, of what each linear layer reads while the training loss of the batches is computed.

    By the name of the layer's weight; of a layer that is not called there is none. seed: of what the loss draws.
    """
    sums, counts = dict[str, Tensor](), dict[str, int]()
    first = dict[int, str]()  # a weight with several names is known by the first

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
        with torch.compiler.set_stance("force_eager"):  # a block that was compiled before does not call its layers' hooks
            for index, batch in enumerate(batches):
                algorithm.loss(batch.to(device), Draws(seed, index, device=device))
    finally:
        algorithm.train(training)
        for one in hooks:
            one.remove()
    return {name: (total / counts[name]).cpu() for name, total in sums.items()}
