"""The best of several runs: one that went wrong is never it, and what was measured on different texts is never compared."""

import json
import math

import pytest
import result_folders as make

from flm.report.comparison import compared, comparison_table
from flm.report.files import read_results
from flm.report.kinds.metrics import read_metrics
from flm.report.kinds.training import Training
from flm.report.sections.losses import learning_table
from flm.report.sections.overview import card


def changed(path, change):
    content = json.loads(path.read_text())
    change(content)
    make.write(path, content)


def tiles(folder):
    return [(tile.name, getattr(tile.value, "mean", tile.value), tile.about) for tile in card(read_results([folder]))]


def bits(folder, name, value, corpus=make.CORPUS):
    """A likelihood of a model of that name, in bits per character."""

    def change(content):
        (entry,) = content["likelihood"]["corpora"].values()
        (values,) = entry["variants"].values()
        values["bits_per_character"], entry["corpus"] = value, corpus
        if math.isnan(value):
            values["nats_per_token"] = value

    make.likelihood(folder / name, name)
    changed(folder / name / "likelihood.json", change)


@pytest.mark.parametrize("names", ["ab", "ba"])
def test_a_run_that_diverged_is_not_the_best(tmp_path, names):
    bits(tmp_path, names[0], math.nan)
    bits(tmp_path, names[1], 2.5)
    assert [(tile[1], tile[2].split(",")[0]) for tile in tiles(tmp_path) if tile[0] == "bits per character"] == [
        (2.5, names[1])
    ]


def test_a_validation_that_was_nan_is_not_the_best(tmp_path):
    make.training(tmp_path / "run")
    first = tmp_path / "run" / "metrics" / "version_0" / "metrics.csv"
    rows = [line.split(",") for line in first.read_text().splitlines()]
    at = rows[0].index("val/denoising_ce_nats_per_token")
    for row in rows[1:]:
        row[at] = row[at] and "nan"
    first.write_text("".join(",".join(row) + "\n" for row in [*rows, [*["0"] * 2, "600", "", "7", *[""] * (len(rows[0]) - 5)]]))
    (row,) = learning_table(read_results([tmp_path]).of(Training)).rows
    assert row[3:] == (2.0, 2.0, 1000)


def test_bits_of_two_texts_are_two_numbers(tmp_path):
    bits(tmp_path, "prose", 2.5)
    bits(tmp_path, "letters", 1.0, "one letter, over and over")
    bits(tmp_path, "worse", 2.75)
    found = {tile[2].split(",")[0]: tile[1] for tile in tiles(tmp_path) if tile[0] == "bits per character"}
    assert found == {"prose": 2.5, "letters": 1.0}
    table = comparison_table(compared(read_results([tmp_path])))
    which = {row[0]: row[table.columns.index("which is")] for row in table.rows}
    assert which["prose"].endswith(make.CORPUS) and which["letters"].endswith("one letter, over and over")


def test_sweeps_on_two_texts_stand_apart(tmp_path):
    """A judge of 3-grams goes by one name whatever text it is made of."""
    for name, shift in (("a", 0.0), ("b", -2.0), ("c", -1.0)):
        make.frontier(tmp_path / name, name, shift, scorer="3-gram of validation text")
    changed(tmp_path / "b" / "frontier.json", lambda content: content["real"].update(source="one letter, over and over"))
    rows = {row.label: row for row in compared(read_results([tmp_path]))}
    assert rows["a"].quality and rows["c"].quality and not rows["b"].quality


def test_puzzles_of_two_kinds_have_a_number_each(tmp_path):
    share = {"mean": 0.0, "standard_error": 0.0, "count": 9}
    for name, source, mean in (("a", "4x4 Sudoku", 0.25), ("b", "mazes", 0.75), ("c", "4x4 Sudoku", 0.5)):
        valid = {"1": {"valid": share | {"mean": mean}, "evaluations": 1}}
        written = {"count": 9, "space_nats": 5.0, "by_steps": valid, "controls": {}}
        make.write(tmp_path / name / "solve_eval.json", make.head("solve_eval", name, source=source) | {"written": written})
    found = [tile[1:] for tile in tiles(tmp_path) if tile[0] == "valid from nothing, share"]
    assert [(value, about.split(", ")[0], about.split(", ")[-1]) for value, about in found] == [
        (0.5, "c", "4x4 Sudoku"),
        (0.75, "b", "mazes"),
    ]


def test_the_last_row_of_a_killed_run_is_read_whole_or_not_at_all(tmp_path):
    log = tmp_path / "metrics" / "version_0" / "metrics.csv"
    log.parent.mkdir(parents=True)
    whole = "epoch,step,train/loss_nats_per_token\n0,9,2.5\n0,19,-1.25\n"
    for cut in range(1, len("0,19,-1.25") + 2):
        log.write_text(whole[:-cut])
        assert read_metrics(tmp_path).series == {"train/loss_nats_per_token": ((10, 2.5),)}
    log.write_text(whole)
    assert read_metrics(tmp_path).series == {"train/loss_nats_per_token": ((10, 2.5), (20, -1.25))}
