"""Networks that learn in turn, on two processes: several steps are those of one process with the same global batches."""

import os
from functools import partial
from pathlib import Path

import torch
from few_step.test_simplex_dmd import B, a_batch, student
from lightning.pytorch import LightningDataModule
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader
from training.toy import make_trainer
from two_processes import free_ports, run_two

from flm.training.module import Module
from flm.training.optimizers import AdamW
from flm.training.sharding import FullyShardedStrategy, whole

STEPS = 7  # two turns of the student's


class Data(LightningDataModule):
    def train_dataloader(self):
        t = self.trainer
        shares = [t.global_rank * t.accumulate_grad_batches + i for i in range(t.accumulate_grad_batches)]
        batch, size = a_batch(dtype=torch.float64), B // 2
        parts = [batch.rows(torch.arange(share * size, (share + 1) * size)) for share in shares]
        return DataLoader(parts * STEPS, batch_size=None)


def fit(folder: Path, **arguments) -> dict[str, torch.Tensor]:
    module = Module(student().double(), partial(AdamW, lr=1e-3, eps=1e-3), None, seed=3)
    make_trainer(folder, STEPS, **arguments).fit(module, datamodule=Data())
    return whole(dict(module.algorithm.state_dict()))


def work(rank: int, folder: Path, port: int) -> None:
    os.environ["MASTER_PORT"] = str(port)
    found = {kind.__name__: fit(folder, devices=2, strategy=kind()) for kind in (DDPStrategy, FullyShardedStrategy)}
    torch.save(found, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_take_the_same_turns_as_one(tmp_path):
    run_two(work, tmp_path, free_ports(1)[0])
    alone, start = fit(tmp_path, accumulate_grad_batches=2), student().double().state_dict()
    assert all(any(not torch.equal(alone[k], start[k]) for k in start if k.startswith(part)) for part in ("backbone", "fake"))
    for rank in range(2):
        for kind, found in torch.load(tmp_path / f"{rank}.pt").items():
            for name, weight in found.items():
                torch.testing.assert_close(
                    weight, alone[name], rtol=0, atol=1e-6, msg=lambda text, at=(kind, name): f"{at}: {text}"
                )
