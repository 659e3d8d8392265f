"""Token backbones: networks that read partly noised token ids and a time, as discrete flow matching trains them.

B batch, L positions, V token ids that the data uses.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flm.models.attention import document_mask
from flm.posterior import TokenPosterior


@runtime_checkable
class TokenBackbone(Protocol):
    """An nn.Module called as backbone(tokens (B, L) int64, t (B,) or None, documents (B, L) or None).

    t runs from 0, noise, to 1, data; None: no time is known. documents as in `Batch`: no position sees another document.
    Entry (b, i) of the posterior is for token i itself; a network that predicts the following token has to shift. The
    posterior is over the `real_vocab_size` ids without the mask (`among_real`).

    Attributes:
        mask_id: the id read at a masked position; None: the network knows no mask.
        real_vocab_size: V; tables may have more rows.
    """

    mask_id: int | None
    real_vocab_size: int

    def __call__(self, tokens: Tensor, t: Tensor | None = None, documents: Tensor | None = None) -> TokenPosterior: ...


class EmbeddedTokens(nn.Module):
    """A `DiT`, which reads embedded states, as a token backbone. It reads t if it has a time embedding.

    Args:
        body: the network.
        real_vocab_size: V.
        mask_id: as in the protocol.
    """

    def __init__(self, body: nn.Module, real_vocab_size: int, mask_id: int | None = None):
        super().__init__()
        self.body, self.real_vocab_size, self.mask_id = body, real_vocab_size, mask_id

    def forward(self, tokens: Tensor, t: Tensor | None = None, documents: Tensor | None = None) -> TokenPosterior:
        embedded = F.embedding(tokens, self.body.input_table)
        if getattr(self.body, "time_embedding", None) is None:
            tau = None
        else:
            tau = embedded.new_zeros(len(tokens)) if t is None else t
        options = {} if documents is None else {"mask": document_mask(documents)}
        return among_real(self.body(embedded, tau, **options), self.real_vocab_size, self.mask_id)


def among_real(posterior: TokenPosterior, real_vocab_size: int, mask_id: int | None) -> TokenPosterior:
    """The prediction renormalised over the ids below real_vocab_size, without the mask.

    Raises:
        ValueError: the mask is below real_vocab_size, and the logits have a softcap.
    """
    table, bias = posterior.table, posterior.bias
    if len(table) > real_vocab_size:
        table, bias = table[:real_vocab_size], None if bias is None else bias[:real_vocab_size]
    if mask_id is not None and mask_id < real_vocab_size:
        if posterior.softcap is not None:  # it would make the mask's logit, -inf, finite
            raise ValueError("algo.mask_id names a token of the vocabulary: that needs model.output_softcap=null")
        bias = table.new_zeros(real_vocab_size) if bias is None else bias
        bias = bias.index_fill(0, torch.tensor([mask_id], device=bias.device), -torch.inf)
    return replace(posterior, table=table, bias=bias)


def token_backbone(make: Callable[..., nn.Module], vocab_size: int, masked: bool, mask_id: int | None = None) -> TokenBackbone:
    """A token backbone for V ids of the data.

    Args:
        make: called as make(vocab_size=number of ids to read): V, or V + 1 if the mask is an id of its own, the last. Gives a
            token backbone, or a module like `DiT`.
        vocab_size: V.
        masked: whether a mask is needed.
        mask_id: of a mask among the V ids, in no text; None: V.

    Raises:
        ValueError: mask_id is not in [0, V), or the token backbone has another mask, lacks one, or has another V.
    """
    if mask_id is not None and mask_id >= vocab_size:
        raise ValueError(f"algo.mask_id must be in [0, {vocab_size}) or null, not {mask_id}")
    own = vocab_size if mask_id is None else mask_id
    network = make(vocab_size=max(vocab_size, own + 1) if masked else vocab_size)
    if not isinstance(network, TokenBackbone):
        return EmbeddedTokens(network, vocab_size, own if masked else None)
    if masked and network.mask_id is None:
        raise ValueError(f"{type(network).__name__} knows no mask: set its mask, or take algo.source=uniform")
    if mask_id is not None and mask_id != network.mask_id:
        raise ValueError(f"algo.mask_id={mask_id}, but the model's mask is {network.mask_id}: leave algo.mask_id=null")
    if network.real_vocab_size != vocab_size:
        raise ValueError(
            f"the model predicts {network.real_vocab_size} token ids, the data has {vocab_size}: set model.source as "
            "algo.source, and algo.mask_id=null"
        )
    return network
