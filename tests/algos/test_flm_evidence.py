"""FLM that reads evidence: against the dense loss and sampler, its start, and what is given."""

import math
from functools import partial

import pytest
import torch
from test_flm import small_flm

import flm.paths.evidence
import flm.posterior
from flm.algos.algorithm import Batch
from flm.algos.flm import FLM, log_frequencies
from flm.algos.fmlm import FMLM
from flm.draws import Draws
from flm.models.attention import document_mask
from flm.models.dit import DiT
from flm.paths.evidence import Noised
from flm.samplers.canvas import Canvas

V, L = 50, 8
COUNTS = 10_000 / torch.arange(1, V + 1).double().pow(1.2)


def dense_log_probabilities(algorithm, x, t, tau, mask=None):
    """(B, L, V), the textbook way; x (B, L, V), t (B, L)."""
    evidence = algorithm.log_prior.to(x) + x * (t / (1 - t).clamp_min(1e-3).square())[..., None]
    options = {} if mask is None else {"mask": mask}
    own = algorithm.backbone(evidence.softmax(-1) @ algorithm.backbone.input_table, tau, **options)
    logits = own.hidden @ own.table.T + own.bias
    return (own.softcap * torch.tanh(logits / own.softcap) + evidence).log_softmax(-1)


def reading_flm(clean_given=False, **options):
    algorithm = small_flm(clean_given=clean_given, reads="evidence", output_softcap=3.0, **options).double()
    algorithm.know_frequencies(COUNTS)
    return algorithm


@pytest.mark.parametrize("clean_given,tokens_per_chunk", [(False, 7), (True, 7), (True, 10_000)])
def test_loss_and_gradient_equal_dense(clean_given, tokens_per_chunk, monkeypatch):
    monkeypatch.setitem(flm.posterior.CHUNK_ELEMENTS, "cpu", tokens_per_chunk * V)
    monkeypatch.setattr(flm.paths.evidence, "CELL_ELEMENTS", 5 * V)
    algorithm = reading_flm(clean_given, neighbours=1)
    tokens = torch.randint(V, (4, L), generator=torch.Generator().manual_seed(1))
    weight = (torch.rand(4, L, generator=torch.Generator().manual_seed(2)) > 0.3).double()
    documents = torch.arange(L).expand(4, L) // 5
    loss = algorithm.loss(Batch(tokens, weight, documents), Draws(5, step=3))
    got = torch.autograd.grad(loss.total, list(algorithm.parameters()))

    draws = Draws(5, step=3)
    tau = draws.stratified(4)
    t = algorithm.clock.time(tau)[:, None].expand(4, L)
    t = t.masked_fill(weight == 0, 1.0) if clean_given else t
    x = Noised(tokens.flatten(), t.flatten(), V, draws.rows.seeds(4), torch.float64).chunk(slice(0, 4 * L)).view(4, L, V)
    log_p = dense_log_probabilities(algorithm, x, t, tau.float(), document_mask(documents))
    reference = -(log_p.gather(-1, tokens[..., None])[..., 0] * weight).sum() / weight.sum()
    want = torch.autograd.grad(reference, list(algorithm.parameters()))
    torch.testing.assert_close(loss.total, reference, rtol=0, atol=1e-9)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)
    assert max(g.abs().max() for g in want) > 1e-3


def test_it_starts_as_the_context_free_decoder_at_every_time():
    torch.manual_seed(0)
    backbone = partial(DiT, length=L, hidden_size=12, num_blocks=1, num_heads=2, dropout=0.0)
    algorithm = FLM(backbone, V, L, reads="evidence")
    algorithm.know_frequencies(COUNTS)
    tokens = torch.multinomial(COUNTS, 4000 * L, replacement=True, generator=torch.Generator().manual_seed(0)).view(-1, L)
    with torch.no_grad():
        loss = algorithm.loss(Batch(tokens, torch.ones(tokens.shape)), Draws(3))
    for tenth in range(10):
        here = (loss.tau * 10).long() == tenth
        tau = (torch.arange(40) + 0.5) / 400 + tenth / 10
        best = algorithm.context_free_loss(COUNTS, tau, Draws(2)).mean().item()
        error = loss.per_sequence[here].std() / math.sqrt(here.sum())
        assert abs(loss.per_sequence[here].mean() - best) < 4 * error + 0.03  # the reference has 2,048 draws a time


def test_frequencies_go_with_the_weights_and_are_of_the_training_text():
    algorithm, other = (small_flm(reads="evidence") for _ in range(2))
    algorithm.know_frequencies(COUNTS)
    other.load_state_dict(algorithm.state_dict())
    assert torch.equal(other.log_prior, log_frequencies(COUNTS).float())
    assert "log_prior" not in small_flm().state_dict()  # published checkpoints have none


@torch.no_grad()
def test_sampling_equals_dense_euler_and_keeps_what_is_given():
    algorithm, steps = reading_flm(clean_given=True), 6
    tokens = torch.randint(V, (3, L), generator=torch.Generator().manual_seed(1))
    editable = torch.ones(3, L, dtype=torch.bool)
    editable[:, :2] = editable[1, 5] = False
    got = algorithm.generate(Canvas(tokens, editable), steps, torch.Generator().manual_seed(4))

    generator = torch.Generator().manual_seed(4)
    z = torch.randn(3, L, V, generator=generator, dtype=torch.float64)
    given = torch.nn.functional.one_hot(tokens, V).double()
    grid = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    times = algorithm.clock.time(grid).tolist()
    for i in range(steps):
        tau = grid[i].float().expand(3)
        t = algorithm.clock.time(tau.double())[:, None].expand(3, L).masked_fill(~editable, 1.0)
        p = dense_log_probabilities(algorithm, torch.where(editable[..., None], z, given), t, tau).exp()
        p = torch.where(editable[..., None], p, given)
        z = z + (times[i + 1] - times[i]) * (p - z) / (1 - times[i])
    assert torch.equal(got, torch.where(editable, p.argmax(-1), tokens))


@torch.no_grad()
def test_given_tokens_are_read_without_noise():
    algorithm = reading_flm(clean_given=True)
    views = []
    algorithm.backbone.register_forward_pre_hook(lambda _, inputs: views.append(inputs[0]))
    tokens = torch.randint(V, (3, L), generator=torch.Generator().manual_seed(1))
    editable = torch.ones(3, L, dtype=torch.bool)
    editable[:, 3] = False
    algorithm.generate(Canvas(tokens, editable), 4, torch.Generator().manual_seed(0), solver="heun")
    algorithm.loss(Batch(tokens, editable.double()), Draws(0))
    assert len(views) == 8
    for view in views:
        torch.testing.assert_close(view[:, 3], algorithm.backbone.input_table[tokens[:, 3]], rtol=0, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("kind", [FLM, FMLM])
def test_bound_is_below_the_entropy_of_the_clock_it_starts_with(kind):
    """Without context the exact denoiser is the context-free decoder: the bound is then the entropy of the tokens."""
    backbone = partial(DiT, length=L, hidden_size=12, num_blocks=1, num_heads=2, dropout=0.0)
    algorithm = kind(backbone, V, L, reads="evidence")
    algorithm.know_frequencies(COUNTS)
    pi = COUNTS / COUNTS.sum()
    tokens = torch.multinomial(pi, 6000 * L, replacement=True, generator=torch.Generator().manual_seed(0)).view(-1, L)
    nats = algorithm.bound(Batch(tokens, torch.ones(tokens.shape)), Draws(1)).nats / L
    entropy = -(pi * pi.log()).sum()
    assert abs(nats.mean() - entropy) < 4 * nats.std() / math.sqrt(len(nats))
