"""Simplex-DMD: its gradient is that of the divergence, its dense twin, whose turn it is, and what the student learns."""

from functools import partial

import pytest
import torch
from algos.dense_flow_map import column, dense, rough, small_dit
from algos.exact_world import correlated, toy, train
from lightning.pytorch import LightningDataModule
from torch import nn
from torch.nn.functional import one_hot
from torch.utils.data import DataLoader
from training.toy import make_trainer

import flm.posterior
from flm.algos.algorithm import Batch
from flm.algos.flm import FLM
from flm.draws import Draws
from flm.few_step.simplex_dmd import SimplexDMD, distribution_matching
from flm.paths.evidence import Noised
from flm.posterior import TokenPosterior
from flm.samplers.canvas import Canvas
from flm.training.average import Average
from flm.training.module import Module
from flm.training.optimizers import AdamW

V, L, B = 7, 3, 6


# The gradient is that of the divergence -------------------------------------------------------------------------------
# One position of two tokens, the second with probability 0.7; u = x_1 - x_0, u_0 ~ N(0, 2); delta = (1 -+ h) / 2 with
# h = tanh(g u_0 / 2 + c), so that u_t = t h + (1 - t) e, e ~ N(0, 2). All integrals over a fine grid.

GRID = torch.linspace(-11, 11, 161, dtype=torch.float64)
MASS = torch.softmax(-GRID.square() / 4, 0)
ODDS = torch.tensor(0.7 / 0.3, dtype=torch.float64).log()


def h(g, c):
    return torch.tanh(g * GRID / 2 + c)


def density(u, h, mass, t):
    """Of u_t where the clean difference is one of h."""
    return (mass * torch.exp(-((u[:, None] - t * h) ** 2) / (4 * (1 - t) ** 2))).sum(1) / (1 - t)


def divergence(g, c, t):
    """KL(student | data) at level t."""
    u = torch.linspace(-8, 8, 801, dtype=torch.float64)
    signs = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    p = density(u, h(g, c), MASS, t)
    q = density(u, signs, torch.tensor([0.3, 0.7], dtype=torch.float64), t)
    return (p * (p / q).log()).sum() / p.sum() + (q.sum() / p.sum()).log()


def gradient(g, c, t):
    """By the loss of the algorithm, with exact D and F at every pair of noises."""
    g, c = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (g, c))
    logits = torch.stack([torch.zeros_like(GRID), g * GRID + 2 * c], -1)
    noise = torch.linspace(-10, 10, 121, dtype=torch.float64)
    weight = torch.outer(MASS, torch.softmax(-noise.square() / 4, 0))
    u = t * h(g, c).detach()[:, None] + (1 - t) * noise
    scores = -((u[..., None] - t * h(g, c).detach()) ** 2) / (4 * (1 - t) ** 2) + MASS.log()
    fake = (scores.softmax(-1) * h(g, c).detach()).sum(-1)
    real = torch.tanh(t * u / (2 * (1 - t) ** 2) + ODDS / 2)

    def certain(mean):
        """As a posterior of a shape (noises, noises)."""
        p = torch.stack([(1 - mean) / 2, (1 + mean) / 2], -1)
        return TokenPosterior(p.log(), torch.eye(2, dtype=torch.float64))

    student = TokenPosterior(logits[:, None].expand(-1, len(noise), -1), torch.eye(2, dtype=torch.float64))
    total, about = distribution_matching(student, certain(real), certain(fake), weight * (t / (1 - t)) ** 2)
    torch.testing.assert_close(about["score_gap"], (fake - real).square() / 2)
    return torch.autograd.grad(total, (g, c))


def test_the_gradient_is_that_of_the_reverse_divergence(monkeypatch):
    """Against finite differences, and against the numbers of a table worked out by other code."""
    monkeypatch.setitem(flm.posterior.CHUNK_ELEMENTS, "cpu", 2**13)
    g, c, t, step = 1.0, 0.1, 0.5, 1e-4
    by_g, by_c = gradient(g, c, t)
    assert divergence(g, c, t).item() == pytest.approx(0.035205, abs=1e-6)
    differences = [
        (divergence(g + step, c, t) - divergence(g - step, c, t)) / (2 * step),
        (divergence(g, c + step, t) - divergence(g, c - step, t)) / (2 * step),
    ]
    for found, difference, known in zip((by_g, by_c), differences, (-0.012986, -0.086562), strict=True):
        assert found.item() == pytest.approx(difference.item(), abs=1e-6)
        assert found.item() == pytest.approx(known, abs=1e-6)


@pytest.mark.parametrize("c", [-0.8, 0.0, 0.3])
def test_a_student_that_ignores_its_noise_stays_so(c):
    """A trap: the gain of the noise has no gradient at 0, wherever the mean is."""
    by_g, by_c = gradient(0.0, c, 0.5)
    assert by_g.abs() < 1e-10 and by_c.abs() > 1e-3
    assert gradient(0.2, c, 0.5)[0].abs() > 1e-4


# Dense twin -----------------------------------------------------------------------------------------------------------


def teacher(vocab_size=V, **options):
    torch.manual_seed(5)
    return rough(FLM(small_dit(vocab_size, L, **options), vocab_size, L), seed=5)


def student(vocab_size=V, **options):
    torch.manual_seed(6)
    options = {"teacher": teacher(vocab_size)} | options
    algorithm = SimplexDMD(small_dit(vocab_size, L), vocab_size, L, **options)
    for network, seed in ((algorithm.backbone, 7), (algorithm.fake, 8)):
        table = network.input_table.clone()
        rough(network, seed, 0.3).input_table.data.copy_(table)
    return algorithm


def a_batch(vocab_size=V, dtype=torch.float64):
    rng = torch.Generator().manual_seed(1)
    return Batch(torch.randint(vocab_size, (B, L), generator=rng), (torch.rand(B, L, generator=rng) > 0.3).to(dtype))


def dense_loss(algorithm, batch, draws, students):
    tokens, clock = one_hot(batch.tokens, V).double(), algorithm.clock
    start = draws.stratified(B)
    level = start + (1 - start) * draws.stratified(B)
    s, t = (column(clock.time(tau).float().double()) for tau in (start, level))
    given = batch.given[..., None]
    told = lambda tau: tau.float().double()
    x = s * tokens + (1 - s) * draws.normal(B, L, V, dtype=torch.float64)
    shown = lambda x: torch.where(given, tokens, x) if algorithm.clean_given else x
    delta = dense(algorithm.backbone, shown(x), told(start))
    clean = torch.where(given, tokens, delta.detach())
    noised = shown(t * clean + (1 - t) * draws.normal(B, L, V, dtype=torch.float64))
    fake = dense(algorithm.fake, noised, told(level), told(start))
    if students:
        real = dense(algorithm.teacher("teacher").backbone, noised, told(level))
        ratio = column(clock.time(level) / (1 - clock.time(level)))
        per_token = (ratio**2 * (fake - real).detach() * delta).sum(-1)
    else:
        per_token = -(delta.detach() * fake.log()).sum(-1)
    return (per_token * batch.weight).sum() / batch.weight.sum()


@pytest.mark.parametrize("step", [0, 1], ids=["student", "fake"])
@pytest.mark.parametrize("clean_given", [False, True])
def test_loss_and_gradient_equal_dense_on_the_same_noise(step, clean_given, monkeypatch):
    monkeypatch.setitem(flm.posterior.CHUNK_ELEMENTS, "cpu", 4 * V)
    torch.manual_seed(5)
    known = rough(FLM(small_dit(V, L), V, L, clean_given=clean_given), seed=5)
    algorithm, batch = student(teacher=known, clean_given=clean_given).double(), a_batch()
    loss = algorithm.loss(batch, Draws(2, step=step))
    check_against(loss, dense_loss(algorithm, batch, Draws(2, step=step), step == 0), algorithm, step)


def check_against(loss, reference, algorithm, step):
    torch.testing.assert_close(loss.total, reference, rtol=1e-6, atol=1e-9)
    resting = {id(p) for p in algorithm.resting(step)}
    learning = [p for p in algorithm.parameters() if p.requires_grad and id(p) not in resting]
    assert learning and resting
    got, want = torch.autograd.grad(loss.total, learning), torch.autograd.grad(reference, learning)
    scale = max(g.abs().max() for g in want)
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g / scale, w / scale, rtol=0, atol=1e-6)


def dense_evidence_loss(algorithm, batch, draws, students):
    """What `dense_loss` is, of networks that read x through the context-free decoder and are given its logits."""
    clock, known, log_prior = algorithm.clock, batch.given, algorithm.log_prior
    start = draws.stratified(B)
    level = start + (1 - start) * draws.stratified(B)
    seeds = [draws.rows.seeds(B) for _ in range(2)]
    clean, tokens = known if algorithm.clean_given else known & False, one_hot(batch.tokens, V).double()
    s, t = (column(clock.time(tau)).expand(B, L, 1).masked_fill(clean[..., None], 1.0) for tau in (start, level))
    m = lambda t: t / (1 - t).clamp_min(1e-3)
    noise = [Noised(batch.tokens.flatten(), torch.zeros(B * L), V, seed, torch.float64) for seed in seeds]
    noise = [n.chunk(slice(0, B * L)).view(B, L, V) for n in noise]

    def ask(network, logits, *times):
        found = network(logits.softmax(-1) @ network.input_table, *(tau.float().double() for tau in times))
        return (found.softcap * torch.tanh((found.hidden @ found.table.T + found.bias) / found.softcap) + logits).softmax(-1)

    x = s * tokens + (1 - s) * noise[0]
    end = torch.maximum(s, clock.time(torch.tensor(0.99, dtype=torch.float64)))
    delta = ask(algorithm.backbone, log_prior + (m(s) + m(end)) / 2 / (1 - s).clamp_min(1e-3) * x, start)
    noised = t * torch.where(known[..., None], tokens, delta.detach()) + (1 - t) * noise[1]
    logits = log_prior + m(t) / (1 - t).clamp_min(1e-3) * noised
    fake = ask(algorithm.fake, logits, level, start)
    if students:
        real = ask(algorithm.teacher("teacher").backbone, logits, level)
        ratio = column(clock.time(level) / (1 - clock.time(level)))
        per_token = (ratio**2 * (fake - real).detach() * delta).sum(-1)
    else:
        per_token = -(delta.detach() * fake.clamp_min(1e-300).log()).sum(-1)  # 0 where a clean token says otherwise
    return (per_token * batch.weight).sum() / batch.weight.sum()


@pytest.mark.parametrize("step", [0, 1], ids=["student", "fake"])
def test_loss_and_gradient_equal_dense_where_evidence_is_read(step, monkeypatch):
    monkeypatch.setitem(flm.posterior.CHUNK_ELEMENTS, "cpu", 4 * V)
    torch.manual_seed(5)
    known = rough(FLM(small_dit(V, L), V, L, clean_given=True, reads="evidence"), seed=5)
    known.know_frequencies(torch.arange(1, V + 1))
    algorithm, batch = student(teacher=known, clean_given=True, reads="evidence").double(), a_batch()
    algorithm.know_frequencies(torch.ones(V))  # the teacher's are taken
    loss = algorithm.loss(batch, Draws(2, step=step))
    check_against(loss, dense_evidence_loss(algorithm, batch, Draws(2, step=step), step == 0), algorithm, step)


def test_all_start_as_the_teacher_and_there_is_nothing_to_learn_of_it():
    """Student, fake and teacher alike: the fake says what the teacher does, and the gradient is 0."""
    known = teacher(60)  # a vocabulary wider than the network: noise is projected
    algorithm = SimplexDMD(small_dit(60, L), 60, L, teacher=known)
    for network in (algorithm.backbone, algorithm.fake):
        for name, weight in known.backbone.state_dict().items():
            assert torch.equal(network.state_dict()[name], weight), name
        assert not network.input_table.requires_grad
    loss = algorithm.loss(a_batch(60, torch.float32), Draws(0))
    loss.sum.backward()
    assert max(p.grad.abs().max() for p in algorithm.backbone.parameters() if p.requires_grad) < 1e-5
    assert loss.mean("score_gap") < 1e-9 < loss.mean("student_entropy_nats")


# Turns ----------------------------------------------------------------------------------------------------------------


class Data(LightningDataModule):
    def train_dataloader(self):
        accumulation = self.trainer.accumulate_grad_batches
        count = self.trainer.max_steps * accumulation
        size = B // accumulation
        parts = [a_batch(dtype=torch.float32).rows(torch.arange(size) + i % accumulation * size) for i in range(count)]
        return DataLoader(parts, batch_size=None)


def fitted(folder, steps):
    algorithm = student()
    module = Module(algorithm, partial(AdamW, lr=1e-2, weight_decay=0.1), None, 0.9, seed=3)
    trainer = make_trainer(folder, steps, accumulate_grad_batches=2)
    trainer.fit(module, datamodule=Data())
    return algorithm, trainer


def test_who_rests_does_not_move_at_all(tmp_path):
    """Neither by momentum nor by decay, and its moments have seen its own turns alone."""
    start = student()
    before = None
    for steps in (1, 2, 5, 6):
        algorithm, trainer = fitted(tmp_path, steps)
        states = trainer.optimizers[0].state
        turns = {"backbone": len(range(0, steps, 5))}
        turns["fake"] = steps - turns["backbone"]
        for part, count in turns.items():
            network, first = getattr(algorithm, part), getattr(start, part)
            trained = [p for p in network.parameters() if p.requires_grad]
            assert {int(states[p]["step"]) if p in states else 0 for p in trained} == {count}, (steps, part)
            moved = any(not torch.equal(a, b) for a, b in zip(network.parameters(), first.parameters(), strict=True))
            assert moved == (count > 0)
        if steps == 5:  # since step 1 the fake alone
            assert all(torch.equal(a, b) for a, b in zip(algorithm.backbone.parameters(), before, strict=True))
        before = list(algorithm.backbone.parameters())


def test_the_average_follows_a_student_of_few_turns():
    """A trap: a decay of 0.9999 over the 2,000 turns of a student keeps 82% of its start. Counting every step of the run, and
    warmed up, the average of a student that moves evenly is where that stood a tenth of the run ago."""
    network = nn.Linear(1, 1, bias=False)
    average = Average(network, 0.9999)
    with torch.no_grad():
        start = network.weight.item()
        for step in range(10_000):
            network.weight += 1 / 2000 if step % 5 == 0 else 0
            average.update(network)
    assert network.weight.item() == pytest.approx(start + 1, abs=1e-3)
    assert average.weights["weight"].item() - start == pytest.approx(0.9, abs=0.02)
    assert 0.9999**2000 == pytest.approx(0.82, abs=0.01)


# Learning -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_one_evaluation_writes_what_belongs_together():
    """Two tokens that depend on each other. The teacher's one step writes the likelier tokens of each position by itself."""
    world = correlated()
    torch.manual_seed(0)
    known = FLM(toy(world), 2, 2)
    train(known, world, 600)
    algorithm = SimplexDMD(toy(world), 2, 2, teacher=known)
    train(algorithm, world, 3000, lr=2e-3)

    def law(model, steps):
        tokens = model.generate(Canvas.blank(20_000, 2), steps, torch.Generator().manual_seed(1))
        return torch.bincount(2 * tokens[:, 0] + tokens[:, 1], minlength=4) / len(tokens)

    def error(law):
        return (law - world.joint.flatten()).abs().sum().item() / 2

    assert error(law(known, 1)) > 0.15
    assert error(law(algorithm, 1)) < 0.08
