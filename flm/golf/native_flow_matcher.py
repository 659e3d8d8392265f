"""A flow in the space of hidden states, trained with a language model, whose last hidden state it corrects.

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
    """A velocity v(x, t) from Gaussian noise z at t = 0 to hidden states x1 at t = 1, for each position by itself.

    It is trained by conditional flow matching (arXiv 2210.02747) on the straight path x_t = (1 - t) z + t x1 with the loss

        mean over dimensions of (v(x_t, t) - (x1 - z))^2.

    A hidden state x is corrected to x + sigmoid(gate) v(x, t_eval). With several Euler steps their whole displacement takes
    the place of v. At the start v = 0: the correction changes nothing, and the loss is 2 if z and x1 have unit mean square.

    At t_eval = 1 the optimal velocity is E[x1 - z | x_1 = x] = x, since z is independent of x1 and has mean 0. The correction
    then only multiplies x by 1 + sigmoid(gate), like a temperature of the logits. Below 1 it can carry information.

    Args:
        dim: D, even.
        hidden_dim: h. The module has 3 D h + 2 h + 1 parameters, and D h more with a condition.
        t_eval: time in (0, 1] of the single step, of length 1, that is taken if n_steps is 1.
        n_steps: number of Euler steps; above 1 they go from t_start to 1.
        t_start: in [0, 1); for n_steps above 1.
        per_position_t: whether in training every position has its own time, or every sequence one (stratified).
        detach_target: whether x1 and the condition are constants of the flow loss, which then trains only this module.
        target: what x1 is: the "hidden" state itself, or the output row of the "token" to be predicted, RMS-normalised.
        condition: what v reads besides x and t: nothing, or the hidden state.
        gate_init: initial value of the gate, before the sigmoid.
        time_scale: factor of t, see `time_features`.
        init: initialisation of the matrices that read x, t and the condition. The matrix that writes starts at zero.

    Raises:
        ValueError: t_eval is below 1 with several steps, or t_start above 0 with one.
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
        """v (..., D) at states x (..., D) and times t, which broadcast to (...,).

        Args:
            condition: (..., D); only read if the module has condition="hidden".
        """
        features = time_features(t, self.time.in_features, self.time_scale).to(self.time.weight.dtype)
        inner = self.read(x) + F.gelu(self.time(features))
        if self.read_condition is not None:
            inner = inner + self.read_condition(condition)
        return self.write(F.gelu(inner)).to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Corrected hidden states (..., D), in training as in inference."""
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
        """The flow loss (B, L), a mean square over dimensions.

        Args:
            hidden: (B, L, D), the states before correction.
            tokens: (B, L), the tokens that they predict.
            table: (V, D), output table of the language model.
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
    """Features (..., count) of times t (...), in fp32 or better.

    They are the sines, then the cosines, of scale * t * 10000^(-i / (count/2 - 1)) for i = 0 ... count/2 - 1; count is even.
    """
    wide = torch.promote_types(t.dtype, torch.float32)
    half = count // 2
    exponent = torch.arange(half, dtype=wide, device=t.device) / max(half - 1, 1)
    angle = scale * t.to(wide)[..., None] * torch.exp(-math.log(10000.0) * exponent)
    return torch.cat((angle.sin(), angle.cos()), dim=-1)
