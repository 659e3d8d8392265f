"""Evaluations of Qwen3 for texts that are written block by block: attention masks by block, and a cache of keys and values.

While a block is written, the tokens outside of it do not change. So the keys and values of other positions are kept from the
block's first evaluation, which reads everything, and later evaluations compute the block alone (Fast-dLLM, arXiv 2505.22618).
This is exact if a position sees only its own block and earlier ones, since then no kept value depends on the block. If all
positions see all others, the kept values are those for the block's first state, which is an approximation.

B batch, L length, N positions read, anchors included, n those of them that are computed.
"""

import torch
from torch import Tensor

from flm.qwen.configuration_flow_qwen3 import LAYERS_ATTENTION
from flm.qwen.modeling_flow_qwen3 import FlowMatchingLanguageModel, Frame, aligned, frame_of

_KERNELS = ("sdpa", "eager")  # those that take any mask


class KeysAndValues:
    """Keys and values (B, H, N, Dh) of every layer, as a cache of transformers: attention passes its new keys and values to
    `update`, and attends to those that this returns.

    Attributes:
        rows: (B,) bool, sequences that are computed now.
        index: (b, n) positions of them that are computed now; None: all, which fills the cache.
    """

    def __init__(self) -> None:
        self._layers: list[tuple[Tensor, Tensor]] = []
        self.rows: Tensor | None = None
        self.index: Tensor | None = None

    def update(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        if self.index is None or self.rows is None:
            self._layers.append((keys, values))
            return keys, values
        index = self.index[:, None, :, None].expand_as(keys)
        found = []
        for whole, new in zip(self._layers[layer], (keys, values), strict=True):
            here = whole[self.rows].scatter(2, index, new)
            whole[self.rows] = here
            found.append(here)
        return found[0], found[1]


class BlockReader:
    """Final hidden states (B, L, D) of corrupted sequences that are written block by block.

    Args:
        blocks: (B, L), the number of each position's block; a position with a number below 0 counts as before all blocks.
        documents: as of `FlowMatchingLanguageModel.encode`.
        earlier: whether a position sees only its own block and earlier ones, rather than all.
        keep: whether positions outside the current block are computed in its first evaluation only.

    Raises:
        ValueError: the network's attention takes no masks.
    """

    def __init__(self, network: FlowMatchingLanguageModel, blocks: Tensor, documents: Tensor | None, earlier: bool, keep: bool):
        kernel = network.config._attn_implementation
        if kernel not in _KERNELS:
            raise ValueError(
                f"model.attention={kernel}: sampling.block_cache and block_sees need {' or '.join(_KERNELS)}, which take masks"
            )
        self.network, self.blocks, self.documents, self.keep = network, blocks, documents, keep
        frame = self._frame(blocks)
        self._mask = self._seen(frame, earlier)
        self._block: int | None = None
        self._kept = KeysAndValues()
        self._states: Tensor | None = None  # (B, N, D) as last computed

    @torch.no_grad()
    def __call__(self, tokens: Tensor, t: Tensor, rows: Tensor, block: int) -> Tensor:
        """The states (B, L, D) of tokens (B, L) at t (B,), computed for the sequences `rows` (B,) bool; others stay as before.

        Args:
            block: the block that is being written. Calls with the same block may differ only in its tokens.
        """
        frame = self._frame(tokens)
        if self._states is None or (self.keep and block != self._block):
            rows = torch.ones_like(rows)
        kept, index = self.keep and block == self._block, None
        if kept:
            needed = self._needed(frame, self.blocks == block)[rows]
            index = (~needed).long().argsort(dim=1, stable=True)[:, : int(needed.sum(1).max())]
        elif self.keep:
            self._kept, self._block = KeysAndValues(), block
        states = self._computed(frame, t, rows, index)
        whole = states.new_zeros(*frame.tokens.shape, states.shape[-1]) if self._states is None else self._states.clone()
        if index is None:
            whole[rows] = states
        else:
            whole[rows] = whole[rows].scatter(1, index[..., None].expand_as(states), states)
        self._states = whole
        return aligned(whole, frame, tokens.shape[1])

    def _computed(self, frame: Frame, t: Tensor, rows: Tensor, index: Tensor | None) -> Tensor:
        """The states (b, n, D) of the positions `index` in the sequences `rows`; of all positions if it is None."""
        chosen, mask = frame.tokens[rows], self._mask[rows]
        places = self._places(frame)[rows]
        if index is not None:
            chosen, places = chosen.gather(1, index), places.gather(1, index)
            mask = mask.gather(2, index[:, None, :, None].expand(-1, -1, -1, mask.shape[3]))
        embedded, options = self.network.embedded(chosen, t[rows])
        if self.network.config._attn_implementation == "eager":  # adds its mask to the scores
            mask = torch.zeros_like(mask, dtype=embedded.dtype).masked_fill_(~mask, torch.finfo(embedded.dtype).min)
        self._kept.rows, self._kept.index = rows, index
        found = self.network.model(
            inputs_embeds=embedded,
            attention_mask={LAYERS_ATTENTION: mask},
            position_ids=places,
            past_key_values=self._kept if self.keep else None,
            use_cache=False,
            **options,
        )
        return found.last_hidden_state

    def _frame(self, tokens: Tensor) -> Frame:
        config = self.network.config
        return frame_of(tokens, self.documents, config.anchor_token_id if config.shift else None)

    def _places(self, frame: Frame) -> Tensor:
        if frame.positions is not None:
            return frame.positions
        return torch.arange(frame.tokens.shape[1], device=frame.tokens.device).expand_as(frame.tokens)

    def _needed(self, frame: Frame, part: Tensor) -> Tensor:
        """(B, N) bool, the positions that hold or predict the tokens in `part` (B, L) bool."""
        batch, length = part.shape
        size = frame.tokens.shape[1]
        own = torch.arange(size - length, size, device=part.device).expand(batch, -1)
        predictor = torch.arange(length, device=part.device).expand(batch, -1) if frame.predictor is None else frame.predictor
        needed = torch.zeros(batch, size, dtype=torch.long, device=part.device)
        for index in (own, predictor):
            needed.scatter_add_(1, index, part.long())
        return needed > 0

    def _seen(self, frame: Frame, earlier: bool) -> Tensor:
        """The attention mask (B, 1, N, N) bool, true if the row's position sees the column's."""
        batch, length = self.blocks.shape
        size, places = frame.tokens.shape[1], self._places(frame)
        seen = torch.ones(batch, size, size, dtype=torch.bool, device=self.blocks.device)
        if frame.documents is not None:
            seen &= frame.documents[:, :, None] == frame.documents[:, None, :]
        if self.network.config.is_causal:
            seen &= places[:, None, :] <= places[:, :, None]
        if earlier:
            blocks = torch.cat((self.blocks.new_full((batch, size - length), -1), self.blocks), 1)
            seen &= blocks[:, None, :] <= blocks[:, :, None]
        return seen[:, None]
