"""AR: its loss against the dense one, its likelihood in a world that can be enumerated, and what training reaches."""

import itertools
import json
import math
from functools import partial

import pytest
import torch
from tasks.running import command, config_of, tiny, write_corpus

from flm.algos.algorithm import Batch
from flm.algos.ar import AR
from flm.checkpoints.load import load_algorithm
from flm.draws import Draws
from flm.models.dit import DiT
from flm.tasks.train import train


def small_ar(vocab_size=3, length=3, width=12, num_blocks=2, randomised=True, seed=0):
    torch.manual_seed(seed)
    backbone = partial(DiT, length=length, hidden_size=width, num_blocks=num_blocks, num_heads=2, dropout=0.0)
    algorithm = AR(backbone, vocab_size, length)
    if randomised:
        with torch.no_grad():
            for parameter in algorithm.parameters():
                parameter.add_(0.5 * torch.randn_like(parameter))
    return algorithm.eval()


def all_sequences(vocab_size, length):
    return torch.tensor(list(itertools.product(range(vocab_size), repeat=length)))


def test_loss_and_gradient_equal_dense():
    algorithm = small_ar(50, 8).double()
    tokens = torch.randint(50, (4, 8), generator=torch.Generator().manual_seed(1))
    weight = (torch.rand(4, 8, generator=torch.Generator().manual_seed(2)) > 0.3).double()
    loss = algorithm.loss(Batch(tokens, weight), Draws(0))
    got = torch.autograd.grad(loss.total, list(algorithm.parameters()))

    body = algorithm.backbone.body
    read = torch.cat((algorithm.backbone.start.expand(4, 1, -1), body.input_table[tokens[:, :-1]]), dim=1)
    linear = body.output_layer.linear
    logits = 30 * torch.tanh((body.hidden(read) @ linear.weight.T + linear.bias) / 30)
    nll = -torch.log_softmax(logits, -1).gather(2, tokens[..., None])[..., 0]
    reference = (nll * weight).sum() / weight.sum()
    want = torch.autograd.grad(reference, list(algorithm.parameters()))
    torch.testing.assert_close(loss.total, reference)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(loss.per_sequence, ((nll * weight).sum(1) / weight.sum(1)).detach())
    torch.testing.assert_close(algorithm.nll(tokens), nll.detach())
    torch.testing.assert_close(algorithm.bound(Batch(tokens, weight), Draws(0)).nats, (nll * (weight > 0)).sum(1).detach())
    assert loss.tau is None


def test_the_likelihood_sums_to_one_over_all_sequences():
    algorithm, sequences = small_ar(), all_sequences(3, 3)
    probability = (-algorithm.bound(Batch(sequences, torch.ones(sequences.shape)), Draws(0)).nats).exp()
    assert probability.sum().item() == pytest.approx(1, abs=1e-6)
    assert probability.max() > 3 * probability.min()  # a world worth summing
    # and given the first token, over what may follow it
    conditional = (-algorithm.nll(sequences)[:, 1:].double().sum(1)).exp().view(3, 9)
    torch.testing.assert_close(conditional.sum(1), torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-6)
    joint = probability.view(3, 9)
    torch.testing.assert_close(conditional, joint / joint.sum(1, keepdim=True), rtol=1e-5, atol=1e-7)


def test_training_reaches_the_entropy_rate_of_a_markov_chain():
    length, rows = 12, [[0.7, 0.2, 0.1, 0.0], [0.05, 0.05, 0.1, 0.8], [0.3, 0.3, 0.4, 0.0], [0.0, 0.5, 0.0, 0.5]]
    chain = torch.tensor(rows)
    stationary = torch.linalg.matrix_power(chain.double(), 200)[0].float()
    generator = torch.Generator().manual_seed(0)

    def text(size):
        tokens = [torch.multinomial(stationary, size, replacement=True, generator=generator)]
        for _ in range(length - 1):
            tokens.append(torch.multinomial(chain[tokens[-1]], 1, generator=generator)[:, 0])
        return Batch(torch.stack(tokens, dim=1), torch.ones(size, length))

    algorithm = small_ar(4, length, width=32, num_blocks=1, randomised=False).train()
    optimizer = torch.optim.AdamW(algorithm.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, total_iters=300)
    for step in range(300):
        optimizer.zero_grad()
        algorithm.loss(text(64), Draws(0, step)).total.backward()
        optimizer.step()
        schedule.step()
    unseen = text(4096)
    found = algorithm.eval().nll(unseen.tokens).mean(0)
    first = torch.special.entr(stationary).sum()
    rate = (stationary * torch.special.entr(chain).sum(1)).sum()
    # in the same draws, the chain's own code length: nothing is shorter on average, whatever the sampling noise
    tokens = unseen.tokens
    own = -torch.cat((stationary.log()[tokens[:, :1]], chain.log()[tokens[:, :-1], tokens[:, 1:]]), dim=1).mean(0)
    assert (own.mean() - (first + (length - 1) * rate) / length).abs() < 0.02
    assert -0.002 < (found - own).mean() < 0.02
    assert (found - own).abs().max() < 0.05  # at every position, the first included


def test_through_the_command_line(tmp_path, monkeypatch, capfd):
    corpus, run = write_corpus(tmp_path / "corpus"), tmp_path / "run"
    metrics = train(config_of(run, *tiny(corpus, "algo=ar", "trainer.max_steps=60", "training.ema=0.9")))
    assert 0 < metrics["val/nll_nats_per_token"] < 2.0  # the corpus's unigrams: 2.57, bigrams: 1.20
    checkpoint = run / "checkpoints" / "last.ckpt"
    loaded = [f"eval.checkpoint_path={checkpoint}", "loader.eval_batch_size=3", "trainer.accelerator=cpu"]
    common = ["mode=sample_eval", *loaded, "sampling.steps=1", f"hydra.run.dir={tmp_path / 'prompt'}"]
    # ++: added where the config does not list the option
    options = ["sampling.prompt=the cat ", "sampling.temperature=0.8", "++sampling.top_k=20", "++sampling.top_p=0.9"]
    assert command(monkeypatch, *common, *options) == 0
    rows = [json.loads(line) for line in (tmp_path / "prompt" / "samples-24.jsonl").read_text().splitlines()]
    assert len({row["text"] for row in rows}) == 3
    assert all(row["text"].startswith("the cat ") and len(row["tokens"]) == 32 for row in rows)
    # the samples are the model's: better under it than uniform tokens
    algorithm, file = load_algorithm(checkpoint)
    written = torch.tensor([row["tokens"] for row in rows])
    uniform = torch.randint(algorithm.vocab_size, (64, 32), generator=torch.Generator().manual_seed(0))
    assert algorithm.nll(written)[:, 8:].mean() < math.log(algorithm.vocab_size) < algorithm.nll(uniform).mean()
    assert file.config["model"]["_target_"] == "flm.models.dit.DiT"
    # an option of another sampler is an error with its name
    assert command(monkeypatch, *common, "sampling.solver=heun") == 1
    assert "solver" in capfd.readouterr().err
