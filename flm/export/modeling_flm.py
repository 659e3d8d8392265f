"""The networks of a flow language model for transformers; needs torch and transformers only.

    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    logits = model(inputs_embeds=state, tau=tau).logits

A flow language model reads a noised sequence x_t = (1 - t) noise + t onehot(tokens) through the network's table, as
`state = x_t @ model.backbone.input_table`, and predicts the token at every position. One trained with algo.reads=evidence
reads `state = softmax(evidence) @ model.backbone.input_table` with evidence = log_prior + t x_t / (1 - t)^2 and log_prior from
the file of the weights, and its prediction is softmax(logits + evidence); a flow map takes the mean of t / (1 - t) over the two
ends of the jump in place of t / (1 - t). This file holds the networks alone: samplers, clock and likelihood are in the package
`flm`, whose `flm.load(folder)` opens the same folder, and which `generate` and `pipeline("text-generation")` ask.

B batch, L positions, D width, V vocabulary, H heads of width Dh.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from .generation_flm import Generates


class FlowLanguageModelConfig(PretrainedConfig):
    """`networks` maps the name of each network in the weights to its class here (`kind`) and its arguments; `tables` the name
    of all else in them to its shape and dtype: what the package reads."""

    model_type = "flm"

    def __init__(
        self,
        vocab_size: int = 2,
        length: int = 1,
        networks: dict | None = None,
        tables: dict | None = None,
        flm: dict | None = None,
        **kwargs,
    ):
        self.vocab_size, self.length, self.networks, self.flm = vocab_size, length, networks or {}, flm or {}
        self.tables = tables or {}
        super().__init__(**kwargs)


@dataclass
class FlowLanguageModelOutput(ModelOutput):
    """logits (B, L, V) in fp32 at least."""

    logits: Tensor | None = None


class LayerNorm(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        return F.layer_norm(x.to(wide), self.weight.shape, self.weight.to(wide), None, 1e-5).to(x.dtype)


class TimeEmbedding(nn.Module):
    def __init__(self, cond_dim: int, frequencies: int, scale: float):
        super().__init__()
        self.frequencies, self.scale = frequencies, scale
        self.mlp = nn.Sequential(nn.Linear(frequencies, cond_dim), nn.SiLU(), nn.Linear(cond_dim, cond_dim))

    def forward(self, time: Tensor) -> Tensor:
        half, dtype = self.frequencies // 2, self.mlp[0].weight.dtype
        wide = torch.promote_types(dtype, torch.float32)
        frequency = torch.exp(torch.arange(half, dtype=wide, device=time.device) * (-math.log(10000.0) / half))
        angle = time.to(wide)[:, None] * (self.scale * frequency)
        return self.mlp(torch.cat((angle.cos(), angle.sin()), dim=-1).to(dtype))


def rotary_table(length: int, head_dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float64, device=device) / head_dim
    angle = torch.arange(length, dtype=torch.float64, device=device)[:, None] * 10000.0**-exponent
    return angle.cos().float(), angle.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


def attention(q: Tensor, k: Tensor, v: Tensor, softcap: float | None, causal: bool, mask: Tensor | None) -> Tensor:
    if softcap is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = q.to(wide) @ k.to(wide).transpose(-2, -1) / math.sqrt(q.shape[-1])
    scores = softcap * torch.tanh(scores / softcap)
    if causal:
        lower = torch.ones(q.shape[-2], q.shape[-2], dtype=torch.bool, device=q.device).tril()
        scores = scores.masked_fill(~lower, -math.inf)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return (scores.softmax(-1) @ v.to(wide)).to(v.dtype)


class Block(nn.Module):
    def __init__(self, width: int, heads: int, cond_dim: int | None, mlp_ratio: int, softcap: float | None, causal: bool):
        super().__init__()
        self.heads, self.softcap, self.causal = heads, softcap, causal
        self.norm1 = LayerNorm(width)
        self.attn_qkv = nn.Linear(width, 3 * width, bias=False)
        self.attn_out = nn.Linear(width, width, bias=False)
        self.norm2 = LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, mlp_ratio * width), nn.GELU(approximate="tanh"), nn.Linear(mlp_ratio * width, width)
        )
        self.adaLN_modulation = None if cond_dim is None else nn.Linear(cond_dim, 6 * width)

    def forward(self, x: Tensor, condition: Tensor | None, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = (0, 0, 1, 0, 0, 1)
        if self.adaLN_modulation is not None:
            shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.adaLN_modulation(condition)[:, None].chunk(6, dim=-1)
        read = self.norm1(x) * (1 + scale_a) + shift_a
        q, k, v = self.attn_qkv(read).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        mixed = attention(q, k, v, self.softcap, self.causal, mask).transpose(1, 2).flatten(2)
        x = x + gate_a * self.attn_out(mixed)
        return x + gate_m * self.mlp(self.norm2(x) * (1 + scale_m) + shift_m)


class OutputLayer(nn.Module):
    def __init__(self, vocab_size: int, width: int, cond_dim: int | None):
        super().__init__()
        self.norm_final = LayerNorm(width)
        self.linear = nn.Linear(width, vocab_size)
        self.adaLN_modulation = None if cond_dim is None else nn.Linear(cond_dim, 2 * width)

    def forward(self, x: Tensor, condition: Tensor | None) -> Tensor:
        shift, scale = (0, 0) if condition is None else self.adaLN_modulation(condition)[:, None].chunk(2, dim=-1)
        logits = (self.norm_final(x) * (1 + scale) + shift) @ self.linear.weight.T
        return logits.to(torch.promote_types(logits.dtype, torch.float32)) + self.linear.bias


class CellVectors(nn.Module):
    """Adds to every position a vector for each of its coordinates in a grid; positions beyond it stay as they are."""

    def __init__(self, shape: list[int], hidden_size: int):
        super().__init__()
        self.axes = nn.ParameterList(torch.empty(size, hidden_size) for size in shape)

    def forward(self, state: Tensor) -> Tensor:
        rest, total = torch.arange(state.shape[1], device=state.device), torch.zeros_like(state[0])
        for vectors in reversed(list(self.axes)):
            total, rest = total + vectors[rest % len(vectors)], rest // len(vectors)
        return state + torch.where(rest[:, None] == 0, total, 0.0)


class Neighbours(nn.Module):
    """Adds to each position a linear map of every position up to `reach` away, one map a distance."""

    def __init__(self, width: int, reach: int):
        super().__init__()
        self.reach = reach
        self.weight = nn.Parameter(torch.empty(2 * reach + 1, width, width))

    def forward(self, x: Tensor) -> Tensor:
        moved = F.conv1d(x.transpose(1, 2), self.weight.permute(1, 2, 0), padding=self.reach)
        return x + moved.transpose(1, 2)


class DiT(nn.Module):
    """Predicts the token at every position from a noised sequence and where on the clock it stands."""

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int,
        num_blocks: int,
        num_heads: int,
        mlp_ratio: int,
        output_softcap: float | None,
        attention_softcap: float | None,
        cond_dim: int | None,
        frequencies: int | None,
        time_scale: float | None,
        two_times: bool,
        causal: bool,
        grid: list[int] | None = None,
        neighbours: int = 0,
        time_insertion: str = "adaln",
    ):
        super().__init__()
        self.time_insertion, self.causal = time_insertion, causal
        time_width = cond_dim
        cond_dim = cond_dim if time_insertion == "adaln" else None
        self.cells = None if grid is None else CellVectors(grid, hidden_size)
        self.neighbours = Neighbours(hidden_size, neighbours) if neighbours else None
        self.head_dim, self.output_softcap = hidden_size // num_heads, output_softcap
        self.input_table = nn.Parameter(torch.empty(vocab_size, hidden_size))
        self.time_embedding = None if time_width is None else TimeEmbedding(time_width, frequencies, time_scale)
        self.second_time_embedding = TimeEmbedding(time_width, frequencies, time_scale) if two_times else None
        self.blocks = nn.ModuleList(
            Block(hidden_size, num_heads, cond_dim, mlp_ratio, attention_softcap, causal) for _ in range(num_blocks)
        )
        self.output_layer = OutputLayer(vocab_size, hidden_size, cond_dim)

    def embed(self, input_ids: Tensor) -> Tensor:
        return F.embedding(input_ids, self.input_table)

    def forward(self, state: Tensor, tau: Tensor | None, tau_to: Tensor | None, softcapped: bool) -> Tensor:
        condition = None
        if self.time_embedding is not None:
            if tau is None:
                raise ValueError("this model needs tau (B,): where on the clock, from 0 (noise) to 1 (data), its input stands")
            condition = self.time_embedding(tau)
            if self.second_time_embedding is not None:
                condition = condition + self.second_time_embedding(tau if tau_to is None else tau_to)
        if self.cells is not None:
            state = self.cells(state)
        if self.neighbours is not None:
            state = self.neighbours(state)
        mask, front = None, 0
        if condition is not None and self.time_insertion == "adaln":
            condition = F.silu(condition)
        elif condition is not None:
            vector, condition = condition[:, None], None
            front = int(self.time_insertion == "token")
            state = torch.cat((vector, state), 1) if front else state + vector
            if front and not self.causal:  # the time's own position sees itself alone
                mask = torch.ones(state.shape[1], state.shape[1], dtype=torch.bool, device=state.device)
                mask[0, 1:] = False
        cos, sin = rotary_table(state.shape[1], self.head_dim, state.device)
        for block in self.blocks:
            state = block(state, condition, cos, sin, mask)
        logits = self.output_layer(state[:, front:], condition)
        if self.output_softcap is None or not softcapped:
            return logits
        return self.output_softcap * torch.tanh(logits / self.output_softcap)


class CausalTransformer(nn.Module):
    """Position i predicts token i from the tokens before it, the first from a learned vector."""

    def __init__(self, **body):
        super().__init__()
        self.body = DiT(**body)
        self.start = nn.Parameter(torch.empty(body["hidden_size"]))

    def embed(self, input_ids: Tensor) -> Tensor:
        start = self.start.expand(input_ids.shape[0], 1, -1)
        return torch.cat((start, self.body.embed(input_ids[:, :-1])), dim=1)

    def forward(self, state: Tensor, tau: Tensor | None, tau_to: Tensor | None, softcapped: bool) -> Tensor:
        return self.body(state, tau, tau_to, softcapped)


class FlowLanguageModel(Generates, PreTrainedModel):
    """All networks of an exported model, and what else is in its weights, under the names that they have there."""

    config_class = FlowLanguageModelConfig
    base_model_prefix = ""
    _kinds = {"DiT": DiT, "CausalTransformer": CausalTransformer}

    def __init__(self, config: FlowLanguageModelConfig):
        super().__init__(config)
        for name, node in config.networks.items():
            place, last = self._place(name)
            place.add_module(last, self._kinds[node["kind"]](**node["arguments"]))
        for name, (shape, dtype) in config.tables.items():
            place, last = self._place(name)
            place.register_buffer(last, torch.zeros(shape, dtype=getattr(torch, dtype)))
        # a folder without `tables` may hold more than networks
        names = "|".join(name.replace(".", r"\.") for name in config.networks)
        self._keys_to_ignore_on_load_unexpected = [rf"^(?!({names})\.)"]
        self.post_init()

    def _place(self, name: str) -> tuple[nn.Module, str]:
        """The module that holds what is called `a.b.c`, made where there is none, and `c`."""
        place: nn.Module = self
        *parents, last = name.split(".")
        for part in parents:
            if part not in place._modules:
                place.add_module(part, nn.Module())
            place = place.get_submodule(part)
        return place, last

    def _init_weights(self, module: nn.Module) -> None:
        """Weights come from a file."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        tau: Tensor | None = None,
        tau_to: Tensor | None = None,
        network: str | None = None,
        softcapped: bool = True,
        **kwargs,
    ) -> FlowLanguageModelOutput:
        """The prediction of the token at every position.

        Args:
            input_ids: (B, L) clean tokens, in place of inputs_embeds. Of a model that writes from left to right, the logits
                at position i are those of token i itself, given the tokens before it.
            inputs_embeds: (B, L, D) a noised sequence times `input_table`.
            tau: (B,) where on the clock the input stands; models without a time take none.
            tau_to: (B,) where on the clock a flow map jumps to; None: tau.
            network: its name, where there are several; None: the first.
            softcapped: False for the numbers before the bound on logits, which a residual network adds to another's.
        """
        chosen = self.get_submodule(next(iter(self.config.networks)) if network is None else network)
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        state = chosen.embed(input_ids) if inputs_embeds is None else inputs_embeds
        return FlowLanguageModelOutput(logits=chosen(state, tau, tau_to, softcapped))
