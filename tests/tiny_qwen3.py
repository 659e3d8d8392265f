"""A folder that stands in for Qwen3: a tiny one with random weights, and a byte-level tokenizer that leaves rows free."""

from pathlib import Path
from typing import Any

import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers

END, ASSISTANT_END = "<|endoftext|>", "<|im_end|>"
SHAPE = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "tie_word_embeddings": True,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 1,
}


def tiny_qwen3(folder: Path, seed: int = 0, **shape: Any) -> Path:
    """The weights, larger than at initialisation so that context matters. SHAPE but for `shape`."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(Qwen3Config(**SHAPE | shape))
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.data.mul_(4)
    model.save_pretrained(folder)
    return folder


def with_tokenizer(folder: Path, text: str = "def f(x):\n    return x\n") -> Path:
    """Adds a tokenizer of 256 bytes and two special tokens, 258 ids; the model needs vocab_size > 258 for a free row."""
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([END, ASSISTANT_END])
    assert backend.decode(backend.encode(text).ids) == text
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=ASSISTANT_END, pad_token=END).save_pretrained(folder)
    return folder
