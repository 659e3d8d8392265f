"""Every launcher's own command, shrunk by debug=tiny, on stand-in files through the real loading code, stage upon stage."""

import json
import math
import os
import subprocess
import sys

import pytest
import torch
from launching import SCRIPTS, VARIABLES, run_script
from stand_ins import write_lm1b, write_openwebtext
from tasks.running import command

from flm.checkpoints.load import read_checkpoint

STAGES = ("flm", "fmlm", "flm_distill", "flm_distill_second")
TINY = ["debug=tiny", "trainer.max_steps=2", "logger=none", "callbacks.progress=null", "lr_scheduler.warmup_steps=1"]
TINY += ["model.cond_dim=8", "model.num_blocks=1", "callbacks.sample=null"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """DATA_DIR, and by corpus the number of tokens a model should have."""
    folder = tmp_path_factory.mktemp("data")
    return folder, {"lm1b": write_lm1b(folder), "owt": write_openwebtext(folder) + 1}  # [PAD] beside GPT-2's own


@pytest.fixture(autouse=True, scope="module")
def one_process():
    """The recipes' DDP, here of one process, leaves its process group and variables behind."""
    before = dict(os.environ)
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    os.environ.clear()
    os.environ.update(before)


def launched(monkeypatch, folder, script, *overrides, **variables) -> None:
    """Runs in this process what the script would run."""
    done, (arguments,) = run_script(script, folder / "stub", **{key: str(value) for key, value in variables.items()})
    assert done.returncode == 0, done.stderr
    assert command(monkeypatch, *arguments, *overrides) == 0


# what the stand-in for OpenWebText cannot hold out as many of
SHRUNK = {"lm1b": [], "owt": ["data.valid_documents=30"]}
KINDS = {"flm": "FLM", "fmlm": "FMLM", "flm_distill": "FLMDistill", "flm_distill_second": "FLMDistillSecond"}
SOURCES = {"lm1b": "lm1b (plain_text)", "owt": "openwebtext (data)"}


@pytest.mark.parametrize("corpus", ["lm1b", "owt"])
def test_each_script_starts_from_what_the_one_before_left(corpus, data, tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    folder, vocabulary = data
    options = [*TINY, *SHRUNK[corpus]]
    made = {stage: tmp_path / stage / "checkpoints" / "last.ckpt" for stage in STAGES}
    for stage in STAGES:
        teacher = {"flm": {}, "flm_distill_second": {"TEACHER_PATH": made["flm_distill"]}}
        variables = teacher.get(stage, {"TEACHER_PATH": made["flm"]})
        run = f"hydra.run.dir={tmp_path / stage}"
        launched(monkeypatch, tmp_path, f"train_{corpus}_{stage}.sh", *options, run, DATA_DIR=folder, **variables)
        checkpoint = read_checkpoint(made[stage])
        assert checkpoint.step == 2 and checkpoint.config["algo"]["_target_"].endswith(f".{KINDS[stage]}")
        assert checkpoint.description.vocab_size == vocabulary[corpus]
        assert (checkpoint.config["model"]["attention_softcap"], checkpoint.config["data"]["wrap"]) == (50.0, "bos_eos")

    judged = {"flm": made["flm"], "fmlm": made["fmlm"], "flm_distill_double": made["flm_distill_second"]}
    for script, checkpoint in judged.items():
        more = [*options, "loader.eval_batch_size=3", f"hydra.run.dir={tmp_path / 'eval' / script}"]
        variables = {"DATA_DIR": folder, "CKPT_PATH": checkpoint, "STEPS": "[2]"}
        launched(monkeypatch, tmp_path, f"gen_ppl_{corpus}_{script}.sh", *more, **variables)
        results = json.loads((tmp_path / "eval" / script / "results.json").read_text())
        assert results["real"]["source"] == SOURCES[corpus]  # the recipe's own, not what a checkpoint records
        assert list(results["generated"]) == ["2"] and results["generated"]["2"]["count"] == 3
        assert math.isfinite(results["generated"]["2"]["metrics"]["ngram_ce_nats"]["mean"])
        gamma = results["generated"]["2"]["options"].get("gamma", 0.0)
        assert gamma == {"lm1b": 0.8, "owt": 1.0}[corpus] * (script == "fmlm")


@pytest.mark.parametrize("corpus", ["lm1b", "owt"])
def test_the_baselines_train_on_the_same_data(corpus, data, tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    folder, vocabulary = data
    common = [*TINY, *SHRUNK[corpus], f"data.cache_dir={folder}"]
    for algo, kind in (("ar", "AR"), ("mdlm", "MDLM"), ("duo", "Duo"), ("duo_distill", "DuoDistill")):
        teacher = [f"algo.teacher_path={tmp_path}/duo/checkpoints/last.ckpt"] if algo == "duo_distill" else []
        run = [f"experiment={corpus}_{algo}", *teacher, *common, f"hydra.run.dir={tmp_path / algo}"]
        assert command(monkeypatch, *run) == 0
        checkpoint = read_checkpoint(tmp_path / algo / "checkpoints" / "last.ckpt")
        assert checkpoint.step == 2 and checkpoint.config["algo"]["_target_"].endswith(f".{kind}")
        assert checkpoint.description.vocab_size == vocabulary[corpus]


def test_a_script_as_typed(data, tmp_path):
    """In a shell, with the real python."""
    pytest.importorskip("datasets")
    of_ours = (*VARIABLES, "MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE")  # the latter of DDP in here
    environment = {key: value for key, value in os.environ.items() if key not in of_ours}
    python = tmp_path / "python"
    python.write_text(f'#!/usr/bin/env bash\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    environment |= {"PATH": f"{tmp_path}:{environment['PATH']}", "FLM_VENV": "none", "DATA_DIR": str(data[0])}
    typed = ["bash", str(SCRIPTS / "train_lm1b_flm.sh"), *TINY, f"hydra.run.dir={tmp_path / 'run'}"]
    done = subprocess.run(typed, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    assert read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt").step == 2


def records(corpus: str, number: int) -> dict:
    return {
        "fineweb": {"text": f"sentence {number} about a river"},
        "tinystories": {"text": f"once there were {number} small cats"},
        "lamini": {"instruction": f"name {number}", "response": "blue"},
        "wmt14_de_en": {"translation": {"de": f"Haus {number}", "en": "a house"}},
    }[corpus]


HELD_OUT = {"fineweb": ["data.valid_documents=5"], "lamini": ["data.valid_fraction=0.3"], "tinystories": [], "wmt14_de_en": []}


@pytest.mark.parametrize("corpus", HELD_OUT)
def test_scripts_of_kl_flow(corpus, tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    files = tmp_path / "files"
    files.mkdir()
    for split in ("train", "validation"):
        (files / f"{split}.jsonl").write_text("".join(json.dumps(records(corpus, n)) + "\n" for n in range(40)))
    options = [*TINY, "model.length=24", "tokenizer=bytes", f"data.path={files}", "data.subset=null", *HELD_OUT[corpus]]
    options += [f"hydra.run.dir={tmp_path / 'run'}", "data.processes=1"]
    launched(monkeypatch, tmp_path, f"train_{corpus}_kl_flow.sh", *options, DATA_DIR=tmp_path / "data")
    checkpoint = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert checkpoint.step == 2 and checkpoint.config["algo"]["_target_"].endswith(".KLFlow")
    assert checkpoint.config["optim"]["_target_"].endswith("MuonWithAdamW") and checkpoint.config["optim"]["betas"] == [
        0.9,
        0.95,
    ]
