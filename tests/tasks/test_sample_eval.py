"""Sampling with its measures, end to end; every number held to a direct computation on the samples that were written."""

import json
import math
import sys
import time
from collections import Counter

import pytest
import torch
from random_gpt2 import random_gpt2
from running import command, config_of, tiny, write_corpus

import flm
from flm.algos.flm import FLM
from flm.checkpoints.load import load_algorithm
from flm.checkpoints.recorded_corpus import recorded_corpus
from flm.data.tokenizers import Tokenizer
from flm.draws import mix_seed
from flm.judges.gen_ppl import PublishedProtocol, WholeTextProtocol
from flm.judges.huggingface_scorer import HuggingFaceScorer
from flm.measures.diversity import self_bleu_4, token_diversity
from flm.measures.ngram import NGramModel
from flm.results.files import read_result
from flm.samplers.canvas import Canvas
from flm.tasks.assemble import data_module
from flm.tasks.check import check_config
from flm.tasks.run import Run
from flm.tasks.sample_eval import sample_eval
from flm.tasks.samples import Generation
from flm.tasks.train import train

LENGTH, STEPS, COUNT = 32, (1, 4), 15


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"), documents=30)


@pytest.fixture(scope="module")
def training(corpus):
    return tiny(corpus, "trainer.max_steps=25", "logger=none")


@pytest.fixture(scope="module")
def checkpoint(training, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "my_run"
    train(config_of(folder, *training))
    return folder / "checkpoints" / "last.ckpt"


@pytest.fixture(scope="module")
def judge(training, tmp_path_factory):
    folder = tmp_path_factory.mktemp("judge") / "judge"
    train(config_of(folder, *training, "algo=ar"))
    return folder / "checkpoints" / "last.ckpt"


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    return random_gpt2(tmp_path_factory.mktemp("gpt2") / "judge")


@pytest.fixture(scope="module")
def measured(checkpoint, judge, gpt2, tmp_path_factory):
    """A run with everything: 3 batches of 5, two scorers, two protocols, films."""
    folder = tmp_path_factory.mktemp("measured")
    ours = [f"eval.gen_ppl_eval_model_name_or_path={gpt2}", "eval.scorer=ar", f"eval.scorer_checkpoint_path={judge}"]
    rest = ["eval.protocols=[published,whole_text]", "loader.eval_batch_size=5", "sampling.num_sample_batches=3"]
    run = ["mode=sample_eval", f"eval.checkpoint_path={checkpoint}", f"sampling.steps={list(STEPS)}", "sampling.film=true"]
    sample_eval(config_of(folder, *run, *ours, *rest))
    return folder, read_result(folder / "results.json", "sample_eval")


def read_lines(path):
    lines = [json.loads(line) for line in path.read_text().split("\n") if line]
    return [line["tokens"] for line in lines], [line["text"] for line in lines]


def sets(measured):
    """(rows, texts, entry of results.json) of every number of steps and of real text."""
    folder, results = measured
    for entry in (*results["generated"].values(), results["real"]):
        yield *read_lines(folder / entry["file"]), entry


def test_no_sample_is_dropped(measured):
    assert [entry["count"] for *_, entry in sets(measured)] == [COUNT] * 3
    for rows, texts, _ in sets(measured):
        assert len(texts) == COUNT and all(len(row) == LENGTH for row in rows)
    assert [entry["steps"] for entry in measured[1]["generated"].values()] == list(STEPS)


def test_diversity_is_that_of_the_written_samples(measured):
    for rows, texts, entry in sets(measured):
        found, expected = entry["metrics"], token_diversity(rows)
        by_hand = [-sum(n / LENGTH * math.log(n / LENGTH) for n in Counter(row).values()) for row in rows]
        assert found["entropy_nats"]["mean"] == pytest.approx(sum(by_hand) / COUNT)
        pairs = [pair for row in rows for pair in zip(row, row[1:], strict=False)]
        assert found["distinct_2"] == pytest.approx(len(set(pairs)) / len(pairs))
        for name in ("distinct_tokens", "rep_4", "longest_run"):
            assert found[name]["mean"] == pytest.approx(getattr(expected, name).mean)
        for name in ("distinct_1", "distinct_3", "tokens_used"):
            assert found[name] == pytest.approx(getattr(expected, name))
        assert found["self_bleu_4"]["mean"] == pytest.approx(self_bleu_4(texts).mean)
        assert found["self_bleu_4"]["count"] == COUNT


def test_perplexity_of_a_downloaded_judge(measured, gpt2):
    scorer = HuggingFaceScorer(gpt2)
    protocols = {"published": PublishedProtocol(LENGTH), "whole_text": WholeTextProtocol()}
    for _, texts, entry in sets(measured):
        rows = [row for row in entry["metrics"]["gen_ppl"] if row["scorer"] == str(gpt2)]
        assert [row["protocol"] for row in rows] == list(protocols)
        for row in rows:
            expected = scorer.score(texts, protocols[row["protocol"]])
            assert row["ppl"] == pytest.approx(expected.ppl, rel=1e-4)
            assert row["nats_per_token"]["mean"] == pytest.approx(math.log(row["ppl"]))
            assert row["nats_per_token"]["standard_error"] == pytest.approx(expected.standard_error, rel=1e-3)
            assert row["num_scored_tokens"] == expected.num_scored_tokens and row["num_samples"] == COUNT
            assert row["reads"] == "text"


def test_perplexity_of_our_own_judge_by_hand(measured, judge):
    algorithm, file = load_algorithm(judge)
    for rows, _, entry in sets(measured):
        found = next(row for row in entry["metrics"]["gen_ppl"] if row["scorer"] == "ar:judge")
        assert found["protocol"] == "published" and found["reads"] == "tokens" and found["revision"] == file.sha256
        total, count = 0.0, 0
        for row in rows:
            nll = algorithm.nll(torch.tensor([row]))[0].tolist()
            for i in range(1, LENGTH):
                if row[i] != 0 or 0 not in row[:i]:  # every token, of end tokens (id 0) the first
                    total, count = total + nll[i], count + 1
        assert found["num_scored_tokens"] == count
        assert found["nats_per_token"]["mean"] == pytest.approx(total / count, rel=1e-5)


def test_real_text_is_that_of_the_validation_split(measured, training, tmp_path):
    """Read here from the token cache that training uses."""
    blocks = data_module(config_of(tmp_path, *training)).valid_blocks()
    real, _ = read_lines(measured[0] / "real.jsonl")
    assert real == [blocks[i * len(blocks) // COUNT].tolist() for i in range(COUNT)]

    all_blocks, middle = [blocks[i].tolist() for i in range(len(blocks))], len(blocks) // 2
    vocab_size = data_module(config_of(tmp_path, *training)).vocab_size
    halves = [NGramModel(part, vocab_size) for part in (all_blocks[:middle], all_blocks[middle:])]
    generated, _ = read_lines(measured[0] / "samples-4.jsonl")
    expected = sum(model.cross_entropy(generated).mean for model in halves) / 2
    assert measured[1]["generated"]["4"]["metrics"]["ngram_ce_nats"]["mean"] == pytest.approx(expected)
    assert measured[1]["real"]["metrics"]["ngram_ce_nats"]["mean"] < expected / 2  # 25 steps teach no grammar
    singly = [NGramModel(part, vocab_size, 1) for part in (all_blocks[:middle], all_blocks[middle:])]
    gain = sum(model.cross_entropy(generated).mean for model in singly) / 2 - expected
    assert measured[1]["generated"]["4"]["metrics"]["ngram_gain_nats"] == pytest.approx(gain)
    assert measured[1]["real"]["metrics"]["ngram_gain_nats"] > gain + 1


def test_the_dtype_is_that_of_the_computation(checkpoint, tmp_path):
    lm, run = flm.load(checkpoint), Run(config_of(tmp_path))
    assert run.about("sample_eval", lm)["dtype"] == "float32"
    lm.precision = "bf16-mixed"
    assert run.about("sample_eval", lm)["dtype"] == "bfloat16"
    assert run.about("likelihood", lm, autocast=False)["dtype"] == "float32"  # which is not computed under autocast


def test_head_of_the_file(measured, checkpoint, gpt2):
    results = measured[1]
    assert (results["kind"], results["label"], results["algorithm"]) == ("sample_eval", "my_run", "FLM")
    assert results["checkpoint"]["step"] == 25 and results["dtype"] == "float32"
    assert results["weights"] == "average" and results["processes"] == 1
    assert results["checkpoint"]["config"]["trainer"]["max_steps"] == 25
    assert results["scorer"]["name"] == str(gpt2) and results["scorer"]["protocol"] == "published"
    assert "real_unavailable" not in results
    for steps in STEPS:
        entry = results["generated"][str(steps)]
        assert entry["network_evaluations"] == steps
        assert entry["tokens_per_second"] == pytest.approx(LENGTH * 1000 / entry["ms_per_sample"])
        assert 0 < entry["ms_per_sample"] * COUNT / 1000


def test_rates_leave_out_the_batch_that_warms_up():
    tokens = torch.zeros(12, 10)
    several = Generation(tokens, [100.0, 1.0, 3.0], 8).timing()  # batches of 4 samples of 10 tokens
    assert several["seconds"] == 104 and several["network_evaluations"] == 8
    assert several["ms_per_sample"] == pytest.approx(500) and several["tokens_per_second"] == pytest.approx(20)
    alone = Generation(tokens, [6.0], None).timing()
    assert alone["ms_per_sample"] == pytest.approx(500) and alone["network_evaluations"] is None


def test_film_ends_in_the_first_sample(measured, checkpoint):
    tokenizer = Tokenizer.from_dict(load_algorithm(checkpoint)[1].tokenizer)
    for steps in STEPS:
        film = read_result(measured[0] / f"film-{steps}.json", "film")
        assert film["options"] == measured[1]["generated"][str(steps)]["options"]
        assert film["steps"] == steps and [frame["index"] for frame in film["frames"]] == list(range(steps))
        rows, _ = read_lines(measured[0] / f"samples-{steps}.jsonl")
        assert film["frames"][-1]["tokens"] == [tokenizer.decode([token]) for token in rows[0]]
        assert all(0 < p <= 1 for frame in film["frames"] for p in frame["probability"])
        assert [frame["tau"] for frame in film["frames"]] == pytest.approx([i / steps for i in range(steps)])


def test_every_number_of_steps_starts_from_the_same_noise(measured):
    first, second = (read_result(measured[0] / f"film-{steps}.json")["frames"][0] for steps in STEPS)
    assert first["tokens"] == second["tokens"] and first["probability"] == pytest.approx(second["probability"])


def test_the_first_call_is_not_timed_and_changes_no_sample(checkpoint, tmp_path, monkeypatch):
    generate, calls = FLM.generate, []
    clock, ahead = time.perf_counter, [0.0]

    def slow_at_first(self, canvas, steps, *arguments, **options):
        if not calls:
            ahead[0] = 1e6
        calls.append((len(canvas.tokens), steps))
        return generate(self, canvas, steps, *arguments, **options)

    monkeypatch.setattr(FLM, "generate", slow_at_first)
    monkeypatch.setattr(time, "perf_counter", lambda: clock() + ahead[0])
    run = ["mode=sample_eval", f"eval.checkpoint_path={checkpoint}", "eval.real_data=null", "sampling.temperature=0.5"]
    results = sample_eval(config_of(tmp_path, *run, "sampling.steps=[1,2]", "loader.eval_batch_size=3", "seed=5"))
    assert calls == [(3, 1), (3, 1), (3, 2)]
    assert results["generated"]["1"]["seconds"] < 1e5 and results["generated"]["1"]["network_evaluations"] == 1
    algorithm, generator = load_algorithm(checkpoint)[0], torch.Generator().manual_seed(mix_seed(5, 0))
    expected = generate(algorithm, Canvas.blank(3, LENGTH), 2, generator, temperature=0.5)
    assert read_lines(tmp_path / "samples-2.jsonl")[0] == expected.tolist()


def test_a_sampler_whose_steps_the_canvas_fixes_samples_once(judge, tmp_path, capfd):
    run = ["mode=sample_eval", f"eval.checkpoint_path={judge}", "eval.real_data=null", "loader.eval_batch_size=2"]
    results = sample_eval(config_of(tmp_path, *run, "sampling.steps=[1,4]", "sampling.prompt=the cat", "sampling.film=true"))
    assert [(name, entry["steps"]) for name, entry in results["generated"].items()] == [("25", 25)]  # 32 less 7 given
    assert {path.name for path in tmp_path.glob("*-*.json*")} == {"samples-25.jsonl", "film-25.json"}
    assert "AR takes one step a position: 25 steps, not 1, 4\n" in capfd.readouterr().out
    sample_eval(config_of(tmp_path / "asked", *run, f"sampling.steps={LENGTH}"))
    assert "one step a position" not in capfd.readouterr().out  # nothing else was asked for


def test_a_sample_of_one_token_needs_no_protocol(checkpoint, judge, tmp_path):
    run = ["mode=sample_eval", f"eval.checkpoint_path={checkpoint}", "sampling.length=1", "sampling.steps=1"]
    results = sample_eval(config_of(tmp_path / "alone", *run))
    assert len(read_lines(tmp_path / "alone" / "samples-1.jsonl")[0][0]) == 1
    assert results["generated"]["1"]["metrics"]["ngram_ce_nats"]["mean"] > 0
    with pytest.raises(ValueError, match="^sampling.length=1: .* at least 2"):
        sample_eval(config_of(tmp_path / "judged", *run, "eval.scorer=ar", f"eval.scorer_checkpoint_path={judge}"))


def test_what_is_asked_for_and_not_there_is_an_error(checkpoint, tmp_path, monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "mauve", None)
    run = ["mode=sample_eval", f"eval.checkpoint_path={checkpoint}", "loader.eval_batch_size=2"]
    cases = {
        (f"eval.gen_ppl_eval_model_name_or_path={tmp_path}/absent",): "absent",
        ("eval.scorer=gpt2",): "eval.scorer must be",
        ("eval.scorer=ar", f"eval.scorer_checkpoint_path={checkpoint}"): "FLM gives no next-token likelihood",
        ("eval.scorer=ar", f"eval.scorer_checkpoint_path={tmp_path}/none.ckpt"): "none.ckpt",
        (f"eval.scorer_checkpoint_path={checkpoint}",): "set eval.scorer=ar",
        ("eval.protocols=[published,mine]",): "eval.protocols",
        ("eval.protocols=[]",): "eval.protocols",
        ("eval.real_data=mine",): "eval.real_data",
        ("eval.real_data=current", "data=text", f"data.path={tmp_path}/gone"): "gone",
        ("eval.mauve=true",): "pip install mauve-text",
        ("eval.mauve=true", "eval.real_data=null"): "eval.mauve",
        ("sampling.steps=[2,2]",): "sampling.steps",
        ("sampling.num_sample_batches=1.5",): "sampling.num_sample_batches",
        ("sampling.num_sample_batches=0",): "sampling.num_sample_batches",
        ("sampling.length=0",): "sampling.length",
        ("sampling.length=1.5",): "sampling.length",
    }
    for overrides, named in cases.items():
        with pytest.raises(ValueError) as error:
            config = config_of(tmp_path, *run, *overrides)
            check_config(config)
            sample_eval(config)
        assert named in str(error.value) and "\n" not in str(error.value), overrides
    assert command(monkeypatch, *run, f"hydra.run.dir={tmp_path}", "eval.scorer=ar") == 1
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "eval.scorer_checkpoint_path" in lines[0]
    assert not list(tmp_path.glob("*.json*"))


def test_real_text_that_is_gone_is_said_and_stops_nothing(tmp_path, capfd):
    moved = write_corpus(tmp_path / "corpus", documents=30)
    train(config_of(tmp_path / "run", *tiny(moved, "trainer.max_steps=1", "logger=none")))
    moved.rename(tmp_path / "elsewhere")
    run = ["mode=sample_eval", f"eval.checkpoint_path={tmp_path}/run/checkpoints/last.ckpt", "sampling.steps=1"]

    def sampled(name, *overrides):
        sample_eval(config_of(tmp_path / name, *run, "loader.eval_batch_size=3", *overrides))
        return read_result(tmp_path / name / "results.json"), capfd.readouterr().out

    results, shown = sampled("gone")
    warnings = [line for line in shown.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1 and str(moved) in warnings[0] and "eval.real_data=current" in warnings[0]
    assert results["real"] is None and str(moved) in results["real_unavailable"] and results["ngram_judge"] is None
    metrics = results["generated"]["1"]["metrics"]
    assert metrics["ngram_ce_nats"] is None and metrics["gen_ppl"] == [] and metrics["entropy_nats"]["count"] == 3
    assert results["scorer"] is None and (tmp_path / "gone" / "samples-1.jsonl").exists()

    results, shown = sampled("off", "eval.real_data=null")
    assert results["real"] is None and "warning" not in shown

    named = ["eval.real_data=current", "data=text", f"data.path={tmp_path}/elsewhere", "data.valid_fraction=0.2"]
    results, shown = sampled("found", *named)
    assert results["real"]["count"] == 3 and "warning" not in shown

    few = ["loader.eval_batch_size=40", "sampling.length=400"]
    results, shown = sampled("few", *named, *few)
    assert results["real"]["count"] < 40 == results["generated"]["1"]["count"]
    assert f"only {results['real']['count']} real texts for 40 samples" in shown


def test_a_checkpoint_names_corpora_only(tmp_path, monkeypatch):
    (tmp_path / "foreign_corpus.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    text8 = {"_target_": "flm.texts.detokenisers.Text8Normaliser"}
    node = {"_target_": "flm.data.corpora.text.TextCorpus", "path": "x", "normaliser": text8}
    assert recorded_corpus(node).normaliser("A!") == text8_of("A!")
    for bad in (
        {"_target_": "os.system", "command": "true"},
        {"_target_": "foreign_corpus.Corpus"},
        {"_target_": "flm.data.corpora.text.os.system", "command": "true"},
        {"_target_": "flm.data.corpora.text.Path"},
        {"_target_": "flm.data.module.TextDataModule", "corpus": None, "tokenizer": None, "length": 3},
        node | {"normaliser": {"_target_": "subprocess.Popen", "args": "true"}},
        text8,
        {"_target_": 3},
        None,
    ):
        with pytest.raises(ValueError, match="checkpoint records"):
            recorded_corpus(bad)
    with pytest.raises(ValueError, match="colour"):
        recorded_corpus(node | {"colour": 1})
    with pytest.raises(SystemExit):  # a module the user trusts is imported
        recorded_corpus({"_target_": "foreign_corpus.Corpus"}, ["foreign_corpus"])


def text8_of(text):
    from flm.texts.detokenisers import Text8Normaliser

    return Text8Normaliser()(text)


def test_a_result_of_another_version_is_refused(measured, tmp_path):
    good = json.loads((measured[0] / "results.json").read_text())
    cases = {
        "older": (good | {"format_version": 0}, "result format 0, written by version '.*make the result again"),
        "foreign": ({"entropy": 3}, "no format_version"),
        "list": ([1], "no format_version"),
    }
    for name, (content, message) in cases.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match=f"{name}.json.*{message}"):
            read_result(tmp_path / f"{name}.json")
    (tmp_path / "cut.json").write_text("{")
    for name, message in (("cut.json", "not a readable result"), ("absent.json", "there is no such result file")):
        with pytest.raises(ValueError, match=f"{name}: {message}"):
            read_result(tmp_path / name)
    with pytest.raises(ValueError, match="kind 'sample_eval', 'frontier' is needed"):
        read_result(measured[0] / "results.json", "frontier")
