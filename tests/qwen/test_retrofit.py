"""What training does for a pretrained network with new parts: groups, norms told apart, attention that opens."""

from functools import partial

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn
from training.toy import LENGTH, VOCAB, ToyAlgorithm, ToyBackbone, ToyData, make_module, make_trainer

from flm.qwen.annealing import AttentionAnnealing
from flm.qwen.callbacks import GradientNorms
from flm.qwen.grouped_adamw import GroupedAdamW
from flm.training.module import Module


def test_each_group_steps_at_its_own_rate_and_decay():
    """AdamW's first step moves every weight by lr, against its gradient, after the decay."""
    names = ["body.weight", "time_mlp.weight", "body.bias"]
    params = [(name, nn.Parameter(torch.full((2,), 4.0))) for name in names]
    optimizer = GroupedAdamW(params, apart={"time_": {"lr": 0.5, "weight_decay": 0.0}}, lr=0.1, weight_decay=0.2)
    for _, parameter in params:
        parameter.grad = torch.ones(2)
    optimizer.step()
    moved = {name: parameter[0].item() for name, parameter in params}
    assert moved == pytest.approx({"body.weight": 4 * (1 - 0.02) - 0.1, "time_mlp.weight": 3.5, "body.bias": 3.82})
    assert len(GroupedAdamW(params, apart={"none": {"lr": 1.0}}, lr=0.1).param_groups) == 1
    with pytest.raises(ValueError, match="'time' and 'mlp'"):
        GroupedAdamW(params, apart={"time": {}, "mlp": {}}, lr=0.1)


def test_norms_are_those_before_clipping(tmp_path):
    class Watch(Callback):
        """Before the callback under test: the gradients as they are."""

        def __init__(self):
            self.squares = []

        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            found = {name: p.grad.square().sum() for name, p in pl_module.algorithm.named_parameters() if p.grad is not None}
            table = sum(value for name, value in found.items() if "table" in name)
            self.squares.append((table.item(), sum(found.values()).item() - table.item()))

    class Logged(Callback):
        def __init__(self):
            self.norms = []

        def on_train_batch_end(self, trainer, *_):
            names = ("grad/norm_table", "grad/norm_others")
            self.norms.append(tuple(trainer.logged_metrics[name].item() ** 2 for name in names))

    watch, logged = Watch(), Logged()
    callbacks = [watch, GradientNorms({"table": "table", "absent": "no such part"}), logged]
    trainer = make_trainer(tmp_path, 3, callbacks=callbacks, gradient_clip_val=1e-3)
    trainer.fit(make_module(), datamodule=ToyData())
    torch.testing.assert_close(torch.tensor(logged.norms), torch.tensor(watch.squares))
    assert "grad/norm_absent" not in trainer.logged_metrics and watch.squares[0][0] > 1e-6


class Opening(ToyBackbone):
    """Notes the share it is told while training."""

    def set_future_share(self, share):
        self.share = share


class OpeningAlgorithm(ToyAlgorithm):
    def loss(self, batch, draws):
        self.seen = getattr(self, "seen", []) + [self.backbone.share]
        return super().loss(batch, draws)


def test_attention_opens_with_the_optimiser_steps(tmp_path):
    algorithm = OpeningAlgorithm(partial(Opening, length=LENGTH, width=8), VOCAB, LENGTH)
    trainer = make_trainer(tmp_path, 6, callbacks=[AttentionAnnealing(4)], accumulate_grad_batches=2)
    trainer.fit(Module(algorithm, partial(torch.optim.AdamW, lr=1e-3)), datamodule=ToyData())
    assert algorithm.seen == [share for share in (0.0, 0.25, 0.5, 0.75, None, None) for _ in range(2)]
    with pytest.raises(ValueError, match="cannot look back alone"):
        make_trainer(tmp_path, 1, callbacks=[AttentionAnnealing(4)]).fit(make_module(), datamodule=ToyData())
