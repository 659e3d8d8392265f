"""scripts/make_builtin.sh: both models trained, packed and measured; what is there already is not trained again."""

from launching import run_script

WRITES = 'for a in "$@"; do case "$a" in hydra.run.dir=*) mkdir -p "${a#*=}"; touch "${a#*=}/model.flmpack";; esac; done\n'


def test_both_models_are_trained_and_packed(tmp_path):
    box, out = tmp_path / "box", tmp_path / "out"
    box.mkdir()
    variables = {"OUT": str(out), "BOX": str(box)}
    done, calls = run_script("make_builtin.sh", tmp_path, "trainer.max_steps=7", stub=WRITES, **variables)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in box.iterdir()} == {"text.flmpack", "puzzle.flmpack"}
    trained = [call for call in calls if call[0].startswith("experiment=")]
    assert len(trained) == 4 and all(call[-1] == "trainer.max_steps=7" for call in trained)
    packed = [call for call in calls if call[0] == "mode=artifact"]
    assert [call[1] for call in packed] == [
        f"eval.checkpoint_path={out}/{name}/checkpoints/last.ckpt" for name in ("text", "puzzle")
    ]
    assert [call[0] for call in calls[-2:]] == ["mode=sample_eval", "mode=solve_eval"]
    given = {"TEXT": "a.ckpt", "PUZZLE": "b.ckpt"}
    done, calls = run_script("make_builtin.sh", tmp_path, stub=WRITES, **variables, **given)
    assert [call[1] for call in calls[:2]] == ["eval.checkpoint_path=a.ckpt", "eval.checkpoint_path=b.ckpt"]
