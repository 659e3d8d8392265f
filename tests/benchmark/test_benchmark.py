import json
from functools import partial

import pytest
import torch
from running import config_of

from flm.algos.algorithm import Batch
from flm.benchmark import benchmark as benchmark_task
from flm.benchmark.benchmark import _jobs, _summary, benchmark, ratios, targets_met, without_paths
from flm.benchmark.benchmark_process import SAMPLING, STEP, sampling, step
from flm.benchmark.dense_twin import TWINS
from flm.draws import Draws
from flm.samplers.canvas import Canvas
from flm.tasks.assemble import new_algorithm
from flm.tasks.run import plain_config

SMALL = ["benchmark.steps=1", "benchmark.rounds=1", "benchmark.samplings=1", "benchmark.sampling_steps=2"]
QUICK = ["mode=benchmark", "debug=tiny", *SMALL]


def without_teachers(config):
    return plain_config(without_paths(config))


def test_both_ways_are_measured_and_dense_takes_more_memory(tmp_path, capsys):
    config = config_of(
        tmp_path,
        *QUICK,
        "benchmark.vocab_size=20000",
        "loader.global_batch_size=16",
        "benchmark.sampling_steps=null",
        "callbacks.throughput.peak_flops_per_second=1e12",
        "+benchmark.at_most={step_memory flm/flm_dense: 0.99, step_seconds flm/mdlm: 1}",
    )
    result = benchmark(config)
    steps = result["training_step"]
    assert list(steps) == ["flm", "flm_dense", "flm_dense_indexed"] and result["sampling"] == {}
    dense_tensor_mb = 16 * 32 * 20000 * 4 / 2**20
    peak = {name: row["peak_memory_mb"] for name, row in steps.items()}
    assert peak["flm_dense_indexed"] > peak["flm"] + dense_tensor_mb
    assert peak["flm_dense"] > peak["flm_dense_indexed"] + dense_tensor_mb  # an int64 one-hot vector is two of them
    # the same loss over other noise: log V at the start
    assert abs(steps["flm_dense"]["loss"] - steps["flm"]["loss"]) < 0.1
    # blocks 12 D^2, table V D, attention 4 L D a block; three passes
    flops = 16 * 32 * 3 * (2 * (2 * 12 * 64**2 + 20000 * 64) + 2 * 4 * 32 * 64)
    assert steps["flm"]["model_flops"] == flops
    assert steps["flm"]["model_flop_utilisation"] == pytest.approx(flops / steps["flm"]["seconds"] / 1e12)
    assert [target["met"] for target in result["targets"]] == [True, None]
    printed = [line for line in capsys.readouterr().out.splitlines() if line[:2] in ("1/", "2/", "3/")]
    assert [line.split(":")[0] for line in printed] == [
        f"{n}/3 training step, {name}" for n, name in enumerate(("flm", "flm_dense", "flm_dense_indexed"), 1)
    ]
    stored = json.loads((tmp_path / "benchmark.json").read_text())
    assert {key: stored[key] for key in result} == json.loads(json.dumps(result))


@pytest.mark.parametrize("algo", ["flm", "fmlm", "flm_distill_second", "ar"])
def test_any_algorithm_steps_and_samples_with_a_teacher_where_it_has_one(tmp_path, algo):
    config = config_of(tmp_path, *QUICK, f"algo={algo}", "benchmark.vocab_size=50")
    jobs = _jobs(without_teachers(config))
    for name in (name for what, name in jobs if what == STEP):
        found = step(jobs[STEP, name])
        assert found["seconds"] > 0 and found["flops"] > 0
        generated = sampling(jobs[SAMPLING, name])
        fixed = algo == "ar"  # as many steps as positions, and no parts that would repeat
        assert generated["steps"] == (32 if fixed else 2)
        assert (generated["parts"] is None) == (generated["trunk_and_logits"] is None) == (fixed or "_dense" in name)
        if generated["parts"] is not None:  # which evaluate the same network, and multiply with a second table
            assert generated["trunk_and_logits"]["processor_seconds"] > 0


def test_teachers_of_distillation_are_built_and_used(tmp_path):
    config = config_of(tmp_path, *QUICK, "algo=fmlm", "algo.diagonal_fraction=0.5", "benchmark.vocab_size=50")
    forward = step(_jobs(plain_config(config))[STEP, "fmlm"])["flops"]
    config.benchmark.teachers.fmlm.teacher = None
    alone = step(_jobs(plain_config(config))[STEP, "fmlm"])["flops"]
    assert forward / alone == pytest.approx(4.5 / 4)
    config.benchmark.teachers.fmlm = {}
    with pytest.raises(ValueError, match="benchmark.teachers.fmlm: say which algo config teacher is of"):
        _jobs(plain_config(config))


def test_an_unknown_algorithm_is_named(tmp_path):
    with pytest.raises(ValueError, match="no algo config fmml; there are ar, "):
        _jobs(plain_config(config_of(tmp_path, "mode=benchmark", "benchmark.against=[fmml]")))


def test_the_fastest_process_counts_and_the_largest_memory():
    runs = [
        {"seconds": 4.0, "flops": 80.0, "peak_memory_mb": 5.0, "loss": 1.0},
        {"seconds": 2.0, "flops": 80.0, "peak_memory_mb": 3.0, "loss": 1.0},
    ]
    found = _summary(STEP, runs, tokens=10, peak=100.0)
    assert (found["seconds"], found["peak_memory_mb"], found["tokens_per_second"]) == (2.0, 5.0, 5.0)
    assert found["model_flop_utilisation"] == 0.4
    assert _summary(STEP, [runs[0], {"failed": "out of memory"}], 10, None) == {"failed": "out of memory"}


def test_ratios_and_targets(tmp_path):
    row = {"peak_memory_mb": 6.0, "tokens_per_second": 7.0, "model_flop_utilisation": None}
    result = {
        "device": "gpu",
        STEP: {"a": row | {"seconds": 3.0}, "b": row | {"seconds": 2.0, "peak_memory_mb": 2.0}, "c": {"failed": "memory"}},
        SAMPLING: {"a": {"seconds": 5.0, "parts": {"seconds": 4.0}, "trunk_and_logits": {"seconds": 2.0}}},
    }
    found = ratios(result)
    assert found == {
        "step_seconds a/b": 1.5,
        "step_memory a/b": 3.0,
        "step_seconds b/a": 2 / 3,
        "step_memory b/a": 1 / 3,
        "sampling_seconds a/parts": 1.25,
        "sampling_seconds a/trunk_and_logits": 2.5,
    }
    config = config_of(
        tmp_path,
        "+benchmark.at_least={tokens_per_second a: 7, model_flop_utilisation a: 0.4}",
        "+benchmark.at_most={step_seconds a/b: 1.4, sampling_seconds a/parts: 1.3}",
    )
    met = {
        entry["quantity"]: entry["met"] for entry in targets_met(plain_config(config)["benchmark"], result | {"ratios": found})
    }
    assert met == {
        "tokens_per_second a": True,
        "model_flop_utilisation a": None,
        "step_seconds a/b": False,
        "sampling_seconds a/parts": True,
    }


def test_a_process_that_is_killed_does_not_end_the_benchmark(tmp_path, monkeypatch):
    def in_a_process(job):
        if job.twin == "dense":
            return {"failed": "killed (status -9), for want of memory perhaps"}
        return step(job) if job.what == STEP else sampling(job)

    monkeypatch.setattr(benchmark_task, "_in_a_process", in_a_process)
    result = benchmark(config_of(tmp_path, *QUICK, "benchmark.vocab_size=50"))
    assert "failed" in result["training_step"]["flm_dense"] and result["training_step"]["flm"]["seconds"] > 0
    assert {"sampling_seconds flm/parts", "step_seconds flm/flm_dense_indexed"} <= set(result["ratios"])
    assert not [ratio for ratio in result["ratios"] if ratio.endswith("flm_dense")]


def test_the_dense_twin_samples_what_the_noise_says(tmp_path):
    algorithm = new_algorithm(config_of(tmp_path, *QUICK), 50).eval()
    canvas = Canvas.blank(3, 32)
    with torch.no_grad():
        algorithm.backbone.output_layer.linear.weight.normal_(generator=torch.Generator().manual_seed(0))
    for twin in TWINS[type(algorithm)].values():
        a, b, c = (twin.sample(algorithm, canvas, 2, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
        assert torch.equal(a, b) and not torch.equal(a, c)


@pytest.mark.parametrize("reads", ["view", "evidence"])
def test_the_twin_without_a_one_hot_vector_computes_what_the_other_does(tmp_path, reads):
    """Loss, gradient and samples, with tokens that are given."""
    algorithm = new_algorithm(config_of(tmp_path, *QUICK, f"algo.reads={reads}"), 50).eval()
    if reads == "evidence":
        algorithm.know_frequencies(torch.arange(50))
    with torch.no_grad():
        algorithm.backbone.output_layer.linear.weight.normal_(generator=torch.Generator().manual_seed(0))
    twins = TWINS[type(algorithm)]
    batch = Batch(torch.randint(50, (3, 32), generator=torch.Generator().manual_seed(1)), torch.ones(3, 32))
    batch.weight[0, 5:] = 0
    table = algorithm.backbone.input_table
    losses = [twins[name].loss(algorithm, batch, Draws(0)) for name in ("dense", "dense_indexed")]
    slopes = [torch.autograd.grad(loss, table)[0] for loss in losses]
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*slopes, rtol=1e-4, atol=1e-6)
    canvas = Canvas(batch.tokens, torch.arange(32).expand(3, 32) >= 8)
    samples = [
        twins[name].sample(algorithm, canvas, 3, torch.Generator().manual_seed(4)) for name in ("dense", "dense_indexed")
    ]
    assert torch.equal(*samples)


def test_a_masked_diffusion_that_scores_all_positions_has_the_same_loss(tmp_path):
    algorithm = new_algorithm(config_of(tmp_path, *QUICK, "algo=mdlm"), 50).eval()
    with torch.no_grad():
        algorithm.backbone.output_layer.linear.weight.normal_(generator=torch.Generator().manual_seed(0))
    batch = Batch(torch.randint(50, (4, 32), generator=torch.Generator().manual_seed(1)), torch.ones(4, 32))
    batch.weight[1, 9:] = 0
    (twin,) = TWINS[type(algorithm)].values()
    own, other = algorithm.loss(batch, Draws(2)).total, twin.loss(algorithm, batch, Draws(2))
    torch.testing.assert_close(own, other)
    table = algorithm.backbone.output_layer.linear.weight
    slopes = (torch.autograd.grad(loss, table)[0] for loss in (own, other))
    torch.testing.assert_close(*slopes, rtol=1e-4, atol=1e-6)
    assert twin.sample is None and list(_jobs(without_teachers(config_of(tmp_path, *QUICK, "algo=mdlm"))))[-1] == (
        SAMPLING,
        "mdlm",
    )


def test_the_dense_twin_of_evidence_trains_and_samples_alike(tmp_path):
    """Noise of a loss is drawn otherwise there: losses agree as means of many, samples exactly."""
    algorithm = new_algorithm(config_of(tmp_path, *QUICK, "algo.reads=evidence"), 50).eval()
    algorithm.know_frequencies(torch.arange(50))
    twin, canvas = TWINS[type(algorithm)]["dense"], Canvas.blank(3, 32)
    with torch.no_grad():
        algorithm.backbone.output_layer.linear.weight.normal_(generator=torch.Generator().manual_seed(0))
        batch = Batch(torch.randint(50, (64, 32), generator=torch.Generator().manual_seed(1)), torch.ones(64, 32))
        a, b = algorithm.loss(batch, Draws(0)).total, twin.loss(algorithm, batch, Draws(0))
    torch.testing.assert_close(a, b, rtol=0.02, atol=0)
    sampled = (algorithm.generate, partial(twin.sample, algorithm))
    a, b = (sample(canvas, 3, torch.Generator().manual_seed(1)) for sample in sampled)
    assert torch.equal(a, b)


def test_on_a_cpu_computing_is_compared_not_waiting():
    """Two processes that computed alike, one of which had to wait for others on its machine."""
    row = {"peak_memory_mb": 1.0, "flops": None, "loss": 0.0}
    runs = [row | {"seconds": 9.0, "processor_seconds": 1.0}, row | {"seconds": 5.0, "processor_seconds": 2.0}]
    waited = _summary(STEP, runs, 10, None, "processor_seconds")
    assert waited["seconds"] == 9.0 and waited["tokens_per_second"] == 10 / 9
    idle = row | {"seconds": 1.0, "processor_seconds": 1.0}
    assert ratios({"device": "cpu", STEP: {"a": waited, "b": idle}, SAMPLING: {}})["step_seconds a/b"] == 1.0
    assert ratios({"device": "H100", STEP: {"a": waited, "b": idle}, SAMPLING: {}})["step_seconds a/b"] == 9.0
