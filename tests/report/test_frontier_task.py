"""Sweeps, end to end: what stands in frontier.json is held to direct computations on the samples that were written."""

import io
import json
import math
import random
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
from PIL import Image
from random_gpt2 import random_gpt2
from running import command, config_of, tiny, write_corpus

from flm.algos.flm import FLM
from flm.judges.gen_ppl import PublishedProtocol
from flm.judges.huggingface_scorer import HuggingFaceScorer
from flm.judges.ngram_judge import HeldOutNGrams
from flm.measures.diversity import TokenFrequencies, repetition, token_diversity
from flm.report.frontier.frontier import frontier, measured_on
from flm.results.files import read_result
from flm.tasks.assemble import data_module
from flm.tasks.check import check_config
from flm.tasks.sample_eval import sample_eval
from flm.tasks.scoring import Measures
from flm.tasks.train import train

COUNT = 6


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"), documents=30)


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    """Checkpoints by name: two FLMs of one tokenizer, a flow map."""
    folder, runs = tmp_path_factory.mktemp("trained"), {}
    for name, *overrides in (("short", "trainer.max_steps=5"), ("long",), ("map", "algo=fmlm", "trainer.max_steps=1")):
        train(config_of(folder / name, *tiny(corpus, "logger=none", *overrides)))
        runs[name] = folder / name / "checkpoints" / "last.ckpt"
    return runs


def sweep(folder, *overrides):
    size = [f"loader.eval_batch_size={COUNT // 2}", "sampling.num_sample_batches=2"]
    frontier(config_of(folder, "mode=frontier", "frontier.temperature=[1.0]", *size, *overrides))
    return read_result(folder / "frontier.json", "frontier")


@pytest.fixture(scope="module")
def swept(trained, tmp_path_factory):
    """Two checkpoints at 2 numbers of steps and 2 temperatures, judged by 3-grams."""
    folder = tmp_path_factory.mktemp("swept")
    named = f"frontier.checkpoints={{short: {trained['short']}, long: {trained['long']}}}"
    return folder, sweep(folder, named, "frontier.steps=[2,4]", "frontier.temperature=[0.3,1.0]", "frontier.entropies=[1.9]")


def rows_of(folder, point):
    return [json.loads(line)["tokens"] for line in (folder / point["file"]).read_text().split("\n") if line]


def test_every_setting_once_with_all_its_samples(swept):
    folder, content = swept
    settings = [tuple(point["settings"].values()) for point in content["points"]]
    assert settings == [(run, n, t) for run in ("short", "long") for n in (2, 4) for t in (0.3, 1.0)]
    assert [list(point["settings"]) for point in content["points"]] == [["run", "steps", "temperature"]] * 8
    for point in content["points"]:
        assert point["count"] == COUNT == len(rows_of(folder, point)) and point["ms_per_sample"] > 0
        assert point["network_evaluations"] == point["settings"]["steps"]
    assert len({json.dumps(rows_of(folder, point)) for point in content["points"]}) > 4


def test_points_are_measured_on_the_written_samples(swept, corpus, tmp_path):
    folder, content = swept
    data = data_module(config_of(tmp_path, *tiny(corpus)))
    valid = data.valid_blocks()
    blocks = [valid[i].tolist() for i in range(len(valid))]
    judge = HeldOutNGrams(blocks, data.vocab_size)
    for point in content["points"]:
        rows = rows_of(folder, point)
        assert point["entropy_nats"]["mean"] == pytest.approx(token_diversity(rows).entropy_nats.mean)
        assert point["distinct_2"] == pytest.approx(token_diversity(rows).distinct_2)
        assert point["log_ppl"]["mean"] == pytest.approx(judge.generated(rows).mean)
        assert point["log_ppl"]["standard_error"] == pytest.approx(judge.generated(rows).standard_error)
    chosen = [i * len(blocks) // COUNT for i in range(COUNT)]
    assert content["real"]["log_ppl"]["mean"] == pytest.approx(judge.real(chosen).mean)
    entropy = token_diversity([blocks[i] for i in chosen]).entropy_nats.mean
    assert content["real"]["entropy_nats"]["mean"] == pytest.approx(entropy)
    assert content["scorer"]["name"] == "3-gram of validation text"


def test_matched_rows_lie_on_the_line_between_two_temperatures(swept, trained, tmp_path):
    cold, warm = (
        point for point in swept[1]["points"] if (point["settings"]["run"], point["settings"]["steps"]) == ("long", 4)
    )
    (h0, y0), (h1, y1) = ((point["entropy_nats"]["mean"], point["log_ppl"]["mean"]) for point in (cold, warm))
    assert h0 != h1
    target = 0.75 * h0 + 0.25 * h1  # the same sweep again, now that its entropies are known
    again = [f"eval.checkpoint_path={trained['long']}", "frontier.steps=[4]", "frontier.temperature=[0.3,1.0]"]
    data, between, beyond = sweep(tmp_path, *again, f"frontier.entropies=[{target},9]")["matched"]
    assert between["log_ppl"] == pytest.approx(0.75 * y0 + 0.25 * y1) and between["closest_ppl"] is None
    assert between["temperature"] == pytest.approx(0.75 * 0.3 + 0.25 * 1.0)
    assert between["ppl"] == pytest.approx(math.exp(between["log_ppl"]))
    assert (beyond["target"], beyond["target_entropy_nats"], beyond["ppl"]) == ("9", 9.0, None)
    assert beyond["closest_entropy_nats"] == max(h0, h1)
    assert data["target"] == "data" and data["target_entropy_nats"] == swept[1]["real"]["entropy_nats"]["mean"]


def test_every_curve_is_matched_at_every_entropy(swept):
    assert [(row["run"], row["steps"], row["target"]) for row in swept[1]["matched"]] == [
        (run, steps, target) for run in ("short", "long") for steps in (2, 4) for target in ("data", "1.9")
    ]


def test_the_noise_is_that_of_sample_eval(swept, trained, tmp_path):
    """A point of the sweep can be looked at by sampling with its settings."""
    folder, content = swept
    point = next(p for p in content["points"] if p["settings"] == {"run": "long", "steps": 4, "temperature": 0.3})
    size = [f"loader.eval_batch_size={COUNT // 2}", "sampling.num_sample_batches=2", "sampling.steps=4"]
    run = ["mode=sample_eval", f"eval.checkpoint_path={trained['long']}", "sampling.temperature=0.3", "eval.real_data=null"]
    sample_eval(config_of(tmp_path, *run, *size))
    assert (tmp_path / "samples-4.jsonl").read_text() == (folder / point["file"]).read_text()


def test_who_is_ahead_is_said(swept):
    folder, content = swept
    raw = {one["steps"]: one["order"] for one in content["rankings"] if one["by"].startswith("raw")}
    for steps in (2, 4):
        plain = {
            p["settings"]["run"]: p["log_ppl"]["mean"]
            for p in content["points"]
            if p["settings"]["temperature"] == 1.0 and p["settings"]["steps"] == steps
        }
        assert raw[str(steps)] == sorted(plain, key=plain.get)
    text = (folder / "frontier.md").read_text()
    assert f"- 2 steps, by raw perplexity, plain policy: {' < '.join(raw['2'])}." in text


def test_files_for_people(swept):
    folder, content = swept
    text = (folder / "frontier.md").read_text()
    for point in content["points"]:
        assert f"| {point['entropy_nats']['mean']:.3f} | {point['log_ppl']['mean']:.3f} |" in text
    for row in content["matched"]:
        assert (f"| {row['ppl']:.2f} |" if row["ppl"] else f"| {row['closest_ppl']:.2f} at entropy") in text
    image = Image.open(io.BytesIO((folder / "frontier.png").read_bytes())).convert("RGB")
    colours = {colour for _, colour in image.getcolors(1 << 24)}
    assert {(0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)} <= colours  # one for each checkpoint
    assert not list(folder.glob(".*draft"))
    assert max(image.size) < 1600 and (folder / "frontier.png").stat().st_size < 100_000


def test_file_names_its_checkpoints(swept, trained):
    content = swept[1]
    assert content["checkpoint"] is None and set(content["checkpoints"]) == {"short", "long"}
    for label, entry in content["checkpoints"].items():
        assert entry["path"] == str(trained[label]) and len(entry["sha256"]) == 64
    assert [content["checkpoints"][label]["step"] for label in ("short", "long")] == [5, 20]
    assert content["label"] == "short, long"


def test_each_sampler_sweeps_what_it_has(trained, tmp_path):
    named = f"frontier.checkpoints={{flow: {trained['long']}, map: {trained['map']}}}"
    content = sweep(tmp_path, named, "frontier.steps=3", "++frontier.sweep={churn: [0, 0.5], gamma: [0, 1]}")
    settings = [point["settings"] for point in content["points"]]
    flow = [{"run": "flow", "steps": 3, "temperature": 1.0, "churn": churn} for churn in (0.0, 0.5)]
    jumps = [{"run": "map", "steps": 3, "temperature": 1.0, "gamma": gamma} for gamma in (0.0, 1.0)]
    assert settings == flow + jumps
    first, second = content["matched"]
    assert "closest_churn" in first and "closest_gamma" in second  # each is interpolated along what was swept


def test_any_option_is_swept_over_several_seeds_beside_texts_of_no_model(trained, tmp_path):
    """top_k=1 collapses: it is flagged, as are periodic texts; errors are those of the seeds' means."""
    named = f"frontier.checkpoints={{flow: {trained['long']}, map: {trained['map']}}}"
    axes = "++frontier.sweep={top_k: [null, 1], solver: [euler, bridge], churn: [0, 1]}"
    content = sweep(tmp_path, named, "frontier.steps=3", axes, "frontier.seeds=2")
    flow = [point for point in content["points"] if point["settings"]["run"] == "flow"]
    assert [tuple(list(point["settings"].items())[3:]) for point in flow] == [
        (("top_k", k), ("solver", solver), *more)
        for solver, mores in (("euler", [(("churn", 0),), (("churn", 1),)]), ("bridge", [()]))
        for k in (None, 1)
        for more in mores
    ]  # churn is an option of one solver
    assert {point["settings"].get("solver") for point in content["points"] if point["settings"]["run"] == "map"} == {"bridge"}
    for point in content["points"]:
        rows = rows_of(tmp_path, point)
        means = [token_diversity(part).entropy_nats.mean for part in (rows[:COUNT], rows[COUNT:])]
        assert len(rows) == 2 * COUNT and point["entropy_nats"]["mean"] == pytest.approx(sum(means) / 2)
        assert point["entropy_nats"]["standard_error"] == pytest.approx(abs(means[0] - means[1]) / 2)
        assert point["rep_4"]["mean"] == pytest.approx(sum(repetition(row, 4) for row in rows) / len(rows))
        rep, level = point["rep_4"], content["real"]["rep_4"]
        if rep["mean"] > level["mean"] + 2 * math.hypot(rep["standard_error"], level["standard_error"]):
            assert point["repeats_more"]
    assert any(point["repeats_more"] for point in content["points"])
    nulls = {(point["settings"]["run"], point["settings"]["size"]): point for point in content["nulls"]}
    assert {name for name, _ in nulls} >= {"shuffled text", "unigram draws", "periodic tokens", "repeated passage"}
    assert nulls["shuffled text", 32]["entropy_nats"]["mean"] == pytest.approx(content["real"]["entropy_nats"]["mean"])
    assert nulls["periodic tokens", 4]["repeats_more"] and not nulls["shuffled text", 32]["repeats_more"]
    assert {row["run"] for row in content["nulls_matched"]} == {name for name, _ in nulls}
    text = (tmp_path / "frontier.md").read_text()
    assert "## No model" in text and "| periodic tokens | 4 | x |" in text


def test_more_seeds_of_the_same_are_the_same():
    """What depends on how many samples there are stands beside that of real text and of no model, of one seed's number."""
    draws = random.Random(0)
    texts, held_out = ([[draws.randrange(12) for _ in range(24)] for _ in range(count)] for count in (8, 6))
    ngrams, frequencies = HeldOutNGrams(held_out, 40), TokenFrequencies(held_out)
    measured = Measures([], {}, ngrams, None, frequencies, None)
    spelled = [" ".join(map(str, row)) for row in texts]
    once, thrice = (measured_on(texts * n, spelled * n, measured, n, "x") for n in (1, 3))
    for name in ("tokens_used", "token_js_bits", "distinct_2"):
        assert thrice[name] == pytest.approx(once[name]), name
    for name in ("entropy_nats", "log_ppl", "rep_2", "rep_4", "self_bleu_4"):
        assert thrice[name]["mean"] == pytest.approx(once[name]["mean"]), name
        assert thrice[name]["standard_error"] == pytest.approx(0, abs=1e-12) and thrice[name]["count"] == 3
    halves = [measured_on(texts[part], spelled[part], measured, 1, "x") for part in (slice(4), slice(4, 8))]
    both = measured_on(texts, spelled, measured, 2, "x")
    assert both["distinct_2"] == pytest.approx(sum(half["distinct_2"] for half in halves) / 2) != once["distinct_2"]
    assert both["token_js_bits"] == pytest.approx(sum(half["token_js_bits"] for half in halves) / 2)


def test_mauve_is_of_every_setting_and_of_texts_of_no_model(trained, tmp_path, monkeypatch):
    """A stand-in for the package's score: the share of texts that are unlike all others, times the characters they use."""

    def score(texts):
        return len(set(texts)) / len(texts) * len(set("".join(texts)))

    class Different:
        def __init__(self, real, *model):
            assert len(real) >= COUNT

        def score(self, texts):
            return score(texts)

    package = ModuleType("mauve")
    package.__spec__ = ModuleSpec("mauve", None)
    monkeypatch.setitem(sys.modules, "mauve", package)
    monkeypatch.setattr("flm.tasks.scoring.Mauve", Different)
    one = [
        f"eval.checkpoint_path={trained['long']}",
        "frontier.steps=2",
        "++frontier.sweep={top_k: [null, 1]}",
        "eval.mauve=true",
    ]
    content = sweep(tmp_path, *one)
    assert len(content["points"]) == 2
    for point in content["points"]:
        texts = [json.loads(line)["text"] for line in (tmp_path / point["file"]).read_text().split("\n") if line]
        assert point["mauve"] == score(texts)
    nulls = {point["settings"]["run"]: point["mauve"] for point in content["nulls"]}
    assert nulls["periodic tokens"] < nulls["shuffled text"] / 2  # one text, over and over
    settings, no_model = (tmp_path / "frontier.md").read_text().split("## No model")
    assert "| MAUVE |" in settings and f"| {nulls['shuffled text']:.3f} |" in no_model


def test_a_scorer_takes_the_place_of_the_3_grams(trained, tmp_path, monkeypatch):
    generate, steps_of_calls = FLM.generate, []

    def counted(self, canvas, steps, *arguments, **options):
        steps_of_calls.append(steps)
        return generate(self, canvas, steps, *arguments, **options)

    monkeypatch.setattr(FLM, "generate", counted)
    folder = random_gpt2(tmp_path / "gpt2")
    one = [f"eval.checkpoint_path={trained['long']}", f"eval.gen_ppl_eval_model_name_or_path={folder}", "frontier.steps=2"]
    content = sweep(tmp_path / "run", *one, "eval.real_data=null")
    assert steps_of_calls == [1, 2, 2]  # one to warm up, and two batches
    assert content["scorer"]["name"] == str(folder) and content["real"] is None
    assert content["matched"] == [] and content["label"] == "long" and content["checkpoint"]["step"] == 20
    (point,) = content["points"]
    texts = [json.loads(line)["text"] for line in (tmp_path / "run" / point["file"]).read_text().split("\n") if line]
    expected = HuggingFaceScorer(folder).score(texts, PublishedProtocol(32))
    assert point["log_ppl"]["mean"] == pytest.approx(expected.nats_per_token, rel=1e-4)


def test_a_sampler_whose_steps_the_canvas_fixes_is_one_point(trained, corpus, tmp_path, capfd):
    train(config_of(tmp_path / "ar", *tiny(corpus, "logger=none", "algo=ar", "trainer.max_steps=1")))
    named = f"frontier.checkpoints={{flow: {trained['long']}, ar: {tmp_path}/ar/checkpoints/last.ckpt}}"
    content = sweep(tmp_path / "run", named, "frontier.steps=[1,3]", "frontier.entropies=2")
    settings = [(point["settings"]["run"], point["settings"]["steps"]) for point in content["points"]]
    assert settings == [("flow", 1), ("flow", 3), ("ar", 32)]
    assert "AR takes one step a position: 32 steps, not 1, 3\n" in capfd.readouterr().out
    assert {row["target"] for row in content["matched"]} == {"data", "2"}  # a number alone is a list of one


def test_mistakes(trained, corpus, tmp_path, monkeypatch, capfd):
    other = tmp_path / "other"
    train(config_of(other, *tiny(corpus, "logger=none", "trainer.max_steps=1"), "tokenizer=bytes"))
    longer = tmp_path / "longer"
    train(config_of(longer, *tiny(corpus, "logger=none", "trainer.max_steps=1"), "model.length=48"))
    one = f"eval.checkpoint_path={trained['long']}"

    def both(folder):
        return f"frontier.checkpoints={{a: {trained['long']}, b: {folder}/checkpoints/last.ckpt}}"

    cases = {
        (): "eval.checkpoint_path",
        (
            one,
            "++frontier.sweep={gamma: [0, 1]}",
        ): "frontier.sweep.gamma: no sampler here takes it (frontier.sweep.gamma: FLM with "
        "solver=euler takes no gamma; it takes churn, churn_noise",
        (one, "++frontier.sweep={top_k: [4, 0]}"): "frontier.sweep.top_k must be a whole number of at least 1, or null, not 0",
        (one, "++frontier.sweep={top_k: [4, 4]}"): "frontier.sweep.top_k must be a value or several different ones",
        (one, "++frontier.sweep={churn: [0, 1], solver: [bridge]}"): "frontier.sweep.churn",
        (one, "frontier.temperature=[]"): "frontier.temperature",
        (one, "frontier.temperature=[1,1]"): "frontier.temperature",
        (one, "frontier.temperature=[1,hot]"): "frontier.temperature",
        (one, "frontier.temperature=[1,0]"): "frontier.temperature must be a number above 0",
        (one, "frontier.steps=[0]"): "frontier.steps",
        (one, "frontier.entropies=[abc]"): "frontier.entropies",
        (one, "frontier.entropies=abc"): "frontier.entropies",
        (one, "frontier.entropies=[nan]"): "frontier.entropies",
        (one, "eval.real_data=null"): "needs a scorer",
        (both(other),): "different tokenizers",
        (both(longer),): "sampling.length",
        (both(tmp_path / "nowhere"),): "nowhere",
        (one, "frontier.checkpoints=[x.ckpt]"): "frontier.checkpoints",
    }
    run = ["mode=frontier", "loader.eval_batch_size=2"]
    for overrides, named in cases.items():
        with pytest.raises(ValueError) as error:
            config = config_of(tmp_path / "run", *run, *overrides)
            check_config(config)
            frontier(config)
        assert named in str(error.value) and "\n" not in str(error.value), overrides
    assert command(monkeypatch, *run, f"hydra.run.dir={tmp_path / 'run'}", one, "frontier.stps=[1]") == 1
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "stps" in lines[0]
    assert not list((tmp_path / "run").rglob("*.json*"))
