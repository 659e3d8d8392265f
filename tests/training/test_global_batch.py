"""The loss, the gradient and the log of an optimiser step are those of its whole global batch, for every algorithm.

Rows differ in targets, padding, prompts and documents; cut into 1, 2 and 4 micro-batches, on one process and on two.
"""

import os
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
import torch
from every_algorithm import CASES, IDS, G, build, ragged_batch
from lightning.pytorch import Callback, LightningDataModule
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader
from toy import make_trainer
from two_processes import free_ports, run_two

from flm.algos.algorithm import Batch
from flm.algos.flm import FLM
from flm.draws import Draws
from flm.models.dit import DiT
from flm.paths.gaussian import ProjectedNoise
from flm.training.module import LOSS, Module
from flm.training.sharding import FullyShardedStrategy, whole

SPLIT = ("fmlm", "kl_flow_map", "flow_lm")  # tried under FSDP2 as well, with one sequence a micro-batch


class Cut(LightningDataModule):
    """One global batch, cut as Draws numbers its shares."""

    def train_dataloader(self):
        t = self.trainer
        size = G // (t.world_size * t.accumulate_grad_batches)
        shares = [t.global_rank * t.accumulate_grad_batches + i for i in range(t.accumulate_grad_batches)]
        batch = ragged_batch()
        rows = [torch.arange(share * size, (share + 1) * size) for share in shares]
        return DataLoader([batch.rows(index) for index in rows], batch_size=None)


class Gradient(Callback):
    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        named = pl_module.algorithm.named_parameters()
        self.found = whole({name: p.grad.clone() for name, p in named if p.grad is not None})


def step(folder: Path, case, **arguments):
    """The gradient and what is logged, of one optimiser step."""
    module = Module(build(*case), partial(torch.optim.SGD, lr=0.01), seed=3)
    gradient = Gradient()
    trainer = make_trainer(folder, 1, callbacks=[gradient], gradient_clip_val=None, **arguments)
    trainer.fit(module, datamodule=Cut())
    logged = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("train/")}
    return gradient.found, logged


def work(rank: int, folder: Path, port: int) -> None:
    os.environ["MASTER_PORT"] = str(port)
    found = {}
    for case, name in zip(CASES, IDS, strict=True):
        for accumulation in (1, 2):
            found[name, accumulation] = step(
                folder, case, devices=2, strategy=DDPStrategy(), accumulate_grad_batches=accumulation
            )
        if name in SPLIT:
            split = FullyShardedStrategy()
            found[name, "fsdp2"] = step(folder, case, devices=2, strategy=split, accumulate_grad_batches=G // 2)
    torch.save(found, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    run_two(work, folder, free_ports(1)[0])
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.parametrize("case,name", list(zip(CASES, IDS, strict=True)), ids=IDS)
def test_a_step_is_that_of_its_whole_batch(case, name, two, tmp_path):
    gradient, logged = step(tmp_path, case)
    scale = max(float(g.abs().max()) for g in gradient.values())
    # and that is what the algorithm says of the whole batch at once
    algorithm = build(*case)
    loss = algorithm.loss(ragged_batch(), Draws(3))
    assert logged[f"train/{LOSS}"] == pytest.approx(loss.total.item(), rel=1e-6)
    assert scale > 1e-3
    others = {f"{n} micro-batches": step(tmp_path, case, accumulate_grad_batches=n) for n in (2, 4)}
    for rank, process in enumerate(two):
        for way in (1, 2, "fsdp2"):
            if (name, way) in process:
                others[f"process {rank}, {way}"] = process[name, way]
    assert len(others) == (8 if name in SPLIT else 6)
    for way, (found, log) in others.items():
        assert log == pytest.approx(logged, rel=1e-6), way
        assert found.keys() == gradient.keys()
        for key, value in found.items():
            torch.testing.assert_close(
                value / scale, gradient[key] / scale, rtol=0, atol=1e-6, msg=lambda text, w=way, k=key: f"{w}, {k}: {text}"
            )


def test_micro_batches_share_a_noise_law_and_steps_do_not(tmp_path, monkeypatch):
    """Made once a step, whose weights are those of all its micro-batches, and again after each."""
    made, original = [], ProjectedNoise.__init__

    def counted(law, tables):
        made.append([table.detach().clone() for table in tables])
        original(law, tables)

    monkeypatch.setattr(ProjectedNoise, "__init__", counted)

    def trained(accumulation):
        made.clear()
        network = partial(DiT, length=4, hidden_size=8, num_blocks=1, num_heads=2)
        torch.manual_seed(0)
        module = Module(FLM(network, 40, 4), partial(torch.optim.SGD, lr=0.5), seed=3)
        tokens = torch.randint(40, (3 * accumulation, 8 // accumulation, 4), generator=torch.Generator().manual_seed(1))
        batches = [Batch(rows, torch.ones(rows.shape)) for rows in tokens]
        trainer = make_trainer(tmp_path, 3, accumulate_grad_batches=accumulation, gradient_clip_val=None)
        trainer.fit(module, DataLoader(batches, batch_size=None))
        return module.algorithm.backbone.input_table.detach().clone()

    table = trained(4)
    # a network that says nothing at first has no gradient by what it reads
    assert len(made) == 3 and not torch.equal(made[1][0], made[2][0])
    monkeypatch.setattr("flm.training.module.shared_laws", lambda laws: nullcontext())
    assert torch.equal(trained(4), table) and len(made) == 12
