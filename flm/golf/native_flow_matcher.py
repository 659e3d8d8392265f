"""A flow in the space of hidden states, trained beside a language model and read as a correction of its last hidden state.

B batch, L positions, D width of the hidden state, h width inside the module.
"""

import math
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge, Lt
from torch import Tensor, nn

from flm.draws import Draws
from flm.golf.parts import rms_norm
from flm.ranges import Count, PositiveShare, Scale, Width


class NativeFlowMatcher(nn.Module):
    """A velocity v(x, t) of each position by itself, from Gaussian noise z at t = 0 to hidden states x1 at t = 1.

    It is trained by conditional flow matching (arXiv 2210.02747) on the straight path x_t = (1 - t) z + t x1,

        mean over dimensions of (v(x_t, t) - (x1 - z))^2,

    and corrects a hidden state x by x + sigmoid(gate) v(x, t_eval), or by the displacement of several Euler steps. Both
    terms are the identity and 2, where z and x1 have unit mean square, as long as v = 0: at the start.

    At t_eval = 1 the field that this loss asks for is E[x1 - z | x_1 = x] = x, since z is independent of x1: the correction
    is then a factor 1 + sigmoid(gate) on x, a temperature of the logits. Below 1 it carries information.

    Args:
        dim: D, even.
        hidden_dim: h. 3 D h + 2 h + 1 parameters, and D h more with a condition.
        t_eval: time in (0, 1] at which the single step of n_steps = 1, of length 1, is taken.
        n_steps: Euler steps from t_start to 1 where above 1.
        t_start: in [0, 1).
        per_position_t: whether every position has a time of its own in training, or every sequence (stratified).
        detach_target: whether x1 and the condition are constants of the flow loss, which then reaches this module alone.
        target: x1, the hidden state itself, or the row of the token to be predicted, at a root mean square of 1.
        condition: what v sees beside x and t, nothing or the hidden state.
        gate_init: of the gate, before the sigmoid.
        time_scale: t is multiplied by it before its sinusoids, see `time_features`.
        init: of the matrices that read x, t and the condition; the one that writes is zero.

    Raises:
        ValueError: a value out of its range.
    """

    def __init__(
        self,
        dim: Count,
        hidden_dim: Width = 256,
        t_eval: PositiveShare = 1.0,
        n_steps: Count = 1,
        t_start: Annotated[float, Ge(0), Lt(1)] = 0.0,
        per_position_t: bool = True,
        detach_target: bool = True,
        target: Literal["hidden", "token"] = "hidden",
        condition: Literal["none", "hidden"] = "none",
        gate_init: float = -5.0,
        time_scale: Scale = 1.0,
        init: Literal["orthogonal", "normal"] = "orthogonal",
    ):
        super().__init__()
        if n_steps > 1 and t_eval != 1:
            raise ValueError(f"algo.flow: t_eval={t_eval} is of n_steps=1; {n_steps} steps begin at t_start")
        if n_steps == 1 and t_start != 0:
            raise ValueError(f"algo.flow: t_start={t_start} is of n_steps above 1; a single step is taken at t_eval")
        self.t_eval, self.n_steps, self.t_start, self.time_scale = t_eval, n_steps, t_start, time_scale
        self.per_position_t, self.detach_target, self.target = per_position_t, detach_target, target
        self.read, self.time = nn.Linear(dim, hidden_dim), nn.Linear(dim, hidden_dim)
        self.read_condition = nn.Linear(dim, hidden_dim, bias=False) if condition == "hidden" else None
        self.write = nn.Linear(hidden_dim, dim, bias=False)
        self.gate = nn.Parameter(torch.tensor(float(gate_init)))
        nn.init.zeros_(self.write.weight)
        for layer in (self.read, self.time, self.read_condition):
            if layer is None:
                continue
            if init == "orthogonal":
                nn.init.orthogonal_(layer.weight)
            else:
                nn.init.normal_(layer.weight, std=0.01)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def velocity(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """v (..., D) at states x (..., D) and times t, broadcastable to (...,); `condition` (..., D) counts if asked for."""
        features = time_features(t, self.time.in_features, self.time_scale).to(self.time.weight.dtype)
        inner = self.read(x) + F.gelu(self.time(features))
        if self.read_condition is not None:
            inner = inner + self.read_condition(condition)
        return self.write(F.gelu(inner)).to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Hidden states (..., D), corrected; in training and in inference alike."""
        if self.n_steps == 1:
            shift = self.velocity(x, x.new_full((1,) * (x.ndim - 1), self.t_eval), x)
        else:
            moved, step = x, (1 - self.t_start) / self.n_steps
            for n in range(self.n_steps):
                t = x.new_full((1,) * (x.ndim - 1), self.t_start + n * step)
                moved = moved + step * self.velocity(moved, t, x)
            shift = moved - x
        return x + torch.sigmoid(self.gate) * shift

    def loss(self, hidden: Tensor, tokens: Tensor, table: Tensor, draws: Draws) -> Tensor:
        """The flow loss (B, L), mean square per dimension.

        Args:
            hidden: (B, L, D) the states to be corrected.
            tokens: (B, L) what they are to predict.
            table: (V, D) of the language model.
        """
        target = hidden if self.target == "hidden" else rms_norm(F.embedding(tokens, table))
        condition = hidden
        if self.detach_target:
            target, condition = target.detach(), condition.detach()
        batch, length, dim = hidden.shape
        t = draws.uniform(batch, length) if self.per_position_t else draws.stratified(batch).float()[:, None]
        t = t.to(target.dtype)
        noise = draws.normal(batch, length, dim).to(target.dtype)
        x_t = torch.lerp(noise, target, t[..., None])
        velocity = self.velocity(x_t, t, condition)
        return (velocity - (target - noise)).float().square().mean(-1)


def time_features(t: Tensor, count: int, scale: float) -> Tensor:
    """Sines, then cosines (..., count) of scale * t * 10000^(-i / (count/2 - 1)), i from 0; in fp32 at least."""
    wide = torch.promote_types(t.dtype, torch.float32)
    half = count // 2
    exponent = torch.arange(half, dtype=wide, device=t.device) / max(half - 1, 1)
    angle = scale * t.to(wide)[..., None] * torch.exp(-math.log(10000.0) * exponent)
    return torch.cat((angle.sin(), angle.cos()), dim=-1)
