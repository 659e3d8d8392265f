"""What the scripts of the three stages ask of the environment, and the commands they are."""

import pytest
from launching import run_script

START = {
    "train_pretrain.sh": {"QWEN_PATH": "/qwen"},
    "train_midtrain.sh": {"QWEN_PATH": "/qwen", "PRETRAIN_CHECKPOINT": "/runs/one"},
    "train_sft.sh": {"QWEN_PATH": "/qwen", "MIDTRAIN_CHECKPOINT": "/runs/two"},
    "evaluate.sh": {"MODEL_PATH": "/runs/three.ckpt", "DATA_DIR": "/benchmarks"},
}
STAGES = {"train_pretrain.sh": "/qwen", "train_midtrain.sh": "/runs/one", "train_sft.sh": "/runs/two"}  # where each begins


@pytest.mark.parametrize("name", START)
def test_a_missing_variable_is_one_line_and_nothing_runs(name, tmp_path):
    for missing in START[name]:
        done, calls = run_script(name, tmp_path, **{key: value for key, value in START[name].items() if key != missing})
        assert done.returncode == 1 and calls == []
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"error: {missing} is not set: a ")


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_is_its_experiment_from_where_it_is_told_to_begin(name, tmp_path):
    done, (call,) = run_script(name, tmp_path, "a=b c", NUM_GPUS="4", OUTPUT_DIR="/out", **START[name])
    assert done.returncode == 0, done.stderr
    experiment = "qwen3_" + name.removeprefix("train_").removesuffix(".sh")
    wanted = {f"experiment={experiment}", f"model.pretrained_path={STAGES[name]}", "tokenizer.name_or_path=/qwen"}
    assert wanted | {"trainer.devices=4", "hydra.run.dir=/out"} <= set(call) and call[-1] == "a=b c"
    assert ("data.reader.template=/qwen" in call) == (name == "train_sft.sh")
    _, (plain,) = run_script(name, tmp_path, DATA_DIR="/texts", CONFIG_FILE="mine", **START[name])
    assert {"experiment=mine", "data.path=/texts", f"hydra.run.dir=outputs/{experiment}"} <= set(plain)
    assert not any(argument.startswith("trainer.devices") for argument in plain)


def test_a_recipe_is_named_and_no_file_of_another_program(tmp_path):
    done, calls = run_script(
        "train_pretrain.sh", tmp_path, CONFIG_FILE="training/configs/pretrain.yaml", **START["train_pretrain.sh"]
    )
    assert done.returncode == 1 and not calls
    assert done.stderr.startswith("error: CONFIG_FILE=training/configs/pretrain.yaml must name a recipe of configs/experiment")


def test_a_checkpoint_is_exported_first(tmp_path):
    (tmp_path / "one.ckpt").touch()
    given = {"QWEN_PATH": "/qwen", "PRETRAIN_CHECKPOINT": "one.ckpt", "OUTPUT_DIR": "run"}
    done, (export, train) = run_script("train_midtrain.sh", tmp_path, **given)
    assert done.returncode == 0, done.stderr
    start = f"{tmp_path}/run/start"
    assert {"mode=export", f"eval.checkpoint_path={tmp_path}/one.ckpt", f"hydra.run.dir={start}"} <= set(export)
    assert f"model.pretrained_path={start}" in train


def test_evaluation_by_benchmark_and_temperature(tmp_path):
    name, given = "evaluate.sh", START["evaluate.sh"]
    done, calls = run_script(name, tmp_path, "x=1", BENCHMARK="all", TEMPERATURE="0.7", NUM_SAMPLES="10", **given)
    assert done.returncode == 0, done.stderr
    files = ("/benchmarks/HumanEval.jsonl.gz", "/benchmarks/mbpp.jsonl")
    for call, file in zip(calls, files, strict=True):
        assert {f"code_eval.path={file}", "sampling.temperature=0.7", "code_eval.samples=10", "sampling.steps=32"} <= set(call)
        assert call[-1] == "x=1"
    _, (greedy,) = run_script(name, tmp_path, **given)
    assert "sampling.temperature=0.0" in greedy
    done, calls = run_script(name, tmp_path, BENCHMARK="apps", **given)
    assert done.returncode == 1 and calls == [] and "BENCHMARK=apps must be" in done.stderr


def test_code_of_the_stack_is_a_flag(tmp_path):
    given = START["train_pretrain.sh"]
    for flag, data in (("--include_stack_v1", "qwen3_pretrain_code"), ("--include_stack_v2", "qwen3_pretrain_stack_v2")):
        done, (call,) = run_script("train_pretrain.sh", tmp_path, "a=b", flag, "c=d e", **given)
        assert done.returncode == 0, done.stderr
        assert f"data={data}" in call and call[-2:] == ["a=b", "c=d e"] and flag not in call
    done, calls = run_script("train_pretrain.sh", tmp_path, "--include_stack_v1", "--include_stack_v2", **given)
    assert done.returncode == 1 and calls == [] and "take one" in done.stderr
