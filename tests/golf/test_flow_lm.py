"""The embedding flow: its bound against the truth in small worlds, the number that is no bound, its loss and its sampler."""

import math

import pytest
import torch
from torch import Tensor, nn

from flm.algos.algorithm import Batch
from flm.data.byte_table import ByteTable
from flm.draws import Draws
from flm.golf.embedding_likelihood import GRIDS, bound_report, denoising_report
from flm.golf.embedding_sampler import EmbeddingFlowSampler
from flm.golf.flow_encoder import FlowEncoder
from flm.golf.flow_lm import FlowLM
from flm.golf.linear_embedding import clean_of, corrupt, diffusion_nats, diffusion_times, toward, zero_velocity_factor
from flm.samplers.canvas import Canvas
from flm.schema import check

# two tokens at +1 and -1, equally likely, exact posterior mean: diffusion, exact reconstruction, sum with v = 0
ORACLE = {
    0.3: (0.084259, 0.608888, 0.722238),
    0.5: (0.336831, 0.356316, 0.742611),
    0.7: (0.666284, 0.026864, 1.034809),
    0.9: (0.693147, 0.000000, 2.805170),
    0.98: (0.693147, 0.000000, 5.864046),
}


def exact_mean(x: Tensor, t: Tensor, log_odds: float = 0.0) -> Tensor:
    """E[e | x_t] of tokens +1 (odds exp(log_odds)) and -1."""
    return torch.tanh(x * t / (1 - t).square() + log_odds / 2)


class Exact(nn.Module):
    """The best velocity in the world of two tokens; one position tells nothing of another."""

    logit_bias = estimate = None

    def __init__(self, vocab_size: int = 2, log_odds: float = 0.0, gives_clean: bool = False):
        super().__init__()
        self.input_table = nn.Parameter(torch.tensor([[1.0], [-1.0]], dtype=torch.float64))
        self.log_odds, self.gives_clean = log_odds, gives_clean

    def forward(self, state, t, estimate=None, mask=None):
        t = t.double()[:, None, None].clamp(max=1 - 1e-9)
        mean = exact_mean(state, t, self.log_odds)
        return mean if self.gives_clean else (mean - state) / (1 - t)


class Still(nn.Module):
    """v = 0 on a given table."""

    logit_bias = estimate = None

    def __init__(self, table: Tensor, vocab_size: int = 0):
        super().__init__()
        self.input_table = nn.Parameter(table)

    def forward(self, state, t, estimate=None, mask=None):
        return torch.zeros_like(state)


def whole(tokens: Tensor) -> Batch:
    return Batch(tokens, torch.ones(tokens.shape))


def gauss(points: int, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Legendre nodes and weights on [low, high]."""
    import numpy as np

    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(points))
    return low + (high - low) * (nodes + 1) / 2, weights * (high - low) / 2


@pytest.mark.parametrize("t1", ORACLE)
def test_oracle_identity_by_quadrature(t1):
    eps, weight = gauss(1200, -9.0, 9.0)
    density = weight * torch.exp(-eps.square() / 2) / math.sqrt(2 * math.pi)
    u, u_weight = gauss(400, 0.0, 1.0)
    t = diffusion_times(u, t1)
    noise, one = eps.expand(len(t), 1, -1).transpose(1, 2), torch.ones(len(t), len(eps), 1, dtype=torch.float64)
    state = corrupt(one, noise, t, torch.zeros(len(t), len(eps), dtype=torch.bool))
    mean = exact_mean(state, t[:, None, None])
    error = ((1 - mean) / (1 - t)[:, None, None])[..., 0].square()  # v* - v = (e - z1) / (1 - t)
    diffusion = (diffusion_nats((error * density).sum(1), t, t1) * u_weight).sum().item()
    end = (1 - t1) * eps + t1
    reconstruction = (torch.nn.functional.softplus(-2 * end * t1 / (1 - t1) ** 2) * density).sum().item()
    assert diffusion == pytest.approx(ORACLE[t1][0], abs=1e-6)
    assert reconstruction == pytest.approx(ORACLE[t1][1], abs=1e-6)
    assert diffusion + reconstruction == pytest.approx(math.log(2), abs=1e-6)
    assert 2 * zero_velocity_factor(t1) + reconstruction == pytest.approx(ORACLE[t1][2], abs=1e-6)


@pytest.mark.parametrize("param", ["velocity", "x1"])
def test_bound_is_above_the_truth_and_the_denoising_number_is_not(param):
    """The truth is ln 2 a token; 40,000 tokens, so that 5 standard errors are under 0.06 nats."""
    algorithm = FlowLM(lambda vocab_size: Exact(gives_clean=param == "x1"), 2, 4, source_fraction=0.0, param=param)
    tokens = torch.randint(2, (10_000, 4), generator=torch.Generator().manual_seed(0))
    for t1 in (0.5, 0.7):
        bound = algorithm.conditional_bound(whole(tokens), Draws(1), t1)
        assert torch.allclose(bound.nats, bound.parts["diffusion"] + bound.parts["reconstruction"])
        error = 5 * (bound.nats.std() / len(tokens) ** 0.5).item() / 4
        assert error < 0.06
        assert bound.parts["diffusion"].mean().item() / 4 == pytest.approx(ORACLE[t1][0], abs=error)
        # the softmax of z1 . e is a normalised head but not the exact one: the sum stands above the entropy
        assert bound.nats.mean().item() / 4 > math.log(2)
        still = algorithm.zero_velocity_bound(whole(tokens), Draws(2), t1)
        assert still.parts["diffusion"].mean().item() / 4 == pytest.approx(2 * zero_velocity_factor(t1), rel=1e-9)
    table = ByteTable(torch.tensor([1, 1]), torch.tensor([False] * 2), torch.tensor([False] * 2))
    for grid in GRIDS:
        report = denoising_report(algorithm, [whole(tokens[:500])], table, 0, GRIDS[grid](32), seed=3)
        assert report["denoising_ce_bpb"] < 0.8  # of text that has 1 bit a byte


def test_denoising_number_of_no_network_at_all():
    """Uniform ids, V = 1024, D = 512, N(0, 1) embeddings, 0.41052 tokens a byte: 3.61 on the published grid, else 2.95."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(1024, 512, generator=generator)
    algorithm = FlowLM(lambda vocab_size: Still(table), 1024, 64, source_fraction=0.0)
    tokens = torch.randint(1024, (2, 64), generator=generator)
    for grid, expected in (("inclusive", 3.61), ("midpoint", 2.95)):
        _, still = algorithm.denoising_curve(whole(tokens), GRIDS[grid](32), Draws(0))
        assert still.sum().item() / 32 / tokens.numel() / math.log(2) * 0.41052 == pytest.approx(expected, abs=0.15)
        if grid == "inclusive":
            nats = still.sum(1) / tokens.numel()
            assert nats[0] == pytest.approx(73.7, rel=0.1) and nats[3] == pytest.approx(20.1, rel=0.15) and nats[9] < 1e-3
    squares = table.square().sum(1)[tokens].mean().item()
    bound = algorithm.zero_velocity_bound(whole(tokens), Draws(0), 0.5).nats.mean().item() / 64
    assert bound == pytest.approx((squares + 512) * (math.log(2) - 0.5), rel=1e-3)  # 198 nats a token


def test_path_identities():
    generator = torch.Generator().manual_seed(0)
    clean, noise, v = (torch.randn(3, 5, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    t, given = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64), torch.arange(5).expand(3, 5) < 2
    state = corrupt(clean, noise, t, given)
    assert torch.equal(state[given], clean[given])
    state = corrupt(clean, noise, t, torch.zeros_like(given))
    remaining = (1 - t)[:, None, None]
    assert torch.allclose(clean - clean_of(state, v, t), remaining * (clean - noise - v))
    assert torch.allclose(clean_of(state, clean - noise, t), clean)
    z1 = clean_of(state[:1], v[:1], t[:1])
    assert torch.allclose(toward(state[:1], z1, 0.1, 0.4), state[:1] + 0.3 * v[:1])
    with pytest.raises(ValueError, match="t1=1"):
        diffusion_times(torch.rand(3), 1.0)


def tiny(vocab_size: int, **options) -> FlowEncoder:
    torch.manual_seed(0)
    settings = dict(length=8, hidden_size=8, num_blocks=1, num_heads=2, dropout=0.0, out_head="ln") | options
    return FlowEncoder(vocab_size, **settings).double()


@pytest.mark.parametrize("embed_norm", ["none", "unit"])
def test_loss_is_what_it_says_and_so_is_its_gradient(embed_norm):
    algorithm = FlowLM(lambda vocab_size: tiny(vocab_size, embed_norm=embed_norm), 11, 8, mse_weight=0.7, anchor_weight=0.3)
    tokens = torch.randint(11, (3, 8), generator=torch.Generator().manual_seed(1))
    weight = torch.ones(3, 8)
    weight[0, 6:] = 0
    loss = algorithm.loss(Batch(tokens, weight), Draws(5))
    draws = Draws(5)
    t, table = draws.stratified(3)[:, None, None], algorithm.backbone.input_table
    e, noise = table[tokens], draws.normal(3, 8, 8, dtype=torch.float64)
    target = (weight > 0) & (torch.arange(8) >= 4)
    x = torch.where(target[..., None], (1 - t) * noise + t * e, e)
    v = algorithm.backbone(x, t[:, 0, 0].float())
    mse = (e - noise - v).square().mean(-1)[target].mean()
    logits = (x + (1 - t) * v) @ table.T
    anchor = nn.functional.cross_entropy(logits[target], tokens[target])
    assert loss.total.item() == pytest.approx((0.7 * mse + 0.3 * anchor).item(), rel=1e-7)
    assert loss.mean("velocity_mse").item() == pytest.approx(mse.item(), rel=1e-7)
    embedding = algorithm.backbone.embedding
    loss.total.backward()
    slope = embedding.grad.clone()
    for row, column in ((tokens[0, 4].item(), 3), (tokens[1, 1].item(), 0), (tokens[2, 7].item(), 7)):
        values = []
        for change in (1e-6, -1e-6):
            with torch.no_grad():
                embedding[row, column] += change
                values.append(algorithm.loss(Batch(tokens, weight), Draws(5)).total.item())
                embedding[row, column] -= change
        assert slope[row, column].item() == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-5, abs=1e-8)


def test_reports_count_targets_and_their_bytes_alone():
    algorithm = FlowLM(lambda vocab_size: tiny(vocab_size, out_head="linear"), 5, 8)
    table = ByteTable(
        torch.tensor([0, 1, 2, 3, 4]), torch.tensor([False, True, False, True, False]), torch.tensor([True] + 4 * [False])
    )
    tokens = torch.tensor([[1, 2, 3, 0, 1, 3, 4, 2], [4, 4, 4, 4, 3, 0, 3, 1]])
    report = denoising_report(algorithm, [whole(tokens[:1]), whole(tokens[1:])], table, 0, torch.tensor([0.0, 0.5]), seed=1)
    # after the given halves: 1 after 0, 3, 4, 2; and 3 after 4, 0, 3 after 0, 1
    assert (report["tokens"], report["bytes"]) == (8, (1 + 4 + 4 + 2) + (4 + 0 + 3 + 2))
    # a head that is zero at the start is v = 0
    assert report["ce_nats_per_token"] == report["zero_velocity_ce_nats_per_token"]
    assert report["denoising_ce_bpb"] == pytest.approx(sum(report["ce_nats_per_token"]) / 2 * 8 / math.log(2) / 20)
    (row,) = bound_report(algorithm, [whole(tokens)], table, 0, [0.5], draws_per_batch=150, seed=1)
    # of a network that is v = 0 both columns bound the same
    assert row["bits_per_byte"] == pytest.approx(row["zero_velocity_bits_per_byte"], rel=0.12)


def test_context_free_reference_is_the_posterior_of_a_noised_token():
    algorithm = FlowLM(lambda vocab_size: Exact(), 2, 4)
    tau = torch.tensor([0.3, 0.5, 0.7], dtype=torch.float64)
    found = algorithm.context_free_loss(torch.tensor([500, 500]), tau, Draws(0))
    for value, t in zip(found.tolist(), tau.tolist(), strict=True):
        assert value == pytest.approx(ORACLE[round(t, 2)][1], abs=0.06)  # 5 standard errors of 1024 draws


@pytest.mark.parametrize("solver", ["euler", "zigzag"])
def test_sampler_draws_from_the_data_and_leaves_what_is_given(solver):
    """p(+1) = 0.7: the exact flow ends in it. 6,000 draws: 5 standard errors are 0.03."""
    algorithm = FlowLM(lambda vocab_size: Exact(log_odds=math.log(7 / 3)), 2, 3, source_fraction=0.0)
    seen = []
    tokens = torch.randint(2, (3000, 3), generator=torch.Generator().manual_seed(2))
    editable = torch.tensor([True, False, True]).expand(3000, 3)
    canvas = Canvas(tokens, editable)
    denoiser = algorithm.denoiser()

    def spy(state, t, estimate):
        seen.append(state)
        return denoiser(state, t, estimate)

    steps = 100 if solver == "euler" else 30
    ask = type("Spy", (), {"__call__": lambda self, *a: spy(*a), "table": denoiser.table, "bias": None})()
    sampler = algorithm.sampler(solver=solver)
    out = sampler(ask, canvas, steps, torch.Generator().manual_seed(3))
    clean = denoiser.table[tokens]
    assert len(seen) == steps and all(torch.equal(state[~editable], clean[~editable]) for state in seen)
    assert torch.equal(out[~editable], tokens[~editable])
    share = (out[editable] == 0).double().mean().item()
    if solver == "euler":
        assert share == pytest.approx(0.7, abs=0.03)
    else:  # fresh noise around a mean drifts to the likelier token: no sampler of the data, but one of its modes
        assert share > 0.65


def test_read_outs_and_one_step():
    table = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 1.0]])

    class Points:
        bias = None

        def __init__(self):
            self.table = table

        def __call__(self, state, t, estimate):
            return torch.tensor([1.2, 0.1]).expand_as(state)

    canvas = Canvas.blank(400, 2)

    def run(steps=1, seed=0, **options):
        return EmbeddingFlowSampler(**options)(Points(), canvas, steps, torch.Generator().manual_seed(seed))

    assert (run() == 1).all() and (run(read_out="categorical", temperature=0) == 1).all() and (run(temperature=0) == 1).all()
    # the longest embedding has the largest logit
    assert (run(read_out="nearest") == 0).all()
    drawn = torch.bincount(run(read_out="categorical", temperature=2.0).flatten(), minlength=3) / 800
    expected = (torch.tensor([1.2, 0.1]) @ table.T / 2.0).softmax(0)
    assert torch.allclose(drawn.double(), expected.double(), atol=0.09)  # 5 standard errors
    for steps in (1, 4):
        assert torch.equal(run(steps, solver="euler"), run(steps, solver="zigzag", clamp=True))
    for options in (
        {"solver": "heun"},
        {"read_out": "state"},
        {"read_out": "nearest", "temperature": 0.0},
        {"temperature": 2.0},
    ):
        with pytest.raises(ValueError, match="sampling."):
            check(EmbeddingFlowSampler, options, "sampling")
            EmbeddingFlowSampler(**options)


def test_published_size_and_its_bf16_stall():
    torch.manual_seed(0)
    published = dict(time_scale=1.0, out_head="ln", embed_norm="none")
    with torch.device("meta"):
        network = FlowEncoder(1024, 1024, **published)
    assert sum(p.numel() for p in network.parameters()) == 22_063_616
    assert sum(p.numel() for p in network.blocks[0].parameters()) == 3_152_384
    assert sum(p.numel() for p in network.time_embedding.parameters()) == 2_099_712
    moved = {}
    for dtype in ("bfloat16", "float32"):
        torch.manual_seed(0)
        small = FlowEncoder(256, 128, hidden_size=512, num_blocks=1, weight_dtype=dtype, **published)
        changed = [(p + p.new_tensor(1e-5) != p).sum().item() for p in small.parameters()]
        moved[dtype] = sum(changed) / sum(p.numel() for p in small.parameters())
    assert moved["bfloat16"] < 0.25 and moved["float32"] > 0.95


def test_self_conditioning_shows_the_network_an_estimate():
    algorithm = FlowLM(lambda vocab_size: tiny(vocab_size, self_condition=True), 11, 8, self_condition=True)
    nn.init.eye_(algorithm.backbone.estimate.weight)
    tokens = torch.arange(8)[None]
    seen = set()
    for seed in range(8):
        loss = algorithm.loss(whole(tokens), Draws(seed)).total
        loss.backward()
        gradient = algorithm.backbone.estimate.weight.grad
        seen.add(gradient is not None and bool(gradient.abs().sum() > 0))
        algorithm.zero_grad(set_to_none=True)
    assert seen == {True, False}  # half of the steps
    with pytest.raises(ValueError, match="model.self_condition"):
        FlowLM(tiny, 11, 8, self_condition=True)


@pytest.mark.parametrize("t_sampler", ["stratified", "uniform", "uniform_eps", "logit_normal"])
def test_times_lie_on_the_path(t_sampler):
    algorithm = FlowLM(tiny, 11, 8, t_sampler=t_sampler)
    t = algorithm._draw_times(Draws(0), 2000)
    assert 0 <= t.min() and t.max() < 1
    assert t.mean().item() == pytest.approx(0.5, abs=0.04)
    assert t.var().item() == pytest.approx({"logit_normal": 0.0433}.get(t_sampler, 1 / 12), rel=0.12)
