"""The flow matcher: its golden sizes, what reaches what, its optimum, and each of its options against a formula."""

import math
from functools import partial

import pytest
import torch

from flm.draws import Draws
from flm.golf.native_flow_matcher import NativeFlowMatcher, time_features
from flm.schema import check

D, H = 12, 7


def build(seed=0, randomised=True, **options):
    torch.manual_seed(seed)
    flow = NativeFlowMatcher(D, **{"hidden_dim": H, **options}).double()
    if randomised:
        with torch.no_grad():
            for parameter in flow.parameters():
                parameter += 0.5 * torch.randn_like(parameter)
    return flow


def states(*shape, seed=1):
    x = torch.randn(*shape, D, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return x / x.square().mean(-1, keepdim=True).sqrt()


def by_hand(flow, x, t, condition=None):
    """v(x (D,), t) from the weights."""
    p = dict(flow.named_parameters())
    frequency = [math.exp(-math.log(1e4) * i / (D // 2 - 1)) for i in range(D // 2)]
    angles = [flow.time_scale * t * f for f in frequency]
    features = torch.tensor([math.sin(a) for a in angles] + [math.cos(a) for a in angles], dtype=torch.float64)

    def gelu(z):
        return z * (1 + torch.erf(z / math.sqrt(2))) / 2

    inner = p["read.weight"] @ x + p["read.bias"] + gelu(p["time.weight"] @ features + p["time.bias"])
    if condition is not None:
        inner = inner + p["read_condition.weight"] @ condition
    return p["write.weight"] @ gelu(inner)


def test_sizes_and_start():
    for hidden, count in ((128, 196_865), (256, 393_729), (512, 787_457)):
        assert sum(p.numel() for p in NativeFlowMatcher(512, hidden).parameters()) == count
    flow = NativeFlowMatcher(512, 256)
    for layer in (flow.read, flow.time):
        torch.testing.assert_close(layer.weight @ layer.weight.T, torch.eye(256), atol=1e-5, rtol=0)
        assert layer.weight.std().item() == pytest.approx(512**-0.5, rel=0.01)
    assert torch.sigmoid(flow.gate).item() == pytest.approx(0.0067, abs=5e-5)
    small = NativeFlowMatcher(512, 256, init="normal")
    assert small.read.weight.std().item() == pytest.approx(0.01, rel=0.02)
    x = torch.randn(2, 3, 512)
    assert torch.equal(flow(x), x) and torch.equal(NativeFlowMatcher(512, n_steps=4)(x), x)


@pytest.mark.parametrize("options", [{}, {"t_eval": 0.3}, {"time_scale": 7.0}, {"condition": "hidden"}], ids=str)
def test_one_gated_step(options):
    flow, x = build(**options), states(2, 3)
    t = options.get("t_eval", 1.0)
    wanted = [h + torch.sigmoid(flow.gate) * by_hand(flow, h, t, h if "condition" in options else None) for h in x.view(-1, D)]
    torch.testing.assert_close(flow(x), torch.stack(wanted).view(2, 3, D))


@pytest.mark.parametrize("condition", ["none", "hidden"])
def test_several_steps_are_euler_from_t_start(condition):
    flow, x = build(n_steps=3, t_start=0.4, condition=condition), states(5)
    wanted = []
    for h in x:
        moved = h
        for n in range(3):
            moved = moved + 0.2 * by_hand(flow, moved, 0.4 + 0.2 * n, h if condition == "hidden" else None)
        wanted.append(h + torch.sigmoid(flow.gate) * (moved - h))
    torch.testing.assert_close(flow(x), torch.stack(wanted))


@pytest.mark.parametrize("options", [{}, {"per_position_t": False}, {"target": "token", "condition": "hidden"}], ids=str)
def test_the_loss_is_that_of_its_draws(options):
    flow, x = build(**options), states(2, 3)
    tokens, table = torch.tensor([[0, 1, 2], [2, 2, 0]]), 3.0 * states(3, seed=5)
    found = flow.loss(x, tokens, table, Draws(3))
    draws = Draws(3)
    t = draws.uniform(2, 3) if flow.per_position_t else draws.stratified(2).float()[:, None].expand(2, 3)
    noise = draws.normal(2, 3, D).double()
    for b in range(2):
        for i in range(3):
            s, z = t[b, i].double(), noise[b, i]
            row = table[tokens[b, i]]
            x1 = x[b, i] if flow.target == "hidden" else row / row.square().mean().sqrt()
            v = by_hand(flow, (1 - s) * z + s * x1, s.item(), x[b, i] if flow.read_condition is not None else None)
            assert found[b, i].item() == pytest.approx((v - (x1 - z)).square().mean().item(), rel=1e-5)


def test_it_starts_at_two():
    flow, x = build(randomised=False), states(64, 50)
    tokens = torch.zeros(64, 50, dtype=torch.long)
    loss = flow.loss(x, tokens, states(1), Draws(0))
    # |x1 - z|^2 / D has mean 2 and variance (2 + 4) / D
    assert loss.mean().item() == pytest.approx(2, abs=5 * math.sqrt(6 / D / loss.numel()))


@pytest.mark.parametrize("target", ["hidden", "token"])
def test_detaching_decides_what_the_flow_loss_reaches(target):
    tokens, x, table = torch.tensor([[0, 1]]), states(1, 2).requires_grad_(), states(2, seed=5).requires_grad_()
    for detach in (True, False):
        flow = build(target=target, condition="hidden", detach_target=detach)
        loss = flow.loss(x, tokens, table, Draws(0)).sum()
        gradients = torch.autograd.grad(loss, [x, table, flow.read.weight, flow.gate], allow_unused=True)
        reached = [g is not None and bool(g.any()) for g in gradients]
        assert reached == [not detach, not detach and target == "token", True, False]


def test_at_its_end_the_optimal_field_is_the_state_itself():
    """E[x1 - z | x_1 = x] = x: least squares over the last layer, at t = 1, drives v(x, 1) to x within the layer's reach."""
    hidden = 96
    flow = build(hidden_dim=hidden, randomised=False)  # width enough for states of D dimensions
    with torch.no_grad():
        flow.read.bias.normal_(generator=torch.Generator().manual_seed(0))
    x1 = states(4000)
    z = torch.randn(x1.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    features = []
    flow.write.register_forward_hook(lambda _, inputs, __: features.append(inputs[0]))
    flow.velocity(x1, torch.ones(4000), x1)
    solution = torch.linalg.lstsq(features[0].detach(), x1 - z).solution
    with torch.no_grad():
        flow.write.weight.copy_(solution.T)
        fitted = flow.velocity(x1, torch.ones(4000), x1)
    # the noise of the fit: one part in rows / features, of variance 1
    assert (fitted - x1).square().mean() < 2 * hidden / 4000 + 0.02
    assert (fitted + z - x1).square().mean().item() == pytest.approx(1, abs=0.1)


def test_features_keep_their_order_and_span():
    features = time_features(torch.tensor([0.0, 1.0], dtype=torch.float64), 512, 2.0)
    assert features[0, :256].abs().max() == 0 and features[0, 256:].min() == 1
    assert features[1, 0].item() == pytest.approx(math.sin(2.0))
    assert features[1, 255].item() == pytest.approx(math.sin(2e-4)) and features[1, 256].item() == pytest.approx(math.cos(2.0))


def test_values_out_of_range_are_refused():
    for options, message in [
        ({"t_eval": 0.0}, "algo.flow.t_eval must .*not 0.0"),
        ({"t_eval": 1.5}, "algo.flow.t_eval must .*not 1.5"),
        ({"n_steps": 0}, "algo.flow.n_steps must .*not 0"),
        ({"n_steps": 2, "t_start": 1.0}, "algo.flow.t_start must .*not 1.0"),
        ({"n_steps": 2, "t_eval": 0.5}, "t_eval=0.5"),
        ({"t_start": 0.5}, "t_start=0.5"),
        ({"target": "other"}, "algo.flow.target must .*not other"),
        ({"condition": "x"}, "algo.flow.condition must .*not x"),
        ({"init": "x"}, "algo.flow.init must .*not x"),
    ]:
        with pytest.raises(ValueError, match=message):
            check(NativeFlowMatcher, options, "algo.flow", given=["dim"])
            partial(NativeFlowMatcher, D)(**options)
