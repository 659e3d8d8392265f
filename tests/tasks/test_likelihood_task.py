"""mode=ppl_eval through the command line, from nothing but a checkpoint and text."""

import json
import math
from functools import partial

import pytest
import torch
from running import command, config_of, tiny, write_corpus

from flm.algos.algorithm import Batch
from flm.algos.flm import FLM
from flm.algos.fmlm import FMLM
from flm.checkpoints.load import read_checkpoint
from flm.draws import Draws
from flm.models.dit import DiT
from flm.tasks.assemble import data_module
from flm.tasks.train import train


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def checkpoint(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    settings = ("trainer.max_steps=200", "model.num_blocks=1", "optim.lr=5e-3", "training.ema=0.9", "logger=none")
    train(config_of(folder, *tiny(corpus, *settings)))
    return folder / "checkpoints" / "last.ckpt"


def evaluated(monkeypatch, checkpoint, corpus, folder, *overrides):
    run = ["mode=ppl_eval", *tiny(corpus), f"eval.checkpoint_path={checkpoint}", f"hydra.run.dir={folder}", *overrides]
    assert command(monkeypatch, *run) == 0
    return json.loads((folder / "likelihood.json").read_text())


def test_a_checkpoint_is_scored_on_its_own_and_on_other_text(monkeypatch, capfd, tmp_path, checkpoint, corpus):
    other = tmp_path / "other.txt"
    other.write_text("\n\n".join(["zebra quiz jumps, vexing box " * 12] * 4))
    content = evaluated(
        monkeypatch,
        checkpoint,
        corpus,
        tmp_path,
        "eval.exact_evidence=true",
        f"eval.corpora={{odd: {other}}}",
        "eval.max_examples=40",
        "eval.pilot_draws=64",
        "eval.draws_per_example=3",
    )
    assert content["checkpoint"]["sha256"] == read_checkpoint(checkpoint).sha256
    result = content["likelihood"]
    assert result["kind"] == "variational upper bound"
    own, odd = result["corpora"]["data"], result["corpora"]["odd"]
    assert list(own["variants"]) == ["network", "with evidence"] == list(result["measured_on_training_text"])
    row = own["variants"][result["chosen"]]
    assert row["sequences"] == 40 and row["tokens"] == 40 * 32 and row["draws_per_example"] == 3
    uniform = math.log(read_checkpoint(checkpoint).description.vocab_size)
    assert 0.3 < row["nats_per_token"] < uniform - 3 * row["standard_error_nats"]
    assert sum(row["parts_nats_per_token"].values()) == pytest.approx(row["nats_per_token"])
    assert row["perplexity"] == pytest.approx(math.exp(row["nats_per_token"]))
    # one token a character but for the end marks, which spell nothing: a few per thousand positions
    assert own["bytes"] == own["characters"] and 0.98 < own["bytes"] / row["tokens"] < 1
    assert row["bits_per_character"] == pytest.approx(row["bits_per_token"] * row["tokens"] / own["characters"], rel=1e-3)
    assert 0 < row["monte_carlo_error_nats"] < row["standard_error_nats"] * 1.5
    assert odd["variants"]["network"]["nats_per_token"] > 1.5 * row["nats_per_token"]
    assert odd["corpus"].startswith(str(other))
    shown = capfd.readouterr().out
    assert "variational upper bound" in shown and f"{row['nats_per_token']:.4f}" in shown and "odd" in shown


def test_it_repeats_itself_and_runs_without_a_pilot(monkeypatch, tmp_path, checkpoint, corpus):
    few = ("eval.pilot_draws=0", "eval.max_examples=8", "eval.draws_per_example=1")
    first, second, other_seed = (
        evaluated(monkeypatch, checkpoint, corpus, tmp_path / name, *few, f"seed={seed}")["likelihood"]["corpora"]
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert first == second != other_seed
    row = first["data"]["variants"]["network"]
    assert row["monte_carlo_error_nats"] is None
    assert [name for name in row["parts_nats_per_token"]][0].startswith("t 0.000") and len(row["parts_nats_per_token"]) == 9


def test_the_pilot_reads_training_text_from_all_over(monkeypatch, tmp_path, checkpoint, corpus):
    """A cut chosen on the very text that is scored would bound nothing."""
    seen, choose = [], FLM.bound_variants

    def spy(self, training, *args, **options):
        seen.extend(tuple(row) for batch in training for row in batch.tokens.tolist())
        return choose(self, training, *args, **options)

    monkeypatch.setattr(FLM, "bound_variants", spy)
    few = ("eval.pilot_draws=50", "eval.max_examples=4", "eval.draws_per_example=1")
    evaluated(monkeypatch, checkpoint, corpus, tmp_path, *few)
    data = data_module(config_of(tmp_path / "data", *tiny(corpus)))
    blocks = [tuple(block.tolist()) for block in data.train_blocks()]
    assert seen == [blocks[i * len(blocks) // 50] for i in range(50)]


def test_other_data_than_trained_on_is_said(monkeypatch, capfd, tmp_path, checkpoint):
    other = write_corpus(tmp_path / "other", documents=12, seed=9)
    few = ("eval.pilot_draws=0", "eval.max_examples=4", "eval.draws_per_example=1")
    evaluated(monkeypatch, checkpoint, other, tmp_path / "run", *few)
    assert "trained on another" in capfd.readouterr().out


def test_mistakes_are_named_in_one_line(monkeypatch, capfd, tmp_path, checkpoint, corpus):
    base = ["mode=ppl_eval", *tiny(corpus), f"hydra.run.dir={tmp_path}"]
    good = [*base, f"eval.checkpoint_path={checkpoint}"]
    cases = [
        (base, "eval.checkpoint_path"),
        ([*good, "eval.max_examples=0"], "eval.max_examples"),
        ([*good, "eval.draws_per_example=0"], "eval.draws_per_example"),
        ([*good, "eval.pilot_draws=5"], "eval.pilot_draws"),
        ([*good, "eval.pilot_draws=-1"], "eval.pilot_draws"),
        ([*good, "eval.evidence_share=1.0"], "eval.evidence_share"),
        ([*good, "eval.corpora=[a.txt]"], "eval.corpora"),
        ([*good, f"eval.corpora={{none: {tmp_path}/nothing.txt}}"], "nothing.txt"),
        ([*good, "eval.corpora={odd: {_target_: flm.data.tokenizers.ByteTokenizer}}"], "eval.corpora"),
    ]
    for arguments, named in cases:
        assert command(monkeypatch, *arguments) == 1, arguments
        lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 and named in lines[0], (arguments, lines)
    monkeypatch.setattr(FLM, "bound_kind", None)
    assert command(monkeypatch, *good) == 1
    assert "FLM has no likelihood bound" in capfd.readouterr().err
    assert not (tmp_path / "likelihood.json").exists()


def test_the_flow_map_is_bounded_by_its_diagonal(tmp_path):
    """A two-time network asked for (tau, tau) is the denoiser it was copied from: the same nats on the same draws."""
    torch.manual_seed(0)
    backbone = partial(DiT, length=6, hidden_size=8, num_blocks=1, num_heads=2, cond_dim=4)
    teacher = FLM(backbone, 11, 6).eval()
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    student = FMLM(backbone, 11, 6, teacher=teacher).eval()
    tokens = torch.randint(11, (20, 6))
    bounds = [model.bound(Batch(tokens, torch.ones(20, 6)), Draws(3)).nats for model in (teacher, student)]
    torch.testing.assert_close(bounds[1], bounds[0], rtol=1e-4, atol=1e-4)
    assert bounds[0].std() > 0


def test_an_autoregressive_model_is_exact(monkeypatch, tmp_path, corpus):
    """The same command; its nats are the validation loss, and no draw adds to them."""
    settings = ("algo=ar", "trainer.max_steps=20", "training.ema=0.9", "trainer.limit_val_batches=1.0", "logger=none")
    metrics = train(config_of(tmp_path / "ar", *tiny(corpus, *settings)))
    checkpoint = tmp_path / "ar" / "checkpoints" / "last.ckpt"
    run = ("algo=ar", "eval.max_examples=null", "eval.draws_per_example=5")
    result = evaluated(monkeypatch, checkpoint, corpus, tmp_path / "run", *run)["likelihood"]
    (row,) = result["corpora"]["data"]["variants"].values()
    assert result["kind"] == "exact" and row["draws_per_example"] == 1 and row["monte_carlo_error_nats"] == 0
    (validated,) = (value for name, value in metrics.items() if name.startswith("val/nll_nats"))
    assert row["nats_per_token"] == pytest.approx(validated, rel=1e-3)
