"""Native flow: its loss written out, whom each term reaches, an exact likelihood, and a run from the command line."""

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
from flm.golf.native_flow import NativeFlow
from flm.golf.native_flow_matcher import NativeFlowMatcher
from flm.golf.transformer import GolfTransformer
from flm.models.dit import DiT
from flm.samplers.canvas import Canvas
from flm.schema import check
from flm.tasks.train import train

GOLF = partial(GolfTransformer, hidden_size=16, num_blocks=3, num_heads=4, rotary_dims=2, bigram_rows=8, bigram_width=4)
FLOW = partial(NativeFlowMatcher, hidden_dim=8)
DIT = partial(DiT, hidden_size=16, num_blocks=1, num_heads=2, dropout=0.0)


def build(vocab_size=5, length=6, backbone=GOLF, flow=FLOW, randomised=True, **options):
    torch.manual_seed(0)
    algorithm = NativeFlow(partial(backbone, length=length), vocab_size, length, flow, **options)
    if randomised:
        with torch.no_grad():
            for parameter in algorithm.parameters():
                parameter.add_(0.4 * torch.randn_like(parameter))
    return algorithm.eval()


def some_batch(vocab_size=5, length=6):
    tokens = torch.randint(vocab_size, (4, length), generator=torch.Generator().manual_seed(1))
    return Batch(tokens, (torch.rand(4, length, generator=torch.Generator().manual_seed(2)) > 0.3).double())


@pytest.mark.parametrize("backbone", [GOLF, DIT], ids=["golf", "dit"])
def test_the_loss_written_out(backbone):
    algorithm, batch = build(backbone=backbone, loss_weight=0.7).double(), some_batch()
    loss = algorithm.loss(batch, Draws(3))
    got = torch.autograd.grad(loss.total, [p for p in algorithm.parameters() if p.requires_grad])

    plain = algorithm.backbone(batch.tokens)
    end = torch.ones(1, 1, dtype=torch.float64)
    hidden = plain.hidden + torch.sigmoid(algorithm.flow.gate) * algorithm.flow.velocity(plain.hidden, end, plain.hidden)
    bias = 0 if plain.bias is None else plain.bias
    logits = 30 * torch.tanh((hidden @ plain.table.T + bias) / 30)
    nll = -logits.log_softmax(-1).gather(2, batch.tokens[..., None])[..., 0]
    flow = algorithm.flow.loss(plain.hidden, batch.tokens, plain.table, Draws(3))
    ce, cfm = ((x * batch.weight).sum() / batch.weight.sum() for x in (nll, flow))
    reference = ce + 0.7 * cfm
    want = torch.autograd.grad(reference, [p for p in algorithm.parameters() if p.requires_grad])
    torch.testing.assert_close(loss.total, reference, rtol=1e-6, atol=0)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(loss.mean("flow_mean_square"), cfm.detach(), check_dtype=False)
    torch.testing.assert_close(loss.mean("cross_entropy_nats_per_token"), ce.detach())
    torch.testing.assert_close(algorithm.validation_loss(batch, Draws(3)).total, ce)  # the flow's loss is no likelihood
    torch.testing.assert_close(algorithm.nll(batch.tokens), nll.detach())


def test_whom_each_term_reaches():
    """Cross-entropy reaches network, gate and field; the flow's loss the field alone, and none of them its gate."""
    algorithm, batch = build(), some_batch()
    names = [name for name, p in algorithm.named_parameters() if p.requires_grad]
    parameters = [dict(algorithm.named_parameters())[name] for name in names]

    def reached(total):
        gradients = torch.autograd.grad(total, parameters, allow_unused=True, retain_graph=True)
        return {name for name, g in zip(names, gradients, strict=True) if g is not None and g.abs().max() > 1e-9}

    ce = algorithm.validation_loss(batch, Draws(0)).total
    assert reached(ce) == set(names)
    both = algorithm.loss(batch, Draws(0))
    flow = (both.total - ce) / algorithm.loss_weight
    plain = algorithm.backbone(batch.tokens)
    assert flow.item() == pytest.approx(both.mean("flow_mean_square").item(), rel=1e-4)
    alone = algorithm.flow.loss(plain.hidden, batch.tokens, plain.table, Draws(0)).sum()
    assert reached(alone) == {name for name in names if name.startswith("flow.") and name != "flow.gate"}


def test_the_likelihood_sums_to_one_over_all_sequences():
    algorithm = build(vocab_size=3, length=4)
    sequences = torch.tensor(list(itertools.product(range(3), repeat=4)))
    assert algorithm.bound_kind == "exact"
    probability = (-algorithm.bound(Batch(sequences, torch.ones(sequences.shape)), Draws(0)).nats).exp()
    assert probability.sum().item() == pytest.approx(1, abs=1e-6)
    assert probability.max() > 3 * probability.min()


def test_without_a_flow_it_is_the_autoregressive_model_of_the_same_seed():
    torch.manual_seed(5)
    with_flow = NativeFlow(partial(GOLF, length=6), 5, 6, FLOW)
    torch.manual_seed(5)
    plain = NativeFlow(partial(GOLF, length=6), 5, 6)
    torch.manual_seed(5)
    ar = AR(partial(GOLF, length=6), 5, 6)
    batch = some_batch()
    assert torch.equal(plain.loss(batch, Draws(0)).total, ar.loss(batch, Draws(0)).total)
    assert plain.state_dict().keys() == ar.state_dict().keys()
    for name, weight in ar.state_dict().items():
        assert torch.equal(weight, with_flow.state_dict()[name])
    # a fresh flow changes no prediction
    assert torch.equal(with_flow.nll(batch.tokens), ar.nll(batch.tokens))


def test_what_training_starts_at():
    """Cross-entropy ln V and 0.1 of 2, 7.13 on the track. A repeated token starts ahead, its row being the input."""
    vocab_size, length = 1024, 64
    backbone = partial(GolfTransformer, num_blocks=2, length=length)
    torch.manual_seed(0)
    algorithm = NativeFlow(backbone, vocab_size, length, NativeFlowMatcher)
    tokens = torch.stack([torch.randperm(vocab_size, generator=torch.Generator().manual_seed(n))[:length] for n in range(4)])
    loss = algorithm.loss(Batch(tokens, torch.ones(4, length)), Draws(0))
    assert loss.mean("flow_mean_square").item() == pytest.approx(2.0, abs=0.03)
    # no logit but those of the two tokens read is away from 0 by more than noise of variance 0.005^2 * 512
    logit = 0.005 * 512 / math.sqrt(2)
    start = math.log(1022 * math.exp(0.005**2 * 512 / 2) + 2 * math.exp(logit))
    assert loss.mean("cross_entropy_nats_per_token").item() == pytest.approx(start, abs=5 * 0.113 / math.sqrt(256))
    assert loss.total.item() == pytest.approx(math.log(vocab_size) + 0.2, abs=0.06)


@pytest.mark.parametrize("backbone", [GOLF, DIT], ids=["golf", "dit"])
def test_sampling_asks_the_corrected_model(backbone):
    algorithm = build(backbone=backbone)
    with torch.no_grad():
        algorithm.flow.gate.fill_(3.0)  # so that the correction matters
    given = some_batch().tokens
    editable = torch.tensor([[False, True, True, False, True, True]]).expand(4, -1)
    canvas = Canvas(given * ~editable, editable)
    tokens = algorithm.generate(canvas, 1, torch.Generator().manual_seed(0), top_k=1)
    assert torch.equal(algorithm.predictions(tokens).argmax()[editable], tokens[editable])
    without = AR.generate(build(backbone=backbone, flow=None), canvas, 1, torch.Generator().manual_seed(0), top_k=1)
    assert not torch.equal(tokens, without) and torch.equal(tokens[~editable], given[~editable])


def test_a_negative_weight_is_refused():
    with pytest.raises(ValueError, match="algo.loss_weight must be a number of at least 0, not -1"):
        check(NativeFlow, {"loss_weight": -1}, "algo", is_partial=True)


def test_through_the_command_line(tmp_path, monkeypatch, capfd):
    corpus, run = write_corpus(tmp_path / "corpus"), tmp_path / "run"
    options = ["algo=native_flow", "model=golf_native", "optim=muon_golf", "optim.lr=0.02"]
    metrics = train(config_of(run, *tiny(corpus, *options, "trainer.max_steps=40", "training.ema=0.9")))
    assert 0 < metrics["val/nll_nats_per_token"] < 2.0  # the corpus's unigrams: 2.57, bigrams: 1.20
    checkpoint = run / "checkpoints" / "last.ckpt"
    loaded = [f"eval.checkpoint_path={checkpoint}", "loader.eval_batch_size=3", "trainer.accelerator=cpu"]
    common = ["mode=sample_eval", *loaded, "sampling.steps=1", f"hydra.run.dir={tmp_path / 'prompt'}"]
    assert command(monkeypatch, *common, "sampling.prompt=the cat ") == 0
    rows = [json.loads(line) for line in (tmp_path / "prompt" / "samples-24.jsonl").read_text().splitlines()]
    assert all(row["text"].startswith("the cat ") and len(row["tokens"]) == 32 for row in rows)
    algorithm, _ = load_algorithm(checkpoint)
    written = torch.tensor([row["tokens"] for row in rows])
    uniform = torch.randint(algorithm.vocab_size, (64, 32), generator=torch.Generator().manual_seed(0))
    assert algorithm.nll(written)[:, 8:].mean() < math.log(algorithm.vocab_size) < algorithm.nll(uniform).mean()
    other = ["algo=flm", *tiny(corpus), "model=golf_native", f"hydra.run.dir={tmp_path / 'no'}"]
    assert command(monkeypatch, *other) == 1
    assert "take algo=native_flow or algo=ar" in capfd.readouterr().err
