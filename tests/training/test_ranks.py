import pytest
import torch
from toy import ToyData, make_batch, make_module, make_trainer

from flm.draws import Draws, mix_seed
from flm.training.module import VALIDATION

COUNTS = (1, 3)  # validation batches of each process


class Shares(ToyData):
    """Two processes with one micro-batch each see what one process with two sees."""

    def val_dataloader(self):
        loader = super().val_dataloader()
        loader.dataset.stop = loader.dataset.start + COUNTS[self.trainer.global_rank]
        return loader


def fit(folder, **arguments):
    module = make_module(ema=None)  # the average would stay in the processes
    trainer = make_trainer(folder, 4, limit_val_batches=1.0, **arguments)
    trainer.fit(module, datamodule=Shares())
    return module, trainer.callback_metrics


@pytest.mark.slow
def test_two_processes_train_as_one_that_accumulates(tmp_path):
    one, _ = fit(tmp_path, accumulate_grad_batches=2)
    two, metrics = fit(tmp_path, devices=2, strategy="ddp_fork", val_check_interval=4)
    for name, weight in one.algorithm.state_dict().items():
        if not name.endswith("calls"):
            torch.testing.assert_close(two.algorithm.state_dict()[name], weight, atol=1e-6, rtol=1e-5)

    # sums and counts are reduced, so the process with three batches weighs three times the other
    nats, tokens = 0.0, 0.0
    two.algorithm.eval()
    for rank, count in enumerate(COUNTS):
        for index in range(count):
            batch = make_batch((1000 + index) * 2 + rank)
            loss = two.algorithm.loss(batch, Draws(mix_seed(3, VALIDATION), index, rank, 2))
            nats += float((loss.per_sequence * batch.weight.sum(1)).sum())
            tokens += float(batch.weight.sum())
    logged = float(metrics["val/denoising_ce_nats_per_token"])
    assert logged == pytest.approx(nats / tokens, rel=1e-6)
