"""Qwen3 as a flow language model on token ids, with the class and method names of the project that this retrofit comes from.

    model = FlowMatchingLanguageModel.from_pretrained("Qwen/Qwen3-1.7B")
    sampler = FlowMatchingSampler(model, FlowMatchingGenerationConfig(num_steps=32, temperature=0.7, top_p=0.95))
    sampler.generate(prompt_ids, max_length=256)

`flm.load` opens the same models with text in and text out. This module imports transformers. B batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flm.algos.dfm import DFM
from flm.paths.mixture import mix
from flm.qwen.backbone import QwenBackbone, schedule_of
from flm.qwen.configuration_flow_qwen3 import FlowMatchingConfig
from flm.qwen.modeling_flow_qwen3 import FlowMatchingLanguageModel, TimeEmbedding
from flm.samplers.canvas import Canvas

__all__ = [
    "DiscreteFlowPath",
    "DiscreteFlowSample",
    "FlowMatchingConfig",
    "FlowMatchingGenerationConfig",
    "FlowMatchingLanguageModel",
    "FlowMatchingSampler",
    "TimeEmbedding",
]

Ids = Tensor | Sequence[int] | Sequence[Sequence[int]]
SOLVERS = ("euler", "exact")


@dataclass(frozen=True)
class DiscreteFlowSample:
    """A state x_t (B, L) between noise x_0 and data x_1 at t (B,)."""

    x_t: Tensor
    x_0: Tensor
    x_1: Tensor
    t: Tensor


class DiscreteFlowPath:
    """The path on which each position independently has its data token with probability kappa(t), else its noise token.

    Args:
        scheduler_type, scheduler_n: of kappa, as in `FlowMatchingConfig`.
    """

    def __init__(self, scheduler_type: str = "polynomial_convex", scheduler_n: float = 1.0):
        self.schedule = schedule_of(scheduler_type, scheduler_n)

    def sample(self, x_0: Tensor, x_1: Tensor, t: Tensor, generator: torch.Generator | None = None) -> DiscreteFlowSample:
        """A state of noise and data (B, L) int64 at t (B,) in [0, 1]. generator: None: seeded by torch's global one."""
        kappa = self.schedule.kappa(t.double())
        return DiscreteFlowSample(mix(x_0, x_1, kappa, generator or _generator(x_1.device)), x_0, x_1, t)


@dataclass
class FlowMatchingGenerationConfig:
    """Options of `FlowMatchingSampler`.

    Attributes:
        num_steps: of the solver; each takes at most one evaluation of the network.
        temperature: divides the logits; 0 takes the most probable token.
        top_k, top_p: draw among the k most probable tokens, the fewest of this mass; None: among all.
        mask_token_id: the model's.
        solver_type: used with use_confidence=False. "exact" jumps with the probability of the path; "euler" with the rate at
            the beginning of the step, which is too rarely.
        guidance_scale: must be 1, since there is no guidance.

    Raises:
        ValueError: one is out of its range.
    """

    num_steps: int = 32
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    mask_token_id: int = 151669
    solver_type: str = "euler"
    guidance_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, not {self.num_steps}")
        if not self.temperature >= 0:
            raise ValueError(f"temperature must be at least 0, not {self.temperature}")
        if self.solver_type not in SOLVERS:
            raise ValueError(f"solver_type must be one of {', '.join(SOLVERS)}, not {self.solver_type!r}")
        if self.guidance_scale != 1.0:
            raise ValueError(f"guidance_scale={self.guidance_scale}: there is no guidance, it must be 1")


class FlowMatchingSampler:
    """Writes sequences of token ids. Puts the model into evaluation mode.

    Args:
        config: options; None: the model's own number of steps and mask, and defaults for the others.

    Raises:
        ValueError: the config's mask is not the model's.
    """

    def __init__(self, model: FlowMatchingLanguageModel, config: FlowMatchingGenerationConfig | None = None):
        own = model.config
        if config is None:
            config = FlowMatchingGenerationConfig(own.num_sampling_steps, mask_token_id=own.mask_token_id)
        if config.mask_token_id != own.mask_token_id:
            raise ValueError(f"mask_token_id={config.mask_token_id}, but the model's mask is {own.mask_token_id}")
        self.model, self.config = model.eval(), config

        def backbone(vocab_size: int) -> QwenBackbone:
            return QwenBackbone.around(model)

        length = own.max_position_embeddings - int(own.shift)
        self._algorithm = DFM(
            backbone, own.real_vocab_size, length, own.source, schedule_of(own.scheduler_type, own.scheduler_n)
        )

    def generate(
        self,
        prompt_ids: Ids | None = None,
        max_length: int = 256,
        batch_size: int = 1,
        num_steps: int | None = None,
        use_confidence: bool = True,
        verbose: bool = False,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Texts (B, max_length) that begin with the prompts; max_length counts prompt and new tokens.

        Args:
            prompt_ids: (B, P), or rows of different lengths. Masks in them are filled, too. None: nothing is given.
            batch_size: B, if there is at most one prompt.
            num_steps: None: the config's.
            use_confidence: at each step write the positions of the most confident predictions; False: as `solver_type` says.
            verbose: print each step.
            generator: of the draws, on the model's device; None: one seeded by torch's global generator.

        Raises:
            ValueError: there is nothing to fill, or the text is too long; an id is not in the vocabulary; or batch_size is not
                the number of prompts.
        """
        prompts = [[]] * batch_size if prompt_ids is None else _rows(prompt_ids)
        if len(prompts) == 1:
            prompts = prompts * batch_size
        if batch_size not in (1, len(prompts)):
            raise ValueError(f"batch_size={batch_size}, but there are {len(prompts)} prompts")
        too_long = max(len(row) for row in prompts)
        if too_long > max_length:
            raise ValueError(f"max_length={max_length} counts the prompt too, which has {too_long} tokens")
        rows = [row + [self.config.mask_token_id] * (max_length - len(row)) for row in prompts]
        return self._fill(rows, num_steps, use_confidence, verbose, generator)

    def generate_with_prefix(self, prefix_ids: Ids, suffix_length: int, num_steps: int | None = None, **options: Any) -> Tensor:
        """`generate` (options as there) of the prefix (B, P) and suffix_length tokens more."""
        longest = max(len(row) for row in _rows(prefix_ids))
        return self.generate(prefix_ids, longest + suffix_length, num_steps=num_steps, **options)

    def infill(
        self,
        prefix_ids: Ids,
        suffix_ids: Ids,
        infill_length: int | Sequence[int],
        num_steps: int | None = None,
        use_confidence: bool = True,
        verbose: bool = False,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Texts (B, P + infill_length + S): prefixes (B, P), new tokens, and suffixes (B, S); other arguments as in `generate`.

        Rows may differ in all three lengths. Shorter rows end in padding, which no token sees: the pad token, else the anchor,
        else 0.

        Args:
            infill_length: number of new tokens, of all rows or of each.

        Raises:
            ValueError: as `generate`; or there are not as many prefixes, suffixes and lengths.
        """
        prefixes, suffixes = _rows(prefix_ids), _rows(suffix_ids)
        sizes = [infill_length] * len(prefixes) if isinstance(infill_length, int) else list(infill_length)
        if not len(prefixes) == len(suffixes) == len(sizes):
            raise ValueError(f"{len(prefixes)} prefixes, but {len(suffixes)} suffixes and {len(sizes)} lengths of holes")
        mask = self.config.mask_token_id
        rows = [prefix + [mask] * size + suffix for prefix, size, suffix in zip(prefixes, sizes, suffixes, strict=True)]
        return self._fill(rows, num_steps, use_confidence, verbose, generator)

    def _fill(
        self, rows: list[list[int]], steps: int | None, by_confidence: bool, verbose: bool, generator: torch.Generator | None
    ) -> Tensor:
        config, own = self.config, self.model.config
        if by_confidence and own.source != "mask":
            raise ValueError("use_confidence=True needs a model of masks: with uniform noise, pass use_confidence=False")
        longest = max(map(len, rows))
        padding = own.anchor_token_id if own.pad_token_id is None else own.pad_token_id
        whole = [row + [padding or 0] * (longest - len(row)) for row in rows]
        given = torch.tensor(whole, dtype=torch.long, device=self.model.device)
        there = torch.arange(longest, device=given.device) < torch.tensor([[len(row)] for row in rows], device=given.device)
        editable = (given == config.mask_token_id) & there
        strange = ~editable & ((given < 0) | (given >= own.real_vocab_size))
        if strange.any():
            raise ValueError(f"token id {given[strange][0].item()} is not one of the model's {own.real_vocab_size}")
        if not editable.any(1).all():
            raise ValueError("there is nothing to fill: raise max_length or infill_length, or give masks")
        if given.shape[1] > self._algorithm.length:
            raise ValueError(f"{given.shape[1]} tokens: the model reads at most {self._algorithm.length}")
        options: dict[str, Any] = {"solver": "top_probability" if by_confidence else config.solver_type}
        options |= {"temperature": config.temperature}  # at 0 the confidence is that of the model, untempered
        options |= {"top_k": config.top_k} if config.top_k is not None else {}
        options |= {"top_p": config.top_p} if config.top_p is not None else {}
        return self._algorithm.generate(
            Canvas(given.masked_fill(editable, 0), editable, None if there.all() else there.long() - 1),
            config.num_steps if steps is None else steps,
            generator or _generator(given.device),
            _report if verbose else None,
            **options,
        )


def _report(moment: Any) -> None:
    print(f"step {moment.index + 1} of {moment.steps}, t = {moment.tau:.3f}", flush=True)


def _rows(ids: Ids) -> list[list[int]]:
    plain = ids.tolist() if isinstance(ids, Tensor) else list(ids)
    if not plain or isinstance(plain[0], int):
        plain = [plain]
    return [list(row) for row in plain]


def _generator(device: torch.device) -> torch.Generator:
    return torch.Generator(device).manual_seed(int(torch.randint(2**62, (), device="cpu")))
