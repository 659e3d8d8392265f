"""scripts/golf_matrix.sh: both systems and all seeds with one recipe, each scored from its checkpoint and from its artifact."""

from launching import run_script


def test_two_by_two_for_each_seed(tmp_path):
    given = {
        "OUT": str(tmp_path / "out"),
        "SEEDS": "1 2",
        "EVALUATION": "golf_eval.stride=16",
        "PACKING": "artifact.kept_elements=9",
    }
    done, calls = run_script(
        "golf_matrix.sh", tmp_path, "optim.lr=1e-3", "data=x y", DATA_DIR="/shards", TOKENIZER="/m", **given
    )
    assert done.returncode == 0, done.stderr
    trainings = [call for call in calls if call[0].startswith("experiment=")]
    assert len(trainings) == 4 and len(calls) == 3 * 4 + 1 and calls[-1][0] == "mode=report"
    for call, seed, without in zip(trainings, (1, 1, 2, 2), (True, False, True, False), strict=True):
        assert call[:4] == ["experiment=golf_native_flow", "data.path=/shards", "tokenizer.path=/m", f"seed={seed}"]
        assert ("algo.flow=null" in call) == without and call[-3:-1] == ["optim.lr=1e-3", "data=x y"]
    for scored, packed in zip(calls[1:-1:3], calls[2:-1:3], strict=True):
        assert scored[0] == "mode=golf_eval" and packed[0] == "mode=artifact" and scored[1] == packed[3]
        assert "golf_eval.stride=16" in scored and {"golf_eval.stride=16", "artifact.kept_elements=9"} <= set(packed)
    named = [call[1].split("/")[-3] for call in calls[1:-1:3]]
    assert named == ["base_seed1", "flow_seed1", "base_seed2", "flow_seed2"]


def test_shards_need_their_tokenizer(tmp_path):
    done, calls = run_script("golf_matrix.sh", tmp_path, DATA_DIR="/shards", OUT=str(tmp_path / "out"))
    assert done.returncode == 1 and not calls and done.stderr.startswith("error: TOKENIZER is not set")
