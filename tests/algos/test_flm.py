"""FLM's loss and gradient against the dense loss, its reference, and the memory a step takes."""

import gc
from functools import partial

import pytest
import torch
from live_memory import LiveMemory

import flm.posterior
from flm.algos.algorithm import Batch
from flm.algos.flm import FLM
from flm.benchmark.dense_twin import dense_loss
from flm.draws import Draws
from flm.models.dit import DiT
from flm.paths import gaussian
from flm.samplers.canvas import Canvas


def small_flm(vocab_size=50, length=8, width=12, seed=0, clean_given=False, reads="view", **options):
    torch.manual_seed(seed)
    algorithm = FLM(
        partial(DiT, length=length, hidden_size=width, num_blocks=2, num_heads=2, cond_dim=8, dropout=0.0, **options),
        vocab_size,
        length,
        clean_given=clean_given,
        reads=reads,
    )
    with torch.no_grad():
        for parameter in algorithm.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return algorithm


@pytest.mark.parametrize("softcap", [None, 30.0])
def test_loss_and_gradient_equal_dense_on_the_same_noise(softcap, monkeypatch):
    """A dense noise n fed to both: V-free as n W. Also checks that tau and t are not exchanged."""
    algorithm = small_flm(output_softcap=softcap, attention_softcap=softcap).double()
    monkeypatch.setattr(gaussian, "noise_for", gaussian.DenseNoise)
    monkeypatch.setitem(flm.posterior.CHUNK_ELEMENTS, "cpu", 50 * 7)
    tokens = torch.randint(50, (4, 8), generator=torch.Generator().manual_seed(1))
    weight = (torch.rand(4, 8, generator=torch.Generator().manual_seed(2)) > 0.3).double()
    loss = algorithm.loss(Batch(tokens, weight), Draws(5, step=3))
    got = torch.autograd.grad(loss.total, list(algorithm.parameters()))

    draws = Draws(5, step=3)
    tau = draws.stratified(4)
    noise = draws.normal(4, 8, 50, dtype=torch.float64)
    t = algorithm.clock.time(tau).float().double()
    reference = dense_loss(algorithm.backbone, tokens, weight / weight.sum(), t, tau.float().double(), noise)
    want = torch.autograd.grad(reference, list(algorithm.parameters()))
    torch.testing.assert_close(loss.total, reference, rtol=0, atol=1e-5)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    assert max(g.abs().max() for g in want) > 1e-3


def test_weightless_positions_change_nothing_but_the_state():
    algorithm = small_flm()
    tokens = torch.randint(50, (2, 8), generator=torch.Generator().manual_seed(1))
    weight = torch.ones(2, 8)
    weight[:, 5:] = 0
    loss = algorithm.loss(Batch(tokens, weight), Draws(0))
    per_sequence = loss.per_sequence
    torch.testing.assert_close(loss.total.detach(), per_sequence.mean())
    assert not torch.equal(loss.total, algorithm.loss(Batch(tokens, torch.ones(2, 8)), Draws(0)).total)


def test_padding_is_not_seen():
    """As long as rows say which positions are padding; without that, whatever stands there matters."""
    algorithm = small_flm()
    tokens = torch.randint(2, 50, (2, 8), generator=torch.Generator().manual_seed(1))
    padded = tokens.clone()
    padded[:, 5:] = 1
    weight, documents = torch.ones(2, 8), torch.zeros(2, 8, dtype=torch.long)
    weight[:, 5:], documents[:, 5:] = 0, -1
    losses = [algorithm.loss(Batch(row, weight, documents), Draws(0)).total for row in (tokens, padded)]
    assert torch.equal(*losses)
    assert not torch.equal(*(algorithm.loss(Batch(row, weight), Draws(0)).total for row in (tokens, padded)))


def test_given_tokens_without_noise():
    """In training and at every evaluation of a sampler; what is not given is as ever."""
    noisy, clean = small_flm(), small_flm(clean_given=True)
    tokens = torch.randint(50, (2, 8), generator=torch.Generator().manual_seed(1))
    weight = torch.ones(2, 8)
    views = {algorithm: [] for algorithm in (noisy, clean)}
    for algorithm, seen in views.items():
        algorithm.backbone.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0].detach()))
    assert torch.equal(*(algorithm.loss(Batch(tokens, weight), Draws(0)).total for algorithm in views))
    weight[:, :3] = weight[1, 6] = 0
    for algorithm in views:
        algorithm.loss(Batch(tokens, weight), Draws(0))
    given = weight == 0
    table = clean.backbone.input_table.detach()
    assert torch.equal(views[clean][-1][given], table[tokens[given]])
    assert torch.equal(views[clean][-1][~given], views[noisy][-1][~given])

    for algorithm, seen in views.items():
        seen.clear()
        out = algorithm.generate(Canvas(tokens, ~given), 5, torch.Generator().manual_seed(0), solver="heun")
        assert torch.equal(out[given], tokens[given])
        same = [torch.equal(view[given], table[tokens[given]]) for view in seen]
        assert len(same) == 9 and (all(same) if algorithm is clean else not any(same))
    # the first evaluation is of the same noise, and nothing else differs
    assert torch.equal(views[clean][0][~given], views[noisy][0][~given])


def peak_of_a_step(vocab_size, batch, length=64, reads="view"):
    """Peak bytes during one loss and backward pass, beyond the parameters, and the parameters' bytes."""
    algorithm = small_flm(vocab_size, length, width=32, reads=reads)
    parameters = sum(p.numel() * 4 for p in algorithm.parameters())
    tokens = torch.randint(vocab_size, (batch, length), generator=torch.Generator().manual_seed(1))
    gc.collect()
    with LiveMemory() as memory:
        algorithm.loss(Batch(tokens, torch.ones(tokens.shape)), Draws(0)).total.backward()
    return memory.peak, parameters


@pytest.mark.parametrize("reads", ["view", "evidence"])
def test_peak_memory_of_a_step_does_not_hold_the_vocabulary(reads, monkeypatch):
    """From V = 1k to 50k a step may grow by gradients of the two tables and one chunk, and not with batch x V."""
    chunk = 2**20
    monkeypatch.setitem(flm.posterior.CHUNK_ELEMENTS, "cpu", chunk)
    chunk_bytes = 4 * chunk
    (small, small_parameters), (large, large_parameters) = (peak_of_a_step(v, 16, reads=reads) for v in (1_000, 50_000))
    # gradients of the two tables, one more of each while they are made and added, and a chunk's logit buffers: three, and
    # as many for its evidence
    buffers = 4 if reads == "view" else 7
    assert large - small < 2.5 * (large_parameters - small_parameters) + buffers * chunk_bytes
    # the dense states alone, (B, L, V) fp32, would take 205 MB
    assert large < 16 * 64 * 50_000 * 4 / 4
    # and what it takes is independent of batch times V: twice the batch adds activations only
    double, _ = peak_of_a_step(50_000, 32, reads=reads)
    small_double, _ = peak_of_a_step(1_000, 32, reads=reads)
    assert abs((double - large) - (small_double - small)) < 2 * chunk_bytes


def test_training_reaches_the_closed_form_loss_of_independent_tokens():
    """On text without context the best model is the context-free decoder: training must approach its cross-entropy from
    above and never fall below it by more than noise."""
    length, vocab_size = 4, 5
    probabilities = torch.tensor([0.5, 0.2, 0.15, 0.1, 0.05])
    algorithm = small_flm(vocab_size, length, width=32)
    optimizer = torch.optim.AdamW(algorithm.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)

    def batch(size):
        tokens = torch.multinomial(probabilities, size * length, replacement=True, generator=generator)
        return Batch(tokens.view(size, length), torch.ones(size, length))

    for step in range(400):
        optimizer.zero_grad()
        algorithm.loss(batch(64), Draws(0, step)).total.backward()
        optimizer.step()
    with torch.no_grad():
        loss = algorithm.loss(batch(8192), Draws(1))
    tau = (torch.arange(400) + 0.5) / 400
    best = algorithm.context_free_loss(probabilities * 1000, tau, Draws(2)).mean()
    assert best - 0.02 < loss.total < best + 0.05
