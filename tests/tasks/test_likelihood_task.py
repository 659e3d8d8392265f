"""mode=ppl_eval through the command line, from nothing but a checkpoint and text."""

import copy
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
from flm.data.tokenizers import BPETokenizer, ByteTokenizer
from flm.draws import Draws
from flm.models.dit import DiT
from flm.report.files import read_results
from flm.report.kinds.likelihood import Likelihood
from flm.report.sections.losses import contribution_table
from flm.tasks.assemble import data_module
from flm.tasks.ppl_eval import _unknown_id, ppl_eval
from flm.tasks.train import train


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def checkpoint(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    settings = ("trainer.max_steps=60", "model.num_blocks=1", "optim.lr=5e-3", "training.ema=0.9", "logger=none")
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
    known = [nats for nats in row["parts_nats_per_token"].values() if nats is not None]
    assert sum(known) == pytest.approx(row["nats_per_token"]) and sum(row["draws_by_part"].values()) == 40 * 3
    assert row["perplexity"] == pytest.approx(math.exp(row["nats_per_token"]))
    # one token a character but for the end marks, which spell nothing: a few per thousand positions
    assert own["bytes_estimated"] == own["characters_estimated"] and 0.98 < own["bytes_estimated"] / row["tokens"] < 1
    expected = row["bits_per_token"] * row["tokens"] / own["characters_estimated"]
    assert row["bits_per_character"] == pytest.approx(expected, rel=1e-3)
    assert 0 < row["monte_carlo_error_nats"] < row["standard_error_nats"] * 1.5
    assert odd["variants"]["network"]["nats_per_token"] > 1.5 * row["nats_per_token"]
    assert odd["corpus"].startswith(str(other))
    records = read_results([tmp_path / "likelihood.json"]).of(Likelihood)
    assert [record.corpus for record in records] == [str(corpus)] * 2 + ["odd"] * 2
    shown = capfd.readouterr().out
    assert "variational upper bound" in shown and f"{row['nats_per_token']:.4f}" in shown and "odd" in shown


def test_it_repeats_itself_and_runs_without_a_pilot(monkeypatch, tmp_path, checkpoint, corpus):
    few = ("eval.pilot_draws=0", "eval.max_examples=8", "eval.draws_per_example=1", "eval.bound_steps=[1,3]")
    first, second, other_seed = (
        evaluated(monkeypatch, checkpoint, corpus, tmp_path / name, *few, f"seed={seed}")["likelihood"]["corpora"]
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert first == second != other_seed
    row = first["data"]["variants"]["network"]
    assert row["monte_carlo_error_nats"] is None
    assert [name for name in row["parts_nats_per_token"]][0].startswith("t 0.000") and len(row["parts_nats_per_token"]) == 9
    one, three = (first["data"]["variants"][f"of {n} steps"] for n in (1, 3))
    assert one["parts_nats_per_token"]["steps"] == 0 < three["parts_nats_per_token"]["steps"] and one["nats_per_token"] > 1
    assert sum(three["parts_nats_per_token"].values()) == pytest.approx(three["nats_per_token"])


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


def test_the_corpus_of_the_checkpoint_is_scored_unless_another_is_asked_for(capfd, tmp_path, checkpoint, corpus):
    other = write_corpus(tmp_path / "other", documents=12, seed=9)
    few = ("eval.pilot_draws=0", "eval.max_examples=4", "eval.draws_per_example=1")

    def first(given, *overrides):
        run = ("mode=ppl_eval", *tiny(given), f"eval.checkpoint_path={checkpoint}", *few, *overrides)
        return ppl_eval(config_of(tmp_path / "run", *run))["corpora"]["data"], capfd.readouterr().out

    recorded, said = first(other)
    assert recorded["corpus"] == str(corpus) and recorded["trained_on"] is True
    assert f"data: {corpus}" in said and "eval.real_data=current" in said
    assert (tmp_path / "run" / "data").is_dir()  # tokens are kept where this run writes, not where the file says
    replaced, said = first(other, "eval.real_data=current")
    assert replaced["corpus"] == str(other) and replaced["trained_on"] is False and "trained on another" in said
    same, said = first(corpus, "eval.real_data=current")
    assert same["trained_on"] is True and "trained on another" not in said
    assert same["variants"] == recorded["variants"] != replaced["variants"]
    corpus.rename(tmp_path / "moved")
    try:
        with pytest.raises(ValueError, match=f"{corpus}.*eval.real_data=current"):
            first(other)
    finally:
        (tmp_path / "moved").rename(corpus)


def test_characters_that_the_tokenizer_lacks_are_counted_and_said(tmp_path, checkpoint, corpus, capfd):
    """Every third character is one of three bytes that the tokenizer lacks: 3 characters, 5 bytes, 3 tokens."""
    foreign = tmp_path / "foreign.txt"
    foreign.write_text("th\u20ac" * 400, encoding="utf-8")
    few = ("eval.pilot_draws=0", "eval.max_examples=null", "eval.draws_per_example=1", f"eval.corpora={{euro: {foreign}}}")
    config = config_of(tmp_path / "run", "mode=ppl_eval", *tiny(corpus), f"eval.checkpoint_path={checkpoint}", *few)
    found = ppl_eval(config)["corpora"]
    euro, (row,) = found["euro"], found["euro"]["variants"].values()
    assert euro["bytes_estimated"] / euro["characters_estimated"] == pytest.approx(5 / 3, rel=1e-3)
    assert euro["characters_estimated"] == pytest.approx(row["tokens"], rel=2e-3)  # but for one end mark
    assert euro["unknown_share"] == pytest.approx(1 / 3, rel=5e-3) and found["data"]["unknown_share"] == 0
    assert row["bits_per_character"] == pytest.approx(row["bits_per_token"], rel=2e-3)
    (line,) = [line for line in capfd.readouterr().out.splitlines() if line.startswith("warning")]
    assert "33% of the tokens of euro" in line and "no bound" in line


@pytest.mark.parametrize("builder", [ByteTokenizer(), BPETokenizer(257)])
def test_tokenizers_that_spell_everything_have_no_unknown(builder):
    assert _unknown_id(builder.build(lambda: iter(["a b"]))) is None


def test_nothing_is_called_lowest_without_a_pilot(tmp_path, checkpoint, corpus, capfd):
    few = ("eval.pilot_draws=0", "eval.exact_evidence=true", "eval.max_examples=2", "eval.draws_per_example=1")
    result = ppl_eval(config_of(tmp_path, "mode=ppl_eval", *tiny(corpus), f"eval.checkpoint_path={checkpoint}", *few))
    said = capfd.readouterr().out
    assert result["chosen"] is None and len(result["corpora"]["data"]["variants"]) == 2
    assert "the lowest on training text" not in said and "*" not in said
    # two draws of nine parts: what was not drawn is a dash
    row = result["corpora"]["data"]["variants"]["network"]
    assert sum(row["draws_by_part"].values()) == 2 and None in row["parts_nats_per_token"].values()
    shown = [line.split()[-2:] for line in said.splitlines() if line.strip().startswith("network ") and " t 0." in line]
    expected = ["-" if nats is None else f"{nats:.4f}" for nats in row["parts_nats_per_token"].values()]
    assert shown == [[nats, str(count)] for nats, count in zip(expected, row["draws_by_part"].values(), strict=True)]
    record = read_results([tmp_path / "likelihood.json"]).of(Likelihood)[0]
    assert record.parts == row["parts_nats_per_token"]
    assert [nats for *_, nats in record.spans] == [nats for nats in record.parts.values() if nats is not None]
    assert [cells[-1] for cells in contribution_table([record]).rows] == list(record.parts.values())


def test_mistakes_are_named_in_one_line(monkeypatch, capfd, tmp_path, checkpoint, corpus):
    good = ["mode=ppl_eval", *tiny(corpus), f"eval.checkpoint_path={checkpoint}"]
    config = config_of(tmp_path, *good)
    corpora = ({"none": f"{tmp_path}/nothing.txt"}, {"odd": {"_target_": "flm.data.tokenizers.ByteTokenizer"}})
    cases = [
        *(("max_examples", value, "eval.max_examples") for value in (0, "abc", True)),
        *(("draws_per_example", value, "eval.draws_per_example") for value in (0, None, 2.5)),
        *(("pilot_draws", value, "eval.pilot_draws") for value in (5, -1, None)),
        *(("evidence_share", value, "eval.evidence_share") for value in (1.0, "half")),
        *(("corpora", value, named) for value, named in zip(corpora, ("nothing.txt", "eval.corpora"), strict=True)),
        ("corpora", ["a.txt"], "eval.corpora"),
        ("exact_evidence", "perhaps", "eval.exact_evidence"),
        ("real_data", None, "eval.real_data"),
        ("checkpoint_path", None, "eval.checkpoint_path"),
    ]
    for key, value, named in cases:
        wrong = copy.deepcopy(config)
        wrong.eval[key] = value
        with pytest.raises(ValueError, match=named) as raised:
            ppl_eval(wrong)
        assert "\n" not in str(raised.value)
    monkeypatch.setattr(FLM, "bound_kind", None)
    assert command(monkeypatch, *good, f"hydra.run.dir={tmp_path}") == 1
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "FLM has no likelihood bound" in line
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
    assert result["chosen"] == "model" and row["draws_by_part"] == {}
    assert result["kind"] == "exact" and row["draws_per_example"] == 1 and row["monte_carlo_error_nats"] == 0
    (validated,) = (value for name, value in metrics.items() if name.startswith("val/nll_nats"))
    assert row["nats_per_token"] == pytest.approx(validated, rel=1e-3)
