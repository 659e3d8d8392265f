"""Seeds of one model make one row, one colour and one line, of means; what else differs keeps runs apart."""

import json
import math
import warnings

import numpy as np
import pytest
import result_folders as make

from flm.report.comparison import compared, comparison_table
from flm.report.figures.drawing import Art
from flm.report.figures.losses import learning_figure
from flm.report.figures.plotting import INK, png, styled
from flm.report.files import read_results
from flm.report.kinds.training import Training
from flm.report.models import compared_over_seeds, models_of, plots_over_seeds
from flm.results.kinds import Line, Plot

SEEDS = (1, 2, 3)


def trained(path, seed, method, teacher=None, lr=0.003):
    """Says of a result file that its checkpoint lies in /x/seed<seed>/<method>, with its teacher beside it."""
    content = json.loads(path.read_text())
    config = {"algo": {"_target_": method}, "optim": {"lr": lr}, "seed": seed, "run_dir": f"/x/seed{seed}/{method}"}
    if teacher is not None:
        config["algo"]["teacher_path"] = f"{teacher}/checkpoints/last.ckpt"
    content["checkpoint"] = {"path": f"/x/seed{seed}/{method}/checkpoints/last.ckpt", "sha256": None, "config": config}
    return path, content


def sweep(folder, seed, method, ppl=None, **about):
    path, content = trained(make.frontier(folder / f"{seed}{method}", method), seed, method, **about)
    if ppl is not None:
        content["matched"][0] |= {"ppl": ppl, "log_ppl": math.log(ppl)}
    make.write(path, content)


def test_a_row_has_the_mean_of_its_seeds(tmp_path):
    ppl, bits = {1: 80.0, 2: 90.0, 3: 75.0}, {1: 2.0, 2: 2.3, 3: 2.6}
    for seed in SEEDS:
        sweep(tmp_path, seed, "fmlm", ppl[seed], teacher=f"/x/seed{seed}/flm")
        path, content = trained(make.likelihood(tmp_path / f"{seed}bound", "fmlm"), seed, "fmlm", f"/x/seed{seed}/flm")
        for variant in content["likelihood"]["corpora"]["data"]["variants"].values():
            variant |= {"bits_per_character": bits[seed], "nats_per_token": bits[seed]}
        make.write(path, content)
    sweep(tmp_path, 1, "ar")
    results = read_results([tmp_path])
    models = models_of(results)
    assert {name: len(labels) for name, labels in models.items()} == {"ar": 1, "fmlm": 3}
    alone, several = sorted(compared_over_seeds(compared(results), models), key=lambda row: row.label)
    assert alone.seeds == 1 and alone.quality[64].ppl_error is None and alone == compared(results)[0]
    logs = np.log(list(ppl.values()))
    assert several.seeds == 3 and several.ms_per_sample == {8: 80.0, 64: 640.0}
    assert several.quality[64].ppl == pytest.approx(math.exp(logs.mean()), rel=1e-12)
    assert several.quality[64].ppl_error == pytest.approx(several.quality[64].ppl * logs.std(ddof=1) / math.sqrt(3), rel=1e-12)
    assert several.quality[64].reached and not several.quality[8].reached
    table = comparison_table([alone, several])
    row = dict(zip(table.columns, table.rows[1], strict=True))
    values = np.array(list(bits.values()))
    assert (row["run"], row["seeds"]) == ("fmlm", 3)
    assert row["bits per character"].mean == pytest.approx(2.3, rel=1e-12)
    assert row["bits per character"].standard_error == pytest.approx(values.std(ddof=1) / math.sqrt(3), rel=1e-12)
    assert row["ppl, 64 steps"].standard_error == several.quality[64].ppl_error


def test_a_perplexity_that_one_seed_missed_is_marked(tmp_path):
    for seed in SEEDS:
        sweep(tmp_path, seed, "flm", 80.0)
    path = tmp_path / "2flm" / "frontier.json"
    content = json.loads(path.read_text())
    content["matched"][0] |= {"ppl": None, "log_ppl": None, "closest_ppl": 80.0, "closest_entropy_nats": 4.0}
    make.write(path, content)
    results = read_results([tmp_path])
    (row,) = compared_over_seeds(compared(results), models_of(results))
    assert not row.quality[64].reached and row.quality[64].entropy_nats == pytest.approx((2 * 4.117 + 4.0) / 3)


def test_what_differs_in_more_than_the_seed_is_not_one_model(tmp_path):
    for seed in SEEDS:
        sweep(tmp_path / "a", seed, "flm", lr=0.001)
        sweep(tmp_path / "b", seed, "flm", lr=0.002)
    models = models_of(read_results([tmp_path]))
    assert {name: len(labels) for name, labels in models.items()} == {"lr=0.001": 3, "lr=0.002": 3}
    for seed in SEEDS:  # a teacher beside each, however it is written, is no difference; another one is
        teachers = {1: "/x/seed1/flm", 2: "x/seed2/flm", 3: "/x/seed1/flm"}
        sweep(tmp_path / "c", seed, "fmlm", teacher=teachers[seed])
    assert [len(labels) for labels in models_of(read_results([tmp_path / "c"])).values()] == [2, 1]
    for name, seed in (("flm1", 1), ("flm2", 1), ("flm3", 2)):  # one seed twice: what differs is not said
        sweep(tmp_path / "d", 1, name)
        path, content = trained(tmp_path / "d" / f"1{name}" / "frontier.json", seed, "flm")
        make.write(path, content)
    assert all(len(labels) == 1 for labels in models_of(read_results([tmp_path / "d"])).values())


def test_seeds_share_a_colour_and_a_line(tmp_path):
    for seed in SEEDS:
        sweep(tmp_path, seed, "flm")
        sweep(tmp_path, seed, "mdlm")
        for steps in (1, 8):  # several files of one kind are of one run all the same
            path, content = trained(make.film(tmp_path / f"{seed}flm", steps, "flm"), seed, "flm")
            make.write(path, content)
    models = models_of(read_results([tmp_path]))
    assert {name: len(labels) for name, labels in models.items()} == {"flm": 3, "mdlm": 3}
    colours = Art.of(models).colours
    assert len(set(colours.values())) == 2
    assert all(colours[label] == colours[name] for name, labels in models.items() for label in labels)

    def plot(y, x=(1.0, 16.0)):
        ideal = Line("ideal", (1.0, 2.0), (0.0, 1.0), is_reference=True)
        return Plot("solved", "solved", "evaluations", "share", (Line("", x, y), ideal))

    three = list(zip(models["flm"], (plot((0.1, 0.5)), plot((0.2, 0.7)), plot((0.6, 0.9))), strict=True))
    ((name, found),) = plots_over_seeds(three, models)
    assert name == "flm" and found.lines[0].x == (1.0, 16.0) and found.lines[0].y == pytest.approx((0.3, 0.7))
    assert found.lines[1] == plot(()).lines[1]
    odd = [*three[:2], (three[2][0], plot((0.6,), (1.0,)))]
    assert plots_over_seeds(odd, models) == odd


def test_many_runs_leave_room_for_the_axes(tmp_path):
    """Forty runs and a legend of eighty lines: the figure grows, and the axes keep their size. Seeds share entries."""
    for index in range(40):
        make.training(tmp_path / f"a_run_with_a_long_name_{index:02d}")
    trainings = read_results([tmp_path]).of(Training)
    with styled(), warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = learning_figure(trainings, {run.source.label: INK for run in trainings})
        png(figure)
        (axes,) = figure.axes
        assert len(axes.get_legend().get_texts()) == 80
        assert axes.get_position().height * figure.get_figheight() > 3
    art = Art.of({"one": [run.source.label for run in trainings]})
    assert {run.source.label for run in art.as_models(trainings)} == {"one"}
