"""The embedding flow by the command line: trained, evaluated beside no network at all, sampled from."""

import json

import pytest
from running import config_of, tiny, write_corpus

import flm
from flm.golf.artifact import artifact
from flm.golf.flow_lm_eval import flow_lm_eval
from flm.golf.golf_eval import golf_eval
from flm.tasks.evaluation import EvalOptions
from flm.tasks.held_out import HeldOut
from flm.tasks.ppl_eval import ppl_eval
from flm.tasks.sample_eval import sample_eval
from flm.tasks.train import train


def test_train_evaluate_and_sample(tmp_path):
    corpus = write_corpus(tmp_path / "corpus", documents=20)
    options = [
        "algo=flow_lm",
        "model=golf_flow",
        "trainer.max_steps=6",
        "trainer.val_check_interval=6",
        "callbacks.sample=null",
    ]
    # the debug config sets the width of a condition, which this network does not have
    quick = [*tiny(corpus, *options), f"data.cache_dir={tmp_path}/data"]
    metrics = train(config_of(tmp_path / "run", *quick))
    assert metrics["val/context_free_ce_nats_tau_0.9-1.0"] < 0.01 < metrics["val/context_free_ce_nats_tau_0.0-0.1"]
    path = f"eval.checkpoint_path={tmp_path}/run/checkpoints/last.ckpt"
    few = [
        "eval.max_examples=4",
        "eval.pilot_draws=4",
        "eval.draws_per_example=2",
        "flow_lm_eval.points=4",
        "loader.eval_batch_size=4",
    ]
    result = flow_lm_eval(config_of(tmp_path / "eval", "mode=flow_lm_eval", path, *few, f"data.cache_dir={tmp_path}/data"))
    assert json.loads((tmp_path / "eval" / "flow_lm_eval.json").read_text())["flow_lm_eval"] == result
    curve = result["denoising"]
    assert curve["tokens"] == 4 * 16  # the second halves
    assert curve["tokens"] - 4 <= curve["bytes"] <= curve["tokens"]  # characters of one byte, and a few ends
    assert [row["t1"] for row in result["bound"]] == [0.1, 0.2, 0.3, 0.5, 0.9] and result["chosen_t1"] in (0.1, 0.2, 0.3)
    train(config_of(tmp_path / "ar", *tiny(corpus, "algo=ar", "trainer.max_steps=6"), f"data.cache_dir={tmp_path}/data"))
    beside = [f"flow_lm_eval.beside={tmp_path}/ar", "flow_lm_eval.ends=[0.3]", f"data.cache_dir={tmp_path}/data"]
    found = flow_lm_eval(config_of(tmp_path / "beside", "mode=flow_lm_eval", path, *few, *beside))["autoregressive"]
    ar = flm.load(tmp_path / "ar", "cpu", None)
    data = HeldOut.of(EvalOptions(max_examples=4), {}, {"eval_batch_size": 4, "num_workers": 0}, 1).data(ar)
    nats = [ar.algorithm.nll(batch.tokens)[:, 16:].sum().item() for batch in data.valid_loader()]
    assert found["tokens"] == 4 * 16 and found["nats_per_token"] == pytest.approx(sum(nats) / 64, rel=1e-5)
    packing = [
        "mode=artifact",
        path,
        *few,
        "flow_lm_eval.ends=[0.3]",
        "artifact.kept_elements=100",
        f"data.cache_dir={tmp_path}/data",
    ]
    packed = artifact(config_of(tmp_path / "packed", *packing))  # the evaluation that fits is found
    again = json.loads((tmp_path / "packed" / "flow_lm_eval.json").read_text())
    assert packed["evaluation"] == again["flow_lm_eval"] and again["checkpoint"]["path"] == packed["path"]
    (bound,) = packed["evaluation"]["bound"]
    assert bound["nats_per_token"] == pytest.approx(result["bound"][2]["nats_per_token"], rel=0.05)  # 5.4 bits a weight
    assert bound["nats_per_token"] != result["bound"][2]["nats_per_token"]
    for mode in (ppl_eval, golf_eval):
        with pytest.raises(ValueError, match="take mode=flow_lm_eval"):
            mode(config_of(tmp_path / "no", f"mode={mode.__name__}", path, f"data.cache_dir={tmp_path}/data"))
    assert curve["zero_velocity_denoising_ce_bpb"] > 0 and curve["ce_nats_per_token"][-1] < 1e-3
    sampling = ["sampling.steps=[1,3]", "sampling.solver=zigzag", "sampling.prompt=the cat sees", "loader.eval_batch_size=4"]
    sample_eval(config_of(tmp_path / "sample", "mode=sample_eval", path, *sampling, f"data.cache_dir={tmp_path}/data"))
    found = json.loads((tmp_path / "sample" / "results.json").read_text())["generated"]
    assert [entry["network_evaluations"] for entry in found.values()] == [1, 3]
