"""Muon for the matrices inside the blocks, AdamW for everything else, as one optimiser."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.nn import Parameter
from torch.optim import Muon, Optimizer

from flm.training.adamw import AdamW
from flm.training.sharding import like, local, whole


class MuonWithAdamW(Optimizer):
    """Matrices (2-D parameters) whose name contains `muon_on` are updated by Muon, all others by AdamW.

    Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) orthogonalises the momentum of a matrix, so tables
    of embeddings, biases and gains do not belong to it. Schedules scale both rates alike.

    Args:
        params: (name, parameter) pairs.
        lr: rate of Muon; the update of an (m, n) matrix is scaled by sqrt(max(1, m / n)).
        momentum: of Muon, Nesterov.
        adamw_lr, betas, eps: of AdamW.
        weight_decay: of both, decoupled.
        muon_on: part of the names of the parameters whose matrices Muon takes.

    Raises:
        ValueError: no matrix matches, or nothing is left for AdamW.
    """

    def __init__(
        self,
        params: Iterable[tuple[str, Parameter]],
        lr: float = 0.02,
        momentum: float = 0.95,
        adamw_lr: float = 3e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        muon_on: str = "blocks.",
    ):
        named = list(params)
        matrices = [(name, p) for name, p in named if p.ndim == 2 and muon_on in name]
        taken = {name for name, _ in matrices}
        others = [(name, p) for name, p in named if name not in taken]
        if not matrices or not others:
            raise ValueError(
                f"optim.muon_on={muon_on!r} matches {len(matrices)} matrices of {len(named)} parameters and leaves "
                f"{len(others)} to AdamW: name a part of the model, or take optim=adamw"
            )
        self._muon = Muon(matrices, lr=lr, weight_decay=weight_decay, momentum=momentum)
        self._adamw = AdamW(others, lr=adamw_lr, betas=tuple(betas), eps=eps, weight_decay=weight_decay)
        super().__init__(self._muon.param_groups + self._adamw.param_groups, {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        # groups and state are this optimiser's, and load_state_dict replaces them: the workers borrow them each time
        for worker, group in zip((self._muon, self._adamw), self.param_groups, strict=True):
            worker.param_groups, worker.state = [group], self.state
            if worker is self._muon and any(isinstance(p, DTensor) for p in group["params"]):
                self._step_gathered(group)
            else:
                worker.step()
        return result

    def _step_gathered(self, group: dict[str, Any]) -> None:
        """Muon's step under FSDP2, matrix by matrix: each process gathers it, computes the whole update, and keeps its part.

        Orthogonalising a split matrix would gather it at each of many products instead, and round otherwise.
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
