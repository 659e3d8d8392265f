"""The native-flow system of the parameter-golf track: its script, and what its recipe trains how."""

import hydra
import pytest
import torch
from launching import run_script
from tasks.running import config_of

from flm.tasks.assemble import new_algorithm


def test_the_script_is_the_recipe_with_what_was_given_last(tmp_path):
    ablation = ["--multirun", "model.exclusive=true,false"]
    done, (call,) = run_script("golf_native_flow.sh", tmp_path, *ablation, DATA_DIR="", TOKENIZER="")
    assert done.returncode == 0, done.stderr
    assert call == ["experiment=pydoc_golf_native_flow", *ablation]
    done, calls = run_script("golf_native_flow.sh", tmp_path, DATA_DIR="/shards", TOKENIZER="")
    assert done.returncode == 1 and calls == [] and done.stderr.startswith("error: TOKENIZER is not set: the SentencePiece")
    done, (call,) = run_script("golf_native_flow.sh", tmp_path, "algo.flow=null", DATA_DIR="/shards", TOKENIZER="/m.model")
    assert call == ["experiment=golf_native_flow", "data.path=/shards", "tokenizer.path=/m.model", "algo.flow=null"]


def test_the_tracks_own_variables(tmp_path):
    track = {"DATA_PATH": "/shards", "TOKENIZER_PATH": "/m.model", "SEED": "1337", "ITERATIONS": "20", "TRAIN_SEQ_LEN": "512"}
    same = ["data.path=/shards", "tokenizer.path=/m.model", "seed=1337", "trainer.max_steps=20", "model.length=512"]
    done, (call,) = run_script("golf_native_flow.sh", tmp_path, "algo.flow=null", **track)
    assert call == ["experiment=golf_native_flow", *same, "algo.flow=null"], done.stderr
    out = {"OUT": str(tmp_path / "out"), "VAR_EVAL_STEPS": "4"}
    done, (training, scoring) = run_script("golf_flow_lm.sh", tmp_path, "algo.param=x1", **track, **out)
    assert training[:6] == ["experiment=golf_flow_lm", *same] and training[-1] == "algo.param=x1", done.stderr
    assert scoring[0] == "mode=flow_lm_eval" and "flow_lm_eval.points=4" in scoring
    done, (training, _) = run_script("golf_flow_lm.sh", tmp_path, OUT=str(tmp_path / "out"))
    assert training[0] == "experiment=pydoc_golf_flow_lm"


@pytest.mark.parametrize("overrides,count", [([], 27_530_952), (["algo.flow=null"], 27_137_223)])
def test_the_recipe_of_the_track(overrides, count, tmp_path):
    config = config_of(tmp_path, "experiment=golf_native_flow", "data.path=x", "tokenizer.path=y", *overrides)
    with torch.device("meta"):
        algorithm = new_algorithm(config, vocab_size=1024)
    assert sum(p.numel() for p in algorithm.parameters()) == count
    named = [(name, p) for name, p in algorithm.named_parameters() if p.requires_grad]
    optimizer = hydra.utils.instantiate(config.optim)(named)
    muon, others, tables = optimizer.param_groups
    names = {id(p): name for name, p in named}
    assert len(muon["params"]) == 66 + 1 and not any("gate" in names[id(p)] for p in muon["params"])
    assert {names[id(p)] for p in tables["params"]} == {"backbone.input_table", "backbone.bigram.table"}
    assert [group["lr"] for group in (muon, others, tables)] == [0.025, 0.025, 0.035]
    assert all(group["weight_decay"] == 0.04 for group in (muon, others, tables))
    assert (muon["momentum_line"], muon["ns_steps"], others["betas"]) == ((0.92, 0.99, 1500), 5, (0.9, 0.95))
    flow = [p for name, p in named if name.startswith("flow.")]
    assert {id(p) for p in flow} <= {id(p) for p in others["params"]} and bool(flow) == (not overrides)
    factor = hydra.utils.instantiate(config.lr_scheduler)(optimizer).lr_lambdas[0]
    assert [factor(n) for n in (0, 4200, 5600, 7000)] == pytest.approx([1.0, 1.0, 0.5, 0.0])
    assert config.loader.global_batch_size * config.model.length == 786_432
    assert (config.training.ema, config.trainer.gradient_clip_val) == (0.997, 0.3)
