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
