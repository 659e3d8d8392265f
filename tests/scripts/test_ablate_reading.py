"""scripts/ablate_reading.sh: every row of every vocabulary and width with one training time, and one report."""

from launching import run_script

ROWS = "published evidence_near evidence_near_map mdlm_near ar"


def test_rows_differ_in_what_they_read_alone(tmp_path):
    few = {"VOCABULARIES": "97 512", "WIDTHS": "128", "SEEDS": "1 2", "TIME": "00:00:01:00", "OUT": str(tmp_path / "out")}
    done, calls = run_script("ablate_reading.sh", tmp_path, "optim.lr=1e-3", ROWS=ROWS, **few)
    assert done.returncode == 0, done.stderr
    trainings = [call for call in calls if "trainer.max_time=00:00:01:00" in call]
    assert len(trainings) == 2 * 5 * 2 and len(calls) == 3 * len(trainings) + 1
    assert all(call[-2] == "optim.lr=1e-3" for call in trainings)  # what is asked for wins; run_dir follows
    own = ("algo.reads", "model.neigh")
    rows = {call[0] + str([x for x in call if x.startswith(own)]) for call in trainings}
    assert rows == {
        "algo=flm[]",
        "algo=flm['algo.reads=evidence', 'model.neighbours=2']",
        "algo=fmlm['algo.reads=evidence', 'model.neighbours=2']",
        "algo=mdlm['model.neighbours=2']",
        "algo=ar[]",
    }
    taught = [x for call in trainings for x in call if x.startswith("algo.teacher_path=")]
    names = [f"v{v}_d128_evidence_near_seed{seed}" for v in (97, 512) for seed in (1, 2)]
    assert taught == [f"algo.teacher_path={tmp_path}/out/{name}/checkpoints/last.ckpt" for name in names]
    assert sum("tokenizer=characters" in call for call in trainings) == 10
    assert calls[-1][0] == "mode=report"
    done, calls = run_script("ablate_reading.sh", tmp_path, ROWS="ar", **few)
    assert done.returncode == 1 and "holds a comparison with" in done.stderr and calls == []
