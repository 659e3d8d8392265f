"""A published Duo checkpoint, as it is: sampled, bounded and taught from."""

import json

import pytest
import torch
from published.published_layouts import BLOCKS, COND, HEADS, D, L, V, duo, published_logits, ran, tokenizer_folder
from tasks.running import command, config_of

from flm.algos.algorithm import Batch
from flm.checkpoints.load import load_algorithm
from flm.draws import Draws
from flm.duo.duo import Duo
from flm.samplers.canvas import Canvas
from flm.tasks.assemble import new_algorithm


@pytest.fixture
def published(tmp_path):
    content, trained, average = duo()
    torch.save(content, tmp_path / "duo.ckpt")
    return tmp_path / "duo.ckpt", trained, average


def test_predictions_are_those_of_the_published_network_told_minus_log_kappa(published):
    path, trained, average = published
    tokens = torch.randint(V, (3, L), generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.0, 0.5, 1.0])
    sigma = -torch.log1p(-(1 - 1e-3) * (1 - t.double())).float()  # published: of the time 1 - t
    assert sigma[0] > 6.9 and sigma[2] == 0
    for weights, use_average in ((average, True), (trained, False)):
        algorithm, file = load_algorithm(path, use_average=use_average)
        assert type(algorithm) is Duo and algorithm.vocab_size == V and file.step == 1234
        with torch.no_grad():
            found = algorithm.denoiser()(tokens, t).probabilities()
            want = published_logits(weights, weights["vocab_embed.embedding"][tokens], (sigma,)).softmax(-1)
        torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-5)
    assert ran == []


def test_it_samples_and_has_a_bound(published):
    algorithm, _ = load_algorithm(published[0])
    canvas = Canvas.from_pieces([[5, 6], 3, [13]], 40)
    for solver in ("ancestral", "corrector_rescale"):
        tokens = algorithm.generate(canvas, 6, torch.Generator().manual_seed(1), solver=solver, temperature=4.0)
        assert torch.equal(tokens[:, [0, 1, 5]], canvas.tokens[:, [0, 1, 5]]) and len(tokens.unique(dim=0)) > 4
    rows = torch.randint(V, (200, L), generator=torch.Generator().manual_seed(0))
    nats = algorithm.bound(Batch(rows, torch.ones(rows.shape)), Draws(0)).nats
    assert nats.mean() / L > torch.tensor(float(V)).log()  # random weights say less than nothing of random tokens


def test_the_command_line_samples_it(published, monkeypatch, tmp_path):
    folder = tokenizer_folder(tmp_path / "bert")
    options = [f"eval.checkpoint_path={published[0]}", f"eval.tokenizer_name_or_path={folder}", "eval.real_data=null"]
    options += [
        "sampling.steps=[1,4]",
        "sampling.solver=corrector_cap",
        "sampling.corrector=0.1",
        "sampling.noise_removal=greedy",
    ]
    options += [
        "loader.eval_batch_size=3",
        "trainer.accelerator=cpu",
        "sampling.prompt=the cat",
        f"hydra.run.dir={tmp_path / 'run'}",
    ]
    assert command(monkeypatch, "mode=sample_eval", *options) == 0
    for steps in (1, 4):
        rows = [json.loads(line) for line in (tmp_path / "run" / f"samples-{steps}.jsonl").read_text().splitlines()]
        assert len(rows) == 3 and all(row["text"].startswith("the cat") for row in rows)


def test_it_teaches_duo_distill(published, tmp_path):
    model = [f"model.length={L}", f"model.hidden_size={D}", f"model.num_blocks={BLOCKS}", f"model.num_heads={HEADS}"]
    model += [f"model.cond_dim={COND}", "model.output_softcap=null", "model.time_scale=1"]
    student = new_algorithm(config_of(tmp_path, "algo=duo_distill", f"algo.teacher_path={published[0]}", *model), V)
    assert torch.equal(student.target.input_table, published[2]["vocab_embed.embedding"])
    batch = Batch(torch.randint(V, (8, L), generator=torch.Generator().manual_seed(0)), torch.ones(8, L))
    student.averaged_weights = {f"backbone.{k}": w.detach() for k, w in student.backbone.named_parameters()}
    assert student.loss(batch, Draws(0, 40_000)).total > 0
