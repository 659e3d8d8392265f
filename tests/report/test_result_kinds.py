"""Results of every kind stand in the report, those of a package that it does not know too; seeds become matrices."""

import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import result_folders as make
from report_page import Page
from running import config_of

from flm import registry
from flm.report.report import report


def page_of(folder, out, *overrides):
    report(config_of(out, "mode=report", f"report.inputs=[{folder}]", *overrides))
    return Page((out / "report.html").read_text(encoding="utf-8"))


def golf(folder, label, sliding, trained, seed=1, config=None):
    methods = {
        name: {"window": 64, "stride": 32, "chunk_tokens": 640, "chunks": 2, "tokens": 1000, "bytes": 3000}
        | {"nats_per_token": 2.0794415416798357 * bits, "bits_per_byte": bits}
        for name, bits in (("sliding", sliding), ("test_time_training", trained))
    }
    content = make.head("golf_eval", label, "NativeFlow", golf_eval={"corpus": "web text", "methods": methods})
    content["checkpoint"] |= {"path": f"{folder}/nowhere/checkpoints/last.ckpt"}
    if config is not None:
        content["checkpoint"]["config"] = config | {"seed": seed}
    return make.write(folder / "golf_eval.json", content)


def test_results_of_the_golf_systems(tmp_path):
    golf(tmp_path / "in" / "a", "native", 1.25, 1.2)
    size = {"model_bytes": 15_000_000, "code_bytes": 90_000, "total_bytes": 15_090_000, "limit_bytes": 16_000_000}
    size |= {"headroom_bytes": 910_000, "elements_by_bits": {"5": 1000, "6": 2000}}
    artifact = make.head("artifact", "native", artifact=size)
    make.write(tmp_path / "in" / "b" / "artifact.json", artifact)
    rows = [{"t1": t1, "nats_per_token": nats, "bits_per_byte": nats / 2} for t1, nats in ((0.9, 4.5), (0.95, 4.0))]
    curve = {"times": [0.25, 0.75], "ce_nats_per_token": [3.5, 1.5], "zero_velocity_ce_nats_per_token": [4.0, 2.0]}
    curve |= {"denoising_ce_bpb": 1.7, "zero_velocity_denoising_ce_bpb": 2.6}
    flow = make.head("flow_lm_eval", "flow", flow_lm_eval={"bound": rows, "chosen_t1": 0.95, "denoising": curve})
    make.write(tmp_path / "in" / "c" / "flow_lm_eval.json", flow)
    page = page_of(tmp_path / "in", tmp_path / "out")

    assert [(row["scored in"], float(row["bits per byte"])) for row in page.tables["golf_eval"]] == [
        ("sliding", 1.25), ("test time training", 1.2),
    ]  # fmt: skip
    (packed,) = page.tables["artifact"]
    assert (packed["total, bytes"], packed["headroom, bytes"], packed["weights of 6 bits"]) == ("15090000", "910000", "2000")
    assert [(row["path ends at t1"], row["chosen on training text"]) for row in page.tables["flow_lm_bound"]] == [
        ("0.9", ""), ("0.95", "yes"),
    ]  # fmt: skip
    assert float(page.tables["denoising"][0]["the same with zero velocity"]) == 2.6
    assert "no likelihood" in page.rows("flow-lm-eval")
    drawn = dict(page.pictures)["cross-entropy of the denoised state: no likelihood"]
    assert "flow, model" in drawn and "flow, zero velocity" in drawn
    tiles = {name: value for name, value, _ in page.tiles}
    assert (float(tiles["bits per byte"]), float(tiles["artifact, bytes"])) == (1.2, 15_090_000)
    assert float(tiles["bits per byte, upper bound"]) == 2.0  # of the end chosen on other text, although it is not the first


def test_a_benchmark(tmp_path):
    cost = {"seconds": 0.5, "tokens_per_second": 2048.0, "model_flop_utilisation": None, "peak_memory_mb": 812.5}
    content = make.head("benchmark", "x") | {"device": "cpu", "training_step": {"flm": cost, "flm_dense": {"failed": "killed"}}}
    content["sampling"] = {}
    make.write(tmp_path / "in" / "benchmark.json", content)
    own, dense = page_of(tmp_path / "in", tmp_path / "out").tables["training_step_cost"]
    assert (own["algorithm"], float(own["tokens per second"]), float(own["peak memory, MB"])) == ("flm", 2048, 812.5)
    assert dense["failed"] == "killed" and dense["seconds"] == ""


def test_seeds_become_a_matrix_of_means_and_deviations(tmp_path):
    """Native flow on and off, with and without test-time training, three seeds: two by two, as numpy has it."""
    rng = np.random.default_rng(0)
    measured = {(native, seed): (1.2 + 0.1 * rng.random(2)).tolist() for native in (True, False) for seed in (1, 2, 3)}
    for (native, seed), (sliding, trained) in measured.items():
        flow = (
            {"_target_": "flm.golf.native_flow_matcher.NativeFlowMatcher", "hidden_dim": 256, "n_steps": 1} if native else None
        )
        config = {"algo": {"_target_": "flm.golf.native_flow.NativeFlow", "flow": flow}, "run_dir": f"/x/{native}{seed}"}
        golf(tmp_path / "in" / f"{native}{seed}", f"run-{native}-{seed}", sliding, trained, seed, config)
    page = page_of(tmp_path / "in", tmp_path / "out")
    rows = {row["model"]: row for row in page.tables["seeds_1"]}
    named = {True: "flow=NativeFlowMatcher", False: "flow=None"}  # and not all that a flow is made of
    assert set(rows) == set(named.values())
    for native in (True, False):
        row, found = rows[named[native]], np.array([measured[native, seed] for seed in (1, 2, 3)])
        assert row["seeds"] == "3"
        for index, setting in enumerate(("sliding", "test time training")):
            assert float(row[setting]) == pytest.approx(found[:, index].mean(), rel=1e-12)
            assert float(row[f"{setting}, deviation"]) == pytest.approx(found[:, index].std(ddof=1), rel=1e-12)
    each = [row for row in page.tables["each_seed"] if row["setting"] == "sliding" and "Matcher" in row["model"]]
    assert [float(each[0][f"seed {seed}"]) for seed in (1, 2, 3)] == [measured[True, seed][0] for seed in (1, 2, 3)]
    expected = {f"{named[native]}, seed={seed}" for native, seed in measured}
    assert {row["differs in"] for row in page.tables["runs"]} == expected
    both = {native: np.array([measured[native, seed] for seed in (1, 2, 3)]) for native in (True, False)}
    apart_by_setting = {row["setting"]: row for row in page.tables["seed_differences_1"]}
    other = apart_by_setting["sliding"]["model"] == named[True]  # which of the two came second
    for setting, apart in zip(("sliding", "test time training"), (both[other] - both[not other]).T, strict=True):
        row = apart_by_setting[setting]
        assert float(row["mean difference"]) == pytest.approx(apart.mean(), rel=1e-9)
        assert float(row["deviation"]) == pytest.approx(apart.std(ddof=1), rel=1e-9)
    effects = {row["model"]: float(row["mean"]) for row in page.tables["seeds_2"]}
    for native, found in both.items():
        assert effects[named[native]] == pytest.approx((found[:, 1] - found[:, 0]).mean(), rel=1e-9)


def test_an_artifact_is_not_mixed_with_its_checkpoint(tmp_path):
    for seed in (1, 2):
        config = {"algo": {"_target_": "flm.golf.native_flow.NativeFlow"}}
        for folder, bits, file in (("scored", 1.2, "checkpoints/last.ckpt"), ("packed", 1.3, "model.flmpack")):
            path = golf(tmp_path / "in" / folder / str(seed), f"run{seed}", bits, bits - 0.1 * seed, seed, config)
            content = json.loads(path.read_text())
            content["checkpoint"]["path"] = f"/x/{folder}/{seed}/{file}"
            make.write(path, content)
    page = page_of(tmp_path / "in", tmp_path / "out")
    (row,) = page.tables["seeds_1"]
    assert float(row["sliding"]) == pytest.approx(1.2) and float(row["packed, sliding"]) == pytest.approx(1.3)


def test_what_a_packed_model_no_longer_says_of_its_training_is_no_difference(tmp_path):
    """Its recipe has neither callbacks nor folders; that it was packed is one difference, and not each option of packing."""
    for seed in (1, 2):
        for native in (False, True):
            flow = {"_target_": "flm.golf.native_flow_matcher.NativeFlowMatcher", "steps": 1} if native else None
            kept = {"algo": {"_target_": "flm.golf.native_flow.NativeFlow", "flow": flow}}
            whole = kept | {"callbacks": {"stop": {"max_time": None}}, "tokenizer": {"path": "/far/away/x.model"}}
            packed = kept | {"tokenizer": {"path": "x.model"}}
            for kind, config, file in (("scored", whole, "checkpoints/last.ckpt"), ("packed", packed, "model.flmpack")):
                label = f"{native}{seed}" if kind == "scored" else "model"
                path = golf(tmp_path / "in" / kind / f"{native}{seed}", label, 1.2, 1.1, seed, config)
                content = json.loads(path.read_text())
                content["checkpoint"]["path"] = f"/x/{native}{seed}/{file}"
                content["config"]["golf_eval"] = {"stride": 64}
                if kind == "packed":
                    content["config"]["artifact"] = {
                        "_target_": "flm.golf.artifact.ArtifactOptions",
                        "steps": None,
                        "code": None,
                    }
                make.write(path, content)
    page = page_of(tmp_path / "in", tmp_path / "out")
    flows = [f"flow={name}" for name in ("None", "NativeFlowMatcher")]
    packed = [f"artifact=ArtifactOptions, {flow}" for flow in flows]
    assert {row["model"]: row["seeds"] for row in page.tables["seeds_1"]} == dict.fromkeys([*flows, *packed], "2")


def test_runs_without_seeds_of_their_own_make_no_matrix(tmp_path):
    for index, lr in enumerate((0.1, 0.2)):
        config = {"optim": {"lr": lr}}
        golf(tmp_path / "in" / str(index), f"run{index}", 1.2, 1.1, 1, config)
    page = page_of(tmp_path / "in", tmp_path / "out")
    assert "seeds" not in page.text and "seeds_1" not in page.tables


def multirun(root, name, lr, seed, folder):
    run = root / name
    path = make.training(run)
    content = json.loads(path.read_text())
    content["config"] |= {"optim": {"lr": lr}, "seed": seed, "run_dir": str(run)}
    content["config"]["callbacks"] = {"sample": {"folder": f"{run}/samples"}, "note": {"file": f"{folder}/{name}"}}
    content["seed"] = seed
    return make.write(path, content)


def test_rows_of_a_sweep_are_named_by_what_differs(tmp_path):
    """Folders of a multirun are numbers, which say nothing; where a run lies is no difference."""
    for name, lr, seed in (("0", 0.001, 1), ("1", 0.002, 1), ("2", 0.001, 2)):
        multirun(tmp_path / "in", name, lr, seed, "same" if name == "0" else "same")
    page = page_of(tmp_path / "in", tmp_path / "out")
    labels = [row["run"] for row in page.tables["learning"]]
    assert all("lr=" in label and "seed=" in label for label in labels) and len(set(labels)) == 3
    assert {row["run"]: row["differs in"] for row in page.tables["runs"]} == {label: label for label in labels}
    one = page_of(tmp_path / "in" / "0", tmp_path / "alone")
    assert [row["run"] for row in one.tables["learning"]] == ["0"]


def test_runs_with_names_keep_them_and_say_what_differs(tmp_path):
    for name, lr in (("slow", 0.001), ("fast", 0.002)):
        multirun(tmp_path / "in", name, lr, 1, "same")
    page = page_of(tmp_path / "in", tmp_path / "out")
    rows = {row["run"]: row["differs in"] for row in page.tables["runs"]}
    assert {"lr=0.002" in rows["fast"], "lr=0.001" in rows["slow"]} == {True} and "seed" not in rows["fast"]


def test_evaluations_of_one_model_are_told_apart_by_their_options(tmp_path):
    for name, temperature in (("0", 0.8), ("1", 1.0)):
        path = make.samples(tmp_path / "in" / name)
        content = json.loads(path.read_text())
        content["config"] = {"seed": 1, "eval": {"label": None}, "sampling": {"temperature": temperature}}
        make.write(path, content)
    page = page_of(tmp_path / "in", tmp_path / "out")
    assert {row["run"] for row in page.tables["diversity"]} == {"nano (temperature=0.8)", "nano (temperature=1)"}


@pytest.fixture
def weather(tmp_path, monkeypatch):
    """A package of somebody else's: it writes weather.json, and knows nothing of the report."""
    package = tmp_path / "site" / "weather_station"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "wing.py").write_text(
        "from flm.registry import Wing\nWING = Wing(result_kinds={'weather': 'weather_station.results:KIND'})\n"
    )
    (package / "results.py").write_text(
        textwrap.dedent("""
        from flm.results.files import Content, EstimateContent, Real, checked
        from flm.results.kinds import KeyNumber, Line, Plot, Reading, ResultKind, Table

        class Weather(Content):
            rain_mm: EstimateContent
            hours: list[Real]
            degrees: list[Real]

        def read(source):
            found = checked(Weather, source.content)
            table = Table("weather", ("rain, mm",), ((found.rain_mm.estimate(),),))
            line = Line("air", tuple(found.hours), tuple(found.degrees))
            plot = Plot("air", "warmth of the air", "hour", "degrees", (line,))
            return Reading((table,), (plot,), (KeyNumber("rain, mm", "", found.rain_mm.estimate(), "lower"),))

        KIND = ResultKind(("weather.json",), read, "Weather", "Measured on the roof.")
        """)
    )
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    yield tmp_path / "site"
    registry._added.pop("weather_station", None)


def test_a_kind_of_somebody_elses_package_stands_in_the_report(tmp_path, weather):
    content = make.head("weather", "roof", rain_mm=make.estimate(3.25, 0.5), hours=[0, 12], degrees=[4.5, 9.5])
    make.write(tmp_path / "in" / "weather.json", content)
    with pytest.raises(ValueError, match="no result files under"):
        page_of(tmp_path / "in", tmp_path / "out")
    registry.add("weather_station")
    page = page_of(tmp_path / "in", tmp_path / "out")
    (row,) = page.tables["weather"]
    assert (row["run"], float(row["rain, mm"])) == ("roof", 3.25)
    assert float(page.errors["weather"][0]["rain, mm"]) == 0.5
    assert "Measured on the roof." in page.rows("weather") and "roof, air" in dict(page.pictures)["warmth of the air"]
    assert ["rain, mm", "3.25"] in [tile[:2] for tile in page.tiles]
    del content["degrees"]
    make.write(tmp_path / "in" / "weather.json", content)
    with pytest.raises(ValueError, match=r"weather.json: not a complete weather result \(degrees: Field required\)"):
        page_of(tmp_path / "in", tmp_path / "again")


def test_readers_of_wings_need_neither_torch_nor_the_report():
    """What a package must import to be read is small."""
    code = (
        "import sys; import flm.results.files, flm.results.kinds; "
        "heavy = {'torch', 'matplotlib', 'transformers', 'lightning'} & set(sys.modules); "
        "assert not heavy and not any(name.startswith('flm.report') for name in sys.modules), heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=600)
