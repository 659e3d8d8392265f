"""Discrete flow matching: losses against dense ones, its bound in worlds that can be enumerated, and what corrupts a batch."""

import itertools
import json
import math
from functools import partial

import pytest
import torch
from algos.exact_world import ExactWorld
from algos.token_world import exact_dfm, posterior
from tasks.running import command, config_of, tiny, write_corpus

from flm.algos.algorithm import Batch
from flm.algos.dfm import DFM
from flm.draws import Draws
from flm.models.dit import DiT
from flm.models.token_backbone import EmbeddedTokens
from flm.paths.masking import MaskingCurriculum
from flm.paths.mixture import Cosine, LogLinear, Polynomial
from flm.schema import check
from flm.tasks.train import train

V, L = 7, 10


def small_dfm(vocab_size=V, length=L, softcap=30.0, randomised=True, conditioned=True, seed=0, **options):
    torch.manual_seed(seed)
    sizes = {"length": length, "hidden_size": 12, "num_blocks": 2, "num_heads": 2, "dropout": 0.0}
    make = partial(DiT, **sizes, output_softcap=softcap, conditioned=conditioned)
    algorithm = DFM(make, vocab_size, length, **options)
    if randomised:
        with torch.no_grad():
            for parameter in algorithm.parameters():
                parameter.add_(0.5 * torch.randn_like(parameter))
    return algorithm.double().eval()


def some_batch(size=6, documents=False):
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(V, (size, L), generator=generator)
    weight = (torch.rand(size, L, generator=generator) > 0.3).double()
    weight[0] = 0
    return Batch(tokens, weight, (torch.arange(L) // 4).expand(size, -1) if documents else None)


def seen(algorithm, batch, draws, run):
    """What `run` shows the network: tokens, t, documents."""
    shown = []
    hook = algorithm.backbone.register_forward_pre_hook(lambda module, inputs: shown.append(inputs))
    found = run(batch, draws)
    hook.remove()
    return *shown[0], found


@pytest.mark.parametrize("source", ["mask", "uniform"])
@pytest.mark.parametrize("objective", ["ce", "weighted", "generalized_kl"])
@pytest.mark.parametrize("max_weight, documents", [(None, False), (1.5, True)])
def test_loss_and_gradient_equal_dense(source, objective, max_weight, documents):
    max_weight = None if objective == "ce" else max_weight
    schedule = Polynomial(2)
    algorithm = small_dfm(source=source, objective=objective, max_weight=max_weight, schedule=schedule)
    batch = some_batch(documents=documents)
    state, t, shown, loss = seen(algorithm, batch, Draws(3), algorithm.loss)
    got = torch.autograd.grad(loss.total, list(algorithm.parameters()), allow_unused=True)
    torch.testing.assert_close(loss.tau, Draws(3).stratified(6) * (1 - 1e-3))
    assert shown is batch.documents and torch.equal(state[batch.weight == 0], batch.tokens[batch.weight == 0])

    body = algorithm.backbone.body
    mask = None if not documents else (shown[:, :, None] == shown[:, None])[:, None]
    hidden = body.hidden(torch.nn.functional.embedding(state, body.input_table), t, mask=mask)
    logits = 30 * torch.tanh(body.output_layer.linear(hidden) / 30)
    log_p = torch.log_softmax(logits[..., :V], -1)
    if source == "mask":  # what is visible is certain
        assert (state == V).any() and ((state == V) | (state == batch.tokens)).all()
        certain = torch.nn.functional.one_hot(state.clamp(max=V - 1), V).bool()
        log_p = torch.where((state == V)[..., None] | ~certain, log_p, 0.0)
        log_p = torch.where((state < V)[..., None] & ~certain, -1e4, log_p)
    ce = -log_p.gather(2, batch.tokens[..., None])[..., 0]
    kept = (state < V) * log_p.gather(2, state.clamp(max=V - 1)[..., None])[..., 0].exp()
    same = (state == batch.tokens).double()
    value = (1 - same) * ce - kept + same if objective == "generalized_kl" else ce
    rate = (2 * loss.tau / (1 - loss.tau**2)).clamp(max=max_weight or math.inf) if objective != "ce" else torch.ones(6)
    rows = (value * batch.weight).sum(1) * rate
    reference = rows.sum() / batch.weight.sum()
    want = torch.autograd.grad(reference, list(algorithm.parameters()), allow_unused=True)
    torch.testing.assert_close(loss.total, reference)
    torch.testing.assert_close(loss.per_sequence, (rows / batch.weight.sum(1).clamp_min(1)).detach())
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


def test_with_a_mask_source_the_generalized_kl_is_the_weighted_loss():
    losses = [small_dfm(objective=name).loss(some_batch(), Draws(3)).total for name in ("weighted", "generalized_kl", "ce")]
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("exponent", [1, 2.5])
def test_a_uniform_prediction_costs_log_v(exponent):
    algorithm = small_dfm(randomised=False, schedule=Polynomial(exponent), eps=0.05)
    tokens = torch.randint(V, (4000, L), generator=torch.Generator().manual_seed(0))
    found = algorithm.loss(Batch(tokens, torch.ones(tokens.shape).double()), Draws(0)).per_sequence
    factor = (1 - 0.05) ** exponent / (1 - 0.05)
    assert abs(found.mean() - factor * math.log(V)) < 4.5 * found.std() / len(found) ** 0.5


def test_corruption_does_not_depend_on_how_the_global_batch_is_split():
    algorithm = small_dfm(source="uniform", masking=MaskingCurriculum(10, 0.4, 0.4, 0.5))
    batch = some_batch(8)
    whole = seen(algorithm, batch, Draws(3, 2), algorithm.loss)
    parts = []
    for share in range(4):
        rows = slice(2 * share, 2 * share + 2)
        part = Batch(batch.tokens[rows], batch.weight[rows])
        parts.append(seen(algorithm, part, Draws(3, 2, share, 4), algorithm.loss))
    assert torch.equal(torch.cat([part[0] for part in parts]), whole[0])
    assert torch.equal(torch.cat([part[1] for part in parts]), whole[1])
    torch.testing.assert_close(torch.cat([part[3].per_sequence for part in parts]), whole[3].per_sequence)


@pytest.mark.parametrize("source", ["mask", "uniform"])
def test_the_corrupted_share_follows_the_schedule(source):
    algorithm = small_dfm(source=source, schedule=Cosine())
    tokens = torch.full((6000, L), 2)
    state, t, _, _ = seen(algorithm, Batch(tokens, torch.ones(tokens.shape).double()), Draws(0), algorithm.loss)
    expected = (1 - Cosine().kappa(t.double())) * (1 if source == "mask" else (V - 1) / V)
    for low in (0.0, 0.3, 0.8):
        rows = (t >= low) & (t < low + 0.2)
        share = (state[rows] != 2).double().mean()
        assert abs(share - expected[rows].mean()) < 4.5 * (0.25 / (rows.sum() * L)) ** 0.5


def test_strategies_leave_out_what_they_say():
    batch = some_batch(400)
    batch.weight[:] = 1
    batch.weight[:, 3] = 0
    cases = {"prefix": {"prefix": 1.0}, "suffix": {"suffix": 1.0}, "windows": {"windows": 1.0, "window_sizes": [4]}, "none": {}}
    for name, options in cases.items():
        algorithm = small_dfm(masking=MaskingCurriculum(10, **options))
        state, _, documents, loss = seen(algorithm, batch, Draws(5), algorithm.loss)
        masked = state == V
        assert not masked[:, 3].any() and loss.total > 0
        if name == "prefix":
            assert documents is None and not masked[:, 0].any() and masked[:, -1].any()
        elif name == "suffix":
            assert (documents[:, 0] == 0).all() and (documents[:, -1] == -1).all()
            assert not masked[documents == -1].any() and masked[documents == 0].any()
        elif name == "windows":  # three positions before the given one are too few for a window
            assert documents is None and not masked[:, :3].any() and masked[:, 4:].any()
        else:
            assert documents is None and masked[:, 0].any() and masked[:, -1].any()
    later = small_dfm(masking=MaskingCurriculum(10, prefix=[0.0, 1.0]))
    first = [(seen(later, batch, Draws(5, step), later.loss)[0] == V)[:, 0].any() for step in (4, 5)]
    assert first == [True, False]
    # validation and the bound do without
    assert (seen(later, batch, Draws(5, 9), later.validation_loss)[0] == V)[:, 0].any()


def test_what_a_cut_removes_is_not_attended():
    algorithm = small_dfm(masking=MaskingCurriculum(10, suffix=1.0))
    batch = some_batch(20)
    batch.weight[:] = 1
    _, _, documents, loss = seen(algorithm, batch, Draws(5), algorithm.loss)
    other = Batch(torch.where(documents == -1, (batch.tokens + 1) % V, batch.tokens), batch.weight)
    torch.testing.assert_close(algorithm.loss(other, Draws(5)).per_sequence, loss.per_sequence)


CUBE = torch.rand(3, 3, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64) ** 2 + 0.02
CUBE = CUBE / CUBE.sum()
ALL = torch.tensor(list(itertools.product(range(3), repeat=3)))


def bound_draws(algorithm, tokens, count, seed=5):
    """(count, len(tokens)) draws of the bound."""
    repeated = tokens.repeat(count, 1)
    return algorithm.bound(Batch(repeated, torch.ones(repeated.shape)), Draws(seed)).nats.view(count, -1)


def within(draws, exact, limit=4.5):
    error = (draws.mean(0) - exact).abs() / (draws.std(0) / len(draws) ** 0.5).clamp_min(1e-12)
    return bool((error < limit).all())


@pytest.mark.parametrize("schedule", [Polynomial(), Polynomial(3), Cosine()], ids=["linear", "cubic", "cosine"])
def test_the_bound_after_masks_is_the_likelihood_under_any_schedule(schedule):
    algorithm = exact_dfm(CUBE.tolist(), schedule=schedule)
    draws = bound_draws(algorithm, ALL, 600)
    assert draws.std(0).min() > 0.05 and within(draws, -CUBE.flatten().log())


def test_the_bound_does_not_depend_on_the_schedule_of_a_network_that_knows_no_time():
    found = [bound_draws(small_dfm(3, 3, conditioned=False, schedule=s), ALL, 20) for s in (Polynomial(0.5), Cosine())]
    torch.testing.assert_close(found[0], found[1])
    told = [bound_draws(small_dfm(3, 3, schedule=s), ALL, 20) for s in (Polynomial(0.5), Cosine())]
    assert not torch.allclose(told[0], told[1])


def bound_by_enumeration(joint, end, p_of, nodes=300):
    """After uniform noise, of each sequence: jumps up to kappa = end, over a grid and all states, and the last draw; (V^L,)."""
    size, length = joint.shape[0], joint.ndim
    sequences = list(itertools.product(range(size), repeat=length))
    total, low = torch.zeros(len(sequences), dtype=torch.float64), math.sqrt(1 - end)
    roots = [low + (1 - low) * (node + 0.5) / nodes for node in range(nodes)]  # 1 - kappa = root^2
    for kappa, weight in [(1 - root**2, 2 / root * (1 - low) / nodes) for root in roots] + [(end, None)]:
        for state in itertools.product(range(size), repeat=length):
            p = p_of(state, kappa)
            for index, data in enumerate(sequences):
                chance, jumps, ce = 1.0, 0.0, 0.0
                for i, (s, y) in enumerate(zip(state, data, strict=True)):
                    chance *= kappa * (s == y) + (1 - kappa) / size
                    ce -= math.log(p[i, y].item())
                    jumps += (1.0 if s == y else -math.log(p[i, y].item())) - p[i, s].item()
                total[index] += chance * (ce if weight is None else jumps * weight)
    return total


@pytest.mark.parametrize("schedule", [Polynomial(), Polynomial(2)], ids=["linear", "square"])
def test_the_bound_after_uniform_noise_is_its_integral_and_above_the_entropy(schedule):
    joint = torch.tensor([[0.45, 0.05], [0.15, 0.35]], dtype=torch.float64)
    pairs = torch.tensor(list(itertools.product(range(2), repeat=2)))
    cache = {}

    def p_of(state, kappa):
        return cache.setdefault((state, kappa), posterior(joint, state, kappa, False))

    end = schedule.kappa(torch.tensor(0.95, dtype=torch.float64)).item()
    exact = bound_by_enumeration(joint, end, p_of)
    draws = bound_draws(exact_dfm(joint.tolist(), "uniform", schedule, eps=0.05), pairs, 8000)
    assert within(draws, exact)
    entropy = torch.special.entr(joint).sum()
    assert entropy < (joint.flatten() * exact).sum() < entropy + 0.5
    # any other network's is higher
    other = torch.tensor([[0.25, 0.25], [0.25, 0.25]], dtype=torch.float64)
    worse = bound_by_enumeration(joint, end, lambda s, k: posterior(other, s, k, False), nodes=100)
    assert (joint.flatten() * worse).sum() > (joint.flatten() * exact).sum() + 0.1


@pytest.mark.parametrize("source", ["mask", "uniform"])
def test_validation_is_the_bound_per_token_and_training_agrees(source):
    algorithm, count = small_dfm(3, 3, source=source, objective="generalized_kl", eps=0.05), 3000
    tokens = ALL[5:6].expand(count, -1)
    batch = Batch(tokens, torch.ones(tokens.shape).double())
    with torch.no_grad():
        found = algorithm.bound(batch, Draws(5))
        bound = found.parts.get("jumps", found.nats)
        validation = 3 * algorithm.validation_loss(batch, Draws(8)).per_sequence
        training = 3 * algorithm.loss(batch, Draws(9)).per_sequence
    error = (bound.var() / count + validation.var() / count) ** 0.5
    assert abs(bound.mean() - validation.mean()) < 4.5 * error
    assert training.mean().item() == pytest.approx(bound.mean().item(), rel=0.15)  # its tail is heavy


@pytest.mark.parametrize("objective", ["ce", "weighted", "generalized_kl"])
def test_the_posterior_given_the_state_is_where_each_objective_is_least_after_uniform_noise(objective):
    """Tilting the exact prediction any way costs: so what is learned is what samplers jump to."""
    world = ExactWorld([[0.45, 0.05], [0.15, 0.35]])
    algorithm = exact_dfm(world.joint.tolist(), "uniform", objective=objective, eps=0.1)
    tokens = world.sample(40_000, torch.Generator().manual_seed(0))
    batch = Batch(tokens, torch.ones(tokens.shape))
    exact = algorithm.loss(batch, Draws(1)).per_sequence
    inner = algorithm.backbone.forward
    for tilt in (torch.tensor([0.3, 0.0]), torch.tensor([-0.3, 0.0])):
        algorithm.backbone.forward = lambda *inputs, tilt=tilt: _tilted(inner(*inputs), tilt)
        difference = algorithm.loss(batch, Draws(1)).per_sequence - exact
        assert difference.mean() > 3 * difference.std() / len(difference) ** 0.5
    # sharper and flatter too
    for power in (0.8, 1.25):
        algorithm.backbone.forward = lambda *inputs, power=power: inner(*inputs).tempered(power)
        difference = algorithm.loss(batch, Draws(1)).per_sequence - exact
        assert difference.mean() > 3 * difference.std() / len(difference) ** 0.5


def _tilted(found, tilt):
    from dataclasses import replace

    return replace(found, bias=tilt.double())


def test_options_that_cannot_be():
    for options, name in [
        ({"source": "gaussian"}, "algo.source"),
        ({"objective": "mse"}, "algo.objective"),
        ({"source": "uniform", "mask_id": 1}, "algo.mask_id"),
        ({"mask_id": V}, "algo.mask_id"),
        ({"eps": 0.0}, "algo.eps"),
        ({"max_weight": 2.0, "objective": "ce"}, "algo.max_weight"),
        ({"schedule": LogLinear()}, "algo.schedule=LogLinear"),
    ]:
        with pytest.raises(ValueError, match=name):
            check(DFM, options, "algo", is_partial=True)
            small_dfm(**options)


def test_a_mask_of_the_tokenizer_is_never_predicted_and_a_network_may_do_without_time():
    own = small_dfm(mask_id=4, softcap=None)
    p = own.denoiser()(torch.full((2, L), 4), torch.zeros(2).double()).probabilities()
    assert p.shape == (2, L, V) and (p[..., 4] == 0).all() and len(own.backbone.body.input_table) == V
    with pytest.raises(ValueError, match="output_softcap"):
        small_dfm(mask_id=4).loss(some_batch(), Draws(0))
    untimed = small_dfm(conditioned=False)
    state = torch.full((2, L), V)
    early, late = (untimed.denoiser()(state, torch.full((2,), t).double()).probabilities() for t in (0.1, 0.9))
    assert torch.equal(early, late) and early.shape == (2, L, V)
    timed = small_dfm()
    early, late, never = (timed.backbone(state, t).probabilities() for t in (torch.zeros(2).double(), HALF, None))
    assert torch.equal(early, never) and not torch.allclose(early, late)
    with pytest.raises(ValueError, match="knows no mask"):
        body = partial(DiT, length=L, hidden_size=12, num_blocks=1, num_heads=2)
        DFM(lambda vocab_size: EmbeddedTokens(body(vocab_size=vocab_size), V), V, L)


HALF = torch.full((2,), 0.5, dtype=torch.float64)


def test_through_the_command_line(tmp_path, monkeypatch, capfd):
    corpus, run = write_corpus(tmp_path / "corpus"), tmp_path / "run"
    masking = "algo.masking={_target_: flm.paths.masking.MaskingCurriculum, steps: 60, prefix: 0.05, windows: 0.1}"
    options = ["experiment=pydoc_dfm", masking, "trainer.max_steps=60", "training.ema=0.9"]
    metrics = train(config_of(run, *tiny(corpus, *options)))
    assert 0 < metrics["val/nelbo_nats_per_token"] < 3.0
    assert metrics["val/context_free_ce_nats_per_token"] == pytest.approx(2.57, abs=0.1)
    checkpoint = run / "checkpoints" / "last.ckpt"
    common = [f"eval.checkpoint_path={checkpoint}", "loader.eval_batch_size=3", "trainer.accelerator=cpu"]
    for solver in ("exact", "p2"):
        folder = tmp_path / solver
        options = ["mode=sample_eval", "sampling.steps=[4]", "sampling.prompt=the cat ", f"sampling.solver={solver}"]
        more = ["sampling.block_length=8", "sampling.suppress=[0]", f"hydra.run.dir={folder}"]
        assert command(monkeypatch, *common, *options, *more) == 0
        rows = [json.loads(line) for line in (folder / "samples-4.jsonl").read_text().splitlines()]
        assert all(row["text"].startswith("the cat ") and len(row["tokens"]) == 32 for row in rows)
        assert not any(0 in row["tokens"][8:] for row in rows)
    assert command(monkeypatch, *common, "mode=sample_eval", "sampling.solver=heun", f"hydra.run.dir={tmp_path}/x") == 1
    assert "sampling.solver must be one of" in capfd.readouterr().err
    folder = tmp_path / "ppl"
    options = ["mode=ppl_eval", "eval.draws_per_example=2", "eval.max_examples=8", f"hydra.run.dir={folder}"]
    assert command(monkeypatch, *common, *options) == 0
    scored = json.loads((folder / "likelihood.json").read_text())["likelihood"]
    assert scored["kind"] == "variational upper bound"
