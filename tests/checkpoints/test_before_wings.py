"""Files written before classes moved into wings: a checkpoint, an exported folder, and recorded corpora."""

import importlib
import json
from pathlib import Path

import pytest

import flm
from flm.checkpoints.moved import MOVED, current
from flm.checkpoints.recorded_corpus import recorded_corpus
from flm.tasks.run_folder import check_same_run

FIXTURES = Path(__file__).parents[1] / "fixtures" / "before_wings"
RECORDED = json.loads((FIXTURES / "recorded.json").read_text())


@pytest.mark.parametrize("name", RECORDED)
def test_they_load_and_say_what_they_said(name):
    """The numbers and texts that the code of that day gave."""
    lm, recorded = flm.load(FIXTURES / name, device="cpu"), RECORDED[name]
    found = lm.nll("the cat sees the sea.", draws=8, seed=3)
    for key, value in recorded["nll"].items():
        assert getattr(found, key) == (value if isinstance(value, str) else pytest.approx(value, rel=1e-6)), key
    assert lm.generate(n=2, steps=4, prompt="the ", seed=5) == recorded["generated"]
    assert (lm.source.step, lm.source.weights) == (10, "average")


def test_recorded_corpora_that_moved_are_built():
    shards = recorded_corpus({"_target_": "flm.data.corpora.token_shards.TokenShardCorpus", "path": "shards"})
    assert type(shards).__module__ == "flm.golf.shard_corpus" and shards.path == Path("shards")


def test_a_run_of_before_goes_on_under_the_config_of_today():
    old, new = "flm.algos.kl_flow.KLFlow", "flm.kl_flow.kl_flow.KLFlow"
    assert check_same_run({"algo": {"_target_": old}}, {"algo": {"_target_": new}}, (), "run") == []
    with pytest.raises(ValueError, match="algo._target_=flm.duo.duo.Duo"):
        check_same_run({"algo": {"_target_": old}}, {"algo": {"_target_": "flm.duo.duo.Duo"}}, (), "run")


def test_every_moved_class_is_where_the_table_says():
    for old, new in MOVED.items():
        module, _, name = new.rpartition(".")
        assert hasattr(importlib.import_module(module), name), new
        assert current(old) == current(new) == new
