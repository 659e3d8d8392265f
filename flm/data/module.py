"""The data module: batches for training, validation and evaluation, from a corpus and a tokenizer."""

import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import lightning
import torch
from annotated_types import Ge, Le
from torch import Tensor
from torch.utils.data import DataLoader

from flm.data.blocks import Rows, TokenBlocks, frame_of
from flm.data.cache import TokenCache
from flm.data.corpora.corpus import Corpus
from flm.data.documents import Split
from flm.data.loaders import Share, StreamLoader, TrainLoader, collate_numbered, ignore_stop_signals
from flm.data.order import EvaluationShare
from flm.data.tokenizers import Tokenizer, TokenizerBuilder
from flm.ranges import Count

BatchSize = Annotated[int, Ge(1), Le(1 << 24)]


class TextDataModule(lightning.LightningDataModule):
    """Batches of blocks of L tokens.

    With a trainer, its `use_distributed_sampler` must be False (the module shares data out itself) and its `max_steps`
    set; `accumulate_grad_batches` is `accumulation(world_size)`. All processes must see the same `corpus.cache_dir`.

    Args:
        corpus: the documents; its `wrap` frames blocks, and its `cache_dir` holds tokens.
        tokenizer: builds the tokenizer, from the training documents if it is learned.
        length: L, tokens per block.
        seed: of the order of training examples.
        global_batch_size: examples per optimiser step, over all processes and accumulation steps.
        batch_size: examples per process and micro-batch; None: global_batch_size / number of processes.
        eval_batch_size: examples per process in validation; None: as batch_size.
        num_workers: loader processes; batches do not depend on it.
        max_eval_examples: number of blocks to validate on, evenly spaced over the split; None: all.
    """

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: TokenizerBuilder,
        length: int,
        seed: int = 1,
        global_batch_size: BatchSize = 512,
        batch_size: BatchSize | None = None,
        eval_batch_size: BatchSize | None = None,
        num_workers: Annotated[int, Ge(0), Le(1024)] = 0,
        max_eval_examples: Count | None = None,
    ):
        super().__init__()
        self.corpus, self.builder, self.length, self.seed = corpus, tokenizer, length, seed
        self.global_batch_size, self.batch_size, self.eval_batch_size = global_batch_size, batch_size, eval_batch_size
        self.num_workers, self.max_eval_examples = num_workers, max_eval_examples
        self.valid_limit: int | float | None = None  # as trainer.limit_val_batches, over all processes together
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._tokenizer: Tokenizer | None = None
        self._cache: TokenCache | None = None
        self._blocks_of: dict[Split, TokenBlocks] = {}
        self._stream_loader: StreamLoader | None = None
        self._stream_state: dict[str, Any] | None = None

    def prepare(self) -> None:
        """Builds or opens tokenizer and token cache. Several processes may call it at once; a second call does nothing."""
        if self._tokenizer is not None:
            return
        root = self._cache_root()
        self._tokenizer = self.builder.build(
            lambda: self.corpus.documents("train"), cache_dir=root, source=self.corpus.fingerprint()
        )
        frame_of(self.corpus.wrap, self._tokenizer)  # an unknown name fails before the corpus is tokenised
        self._cache = self.corpus.open(self._tokenizer, root)

    def prepare_data(self) -> None:
        self.prepare()

    def setup(self, stage: str) -> None:
        self.prepare()

    @property
    def tokenizer(self) -> Tokenizer:
        self.prepare()
        assert self._tokenizer is not None
        return self._tokenizer

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.vocab_size

    @property
    def cache(self) -> TokenCache:
        self.prepare()
        assert self._cache is not None
        return self._cache

    def train_blocks(self) -> TokenBlocks:
        return self._blocks("train")

    def valid_blocks(self) -> TokenBlocks:
        return self._blocks("valid")

    def valid_documents(self) -> Iterator[str]:
        """The held-out documents, normalised but not tokenised."""
        return self.corpus.documents("valid")

    def token_counts(self) -> Tensor:
        """How often each id occurs in the training blocks; if they are streamed, in the validation blocks. int64 (V,)."""
        blocks = self.valid_blocks() if self.corpus.streamed else self.train_blocks()
        return blocks.token_counts(self.vocab_size)

    def bytes_per_token(self) -> float:
        """UTF-8 bytes of held-out text per position of a validation block, on average over the split.

        Bits per byte = nats per token / ln 2 / this. Frame tokens and EOS count as positions and stand for no byte.
        """
        blocks = self.valid_blocks()
        if self.corpus.streamed:
            return blocks.bytes_per_token
        return self.cache.bytes_per_token("valid") * blocks.payload / blocks.length

    def accumulation(self, world_size: int) -> int:
        """Micro-batches per optimiser step and process."""
        batch_size = self.batch_size or max(1, self.global_batch_size // world_size)
        together = batch_size * world_size
        if self.global_batch_size % together:
            raise ValueError(
                f"loader.global_batch_size={self.global_batch_size} must be a multiple of loader.batch_size "
                f"({batch_size}) times the number of processes ({world_size}), {together}"
            )
        return self.global_batch_size // together

    def train_loader(self, start: int, stop: int, rank: int = 0, world_size: int = 1) -> TrainLoader | StreamLoader:
        """Micro-batches of optimiser steps start .. stop-1 for one process.

        Raises:
            ValueError: training text is streamed, and no state of its position at step `start` was loaded.
        """
        share = Share(start, stop, self.global_batch_size, self.accumulation(world_size), rank, world_size)
        if not self.corpus.streamed:
            return TrainLoader(self.train_blocks(), self.seed, share, self._loader_options())
        state = self._stream_state if start else None
        if start and (state is None or state["step"] != start):
            raise ValueError(
                f"data: the checkpoint of step {start} has no position of the text streams: it is of a run on other data; "
                "begin a new run with checkpointing.resume_from_ckpt=false"
            )
        self._stream_loader = self.corpus.stream_loader(
            self.tokenizer, self.length, self.seed, share, state, self._loader_options()
        )
        return self._stream_loader

    def valid_loader(self, rank: int = 0, world_size: int = 1) -> DataLoader:
        """Validation batches of one process, always the same in the same order; the last may be smaller.

        Rows that only make the processes' shares equal have weight 0 (`EvaluationShare`).
        """
        blocks, first = self.valid_blocks(), None
        if self.valid_limit is not None:
            # batches as one process would count them, so that several processes see the same examples
            size, count = self.eval_batch_size or self.batch_size or self.global_batch_size, len(blocks)
            count = count if self.max_eval_examples is None else min(count, self.max_eval_examples)
            whole = isinstance(self.valid_limit, int)
            first = self.valid_limit * size if whole else math.ceil(self.valid_limit * count)
        share = EvaluationShare(Rows(blocks), rank, world_size, self.max_eval_examples, first)
        size = self.eval_batch_size or self.batch_size or math.ceil(self.global_batch_size / world_size)
        return DataLoader(share, size, shuffle=False, collate_fn=collate_numbered, **self._loader_options())

    def train_dataloader(self) -> TrainLoader | StreamLoader:
        trainer = self.trainer
        if trainer is None:
            raise ValueError("no trainer is attached: use train_loader(start, stop)")
        if trainer.max_steps < 0:
            raise ValueError("trainer.max_steps must be set: training examples have no end of their own")
        return self.train_loader(trainer.global_step, trainer.max_steps, trainer.global_rank, trainer.world_size)

    def val_dataloader(self) -> DataLoader:
        trainer = self.trainer
        return self.valid_loader() if trainer is None else self.valid_loader(trainer.global_rank, trainer.world_size)

    def state_dict(self) -> dict[str, Any]:
        """The position of the streams before the trainer's step; {} without streams. All processes must call it together."""
        if self._stream_loader is None:
            return {}
        step = None if self.trainer is None else self.trainer.global_step
        states = [self._stream_loader.state(step)]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            states = states * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(states, states[0])
        return self._stream_loader.joined(states)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._stream_state = state

    def epochs(self) -> dict[str, float]:
        """Passes over each streamed source that this process's readers have completed, on average; empty without streams."""
        return {} if self._stream_loader is None else self._stream_loader.epochs()

    def _blocks(self, split: Split) -> TokenBlocks:
        if split not in self._blocks_of:
            cache = None if self.corpus.streamed else self.cache
            self._blocks_of[split] = self.corpus.blocks(cache, split, self.length, self.tokenizer, self.seed)
        return self._blocks_of[split]

    def _loader_options(self) -> dict[str, Any]:
        return {
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "pin_memory": torch.cuda.is_available(),
            "worker_init_fn": ignore_stop_signals,
        }

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        # Lightning copies only bare tensors without blocking; the loaders' memory is pinned
        return batch.to(device, non_blocking=True)

    def _cache_root(self) -> Path:
        if self.corpus.cache_dir is None:
            self._temporary = self._temporary or tempfile.TemporaryDirectory(prefix="flm-data-")
            return Path(self._temporary.name)
        return Path(self.corpus.cache_dir)
