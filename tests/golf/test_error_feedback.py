"""Rounding with error feedback: against its definition, against every choice, and on what a trained model says."""

import itertools

import pytest
import torch

from flm.algos.algorithm import Batch
from flm.algos.ar import AR
from flm.checkpoints.description import Description
from flm.draws import Draws
from flm.golf.error_feedback import DAMPING, input_moments, rounded_with_feedback
from flm.golf.packed import read
from flm.golf.packing import pack
from flm.models.dit import DiT


def world(inputs, rows, seed=0):
    """Weights, steps and moments of correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(inputs, inputs, generator=generator) * torch.logspace(0, -1.5, inputs)
    moments = mix @ mix.t() / inputs
    return torch.randn(rows, inputs, generator=generator), torch.rand(rows, generator=generator) * 0.4 + 0.3, moments


def cost(rows, codes, steps, moments):
    """(rows,): (w - q) M (w - q)^T."""
    error = (rows - codes * steps[:, None]).double()
    return torch.einsum("ri,ij,rj->r", error, moments.double(), error)


def test_each_choice_leaves_the_rest_at_its_best():
    """A dense twin: after each weight all free ones are solved for anew."""
    rows, steps, moments = world(inputs=9, rows=40)
    damped = moments.double() + torch.eye(9) * DAMPING * moments.diagonal().mean()
    order = moments.diagonal().argsort(descending=True).tolist()
    expected = torch.zeros(40, 9, dtype=torch.float64)
    for place, chosen in enumerate(order):
        fixed = order[:place]
        now = rows[:, chosen].double()
        if fixed:
            free = order[place:]
            error = expected[:, fixed] * steps[:, None] - rows[:, fixed]
            now = now - torch.linalg.solve(damped[free][:, free], damped[free][:, fixed] @ error.t())[0]
        expected[:, chosen] = (now / steps).round()
    assert torch.equal(rounded_with_feedback(rows, steps, moments).double(), expected)


def test_blocks_of_inputs_change_nothing(monkeypatch):
    rows, steps, moments = world(inputs=70, rows=20)
    whole = rounded_with_feedback(rows, steps, moments)
    monkeypatch.setattr("flm.golf.error_feedback._BLOCK", 16)
    assert (rounded_with_feedback(rows, steps, moments) != whole).float().mean() < 0.01  # ties in fp32


def test_inputs_that_have_nothing_to_do_with_each_other_round_to_the_nearest():
    rows, steps, _ = world(inputs=30, rows=11)
    found = rounded_with_feedback(rows, steps, torch.diag(torch.rand(30) + 0.1))
    assert torch.equal(found, (rows / steps[:, None]).round())


def test_it_lies_between_the_nearest_and_the_best_of_all():
    rows, steps, moments = world(inputs=6, rows=60)
    nearest = (rows / steps[:, None]).round()
    best = torch.full((60,), torch.inf, dtype=torch.float64)
    for offsets in itertools.product((-1, 0, 1), repeat=6):
        best = torch.minimum(best, cost(rows, nearest + torch.tensor(offsets), steps, moments))
    found = cost(rows, rounded_with_feedback(rows, steps, moments), steps, moments).mean()
    assert best.mean() <= found < 0.75 * cost(rows, nearest, steps, moments).mean()


def test_rows_of_zeros_and_inputs_never_seen():
    rows, steps, moments = world(inputs=8, rows=5)
    rows[2], steps[2] = 0, 0
    moments[3], moments[:, 3] = 0, 0
    found = rounded_with_feedback(rows, steps, moments)
    assert torch.isfinite(found).all() and not found[2].any()
    assert torch.equal(found[:, 3], torch.where(steps > 0, rows[:, 3] / steps, 0.0).round())
    assert torch.equal(
        rounded_with_feedback(rows, steps, torch.zeros(8, 8)),
        torch.where(steps[:, None] > 0, rows / steps[:, None], 0.0).round(),
    )


V, L = 40, 24
SIZES = {"length": L, "hidden_size": 64, "num_blocks": 2, "num_heads": 2, "mlp_ratio": 4}


@pytest.fixture(scope="module")
def trained():
    """A small model of text in which a token tells the next, and batches of it."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    law = torch.softmax(3 * torch.randn(V, V, generator=generator), -1)

    def batch(count):
        tokens = [torch.randint(V, (count,), generator=generator)]
        for _ in range(L - 1):
            tokens.append(torch.multinomial(law[tokens[-1]], 1, generator=generator)[:, 0])
        return Batch(torch.stack(tokens, 1), torch.ones(count, L))

    model = AR(lambda **options: DiT(**SIZES, **options), V, L)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(120):
        optimizer.zero_grad()
        model.loss(batch(32), Draws(step)).total.backward()
        optimizer.step()
    return model.eval(), batch


def test_moments_are_those_of_what_layers_read(trained):
    model, batch = trained
    one, read = batch(4), []
    layer = model.backbone.body.blocks[1].attn_out
    hook = layer.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].detach().reshape(-1, 64)))
    found = input_moments(model, [one, one], seed=1)
    hook.remove()
    (name,) = (name for name, weight in model.named_parameters() if weight is layer.weight)
    x = torch.cat(read).double()
    assert torch.allclose(found[name].double(), x.t() @ x / len(x), rtol=1e-4, atol=1e-6)
    assert not layer._forward_pre_hooks and not model.training


@torch.no_grad()
def test_moments_are_seen_in_blocks_that_were_compiled_before(trained):
    """Where torch.compile has met a block without hooks, it goes on without them: nothing would be seen, and nothing said."""
    model, batch = trained
    one, blocks = batch(4), model.backbone.body.blocks
    wanted = input_moments(model, [one], seed=1)
    for block in blocks:
        block.compile(backend="eager")
    try:
        model.eval().loss(one, Draws(1, 0))
        found = input_moments(model, [one], seed=1)
    finally:
        for block in blocks:
            block._compiled_call_impl = None
        torch._dynamo.reset()
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


@torch.no_grad()
def test_moments_are_added_up_in_full(trained):
    model, batch = trained
    with torch.autocast("cpu", torch.bfloat16):
        found = input_moments(model, [batch(4)], seed=1)
    assert {moments.dtype for moments in found.values()} == {torch.float32}
    assert not any(torch.equal(moments, moments.bfloat16().float()) for moments in found.values())


@torch.no_grad()
def test_outputs_are_nearer_at_equal_bytes(trained, tmp_path):
    """Mean Kullback-Leibler divergence from the model's own predictions, on text that shaped no weight and no rounding."""
    model, batch = trained
    about = Description({}, None, V, L, 0)
    moments = input_moments(model, [batch(32) for _ in range(4)], seed=1)
    whole = len(pack(model, about, None, small=0, rounding="step").content)
    limit, tokens = int(0.6 * whole), batch(64).tokens
    own = model.predictions(tokens).probabilities().double()
    wanted = {name: weight.clone() for name, weight in model.named_parameters()}
    divergence = {}
    for name, given in (("nearest", None), ("feedback", moments)):
        packed = pack(model, about, limit, small=0, rounding="step", moments=given)
        assert 0.99 * limit < len(packed.content) <= limit
        (tmp_path / name).write_bytes(packed.content)
        model.load_state_dict(read(tmp_path / name)[1])
        found = model.predictions(tokens).probabilities().double()
        divergence[name] = (own * (own / found).log()).sum(-1).mean().item()
        model.load_state_dict(wanted, strict=False)
    print(divergence)
    assert divergence["feedback"] < 0.8 * divergence["nearest"], divergence
