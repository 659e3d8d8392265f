"""mode=report on folders of result files: the numbers are on the page, and the page stands alone."""

import base64
import hashlib
import json
import re

import pytest
import result_folders as make
from report_page import Page
from running import command, config_of

from flm.measures.estimate import Estimate
from flm.report.report import ReportOptions, report
from flm.report.tables import plain_columns
from flm.results.kinds import Table
from flm.schema import check

SECTIONS = ("runs", "learning", "frontier", "diversity", "film", "samples", "cross-entropy", "likelihood", "throughput")


def run(folder, *inputs, **keys):
    overrides = [f"report.{key}={value}" for key, value in keys.items()]
    given = ",".join(map(str, inputs))
    report(config_of(folder, "mode=report", f"report.inputs=[{given}]", *overrides))
    html = (folder / "report.html").read_text(encoding="utf-8")
    return html, Page(html)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = make.everything(tmp_path_factory.mktemp("results"))
    out = tmp_path_factory.mktemp("report")
    return out, *run(out, root)


def test_every_section_shows_its_numbers(made):
    _, _, page = made
    expected = {
        "runs": ["nano", "FLM", "pydoc", make.CORPUS, "1,000", "4,321", make.SHA[:12], "0123456789-dirty", "mode=sample_eval"],
        "learning": ["2.500", "2.000", "1,000"],
        "frontier": ["87.65", "4.473", "0.0321", "0.931", "ppl 123.4 at 3.98 nats"],
        "diversity": "2.871 3.618 3.944 4.117 0.313 0.668 0.712 31.40 3.333 412.5 96.35 45.67".split(),
        "cross-entropy": ["3.758", "4.627", "0.198"],
        "likelihood": ["2.354 \u00b1 0.013", "0.00470", "10.53", "2.051", "2.053", "variational upper bound", "t 0.300 to"],
        "throughput": ["3,468", "11.25", "720.0"],
        "samples": [make.ONE_STEP, make.MANY_STEPS.replace("\n", " "), make.REAL_TEXT, "1 step", "64 steps", "real text"],
        "film": ["Return a new list of the items\u21b5in the sequence", "tau 0.00", "tau 0.92", "<b>&amp."],
    }
    assert tuple(name for name in page.text if name in SECTIONS) == SECTIONS
    for section, numbers in expected.items():
        for number in numbers:
            assert number in page.rows(section), (section, number)
    assert "Never shown" not in page.rows("samples")  # neither fewest nor most steps
    assert "4.488" not in page.rows("cross-entropy")  # of the validation before the last


def test_the_page_stands_alone_and_escapes_what_models_write(made):
    out, html, page = made
    assert page.tags.count("script") == 1 and "<script>alert(1)</script>" in page.rows("samples")
    assert all(value.startswith(("data:", "#")) for value in page.loads)
    assert all(value[1:] in page.ids for value in page.loads if value.startswith("#") and len(value) > 1)
    assert len(page.ids) == len(set(page.ids))  # figures stand in one page and share no names
    assert not re.search(r"url\((?!#)|@import", html)
    assert set(re.findall(r"https?://[^\"' <]*", html)) == {"http://www.w3.org/1999/xlink", "http://www.w3.org/2000/svg"}
    files = {path.stem: path.read_bytes() for path in (out / "figures").glob("*.png")}
    names = {"learning", "generation", "frontier", "diversity", "film_strip", "ce_by_tau", "likelihood", "throughput"}
    assert set(files) == names and all(len(png) < 200_000 for png in files.values())
    assert len(page.pictures) == len(names) - 1  # the film is text on the page


def test_only_the_pages_own_script_may_run(made):
    _, html, _ = made
    script = re.search(r"<script>(.*?)</script>", html, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in html and "default-src 'none'" in html


def test_tables_hold_the_numbers_of_the_files_to_the_last_digit(made):
    _, _, page = made
    (likelihood,) = page.tables["likelihood"]
    assert (float(likelihood["nats per token"]), float(likelihood["bits per byte"])) == (2.354, 2.0512)
    assert float(page.errors["likelihood"][0]["nats per token"]) == 0.013
    assert [float(row["entropy, nats"]) for row in page.tables["diversity"]] == [2.871, 3.618, 3.944, 4.117]
    assert [row["steps"] for row in page.tables["diversity"]] == ["1", "8", "64", "real text"]
    reached, missed = page.tables["frontier"]
    assert (reached["steps"], float(reached["ppl"]), float(reached["temperature"])) == ("64", 87.65, 0.9312)
    assert missed["ppl"] == "" and missed["closest reached"] == "ppl 123.4 at 3.98 nats"
    (learned,) = page.tables["learning"]
    assert [float(learned[key]) for key in ("last training loss", "last validation", "best validation", "at step")] == [
        2.5, 2, 2, 1000,
    ]  # fmt: skip


def test_the_card_on_top_has_the_numbers_that_matter(made):
    _, _, page = made
    tiles = {name: (value, about) for name, value, about in page.tiles}
    assert tiles["training"][0] == "finished" and "1,000 of 1,000 steps" in tiles["training"][1]
    assert float(tiles["bits per character"][0]) == 2.0533 and "upper bound" in tiles["bits per character"][1]
    assert float(tiles["perplexity at the entropy of real text"][0]) == 87.65
    assert "64 steps" in tiles["perplexity at the entropy of real text"][1]
    assert float(tiles["milliseconds per sample"][0]) == 11.25


def test_film_spans_are_shaded_by_probability(made):
    _, _, page = made
    by_probability = dict(page.spans)
    assert by_probability["1.00"] != by_probability["0.95"] != by_probability["0.08"]
    assert len(page.spans) == 13 * 29  # one moment beside twelve, 29 tokens each


@pytest.mark.parametrize("kind", ["samples", "frontier", "likelihood", "training", "film"])
def test_one_kind_of_result_alone_is_enough(kind, tmp_path):
    source = make.film(tmp_path / "in", 8) if kind == "film" else getattr(make, kind)(tmp_path / "in")
    html, page = run(tmp_path / "out", source.parent)
    filled = {
        "samples": {"diversity", "samples", "throughput"},
        "frontier": {"frontier"},
        "likelihood": {"likelihood"},
        "training": {"learning", "cross-entropy", "throughput"},
        "film": {"film"},
    }[kind]
    checkpoint = "eval.checkpoint_path=RUN/checkpoints/last.ckpt"
    commands = {
        "learning": "python main.py mode=report report.inputs=[RUN,...]",
        "frontier": f"python main.py mode=frontier {checkpoint}",
        "diversity": f"python main.py mode=sample_eval {checkpoint}",
        "film": f"python main.py mode=sample_eval {checkpoint} sampling.film=true",
        "samples": f"python main.py mode=sample_eval {checkpoint}",
        "cross-entropy": "python main.py mode=report report.inputs=[RUN,...]",
        "likelihood": f"python main.py mode=ppl_eval {checkpoint}",
        "throughput": "python main.py mode=train",
    }
    for section in commands:
        assert ("python main.py mode=" in page.rows(section)) == (section not in filled), section
    advice = re.findall(r'<p class="missing">[^<]*: <code>(.*?)</code></p>', html)
    assert advice == [command for section, command in commands.items() if section not in filled]


def test_real_text_samples_and_metrics_may_be_missing(tmp_path):
    path = make.samples(tmp_path / "in")
    content = json.loads(path.read_text())
    content["real"] = None
    content["generated"]["1"]["metrics"] |= {"self_bleu_4": None, "ngram_ce_nats": None, "gen_ppl": []}
    content["generated"]["8"]["metrics"]["gen_ppl"][0]["ppl"] = None
    make.write(path, content)
    (path.parent / "samples-64.jsonl").unlink()
    _, page = run(tmp_path / "out", path)
    assert make.ONE_STEP in page.rows("samples") and "not beside the result" in page.rows("samples")
    assert page.rows("diversity").count("real text") == 1  # in the explanation, and in no row
    assert "\u2013" in page.rows("diversity")


def test_a_picture_says_which_perplexity_it_shows(tmp_path):
    make.frontier(tmp_path / "a", scorer="3-gram of validation text")
    html, _ = run(tmp_path / "out", tmp_path / "a")
    assert 'aria-label="log perplexity under 3-grams against entropy, scored by 3-gram of validation text, published"' in html
    make.frontier(tmp_path / "a")
    assert (
        'aria-label="log generative perplexity against entropy, scored by gpt2-large, '
        in run(tmp_path / "out", tmp_path / "a")[0]
    )


def test_scorers_are_not_mixed_in_one_figure(tmp_path):
    make.frontier(tmp_path / "in" / "a")
    make.frontier(tmp_path / "in" / "b", label="other", scorer="ar:runs/ar/checkpoints/last.ckpt")
    _, page = run(tmp_path / "out", tmp_path / "in")
    assert {path.stem for path in (tmp_path / "out" / "figures").glob("*.png")} == {"comparison", "frontier", "frontier_2"}
    assert "Scored by gpt2-large" in page.rows("frontier") and "Scored by ar:runs/ar" in page.rows("frontier")


def test_runs_with_one_label_are_told_apart_by_folder(tmp_path):
    make.samples(tmp_path / "in" / "cold")
    make.samples(tmp_path / "in" / "hot")
    _, page = run(tmp_path / "out", tmp_path / "in" / "cold", tmp_path / "in" / "hot", tmp_path / "in" / "hot" / "results.json")
    assert "nano (cold)" in page.rows("diversity") and "nano (hot)" in page.rows("diversity")
    assert "2 result files of 2 runs" in page.text[None]  # one of them was named twice


def test_sweeps_of_one_label_and_of_several_checkpoints_are_told_apart(tmp_path):
    for folder in ("a", "b"):
        make.frontier(tmp_path / "in" / folder)
    both = json.loads(make.frontier(tmp_path / "in" / "c", label="first").read_text())
    other = json.loads(make.frontier(tmp_path / "in" / "d", label="second").read_text())
    entry = {"path": "x.ckpt", "sha256": "ab" * 32, "step": 77, "algorithm": "FMLM"}
    both |= {"label": "first, second", "checkpoint": None, "points": both["points"] + other["points"]}
    both |= {"checkpoints": {"first": entry, "second": entry | {"step": 88}}, "matched": both["matched"] + other["matched"]}
    make.write(tmp_path / "in" / "c" / "frontier.json", both)
    (tmp_path / "in" / "d" / "frontier.json").unlink()
    _, page = run(tmp_path / "out", tmp_path / "in")
    for label in ("nano (a)", "nano (b)", "first", "second"):
        assert page.rows("frontier").count(label) >= 2, label
    assert "3 result files of 4 runs" in page.text[None]
    assert re.search(r"first ?FMLM.*77.*second ?FMLM.*88", page.rows("runs"))


def test_texts_and_films_are_cut(tmp_path):
    make.samples(tmp_path / "in")
    make.film(tmp_path / "in", 64)
    _, page = run(tmp_path / "out", tmp_path / "in", samples=1, characters=20, film_tokens=5)
    assert "Return a new list of \u2026" in page.rows("samples") and "Open a file" not in page.rows("samples")
    assert len(page.spans) == 12 * 5 and "The first 5 of 29 tokens." in page.rows("film")


def test_bad_input_is_one_line_that_names_the_file(tmp_path, monkeypatch, capfd):
    good = make.samples(tmp_path / "good")
    content = json.loads(good.read_text())
    bad = tmp_path / "bad"
    cases = {
        "results.json": ("{not json", "not a readable result file"),
        "frontier.json": (json.dumps(content | {"format_version": 2}), "result format 2"),
        "film-8.json": (json.dumps([1]), "names no format_version"),
        "likelihood.json": (json.dumps(content | {"kind": "dream"}), "'dream'"),
        "film-4.json": (json.dumps(content | {"kind": "film", "steps": 4}), "frames: Field required"),
        "film-2.json": (json.dumps(content | {"kind": "film", "steps": 2, "frames": [{"tau": 0, "tokens": ["a"]}]}), "probab"),
    }
    bad.mkdir()
    for name, (text, says) in cases.items():
        (bad / name).write_text(text)
        with pytest.raises(ValueError, match=name) as error:
            run(tmp_path / "out", bad / name)
        assert says in str(error.value) and "\n" not in str(error.value)
    make.samples(tmp_path / "lines")
    (tmp_path / "lines" / "samples-1.jsonl").write_text('{"text": "a"}\n{"no": 1}\n')
    with pytest.raises(ValueError, match="samples-1.jsonl"):
        run(tmp_path / "out", tmp_path / "lines")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no result files under .*empty"):
        run(tmp_path / "out", good, tmp_path / "empty")
    with pytest.raises(ValueError, match="nowhere does not exist"):
        run(tmp_path / "out", tmp_path / "nowhere")
    with pytest.raises(ValueError, match="report.samples must be a whole number of at least 1"):
        check(ReportOptions, {"samples": 0}, "report")
    assert not (tmp_path / "out" / "report.html").exists()
    assert command(monkeypatch, "mode=report", f"hydra.run.dir={tmp_path / 'line'}") == 1
    assert "error: report.inputs is not set" in capfd.readouterr().err


def test_the_command_line_makes_a_report(tmp_path, monkeypatch):
    make.likelihood(tmp_path / "in")
    assert command(monkeypatch, "mode=report", f"report.inputs=[{tmp_path / 'in'}]", f"hydra.run.dir={tmp_path / 'out'}") == 0
    assert "mode=report" in Page((tmp_path / "out" / "report.html").read_text()).rows("throughput")  # its own provenance


def test_estimates_become_two_plain_columns():
    table = Table("x", ("run", "nats"), (("a", Estimate(1.5, 0.25, 9)), ("b", Estimate(2.5, None, 1)), ("c", None)))
    columns, rows = plain_columns(table)
    assert columns == ["run", "nats", "nats, standard error"]
    assert rows == [["a", 1.5, 0.25], ["b", 2.5, None], ["c", None, None]]


def test_wandb_offline_gets_the_same_figures_and_tables(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    make.likelihood(tmp_path / "in")
    report(config_of(tmp_path / "out", "mode=report", "logger=wandb", f"report.inputs=[{tmp_path / 'in'}]"))
    (offline,) = (tmp_path / "out" / "wandb").glob("offline-run-*")
    media = offline / "files" / "media"
    (image,) = media.rglob("*.png")
    assert image.read_bytes() == (tmp_path / "out" / "figures" / "likelihood.png").read_bytes()
    tables = {path.name.partition("_")[0]: json.loads(path.read_text()) for path in media.rglob("*.table.json")}
    assert set(tables) == {"runs", "likelihood", "contribution"}
    row = dict(zip(tables["likelihood"]["columns"], tables["likelihood"]["data"][0], strict=True))
    assert (row["run"], row["nats per token"], row["nats per token, standard error"]) == ("nano", 2.354, 0.013)
