"""What two processes do in test_ranks, and one process that accumulates beside them: the same global batches."""

import os
import signal
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader
from toy import Numbered, make_trainer

from flm.algos.algorithm import Batch
from flm.algos.ar import AR
from flm.algos.flm import FLM
from flm.algos.fmlm import FMLM
from flm.draws import randn
from flm.models.dit import DiT
from flm.training.checkpointing import CheckpointEvery
from flm.training.module import Module
from flm.training.optimizers import AdamW, MuonWithAdamW
from flm.training.schedules import cosine_decay
from flm.training.sharding import FullyShardedStrategy, resplit, whole
from flm.training.stopping import StopInTime

VOCAB, LENGTH, BATCH, STEPS, STREAM = 37, 6, 4, 4, 9  # more words than two tables are wide: noise is projected
BACKBONE = {
    "_target_": "flm.models.dit.DiT",
    "length": LENGTH,
    "hidden_size": 8,
    "num_blocks": 2,
    "num_heads": 2,
    "cond_dim": 8,
}
STRATEGIES = {"ddp": DDPStrategy, "fsdp2": FullyShardedStrategy}
ADAMW = partial(AdamW, lr=0.005)
VALIDATION_BATCHES = 2  # of each process


class Blocks(Numbered):
    def __getitem__(self, index):
        if index >= len(self):
            raise IndexError
        number = (self.start + index) * self.world + self.rank
        tokens = torch.randint(VOCAB, (BATCH, LENGTH), generator=torch.Generator().manual_seed(number))
        weight = torch.ones(BATCH, LENGTH)
        weight[number % BATCH, number % LENGTH :] = 0
        if number % 2:  # all that the second process sees
            weight[1:] = 0
        return Batch(tokens, weight)


class Data(LightningDataModule):
    """Two processes with one micro-batch each see what one process with two sees."""

    def train_dataloader(self):
        t = self.trainer
        start, stop = t.global_step * t.accumulate_grad_batches, t.max_steps * t.accumulate_grad_batches
        return DataLoader(Blocks(start, stop, [], t.global_rank, t.world_size), batch_size=None)

    def val_dataloader(self):
        t = self.trainer
        return DataLoader(Blocks(1000, 1000 + VALIDATION_BATCHES, [], t.global_rank, 2), batch_size=None)


class Record(Callback):
    """Loss of each micro-batch, and what each drew: times, noise and a number of dropout's."""

    def __init__(self):
        self.losses, self.times, self.noise, self.reports, self.samples = [], [], [], [], []

    def setup(self, trainer, pl_module, stage):
        loss = pl_module.algorithm.loss

        def spy(batch, draws):
            if pl_module.algorithm.training:
                self.noise.append(randn(copy(draws.rows), BATCH, 3))  # a copy: the run's own numbers stay as they are
            found = loss(batch, draws)
            if pl_module.algorithm.training and found.tau is not None:
                self.times.append(found.tau)
            return found

        pl_module.algorithm.loss = spy

    def on_train_batch_end(self, trainer, pl_module, outputs, *_):
        self.losses.append(float(outputs["loss"]))

    def on_validation_end(self, trainer, pl_module):
        self.reports.append(pl_module.report.mean)
        self.samples.append(pl_module.generate(3, 2, STREAM))


NAMES = ("flm", "fmlm", "evidence", "ar")


def new_module(name: str, optimizer=ADAMW) -> Module:
    torch.manual_seed(0)
    backbone = partial(DiT, **{key: value for key, value in BACKBONE.items() if key != "_target_"})
    node = {"_target_": "flm.algos.flm.FLM" if name == "recomputed" else f"flm.algos.{name}.{name.upper()}"}
    if name in ("fmlm", "lagrangian", "evidence"):
        reads = "evidence" if name == "evidence" else "view"
        backbone = partial(backbone, neighbours=1) if name == "evidence" else backbone
        teacher = FLM(backbone, VOCAB, LENGTH, reads=reads)
        teacher.know_frequencies(torch.arange(VOCAB))
        with torch.no_grad():
            for parameter in teacher.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        options = {"objective": "lagrangian" if name == "lagrangian" else "semigroup", "reads": reads}
        algorithm = FMLM(backbone, VOCAB, LENGTH, teacher=teacher, learnable_loss_weighting=True, **options)
    else:
        backbone = partial(backbone, checkpoint_every=2) if name == "recomputed" else backbone
        algorithm = (AR if name == "ar" else FLM)(backbone, VOCAB, LENGTH)
    schedule = partial(cosine_decay, warmup_steps=1, total_steps=20)
    config = {"algo": node, "model": BACKBONE}
    return Module(algorithm, optimizer, schedule, 0.8, 3, config, {"kind": "toy"}, torch.arange(1, VOCAB + 1))


def fit(folder: Path, name: str, *, optimizer=ADAMW, callbacks=(), path=None, steps=STEPS, **arguments) -> dict[str, Any]:
    """Trains, validates after step 2 and at the end, and returns all there is to compare."""
    module, record = new_module(name, optimizer), Record()
    every = 2 * arguments.get("accumulate_grad_batches", 1)
    options = {"limit_val_batches": 1.0, "val_check_interval": every} | arguments
    trainer = make_trainer(folder, steps, callbacks=[record, *callbacks], **options)
    trainer.fit(module, datamodule=Data(), ckpt_path=path)
    resplit(module)
    found = {key: getattr(record, key) for key in ("losses", "times", "noise", "reports", "samples")}
    weights = {key: value for key, value in module.algorithm.state_dict().items()}
    found |= {"weights": whole(weights), "average": whole(module.average.weights), "step": trainer.global_step}
    found["local"] = sum(p.to_local().numel() if hasattr(p, "to_local") else p.numel() for p in module.parameters())
    return found


class SignalAt(Callback):
    def __init__(self, rank: int, step: int):
        self.rank, self.step = rank, step

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_rank == self.rank and trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGUSR1)


def work(rank: int, folder: Path, port: int) -> None:
    """All that one of two processes does; what it saw goes to <folder>/<rank>.pt."""
    os.environ["MASTER_PORT"] = str(port)
    found: dict[str, Any] = {}
    for kind, strategy in STRATEGIES.items():
        for name in NAMES:
            saving = [CheckpointEvery(folder / kind / name, 2)]
            found[kind, name] = fit(folder, name, callbacks=saving, devices=2, strategy=strategy())
    found["lagrangian"] = fit(folder, "lagrangian", devices=2, strategy=FullyShardedStrategy(), steps=2)
    found["recomputed"] = fit(folder, "recomputed", devices=2, strategy=FullyShardedStrategy())
    two = partial(fit, folder, "flm", devices=2)
    found["resumed"] = two(path=folder / "one" / "step_0000002.ckpt", strategy=FullyShardedStrategy())
    found["muon"] = two(optimizer=MuonWithAdamW, strategy=FullyShardedStrategy())
    found["bf16"] = two(strategy=FullyShardedStrategy(), precision="bf16-mixed")
    stopping = [SignalAt(1, 1), StopInTime(), CheckpointEvery(folder / "stopped", 1000)]
    found["stopped"] = two(callbacks=stopping, strategy=DDPStrategy(), steps=50)
    full = folder / "full"
    full.mkdir(exist_ok=True)
    if rank == 0:
        (full / ".step_0000002.ckpt.partial").symlink_to("/dev/full")
    try:
        two(callbacks=[CheckpointEvery(full, 1)], strategy=FullyShardedStrategy())
    except OSError as error:
        found["full"] = str(error)
    torch.save(found, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()
