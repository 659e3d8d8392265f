import json

from running import config_of

from flm.tasks.benchmark import benchmark


def test_both_variants_are_measured_and_dense_takes_more_memory(tmp_path):
    quick = ["benchmark.vocab_size=20000", "benchmark.steps=1", "benchmark.rounds=1"]
    result = benchmark(config_of(tmp_path, "debug=tiny", "loader.global_batch_size=16", *quick))
    dense_tensor_mb = 16 * 32 * 20000 * 4 / 2**20
    assert result["dense"]["peak_memory_mb"] > result["v_free"]["peak_memory_mb"] + 2 * dense_tensor_mb
    # the same loss over other noise: log V at the start
    assert abs(result["dense"]["loss"] - result["v_free"]["loss"]) < 0.1
    assert json.loads((tmp_path / "benchmark.json").read_text())["training_step"] == result
