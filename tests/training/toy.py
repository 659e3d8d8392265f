"""A small algorithm that uses every stream of randomness, and data that remember who read them."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch import nn
from torch.utils.data import DataLoader, Dataset

from flm.algos.algorithm import Algorithm, Batch
from flm.algos.losses import summed
from flm.training.checkpointing import AtomicCheckpointIO
from flm.training.module import Module
from flm.training.schedules import cosine_decay

VOCAB, LENGTH, BATCH = 11, 6, 4


class ToyBackbone(nn.Module):
    def __init__(self, vocab_size: int, length: int, width: int = 8, dropout: float = 0.2):
        super().__init__()
        self.table = nn.Embedding(vocab_size, width)
        self.blocks = nn.Sequential(nn.Linear(width, width, bias=False), nn.GELU(), nn.Dropout(dropout))
        self.out = nn.Linear(width, vocab_size)
        self.frozen = nn.Parameter(torch.ones(width), requires_grad=False)
        self.register_buffer("calls", torch.zeros(()))


class ToyAlgorithm(Algorithm):
    """Denoises embeddings; `poison` makes the loss NaN from that training call on."""

    def __init__(self, backbone, vocab_size: int, length: int, poison: int | None = None, clock: bool = True):
        super().__init__(vocab_size, length)
        self.backbone = backbone(vocab_size=vocab_size)
        self.poison, self.clock = poison, clock

    def loss(self, batch, draws):
        net = self.backbone
        tau = draws.stratified(batch.tokens.shape[0]).float()
        if self.training:
            net.calls += 1
        embedded = net.table(batch.tokens)
        noised = tau[:, None, None] * embedded + (1 - tau[:, None, None]) * draws.normal(*embedded.shape)
        logits = net.out(net.blocks(noised) * net.frozen)
        per_token = F.cross_entropy(logits.transpose(1, 2), batch.tokens, reduction="none")
        total = (per_token * batch.weight).sum()
        if self.training and self.poison is not None and net.calls > self.poison:
            total = total * float("nan")
        loss = summed(total, per_token.detach(), batch.weight, tau if self.clock else None)
        loss.metrics["half"] = total.detach() / 2, loss.count
        return loss

    def context_free_loss(self, token_counts, tau, draws):
        p = token_counts.double() / token_counts.sum()
        return -(p * p.clamp_min(1e-30).log()).sum() * (1 - tau)

    def sampler(self, **options):
        def sample(denoiser, canvas, steps, generator, on_step=None):
            logits = self.backbone.out(self.backbone.table.weight.mean(0)) * options.get("scale", 1.0)
            F.dropout(logits, 0.5)  # careless use of the global generator must not matter either
            drawn = torch.multinomial(logits.softmax(-1), canvas.tokens.numel(), True, generator=generator)
            return canvas.fill(drawn.view_as(canvas.tokens))

        return sample

    def denoiser(self):
        return None


class Numbered(Dataset):
    """Batch i of one run of data; `served` lists what was asked for."""

    def __init__(self, start: int, stop: int, served: list[int], rank: int = 0, world: int = 1):
        self.start, self.stop, self.served, self.rank, self.world = start, stop, served, rank, world

    def __len__(self):
        return self.stop - self.start

    def __getitem__(self, index):
        if index >= len(self):
            raise IndexError
        self.served.append(self.start + index)
        # the share of the global batch that Draws numbers the same way
        return make_batch((self.start + index) * self.world + self.rank)


def make_batch(number: int) -> Batch:
    tokens = torch.randint(VOCAB, (BATCH, LENGTH), generator=torch.Generator().manual_seed(number))
    weight = torch.ones(BATCH, LENGTH)
    weight[0, LENGTH // 2 :] = 0
    return Batch(tokens, weight)


class ToyData(LightningDataModule):
    """Micro-batches of the steps that remain, starting where trainer.global_step stands."""

    def __init__(self, val_batches: int = 3):
        super().__init__()
        self.served: list[int] = []
        self.val_batches = val_batches

    def train_dataloader(self):
        t = self.trainer
        a = t.accumulate_grad_batches
        start, stop = t.global_step * a, max(t.max_steps, t.global_step) * a
        data = Numbered(start, stop, self.served, t.global_rank, t.world_size)
        return DataLoader(data, batch_size=None)

    def val_dataloader(self):
        data = Numbered(1000, 1000 + self.val_batches, [], self.trainer.global_rank, self.trainer.world_size)
        return DataLoader(data, batch_size=None)


def config(**algo: Any) -> dict[str, Any]:
    return {
        "algo": {"_target_": "toy.ToyAlgorithm", **algo},
        "model": {"_target_": "toy.ToyBackbone", "length": LENGTH, "width": 8},
    }


def make_module(optimizer=None, ema: float | None = 0.9, lr: float = 0.05, **algo: Any) -> Module:
    torch.manual_seed(0)
    algorithm = ToyAlgorithm(partial(ToyBackbone, length=LENGTH, width=8), VOCAB, LENGTH, **algo)
    return Module(
        algorithm,
        optimizer or partial(torch.optim.AdamW, lr=lr),
        partial(cosine_decay, warmup_steps=2, total_steps=20),
        ema=ema,
        seed=3,
        config=config(**algo),
        tokenizer={"kind": "toy"},
        token_counts=torch.arange(1, VOCAB + 1),
    )


def make_trainer(folder: Path, max_steps: int, **arguments: Any) -> Trainer:
    defaults = dict(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=any(isinstance(c, Checkpoint) for c in arguments.get("callbacks", [])),
        enable_progress_bar=False,
        enable_model_summary=False,
        gradient_clip_val=1.0,
        limit_val_batches=0,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        plugins=[AtomicCheckpointIO()],
        default_root_dir=folder,
        log_every_n_steps=1,
    )
    return Trainer(max_steps=max_steps, **(defaults | arguments))


def everything(module: Module) -> dict[str, Any]:
    """All a run ends with, for comparison bit by bit."""
    optimizer = module.trainer.optimizers[0]
    found = {f"weights/{k}": v for k, v in module.algorithm.state_dict().items() if not k.endswith("calls")}
    if module.average is not None:
        found |= {f"average/{k}": v for k, v in module.average.weights.items()}
        found["average_updates"] = torch.tensor(module.average.updates)
    for index, state in optimizer.state_dict()["state"].items():
        found |= {f"optimizer/{index}/{k}": torch.as_tensor(v) for k, v in state.items()}
    found["lr"] = torch.tensor([g["lr"] for g in optimizer.param_groups], dtype=torch.float64)
    return {k: v.detach().clone() for k, v in found.items()}


def assert_identical(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert a.keys() == b.keys()
    assert [k for k in a if not torch.equal(a[k], b[k])] == []
