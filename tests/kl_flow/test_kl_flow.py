"""KL-flow's loss against the dense loss, what padding and given tokens do, and where training leads."""

import math
from functools import partial

import pytest
import torch
from algos.dense_flow_map import rough, small_dit
from algos.exact_world import ExactWorld, ToyBackbone, train
from kl_flow.geodesic_world import ExactBackbone

import flm.posterior
from flm.algos.algorithm import Batch
from flm.benchmark.dense_twin import dense_log_probabilities
from flm.draws import Draws
from flm.kl_flow.geodesic_state import Noise
from flm.kl_flow.kl_flow import KLFlow
from flm.samplers.canvas import Canvas
from flm.schema import check

V, L, B = 7, 5, 4


def small(length=L, **options):
    torch.manual_seed(0)
    return rough(KLFlow(small_dit(V, length), V, length, **options), seed=3).double()


def a_batch(weight=None, documents=None):
    tokens = torch.randint(V, (B, L), generator=torch.Generator().manual_seed(1))
    return Batch(tokens, torch.ones(B, L) if weight is None else weight, documents)


def noise_of(algorithm, draws, shape):
    """The (B, L, V) noise that a loss draws next."""
    noise = Noise(draws.rows.seeds(shape[0]), shape[1], algorithm.path, torch.device("cpu"), torch.float64)
    return torch.cat([m for _, m in noise.chunks()]).view(*shape, V)


@pytest.mark.parametrize("features", ["simplex", "sharpened"])
def test_loss_and_gradient_equal_dense_on_the_same_noise(features, monkeypatch):
    """t is uniform up to max_t, the clock is not t, what is given is clean and does not count."""
    monkeypatch.setitem(flm.posterior.CHUNK_ELEMENTS, "cpu", 3 * V)
    algorithm = small(features=features)
    weight = (torch.rand(B, L, generator=torch.Generator().manual_seed(2)) > 0.3).double()
    batch = a_batch(weight)
    loss = algorithm.loss(batch, Draws(5, step=3))
    parameters = list(algorithm.parameters())
    got = torch.autograd.grad(loss.total, parameters)

    draws, path = Draws(5, step=3), algorithm.path
    t = path.max_t * draws.stratified(B)
    noise = noise_of(algorithm, draws, (B, L))
    one_hot = torch.nn.functional.one_hot(batch.tokens, V).double()
    c = math.log(V / 0.01 - V + 1)
    logits = (1 - t)[:, None, None] * noise + c * t[:, None, None] * one_hot
    x = torch.softmax(logits / (1 - t)[:, None, None] if features == "sharpened" else logits, -1)
    x = torch.where(batch.given[..., None], one_hot, x)
    tau = torch.log(1 - t) / math.log(1 - path.max_t)
    log_p = dense_log_probabilities(algorithm.backbone(x @ algorithm.backbone.input_table, tau.float()))
    reference = -((one_hot * log_p).sum(-1) * weight).sum() / weight.sum()
    want = torch.autograd.grad(reference, parameters)
    torch.testing.assert_close(loss.total, reference, rtol=0, atol=1e-9)
    torch.testing.assert_close(loss.tau, tau)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-8)
    assert max(g.abs().max() for g in want) > 1e-2


def test_an_untrained_network_knows_nothing_and_one_that_counts_for_nothing_learns_nothing():
    algorithm = KLFlow(small_dit(V, L), V, L)
    assert algorithm.loss(a_batch(), Draws(0)).total.item() == pytest.approx(math.log(V), abs=1e-6)
    algorithm = small()
    algorithm.loss(a_batch(torch.zeros(B, L)), Draws(0)).total.backward()
    assert all(p.grad is None or not p.grad.any() for p in algorithm.parameters())


def test_padding_is_neither_seen_nor_learned_and_documents_do_not_see_each_other():
    algorithm = small()
    documents = torch.tensor([[0, 0, 1, 1, -1]] * B)
    weight = (documents >= 0).float()
    tokens = a_batch().tokens

    def losses(tokens, documents):
        return algorithm.loss(Batch(tokens, weight, documents), Draws(1)).per_sequence

    # only the padding's token changes; then only the first document's
    other = tokens.clone()
    other[:, 4] = (tokens[:, 4] + 1) % V
    assert torch.equal(losses(tokens, documents), losses(other, documents))
    assert not torch.equal(losses(tokens, documents), losses(other, None))
    given = torch.tensor([[0.0, 0, 1, 1, 0]] * B)
    other = tokens.clone()
    other[:, 0] = (tokens[:, 0] + 1) % V
    second = [algorithm.loss(Batch(x, given, documents), Draws(1)).per_sequence for x in (tokens, other)]
    torch.testing.assert_close(*second, rtol=0, atol=1e-12)
    joined = [algorithm.loss(Batch(x, given), Draws(1)).per_sequence for x in (tokens, other)]
    assert (joined[0] - joined[1]).abs().min() > 1e-4


def test_the_order_of_positions_matters():
    """A network without positions would give a permuted sequence, under the same noise, the permuted prediction."""
    algorithm = small()
    view = torch.randn(1, L, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    order = torch.tensor([3, 0, 4, 1, 2])
    tau = torch.tensor([0.5])
    p, permuted = (algorithm.backbone(x, tau).probabilities() for x in (view, view[:, order]))
    assert (p[:, order] - permuted).abs().max() > 1e-2


def test_the_exact_posterior_is_the_minimum_and_reaches_the_context_free_loss():
    """One token: no weights to learn, so the loss of the exact network is what a decoder without context reaches."""
    counts = torch.tensor([5.0, 3.0, 2.0])
    world = ExactWorld((counts / 10).tolist())
    algorithm = KLFlow(partial(ToyBackbone, length=1), 3, 1, features="log")
    algorithm.backbone = ExactBackbone(world, algorithm.path)
    size = 20_000
    batch = world.batch(size, torch.Generator().manual_seed(0))
    loss = algorithm.loss(batch, Draws(3))
    grid = (torch.arange(20, dtype=torch.float64) + 0.5) / 20
    tau = algorithm.clock.tau(algorithm.path.max_t * grid)
    reference = algorithm.context_free_loss(counts, tau, Draws(0)).mean()
    assert loss.total.item() == pytest.approx(reference.item(), abs=0.02)


def test_training_leads_to_the_joint_distribution():
    """Two tokens that always agree: a context-free decoder would write half of the pairs wrong."""
    world = ExactWorld([[0.5, 0.0], [0.0, 0.5]])
    algorithm = KLFlow(partial(ToyBackbone, length=2), 2, 2, features="sharpened")
    train(algorithm, world, 250)
    for scheme in ("basic", "hybrid"):
        tokens = algorithm.generate(Canvas.blank(500, 2), 32, torch.Generator().manual_seed(0), scheme=scheme)
        assert (tokens[:, 0] == tokens[:, 1]).double().mean() > 0.97
        assert 0.4 < tokens[:, 0].double().mean() < 0.6
    canvas = Canvas.from_pieces([[1], 1], 200)
    filled = algorithm.generate(canvas, 16, torch.Generator().manual_seed(1))
    assert (filled[:, 0] == 1).all()


def test_answers_follow_prompts():
    """Prompt a b, answer b a: exact matches, of which a decoder without context gets one in nine. By every scheme."""
    prompts = torch.cartesian_prod(torch.arange(3), torch.arange(3))
    rows = torch.cat([prompts, prompts.flip(1)], 1).repeat(12, 1)
    batch = Batch(rows, torch.tensor([0.0, 0, 1, 1]).expand(rows.shape))
    torch.manual_seed(0)
    algorithm = KLFlow(partial(ToyBackbone, length=4), 3, 4, features="sharpened")
    optimizer = torch.optim.Adam(algorithm.parameters(), lr=1.5e-2)
    for step in range(120):
        optimizer.zero_grad()
        algorithm.loss(batch, Draws(0, step)).total.backward()
        optimizer.step()
    canvas = Canvas(rows * batch.given, ~batch.given)
    for scheme in ("basic", "sampling", "hybrid"):
        answers = algorithm.generate(canvas, 8, torch.Generator().manual_seed(0), scheme=scheme)
        assert (answers == rows).all(1).double().mean() > 0.9, scheme


def test_bad_options_name_their_key():
    with pytest.raises(ValueError, match="algo.features"):
        check(KLFlow, {"features": "onehot"}, "algo", is_partial=True)
