"""MDLM: its loss against a dense one, its bound in worlds that can be enumerated, and what training reaches."""

import itertools
import json
import math
from functools import partial

import pytest
import torch
from algos.masked_world import exact_mdlm
from chi_square import chi_square_limit
from tasks.running import command, config_of, tiny, write_corpus

from flm.algos.algorithm import Batch
from flm.algos.mdlm import MDLM
from flm.draws import Draws
from flm.models.dit import DiT
from flm.paths.masking import drawn_masks, first_masks, random_masks
from flm.paths.mixture import Cosine, LogLinear, MaskSource, Polynomial, corrupt
from flm.tasks.train import train
from flm.training.validation import Tally

V, L = 11, 8


def small_mdlm(vocab_size=V, length=L, softcap=30.0, randomised=True, width=12, seed=0, **options):
    torch.manual_seed(seed)
    sizes = {"length": length, "hidden_size": width, "num_blocks": 2, "num_heads": 2, "dropout": 0.0}
    algorithm = MDLM(partial(DiT, **sizes, output_softcap=softcap), vocab_size, length, **options)
    if randomised:
        with torch.no_grad():
            for parameter in algorithm.parameters():
                parameter.add_(0.5 * torch.randn_like(parameter))
    return algorithm.double().eval()


def some_batch(size=6, mask_id=None, documents=False):
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(V, (size, L), generator=generator)
    tokens[tokens == mask_id] = 0
    weight = (torch.rand(size, L, generator=generator) > 0.3).double()
    weight[0] = 0
    return Batch(tokens, weight, (torch.arange(L) // 3).expand(size, -1) if documents else None)


def dense_log_p(algorithm, state, mask_id, documents=None):
    """log p (B, L, V + 1) the textbook way: the mask impossible, what is visible certain."""
    model = algorithm.backbone
    onehot = torch.nn.functional.one_hot(state, len(model.input_table)).double()
    mask = None if documents is None else (documents[:, :, None] == documents[:, None])[:, None]
    hidden = model.hidden(onehot @ model.input_table, torch.zeros(len(state), dtype=torch.float64), mask=mask)
    logits = model.output_layer.linear(hidden)
    if model.output_softcap is not None:
        logits = model.output_softcap * torch.tanh(logits / model.output_softcap)
    outside = torch.arange(logits.shape[-1]) == mask_id
    log_p = torch.log_softmax(logits.masked_fill(outside, -torch.inf), -1)
    return torch.where((state == mask_id)[..., None], log_p, onehot.log())


@pytest.mark.parametrize(
    "options, documents",
    [({}, False), ({"schedule": Cosine()}, False), ({"mask_id": 4, "softcap": None}, False), ({}, True)],
    ids=["a row more", "another schedule", "one of the ids", "documents"],
)
def test_loss_and_gradient_equal_dense(options, documents):
    algorithm = small_mdlm(**options)
    mask_id = options.get("mask_id", V)
    assert len(algorithm.backbone.input_table) == (V if "mask_id" in options else V + 1)
    batch = some_batch(mask_id=mask_id, documents=documents)
    loss = algorithm.loss(batch, Draws(3))
    got = torch.autograd.grad(loss.total, list(algorithm.parameters()), allow_unused=True)

    u = Draws(3).stratified(len(batch.tokens))
    masked, _ = random_masks(batch.weight > 0, u, Draws(3).rows)
    assert not (masked & (batch.weight == 0)).any()
    state = torch.where(masked, mask_id, batch.tokens)
    log_p = dense_log_p(algorithm, state, mask_id, batch.documents)
    ce = -log_p.gather(2, batch.tokens[..., None])[..., 0]
    counts, masks = batch.weight.sum(1), masked.sum(1)
    rows = torch.where(masks > 0, counts / masks.clamp_min(1), 0.0) * (ce * masked).sum(1)
    reference = rows.sum() / counts.sum()
    want = torch.autograd.grad(reference, list(algorithm.parameters()), allow_unused=True)
    torch.testing.assert_close(loss.total, reference)
    torch.testing.assert_close(loss.per_sequence, (rows / counts.clamp_min(1)).detach())
    assert loss.per_sequence[0] == 0 and torch.equal(loss.tau, 1 - u)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)
    # a validation's mean is the same loss: nats over tokens that count
    tally = Tally(algorithm.validation_metric)
    tally.add(loss)
    assert tally.report().mean == pytest.approx(loss.total.item())


def test_random_masks_are_sets_of_every_size_alike():
    count, maskable = 24_000, torch.tensor([True, False, True, True, False, True])
    u = Draws(0).stratified(count)
    masks, scale = random_masks(maskable.expand(count, -1), u, Draws(0).local)
    assert not masks[:, ~maskable].any()
    k = masks.sum(1)
    torch.testing.assert_close(scale, 4 / k.double())
    assert torch.equal(k, (u * 4).long() + 1)
    found = torch.bincount(masks[:, maskable].long() @ torch.tensor([8, 4, 2, 1]), minlength=16)
    sets = torch.tensor([math.comb(4, bin(i).count("1")) for i in range(16)])
    expected = count / 4 / sets.double()
    value = ((found - expected)[1:] ** 2 / expected[1:]).sum()
    assert found[0] == 0 and value < chi_square_limit(1e-3, 14)
    none, scale = random_masks(torch.zeros(3, 5, dtype=torch.bool), torch.tensor([0.0, 0.5, 0.99]), Draws(0).local)
    assert not none.any() and (scale == 0).all()


CUBE = torch.rand(3, 3, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64) ** 2 + 0.02
CUBE = CUBE / CUBE.sum()
ALL = torch.tensor(list(itertools.product(range(3), repeat=3)))


def order_nats(algorithm):
    """-log p of each of the 27 sequences when written one by one, for each of the 6 orders; (27, 6)."""
    columns = []
    for order in itertools.permutations(range(3)):
        state, total = torch.full_like(ALL, 3), torch.zeros(27, dtype=torch.float64)
        for position in order:
            log_p = algorithm.denoiser()(state).log_prob(ALL)
            total = total - log_p[:, position]
            state = torch.where(torch.arange(3) == position, ALL, state)
        columns.append(total)
    return torch.stack(columns, 1)


def bound_draws(algorithm, count):
    """(count, 27) draws of the bound of every sequence."""
    tokens = ALL.repeat(count, 1)
    found = algorithm.bound(Batch(tokens, torch.ones(tokens.shape)), Draws(5))
    return found.nats.view(count, 27)


def within(draws, exact, limit=4.5):
    """Whether the mean of draws (n, k) lies within so many standard errors of exact (k,)."""
    error = (draws.mean(0) - exact).abs() / (draws.std(0) / len(draws) ** 0.5).clamp_min(1e-12)
    return bool((error < limit).all())


def test_the_bound_of_the_exact_denoiser_is_the_likelihood():
    algorithm = exact_mdlm(CUBE.tolist())
    truth = -CUBE.flatten().log()
    torch.testing.assert_close(order_nats(algorithm), truth[:, None].expand(-1, 6))  # whatever the order
    draws = bound_draws(algorithm, 1500)
    assert draws.std(0).min() > 0.05 and within(draws, truth)


@torch.no_grad()
def test_the_bound_of_any_network_is_its_mean_over_orders_and_above_its_likelihood():
    algorithm = small_mdlm(3, 3)
    nats = order_nats(algorithm)
    likelihood = -(-nats).exp().mean(1).log()  # of text written in an order drawn beforehand
    assert (-likelihood).exp().sum().item() == pytest.approx(1)
    bound = nats.mean(1)
    assert (bound > likelihood).all() and (bound - likelihood).max() > 0.1
    assert within(bound_draws(algorithm, 300), bound)
    # what training sees is the same number per token
    tokens = ALL.repeat(300, 1)
    loss = algorithm.loss(Batch(tokens, torch.ones(tokens.shape)), Draws(6))
    assert within(3 * loss.per_sequence.view(300, 27), bound)


@pytest.mark.parametrize("schedule", [LogLinear(0.0), Polynomial(2.0), Cosine()], ids=lambda s: type(s).__name__)
@torch.no_grad()
def test_the_bound_is_that_of_continuous_time_under_any_schedule(schedule):
    """E_t[kappa' / (1 - kappa) sum over masks drawn one by one], on a grid of t and over all sets of masks."""
    algorithm = small_mdlm(3, 3, schedule=schedule)
    t = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    kappa, rate = schedule.kappa(t), schedule.rate(t)
    total = torch.zeros(27, dtype=torch.float64)
    for chosen in itertools.product([False, True], repeat=3):
        masked = torch.tensor(chosen)
        k = int(masked.sum())
        log_p = algorithm.denoiser()(torch.where(masked, 3, ALL)).log_prob(ALL)
        total -= (rate * (1 - kappa) ** k * kappa ** (3 - k)).mean() * (log_p * masked).sum(1)
    torch.testing.assert_close(total, order_nats(algorithm).mean(1), rtol=1e-4, atol=0)


def test_the_mask_is_never_predicted_and_changes_no_other_probability():
    state = torch.full((2, L), V)
    algorithm = small_mdlm()
    before = algorithm.denoiser()(state).probabilities()
    assert before.shape == (2, L, V)
    torch.testing.assert_close(before.sum(-1), torch.ones(2, L, dtype=torch.float64))
    with torch.no_grad():
        algorithm.backbone.output_layer.linear.bias[V] = 50.0
    assert torch.equal(algorithm.denoiser()(state).probabilities(), before)
    own = small_mdlm(mask_id=4, softcap=None)
    p = own.denoiser()(torch.full((2, L), 4)).probabilities()
    assert (p[..., 4] == 0).all() and p.sum(-1).allclose(torch.ones((), dtype=torch.float64))


def test_a_mask_id_that_cannot_be():
    with pytest.raises(ValueError, match="algo.mask_id must be in"):
        small_mdlm(mask_id=V)
    with pytest.raises(ValueError, match="model.output_softcap=null"):
        small_mdlm(mask_id=4).loss(some_batch(mask_id=4), Draws(0))


def test_published_training_draws_the_same_loss_with_more_spread():
    """t, then each mask by itself, weighed by the rate: the textbook estimator, beside ours on the same text."""
    algorithm, count = small_mdlm(3, 3), 6_000
    tokens = ALL[:1].expand(count, -1)
    t = Draws(7).stratified(count)
    state = corrupt(tokens, t, MaskSource(3, 3), Draws(7).local)
    with torch.no_grad():
        ce = -algorithm.denoiser()(state).log_prob(tokens)
        theirs = (ce * (state == 3)).sum(1) / (1 - t)
        ours = algorithm.bound(Batch(tokens, torch.ones(tokens.shape)), Draws(8)).nats
        exact = order_nats(algorithm)[0].mean()
    assert within(ours[:, None], exact[None])
    assert theirs.mean().item() == pytest.approx(exact.item(), rel=0.1)  # its tail is heavy
    assert theirs.var() > 2 * ours.var()


@pytest.mark.slow
def test_training_reaches_the_entropy_of_a_world():
    generator = torch.Generator().manual_seed(0)
    joint = CUBE.float()

    def text(size):
        flat = torch.multinomial(joint.flatten(), size, replacement=True, generator=generator)
        return Batch(ALL[flat], torch.ones(size, 3))

    algorithm = small_mdlm(3, 3, width=32, randomised=False).float().train()
    optimizer = torch.optim.AdamW(algorithm.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, total_iters=1000)
    for step in range(1000):
        optimizer.zero_grad()
        algorithm.loss(text(128), Draws(0, step)).total.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        excess = (CUBE.flatten() * (order_nats(algorithm.eval().double()).mean(1) + CUBE.flatten().log())).sum()
    unigrams = sum(torch.special.entr(CUBE.sum([a for a in range(3) if a != i])).sum() for i in range(3))
    assert 0 < excess < 0.05 < 0.28 < unigrams - torch.special.entr(CUBE).sum()


def test_the_reference_without_context_is_the_entropy_of_unigrams():
    counts, tau = torch.tensor([2.0, 1, 1] + [0] * (V - 3)), torch.linspace(0, 1, 5)
    found = small_mdlm().context_free_loss(counts, tau, Draws(0))
    torch.testing.assert_close(found, torch.full((5,), 1.5 * math.log(2), dtype=torch.float64))


def test_through_the_command_line(tmp_path, monkeypatch, capfd):
    corpus, run = write_corpus(tmp_path / "corpus"), tmp_path / "run"
    metrics = train(config_of(run, *tiny(corpus, "algo=mdlm", "trainer.max_steps=60", "training.ema=0.9")))
    assert 0 < metrics["val/nelbo_nats_per_token"] < 3.0
    assert metrics["val/context_free_ce_nats_per_token"] == pytest.approx(2.57, abs=0.1)
    checkpoint = run / "checkpoints" / "last.ckpt"
    common = [f"eval.checkpoint_path={checkpoint}", "loader.eval_batch_size=3", "trainer.accelerator=cpu"]
    found = {}
    for solver in ("ancestral", "low_entropy"):
        folder = tmp_path / solver
        options = ["mode=sample_eval", "sampling.steps=[2,60]", "sampling.prompt=the cat ", f"sampling.solver={solver}"]
        assert command(monkeypatch, *common, *options, "sampling.film=true", f"hydra.run.dir={folder}") == 0
        results = json.loads((folder / "results.json").read_text())["generated"]
        found[solver] = {steps: entry["network_evaluations"] for steps, entry in results.items()}
        rows = [json.loads(line) for line in (folder / "samples-60.jsonl").read_text().splitlines()]
        assert all(row["text"].startswith("the cat ") and len(row["tokens"]) == 32 for row in rows)
        frames = json.loads((folder / "film-60.json").read_text())["frames"]
        assert frames[-1]["index"] == 59 and "".join(frames[-1]["tokens"]) == rows[0]["text"]
    # 24 positions to fill: no more evaluations than these in one sequence, and fewer than steps
    assert found["low_entropy"] == {"2": 2, "60": 24} and found["ancestral"]["2"] == 2
    assert 24 <= found["ancestral"]["60"] < 60
    assert command(monkeypatch, *common, "mode=sample_eval", "sampling.churn=0.1", f"hydra.run.dir={tmp_path}/x") == 1
    assert "churn" in capfd.readouterr().err
    folder = tmp_path / "ppl"
    options = ["mode=ppl_eval", "eval.draws_per_example=2", "eval.max_examples=8", f"hydra.run.dir={folder}"]
    assert command(monkeypatch, *common, *options) == 0
    scored = json.loads((folder / "likelihood.json").read_text())["likelihood"]
    assert scored["kind"] == "variational upper bound"
    assert scored["corpora"]["data"]["variants"]["model"]["nats_per_token"] == pytest.approx(
        metrics["val/nelbo_nats_per_token"], abs=0.3
    )


def test_the_vocabulary_is_asked_at_masks_alone_and_nowhere_else_without_padding():
    """As many rows as masks, known without counting them; with padding some more, of no weight."""
    for documents in (False, True):
        points, weight = Draws(5).points(6), torch.ones(6, 16)
        if documents:
            weight[:, 12:] = 0
        masked, _ = random_masks(weight > 0, points, Draws(5).rows)
        rows = first_masks(masked, drawn_masks(points, masked.shape[1]))
        count = int(masked.sum())
        assert masked.flatten()[rows].nonzero()[:, 0].tolist() == list(range(count))
        assert len(set(rows.tolist())) == len(rows) and (len(rows) == count) is not documents and len(rows) >= count
