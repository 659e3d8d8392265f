"""Files that lie, break off or are huge: one line that names the file, or a page of usual size; never a traceback or a hang."""

import json
import os
import tracemalloc

import pytest
import result_folders as make
from report_page import Page
from running import config_of

from flm.handed_in import MAX_BYTES
from flm.report.files import read_results
from flm.report.report import report
from flm.results.files import read_result

MAKERS = {
    "results.json": make.samples,
    "frontier.json": make.frontier,
    "film-8.json": lambda folder: make.film(folder, 8),
    "likelihood.json": make.likelihood,
    "run.json": make.training,
}


def made(inputs, out):
    report(config_of(out, "mode=report", f"report.inputs=[{inputs}]"))
    html = (out / "report.html").read_text(encoding="utf-8")
    return html, Page(html)


def refused(path, says=""):
    """The one line."""
    with pytest.raises(ValueError) as error:
        read_results([path])
    line = str(error.value)
    assert path.name in line or path.parent.name in line, line
    assert says in line and "\n" not in line and len(line) < 1200, line
    return line


@pytest.mark.parametrize("name", MAKERS)
def test_a_file_broken_off_anywhere_is_one_line(name, tmp_path):
    path = MAKERS[name](tmp_path / "in")
    whole = path.read_bytes()
    for share in (0.0, 0.1, 0.5, 0.9, 0.999):
        path.write_bytes(whole[: int(share * len(whole))])
        refused(path, "not a readable result file")


@pytest.mark.parametrize("name", MAKERS)
def test_any_value_replaced_by_another_is_a_line_or_a_page(name, tmp_path):
    """Every place in the file, in turn, holds something else: what was not checked is not shown."""
    path = MAKERS[name](tmp_path / "in")
    content = json.loads(path.read_text())
    lies = ("words", -1, 1e308, [], {}, None, True, {"mean": "x"}, 10**400)
    for index, place in enumerate(places(content)):
        for lie in lies[index % 3 :: 3]:
            path.write_text(json.dumps(replaced(content, place, lie)))
            try:
                read_results([path])
            except ValueError as error:
                assert path.name in str(error) and "\n" not in str(error), (place, lie, error)


def places(content, at=()):
    """Where in the file something stands; of long lists, the first two."""
    if isinstance(content, dict):
        for key, value in content.items():
            yield (*at, key)
            yield from places(value, (*at, key))
    elif isinstance(content, list):
        for index, value in enumerate(content[:2]):
            yield (*at, index)
            yield from places(value, (*at, index))


def replaced(content, place, value):
    if not place:
        return value
    copy = dict(content) if isinstance(content, dict) else list(content)
    copy[place[0]] = replaced(content[place[0]], place[1:], value)
    return copy


def test_numbers_that_a_page_shows_may_be_out_of_all_range(tmp_path):
    """Infinite and absurd numbers are results too: they stand in tables, and figures are drawn without them."""
    for value in (float("inf"), float("nan"), 1e308, -1e308):
        folder = tmp_path / str(value)
        path = make.samples(folder / "in")
        content = json.loads(path.read_text())
        entry = content["generated"]["1"]
        entry["metrics"]["entropy_nats"]["mean"] = value
        entry["metrics"]["gen_ppl"][0]["ppl"] = value
        entry["ms_per_sample"] = abs(value)
        make.write(path, content)
        likelihood = json.loads(make.likelihood(folder / "in").read_text())
        likelihood["likelihood"]["corpora"]["data"]["variants"]["network"]["perplexity"] = value
        make.write(folder / "in" / "likelihood.json", likelihood)
        _, page = made(folder / "in", folder / "out")
        assert len(page.tables["diversity"]) == 4
        shown = page.tables["likelihood"][0]["perplexity per token"]
        assert float(shown.replace("Infinity", "inf")) == value or value != value


def test_nesting_without_end(tmp_path):
    path = tmp_path / "results.json"
    for text in ("[" * 200_000, '{"a":' * 200_000, '{"format_version": 1, "kind": ' + "[" * 100_000 + "]" * 100_000 + "}"):
        path.write_text(text)
        refused(path, "not a readable result file")
    # deep, but not too deep to parse: as a value nobody looks at, and where a number belongs
    deep = "[" * 500 + "]" * 500
    good = json.loads(make.samples(tmp_path / "in").read_text())
    path = tmp_path / "in" / "results.json"
    path.write_text(json.dumps(good | {"unknown": "DEEP"}).replace('"DEEP"', deep))
    assert len(read_results([path]).sources) == 1
    path.write_text(json.dumps(good | {"generated": "DEEP"}).replace('"DEEP"', deep))
    refused(path, "generated")


def test_a_huge_file_is_not_read(tmp_path):
    path = make.samples(tmp_path / "in")
    with open(path, "r+b") as file:
        file.truncate(MAX_BYTES + 1)  # a hole: no room on the disk either
    tracemalloc.start()
    try:
        refused(path, "more than the")
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
    path = make.training(tmp_path / "run").parent / "metrics" / "version_1" / "metrics.csv"
    with open(path, "r+b") as file:
        file.truncate(1 << 40)
    refused(tmp_path / "run" / "run.json", "metrics.csv: not a log of metrics")


def test_texts_are_read_as_far_as_they_are_shown(tmp_path):
    path = make.samples(tmp_path / "in")
    texts = tmp_path / "in" / "samples-64.jsonl"
    with open(texts, "a") as file:
        file.write("".join('{"text": "one of many"}\n' for _ in range(200)))
        file.write("not JSON, but never looked at\n")
    assert len(read_results([path]).sources) == 1
    texts.write_text('{"text": "' + "x" * (2 << 20) + '"}\n')
    refused(path, "samples-64.jsonl: not lines of JSON")
    texts.write_text('{"text": "' + "x" * (1 << 19) + '"}\n')
    html, _ = made(path, tmp_path / "out")
    assert len(html) < 1 << 20  # cut


def test_long_films_and_long_names_make_no_long_page(tmp_path):
    path = make.film(tmp_path / "in", 64)
    content = json.loads(path.read_text())
    content["label"] = "long " * 190
    content["command"] = ["x" * 500_000]
    frame = content["frames"][0] | {"tokens": ["a"] * 2000, "probability": [0.5] * 2000, "given": [False] * 2000}
    content["frames"] = [frame | {"tau": index / 200} for index in range(200)]
    make.write(path, content)
    html, page = made(path, tmp_path / "out")
    assert len(page.spans) == 48 * 160 and len(html) < 2 << 20
    assert "tau 0.00" in page.rows("film") and "tau 0.99" in page.rows("film")
    content["frames"] = [frame | {"tokens": [], "probability": [], "given": []}] * 1001
    make.write(path, content)
    refused(path, "frames: List should have at most 1000 items")


def test_texts_elsewhere_are_not_shown(tmp_path):
    """A result names its files of texts; it cannot name other people's."""
    secret = tmp_path / "secret.jsonl"
    secret.write_text('{"text": "private"}\n')
    for name in ("../secret.jsonl", str(secret)):
        path = make.samples(tmp_path / "in")
        content = json.loads(path.read_text())
        content["generated"]["1"]["file"] = name
        make.write(path, content)
        refused(path, "not beside it")
    (tmp_path / "in" / "samples-1.jsonl").unlink()
    (tmp_path / "in" / "samples-1.jsonl").symlink_to(secret)
    content["generated"]["1"]["file"] = "samples-1.jsonl"
    make.write(path, content)
    refused(path, "not beside it")


def test_what_is_no_file_is_not_opened(tmp_path):
    """A pipe would be waited for, a folder and a device are no results."""
    os.mkfifo(tmp_path / "results.json")
    (tmp_path / "frontier.json").mkdir()
    (tmp_path / "likelihood.json").symlink_to("/dev/zero")
    for name in ("results.json", "likelihood.json"):
        refused(tmp_path / name, "it is not a file")
    with pytest.raises(ValueError, match="results.json|frontier.json|likelihood.json"):
        read_results([tmp_path])
    path = make.samples(tmp_path / "in")
    (tmp_path / "in" / "samples-1.jsonl").unlink()
    os.mkfifo(tmp_path / "in" / "samples-1.jsonl")
    refused(path, "samples-1.jsonl")


def test_half_a_surrogate_pair_is_no_text(tmp_path):
    path = make.samples(tmp_path / "in")
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"label": "\ud800"}))
    refused(path, "surrogate")
    path.write_text(json.dumps(content | {"label": "\\ud800 \U0001f600"}))  # spelled out, and a whole pair
    assert read_results([path]).runs == ["\\ud800 \U0001f600"]
    (tmp_path / "in" / "samples-1.jsonl").write_text('{"text": "\\ud800"}\n')
    made(path, tmp_path / "out")


def test_names_and_commands_are_text_on_the_page(tmp_path):
    sign = '"><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7*7 }}\x00\x1b[31m'
    for maker in (make.samples, make.frontier, make.likelihood, lambda folder: make.film(folder, 8)):
        path = maker(tmp_path / "in")
        content = json.loads(path.read_text())
        content |= {"label": sign, "algorithm": sign, "command": [sign], "git_revision": sign, "device": sign}
        content["checkpoint"]["sha256"] = sign
        if "frames" in content:
            content["frames"][0]["tokens"][0] = sign
        if "generated" in content:
            content["generated"]["1"]["metrics"][sign] = 1.0
            content["real"]["source"] = sign
        make.write(path, content)
    html, page = made(tmp_path / "in", tmp_path / "out")
    assert page.tags.count("script") == 1 and "img" not in page.tags
    assert "alert(1)" in page.rows("runs") and "{{ 7*7 }}" in page.rows("runs")
    assert "\x00" not in html and "\x1b" not in html
    tables = (tmp_path / "out" / "tables.md").read_text()
    assert "\x1b" not in tables


def test_logs_and_states_that_are_none(tmp_path):
    folder = make.training(tmp_path / "run").parent
    log = folder / "metrics" / "version_1" / "metrics.csv"
    whole = log.read_text()
    for text in ("a,step\nwords,words\n", "a,step\n1e999,1e999\n", "x" * 200_000 + "\n", ",".join("c" * 2000) + "\n", "\x00"):
        log.write_text(text)
        try:
            read_results([folder])
        except ValueError as error:
            assert "metrics.csv" in str(error) and "\n" not in str(error)
    log.write_text(whole[: len(whole) // 2])  # killed while it wrote
    try:
        read_results([folder])
    except ValueError as error:
        assert "metrics.csv" in str(error)
    log.write_text(whole)
    for status in ('{"status": "dreaming", "step": 1}', '{"status": "finished", "step": -5}', "[1]", "{"):
        (folder / "status.json").write_text(status)
        refused(folder / "run.json", "status.json")


def test_a_result_of_another_program(tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"format_version": {"a": [1] * 1000}, "versions": [1]}))
    assert len(refused(path)) < 300
    path.write_text(json.dumps({"format_version": 1, "kind": ["x" * 10_000]}))
    refused(path, "not a result this report can show")
    path.write_text(json.dumps([1] * 1000))
    with pytest.raises(ValueError, match="results.json: not a result file of this project"):
        read_result(path)
