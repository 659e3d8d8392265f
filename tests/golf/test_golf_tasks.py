"""mode=golf_eval and mode=artifact through the command line, from nothing but a checkpoint and text."""

import json
import math
import shutil
import subprocess
import sys

import pytest
import torch
from running import command, config_of, tiny, write_corpus

import flm
from flm.checkpoints.load import load_algorithm, read_checkpoint, read_model
from flm.data.byte_table import ByteTable
from flm.data.tokenizers import Tokenizer
from flm.golf import submission
from flm.golf.artifact import code_bytes
from flm.golf.scored_stream import Reading
from flm.golf.shard_files import write_shard
from flm.golf.test_time_training import TestTimeTraining, score_then_train
from flm.tasks.assemble import data_module
from flm.tasks.train import train

WINDOW, STRIDE = 16, 4


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"), documents=20)


def trained(corpus, folder, *overrides):
    settings = ("trainer.max_steps=30", "model.num_blocks=2", "optim.lr=1e-2", "training.ema=0.5", "logger=none", *overrides)
    train(config_of(folder, *tiny(corpus, *settings)))
    return folder / "checkpoints" / "last.ckpt"


@pytest.fixture(scope="module")
def checkpoint(corpus, tmp_path_factory):
    return trained(corpus, tmp_path_factory.mktemp("trained"), "algo=ar", f"model.length={WINDOW}")


def run(monkeypatch, corpus, checkpoint, folder, *overrides):
    options = [f"golf_eval.stride={STRIDE}", "golf_eval.max_tokens=200", "golf_eval.test_time_training.freeze_blocks=0"]
    common = [*tiny(corpus), f"eval.checkpoint_path={checkpoint}", f"hydra.run.dir={folder}"]
    return command(monkeypatch, *common, *options, *overrides)


def test_a_checkpoint_is_scored_as_by_hand(monkeypatch, capfd, tmp_path, corpus, checkpoint):
    options = ["golf_eval.test_time_training.lr=0.02", "golf_eval.test_time_training.epochs=2", "golf_eval.chunk_tokens=32"]
    assert run(monkeypatch, corpus, checkpoint, tmp_path, "mode=golf_eval", *options) == 0
    content = json.loads((tmp_path / "golf_eval.json").read_text())
    rows = content["golf_eval"]["methods"]
    algorithm, file = load_algorithm(checkpoint)
    text = data_module(config_of(tmp_path, *tiny(corpus))).cache.tokens("valid").read(0, 201)
    text = torch.from_numpy(text)
    table = ByteTable.of(Tokenizer.from_dict(file.tokenizer))
    num_bytes = int(table.bytes(text[1:], text[:-1]).sum())
    blocks = [algorithm.nll(text[None, 1 + i : 1 + min(i + WINDOW, 200)]).sum().item() for i in range(0, 200, WINDOW)]
    sliding = algorithm.nll(text[None, 1 : 1 + WINDOW]).sum().item()
    for end in range(WINDOW + STRIDE, 201, STRIDE):
        sliding += algorithm.nll(text[None, 1 + end - WINDOW : 1 + end])[:, -STRIDE:].sum().item()
    for method, nats in {"blocks": sum(blocks), "sliding": sliding}.items():
        assert rows[method]["tokens"] == 200 and rows[method]["bytes"] == num_bytes
        assert math.isclose(rows[method]["bits_per_byte"], nats / math.log(2) / num_bytes, rel_tol=1e-5)
    learned = rows["test_time_training"]
    assert learned["chunks"] == 7 and learned["stride"] == STRIDE
    settings = TestTimeTraining(lr=0.02, epochs=2, freeze_blocks=0, seed=content["seed"])
    tally = score_then_train(algorithm, text, Reading(WINDOW, STRIDE, 32), settings, table)
    assert math.isclose(learned["bits_per_byte"], tally.bits_per_byte, rel_tol=1e-4)
    assert not math.isclose(learned["bits_per_byte"], rows["sliding"]["bits_per_byte"], rel_tol=1e-3)
    assert content["checkpoint"]["sha256"] == file.sha256
    assert "test_time_training" in capfd.readouterr().out


def test_an_artifact_is_evaluated_from_its_file(monkeypatch, capfd, tmp_path, corpus, checkpoint):
    options = ["mode=artifact", "artifact.evaluation=golf_eval", "artifact.kept_elements=100", "golf_eval.methods=[blocks]"]
    assert run(monkeypatch, corpus, checkpoint, tmp_path, *options) == 0
    path = tmp_path / "model.flmpack"
    packed = json.loads((tmp_path / "artifact.json").read_text())["artifact"]
    assert packed["model_bytes"] == path.stat().st_size
    assert packed["total_bytes"] == path.stat().st_size + code_bytes(None)
    assert packed["headroom_bytes"] == 16_000_000 - packed["total_bytes"] > 0
    algorithm, file = load_algorithm(path)
    assert sum(packed["elements_by_bits"].values()) == sum(p.numel() for p in algorithm.parameters())
    scored = json.loads((tmp_path / "golf_eval.json").read_text())
    assert scored["checkpoint"]["sha256"] == file.sha256 != read_checkpoint(checkpoint).sha256
    text = torch.from_numpy(data_module(config_of(tmp_path, *tiny(corpus))).cache.tokens("valid").read(0, 201))[1:]
    nats = sum(algorithm.nll(text[None, i : min(i + WINDOW, 200)]).sum().item() for i in range(0, 200, WINDOW))
    assert math.isclose(scored["golf_eval"]["methods"]["blocks"]["nats_per_token"], nats / 200, rel_tol=1e-5)
    out = capfd.readouterr().out
    assert f"{packed['headroom_bytes']:,}" in out and f"{packed['total_bytes']:,}" in out


@pytest.mark.parametrize("last_step", [False, True])
def test_an_artifact_says_which_weights_it_holds(monkeypatch, tmp_path, corpus, checkpoint, last_step):
    """Of the last step's it said that they were averaged."""
    short = ["golf_eval.methods=[blocks]", "golf_eval.max_tokens=100", f"eval.disable_ema={str(last_step).lower()}"]
    assert run(monkeypatch, corpus, checkpoint, tmp_path, "mode=artifact", "artifact.kept_elements=100", *short) == 0
    said = "last step" if last_step else "average"
    assert json.loads((tmp_path / "golf_eval.json").read_text())["weights"] == said
    assert json.loads((tmp_path / "artifact.json").read_text())["artifact"]["weights"] == said
    assert flm.load(tmp_path / "model.flmpack", "cpu").source.weights == said


def test_the_submission_scores_without_this_package(monkeypatch, capfd, tmp_path, corpus, checkpoint):
    options = ["mode=artifact", "artifact.script=true", "artifact.kept_elements=100", "golf_eval.methods=[sliding]"]
    assert run(monkeypatch, corpus, checkpoint, tmp_path, *options) == 0
    capfd.readouterr()
    packed = json.loads((tmp_path / "artifact.json").read_text())["artifact"]
    script = tmp_path / "submission.py"
    assert packed["code_bytes"] == script.stat().st_size < 120_000
    wanted = json.loads((tmp_path / "golf_eval.json").read_text())["golf_eval"]["methods"]["sliding"]
    text = data_module(config_of(tmp_path, *tiny(corpus))).cache.tokens("valid")
    assert len(text) > 3 * 16 * WINDOW
    write_shard(tmp_path / "val.bin", text.read(0, 3 * 16 * WINDOW))
    alone = tmp_path / "elsewhere"
    alone.mkdir()
    shutil.copy(script, alone)
    command = [sys.executable, "-I", "submission.py", str(tmp_path / "model.flmpack"), str(tmp_path / "val.bin")]
    done = subprocess.run([*command, "--stride", "4", "--max-tokens", "200"], cwd=alone, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["tokens"] == wanted["tokens"] and found["bytes"] == wanted["bytes"]
    assert math.isclose(found["bits_per_byte"], wanted["bits_per_byte"], rel_tol=1e-6)
    learned = json.loads(subprocess.check_output([*command, "--test-time-training"], cwd=alone))
    algorithm, file = load_algorithm(tmp_path / "model.flmpack")
    stream = torch.from_numpy(text.read(0, 3 * 16 * WINDOW))
    table = ByteTable.of(Tokenizer.from_dict(file.tokenizer))
    tally = score_then_train(algorithm, stream, Reading(WINDOW, WINDOW, 16 * WINDOW), TestTimeTraining(), table)
    assert math.isclose(learned["bits_per_byte"], tally.bits_per_byte, rel_tol=1e-6)
    assert submission.main([*command[3:], "--stride", "5"]) == 1
    assert capfd.readouterr().err.startswith("error: golf_eval: the stride (5) must divide the window")


def test_calibration_brings_outputs_nearer_at_equal_bytes(monkeypatch, capfd, tmp_path, corpus, checkpoint):
    """On held-out text, which did not shape the rounding."""
    common = ["mode=artifact", "artifact.evaluation=null", "artifact.kept_elements=100", "loader.eval_batch_size=8"]
    code = tmp_path / "code.py"
    code.write_text("x")
    assert run(monkeypatch, corpus, checkpoint, tmp_path / "fine", *common, f"artifact.code={code}") == 0
    fine = json.loads((tmp_path / "fine" / "artifact.json").read_text())["artifact"]
    limit = int(0.65 * fine["total_bytes"])
    text = torch.from_numpy(data_module(config_of(tmp_path, *tiny(corpus))).cache.tokens("valid").read(0, 56 * WINDOW))
    rows = text.view(-1, WINDOW)
    own, off = flm.load(checkpoint, "cpu").algorithm.nll(rows), {}
    for blocks in (0, 64):
        options = [f"artifact.calibration={blocks}", f"artifact.limit_bytes={limit}", f"artifact.code={code}"]
        assert run(monkeypatch, corpus, checkpoint, tmp_path / str(blocks), *common, *options) == 0
        made = json.loads((tmp_path / str(blocks) / "artifact.json").read_text())["artifact"]
        assert made["calibration"] == blocks and 0.98 * limit < made["total_bytes"] <= limit
        packed = flm.load(tmp_path / str(blocks) / "model.flmpack", "cpu").algorithm
        off[blocks] = (packed.nll(rows) - own).square().mean().item()
    assert off[64] < 0.8 * off[0]
    capfd.readouterr()
    assert (
        run(monkeypatch, corpus, checkpoint, tmp_path / "no", *common, "artifact.rounding=int8", "artifact.calibration=4") == 1
    )
    assert "artifact.calibration=4 is of artifact.rounding=step" in capfd.readouterr().err


def test_a_limit_that_cannot_be_met_is_one_line_and_leaves_no_file(monkeypatch, capfd, tmp_path, corpus, checkpoint):
    code = tmp_path / "code.py"
    code.write_text("x = 1\n")
    limits = ["mode=artifact", f"artifact.code=[{code}]", "artifact.limit_bytes=2000"]
    assert run(monkeypatch, corpus, checkpoint, tmp_path / "run", *limits) == 1
    error = capfd.readouterr().err
    assert "1,994 are left" in error and error.count("error:") == 1
    assert not (tmp_path / "run" / "model.flmpack").exists()
    assert run(monkeypatch, corpus, checkpoint, tmp_path / "run", "mode=artifact", "artifact.limit_bytes=5") == 1
    assert "the code alone has" in capfd.readouterr().err
    assert run(monkeypatch, corpus, checkpoint, tmp_path / "run", "mode=artifact", f"artifact.code=[{tmp_path / 'none'}]") == 1
    assert "artifact.code must be a file or folder that is there" in capfd.readouterr().err


def test_a_flow_model_is_packed_and_bounded_from_its_file(monkeypatch, capfd, tmp_path, corpus):
    checkpoint = trained(corpus, tmp_path / "flm")
    bound = ["eval.max_examples=4", "eval.draws_per_example=1", "eval.pilot_draws=0"]
    folder = tmp_path / "packed"
    assert run(monkeypatch, corpus, checkpoint, folder, "mode=artifact", "artifact.kept_elements=100", *bound) == 0
    content = json.loads((folder / "likelihood.json").read_text())
    assert content["checkpoint"]["sha256"] == read_model(folder / "model.flmpack").sha256
    assert run(monkeypatch, corpus, checkpoint, tmp_path / "golf", "mode=golf_eval") == 1
    assert "does not read from left to right" in capfd.readouterr().err


def test_code_is_counted_once(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one.py").write_text("1234567")
    (tmp_path / "a" / "notes.txt").write_text("not code")
    (tmp_path / "two.txt").write_text("\u00e9", encoding="utf-8")  # named itself, so it counts: two bytes
    places = [tmp_path / "a", tmp_path / "a" / "one.py", tmp_path / "two.txt"]
    assert code_bytes([str(place) for place in places]) == 9
    assert code_bytes(str(tmp_path / "a")) == 7  # one place is no list of letters
