"""Distillation of Duo: its divergences against dense ones, its rounds through interruptions, and what it learns."""

import copy

import pytest
import torch
from algos.dense_flow_map import dense, rough, small_dit
from algos.exact_world import correlated, toy, train
from tasks.running import config_of, tiny, write_corpus
from torch.nn.functional import one_hot

import flm.posterior
from flm.algos.algorithm import Batch
from flm.algos.flm import FLM
from flm.checkpoints.load import load_algorithm, read_checkpoint
from flm.draws import Draws
from flm.duo.duo import Duo
from flm.duo.duo_distill import UNTAUGHT, DuoDistill
from flm.duo.gaussian_relaxation import ArgmaxTransform, coupled_states
from flm.paths.mixture import LogLinear
from flm.samplers.canvas import Canvas
from flm.schema import check
from flm.tasks.train import train as run

V, L, B = 7, 3, 6


def teacher(vocab_size=V, size=0.4, **options):
    torch.manual_seed(5)
    return rough(Duo(small_dit(vocab_size, L, **options), vocab_size, L), seed=5, size=size)


def student(dtype=torch.float64, **options):
    torch.manual_seed(6)
    options = {"teacher": teacher(), "averaged_targets": False, "first_steps": 8, "round_steps": 4} | options
    return DuoDistill(small_dit(V, L), V, L, **options).to(dtype)


def a_batch(size=B, dtype=torch.float64):
    rng = torch.Generator().manual_seed(1)
    return Batch(torch.randint(V, (size, L), generator=rng), (torch.rand(size, L, generator=rng) > 0.3).to(dtype))


@pytest.mark.parametrize("divergence", ["reverse", "forward"])
@pytest.mark.parametrize("dtype,tolerance", [(torch.float64, 1e-6), (torch.float32, 1e-4)])
def test_loss_and_gradient_equal_the_dense_divergence(divergence, dtype, tolerance, monkeypatch):
    monkeypatch.setitem(flm.posterior.CHUNK_ELEMENTS, "cpu", 4 * V)
    algorithm, batch = student(dtype, divergence=divergence, gamma_min=-3.0, gamma_max=0.0, first_steps=2), a_batch(dtype=dtype)
    rough(algorithm.backbone, seed=9, size=0.3)
    loss = algorithm.loss(batch, Draws(2, step=1))
    draws = Draws(2, step=1)
    clock = draws.stratified(B) * (1 - 1 / 2)
    ratios = [torch.exp(-(0.0 - 3.0 * c) / 2) for c in (clock, clock + 1 / 2)]
    states = coupled_states(batch.tokens, *ratios, V, draws.rows)
    x = [one_hot(torch.where(batch.weight == 0, batch.tokens, state), V).to(dtype) for state in states]
    sigmas = [-ArgmaxTransform(V).kappa(ratio).log().to(dtype) for ratio in ratios]
    assert (x[0] != x[1]).any() and (sigmas[0] > sigmas[1]).all()  # the target stands nearer to the data
    p = dense(algorithm.backbone, x[0], sigmas[0])
    q = dense(algorithm.target, x[1], sigmas[1]).detach()
    a, b = (p, q) if divergence == "reverse" else (q, p)
    nats = (a * (a / b).log()).sum(-1)
    reference = (nats * batch.weight).sum() / batch.weight.sum()
    torch.testing.assert_close(loss.total, reference, rtol=tolerance, atol=0)
    parameters = list(algorithm.backbone.parameters())
    got, want = torch.autograd.grad(loss.total, parameters), torch.autograd.grad(reference, parameters)
    scale = max(g.abs().max() for g in want)
    for g, h in zip(got, want, strict=True):
        torch.testing.assert_close(g / scale, h / scale, rtol=0, atol=tolerance)


def test_student_and_target_start_as_the_teacher():
    algorithm, batch = student(torch.float32), a_batch()
    known = teacher()
    for network in (algorithm.backbone, algorithm.target):
        for name, weight in known.backbone.state_dict().items():
            assert torch.equal(network.state_dict()[name], weight), name
    assert {name.split(".")[0] for name, p in algorithm.named_parameters() if p.requires_grad} == {"backbone"}
    # of a state and itself there is nothing to learn: gamma so low that all states are the data's
    still = student(gamma_min=-12.0, gamma_max=-10.0, first_steps=1000)
    assert still.loss(batch, Draws(0)).total.abs() < 1e-3 < student(gamma_max=0.0).loss(batch, Draws(0)).total
    assert not algorithm.train().target.training


def test_rounds_move_the_target_and_double_the_step():
    algorithm, batch = student(), a_batch()
    assert [algorithm.step_of_round(n) for n in (0, 1, 3, 4)] == [1 / 8, 1 / 4, 1, 1]
    expected, steps = copy.deepcopy(algorithm.target.state_dict()), []
    for step in range(9):
        rough(algorithm.backbone, seed=step, size=0.1)  # what an optimiser does between two steps
        if step in (4, 8):
            expected = copy.deepcopy(algorithm.backbone.state_dict())
        for share in range(2):
            steps.append(algorithm.loss(batch, Draws(0, step, share, 2)).mean("clock_step").item())
            assert all(torch.equal(w, expected[k]) for k, w in algorithm.target.state_dict().items()), step
        assert int(algorithm.target_round) == step // 4
    assert steps == [1 / 8] * 8 + [1 / 4] * 8 + [1 / 2] * 2
    # where a round begins, only the first micro-batch moves the target: the file of that step may be read in between
    rough(algorithm.backbone, seed=99)
    algorithm.loss(batch, Draws(0, 8, 1, 2))
    assert all(torch.equal(w, expected[k]) for k, w in algorithm.target.state_dict().items())
    # validation is of the round, not of the batch's number
    assert algorithm.validation_loss(batch, Draws(0, 0)).mean("clock_step") == 1 / 2
    assert int(algorithm.target_round) == 2


def test_the_target_is_the_average_where_it_should_be():
    algorithm = student(averaged_targets=True)
    algorithm.averaged_weights = {f"backbone.{k}": w.detach() + 1 for k, w in algorithm.backbone.named_parameters()}
    algorithm.loss(a_batch(), Draws(0, 4))
    for name, weight in algorithm.backbone.named_parameters():
        assert torch.equal(algorithm.target.get_parameter(name), weight + 1)
    with pytest.raises(ValueError, match="training.ema"):
        student(averaged_targets=True).loss(a_batch(), Draws(0, 4))


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A corpus and a short run of duo on it."""
    folder = tmp_path_factory.mktemp("duo")
    corpus = write_corpus(folder / "corpus", documents=20)
    run(
        config_of(
            folder / "duo", *tiny(corpus, "algo=duo", "algo.curriculum_end=5", "trainer.max_steps=12", "training.ema=0.5")
        )
    )
    return corpus, folder / "duo" / "checkpoints" / "last.ckpt"


@pytest.fixture(scope="module")
def distilled(taught, tmp_path_factory):
    """The overrides of a run of three rounds, and its last checkpoint."""
    corpus, checkpoint = taught
    options = tiny(corpus, "algo=duo_distill", f"algo.teacher_path={checkpoint}", "algo.round_steps=3", "algo.first_steps=4")
    options += ["training.ema=0.5", "trainer.limit_val_batches=1", "callbacks.sample=null", "lr_scheduler.warmup_steps=2"]
    options += ["callbacks.checkpoint_every_n_steps.every_n_train_steps=2", "loader.batch_size=4", "model.dropout=0.1"]
    whole = tmp_path_factory.mktemp("whole")
    run(config_of(whole, *options, "trainer.max_steps=8"))
    return options, read_checkpoint(whole / "checkpoints" / "last.ckpt"), read_checkpoint(checkpoint)


@pytest.mark.parametrize("stop", [4, 6])  # inside a round, and where one begins
def test_a_run_that_was_stopped_ends_as_one_that_was_not(distilled, tmp_path, stop):
    options, a, known = distilled
    for steps in (stop, 8):
        run(config_of(tmp_path, *options, f"trainer.max_steps={steps}"))
    b = read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")
    assert int(a.state["target_round"]) == 2
    assert a.state.keys() == b.state.keys() and all(torch.equal(w, b.state[k]) for k, w in a.state.items())
    assert all(torch.equal(w, b.average[k]) for k, w in a.average.items())
    assert not torch.equal(a.state["target.input_table"], known.average["backbone.input_table"])
    assert not torch.equal(a.state["target.input_table"], a.state["backbone.input_table"])
    # the student alone is enough to sample, in any number of steps
    algorithm, _ = load_algorithm(b.path)
    given = Canvas.from_pieces([[3, 1], 20, [2]], 2)
    for steps in (1, 4):
        tokens = algorithm.generate(given, steps, torch.Generator().manual_seed(0), noise_removal="greedy")
        assert torch.equal(tokens[~given.editable], given.tokens[~given.editable])


def test_consistency_is_learned():
    """The divergence between both ends of a long step, before and after; the target is a Duo that knows its world."""
    world = correlated()
    torch.manual_seed(0)
    known = Duo(toy(world), 2, 2)
    train(known, world, 120)
    options = {"first_steps": 2, "round_steps": 10**6, "averaged_targets": False, "divergence": "forward"}
    algorithm = DuoDistill(toy(world), 2, 2, teacher=known, **options)
    batch = world.batch(4000, torch.Generator().manual_seed(3))
    before = algorithm.validation_loss(batch, Draws(1)).total.item()
    train(algorithm, world, 100, lr=5e-3)
    after = algorithm.validation_loss(batch, Draws(1)).total.item()
    assert after < 0.75 * before
    for name, weight in known.backbone.state_dict().items():
        assert torch.equal(algorithm.target.state_dict()[name], weight)


@pytest.mark.parametrize(
    "wrong,key",
    [
        (lambda: student(teacher=teacher(V + 1)), "algo.teacher_path"),
        (lambda: student(teacher=teacher(width=12)), "algo.teacher_path"),
        (lambda: student(teacher=teacher(output_softcap=1.0)), "algo.teacher_path.*softcaps"),
        (lambda: student(teacher=FLM(small_dit(V, L), V, L)), "algo.teacher_path.*not of FLM"),
        (lambda: student(schedule=LogLinear(0.1)), "algo.teacher_path.*schedule"),
        (lambda: student(teacher=None).loss(a_batch(), Draws(0)), "algo.teacher_path"),
        (lambda: check(DuoDistill, {"divergence": "sideways"}, "algo", is_partial=True), "algo.divergence"),
        (lambda: check(DuoDistill, {"first_steps": 0}, "algo", is_partial=True), "algo.first_steps"),
        (lambda: check(DuoDistill, {"round_steps": 0}, "algo", is_partial=True), "algo.round_steps"),
        (lambda: student(gamma_min=1.0, gamma_max=0.0), "algo.gamma_min"),
    ],
)
def test_mistakes_name_their_key(wrong, key):
    with pytest.raises(ValueError, match=key):
        wrong()


def test_a_student_can_go_on_without_its_teacher():
    """All it was taught is in its own weights."""
    one, two = student(), student(teacher=None)
    assert int(two.target_round) == UNTAUGHT
    two.load_state_dict(one.state_dict())
    assert two.loss(a_batch(), Draws(0)).total == one.loss(a_batch(), Draws(0)).total
