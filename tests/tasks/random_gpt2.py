"""A folder that stands in for a published judge: a tiny GPT-2 with random weights and a byte-level tokenizer."""

from pathlib import Path

import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers, trainers

END = "<|endoftext|>"


def random_gpt2(folder: Path, context: int = 64) -> Path:
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=270, special_tokens=[END], initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(["the cat sees the sea. a dog hears rain. one bird likes fish."], trainer)
    PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=END, eos_token=END).save_pretrained(folder)
    size = backend.get_vocab_size()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        shape = {"n_layer": 1, "n_embd": 16, "n_head": 2, "n_positions": context}
        model = GPT2LMHeadModel(GPT2Config(vocab_size=size, bos_token_id=0, eos_token_id=0, **shape))
        for parameter in model.parameters():  # larger than at initialisation, so that context matters
            parameter.data.mul_(5)
    model.save_pretrained(folder)
    return folder
