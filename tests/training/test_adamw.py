"""One kernel or many: the same AdamW."""

import copy

import pytest
import torch
from torch import nn
from toy import ToyData, make_module, make_trainer

from flm.training import optimizers as adamw
from flm.training.optimizers import AdamW


def trained(net, optimizer, steps=6):
    for step in range(steps):
        optimizer.zero_grad()
        x = torch.randn(16, 5, generator=torch.Generator().manual_seed(step))
        net(x).square().mean().backward()
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def test_fused_and_torch_s_own_agree():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 3))
    twin, start = copy.deepcopy(net), torch.cat([p.detach().flatten() for p in net.parameters()])
    options = dict(lr=0.05, betas=(0.8, 0.97), eps=1e-6, weight_decay=0.2)
    ours = AdamW(net.named_parameters(), **options)
    assert all(group["fused"] for group in ours.param_groups)
    plain = torch.optim.AdamW(twin.named_parameters(), foreach=False, **options)
    got, expected = trained(net, ours), trained(twin, plain)
    assert (expected - start).abs().mean() > 0.05  # both moved
    torch.testing.assert_close(got, expected, rtol=2e-5, atol=2e-6)


def test_a_device_without_the_kernel_takes_the_many(monkeypatch):
    monkeypatch.setattr(adamw, "FUSED_ON", {"cuda"})
    torch.manual_seed(0)
    net = nn.Linear(5, 3)
    twin = copy.deepcopy(net)
    optimizer = AdamW(net.parameters(), lr=0.01)
    assert not any(group["fused"] for group in optimizer.param_groups)
    expected = trained(twin, torch.optim.AdamW(twin.parameters(), lr=0.01))
    assert torch.equal(trained(net, optimizer), expected)


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_gradients_are_clipped_in_any_precision(tmp_path, precision):
    """Lightning refuses it for optimisers that say they unscale gradients by themselves."""
    seen = []

    class Spy(AdamW):
        def step(self, closure=None):
            def then_look():
                result = closure()
                seen.append(torch.cat([p.grad.flatten() for g in self.param_groups for p in g["params"]]).norm().item())
                return result

            return super().step(then_look)

    trainer = make_trainer(tmp_path, 3, precision=precision, gradient_clip_val=1e-3, gradient_clip_algorithm="norm")
    trainer.fit(make_module(lambda named: Spy(named, lr=0.1)), datamodule=ToyData())
    assert len(seen) == 3 and seen == pytest.approx([1e-3] * 3, rel=1e-2)
