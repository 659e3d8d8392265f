"""Optimisers: fused AdamW, and Muon for the matrices inside the blocks with AdamW for everything else."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any

import torch
from annotated_types import MinLen
from torch.distributed.tensor import DTensor
from torch.nn import Parameter
from torch.optim import Muon, Optimizer

from flm.ranges import BelowOne, Index, NonNegative, PositiveShare, Rate, Text
from flm.training.sharding import like, local, whole

FUSED_ON = {"cpu", "cuda", "xpu", "mps"}


class AdamW(torch.optim.AdamW):
    """torch.optim.AdamW, fused if all parameters are floating point on devices of FUSED_ON.

    Gradients must be unscaled before `step`, which clipping needs anyway. torch marks fused optimisers as unscaling gradients
    themselves, and Lightning then refuses to clip in mixed precision, even in bf16, where nothing is scaled. So the group
    options are set after construction, without that mark.

    Args:
        params: parameters, (name, parameter) pairs or groups of either.
        lr, betas, eps, weight_decay, amsgrad: as of torch.optim.AdamW.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: Rate = 1e-3,
        betas: tuple[BelowOne, BelowOne] = (0.9, 0.999),
        eps: PositiveShare = 1e-8,
        weight_decay: NonNegative = 1e-2,
        amsgrad: bool = False,
    ):
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad)
        tensors = [p for group in self.param_groups for p in group["params"]]
        if all(p.device.type in FUSED_ON and p.is_floating_point() for p in tensors):
            for group in self.param_groups:
                group["fused"] = True


class MuonWithAdamW(Optimizer):
    """Matrices (2-D parameters) whose name contains one of `muon_on` are updated by Muon, all others by AdamW.

    Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) orthogonalises the momentum of a matrix, which does not suit
    embedding tables, biases and gains. Schedules scale both rates alike.

    Args:
        params: (name, parameter) pairs.
        lr: rate of Muon; the update of an (m, n) matrix is scaled by sqrt(max(1, m / n)).
        momentum: of Muon, Nesterov.
        momentum_start: momentum at the first step; it grows linearly to `momentum` over `momentum_steps`. None: constant.
        adamw_lr, betas, eps: of AdamW.
        adamw_lrs: other rates of AdamW, by a part of the parameter's name; the first match counts.
        weight_decay: of both, decoupled.
        muon_on: parts of names; Muon takes the matrices whose name contains one.
        muon_not: parts of names of matrices that AdamW takes all the same.

    Raises:
        ValueError: no matrix matches, AdamW gets no parameter, or a part in adamw_lrs matches none of AdamW's.
    """

    def __init__(
        self,
        params: Iterable[tuple[str, Parameter]],
        lr: Rate = 0.02,
        momentum: BelowOne = 0.95,
        momentum_start: BelowOne | None = None,
        momentum_steps: Index = 0,
        adamw_lr: Rate = 3e-4,
        betas: tuple[BelowOne, BelowOne] = (0.9, 0.999),
        eps: PositiveShare = 1e-8,
        weight_decay: NonNegative = 0.0,
        muon_on: Text | Annotated[Sequence[Text], MinLen(1)] = "blocks.",
        muon_not: Sequence[Text] = (),
        adamw_lrs: Mapping[str, Rate] | None = None,
    ):
        named = list(params)
        parts = [muon_on] if isinstance(muon_on, str) else list(muon_on)
        matrices = [
            (name, p)
            for name, p in named
            if p.ndim == 2 and any(part in name for part in parts) and not any(part in name for part in muon_not)
        ]
        taken = {name for name, _ in matrices}
        others = [(name, p) for name, p in named if name not in taken]
        if not matrices or not others:
            raise ValueError(
                f"optim.muon_on={muon_on!r} matches {len(matrices)} matrices of {len(named)} parameters and leaves "
                f"{len(others)} to AdamW: name a part of the model, or take optim=adamw"
            )
        self._muon = Muon(matrices, lr=lr, weight_decay=weight_decay, momentum=momentum)
        groups = _by_rate(others, adamw_lr, adamw_lrs or {})
        self._adamw = AdamW(groups, lr=adamw_lr, betas=tuple(betas), eps=eps, weight_decay=weight_decay)
        if momentum_start is None and momentum_steps:
            raise ValueError(f"optim.momentum_steps={momentum_steps} needs optim.momentum_start, where the momentum begins")
        if momentum_start is not None:
            if momentum_steps < 1:
                raise ValueError(f"optim.momentum_steps={momentum_steps} must be at least 1 with a momentum_start")
            # in the group, which checkpoints hold, so that a resumed run continues the line
            self._muon.param_groups[0]["momentum_line"] = (float(momentum_start), float(momentum), int(momentum_steps))
            self._muon.param_groups[0]["steps"] = 0
        super().__init__(self._muon.param_groups + self._adamw.param_groups, {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        # load_state_dict replaces this optimiser's groups and state, so the two inner optimisers get them at every step
        for worker, groups in ((self._muon, self.param_groups[:1]), (self._adamw, self.param_groups[1:])):
            worker.param_groups, worker.state = groups, self.state
            if worker is self._muon:
                _move_momentum(groups[0])
            if worker is self._muon and any(isinstance(p, DTensor) for p in groups[0]["params"]):
                self._step_gathered(groups[0])
            else:
                worker.step()
        return result

    def _step_gathered(self, group: dict[str, Any]) -> None:
        """Muon's step under FSDP2: each process gathers a matrix, computes the whole update, and keeps its part.

        Orthogonalising a split matrix would instead gather it for each of many products, and round differently.
        """
        for matrix in group["params"]:
            if matrix.grad is None:
                continue
            state = self.state[matrix]
            gathered = whole(matrix.detach(), device=matrix.device)
            gathered.grad = whole(matrix.grad, device=matrix.device)
            worker_state = {key: whole(value, device=matrix.device) for key, value in state.items()}
            self._muon.param_groups = [{**group, "params": [gathered]}]
            self._muon.state = defaultdict(dict, {gathered: worker_state})
            self._muon.step()
            local(matrix).copy_(local(like(gathered.detach(), matrix)))
            for key, value in self._muon.state[gathered].items():
                state[key] = like(value, matrix) if value.shape == matrix.shape else value


def _by_rate(named: list[tuple[str, Parameter]], rate: float, rates: Mapping[str, float]) -> list[dict[str, Any]]:
    """Parameter groups of AdamW: first those with the common rate, then those with other rates."""
    groups: dict[str | None, dict[str, Any]] = {None: {"params": [], "lr": rate}}
    groups |= {part: {"params": [], "lr": float(own)} for part, own in rates.items()}
    for name, parameter in named:
        part = next((part for part in rates if part in name), None)
        groups[part]["params"].append((name, parameter))
    unused = [part for part in rates if not groups[part]["params"]]
    if unused:
        raise ValueError(f"optim.adamw_lrs: {unused} match no parameter of AdamW: name parts of the model, or leave them out")
    return [group for group in groups.values() if group["params"]]


def _move_momentum(group: dict[str, Any]) -> None:
    """Sets the momentum of the next step, if it grows along a line."""
    if "momentum_line" not in group:
        return
    start, end, steps = group["momentum_line"]
    group["momentum"] = start + (end - start) * min(group["steps"] / steps, 1.0)
    group["steps"] += 1
