"""A run stopped by SIGKILL and started again ends bit-identical to one that was not stopped."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from running import config_of, tiny, write_corpus
from test_train_and_sample import assert_identical, state_of

from flm.tasks.train import train

ROOT = Path(__file__).resolve().parents[2]


def test_killed_at_any_step(tmp_path):
    corpus = write_corpus(tmp_path / "corpus", documents=20)
    options = tiny(corpus, "trainer.max_steps=200", "model.dropout=0.1")
    every = "callbacks.checkpoint_every_n_steps"
    options += [f"{every}.every_n_train_steps=5", f"{every}.keep=2", "trainer.val_check_interval=50"]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "main.py", *options, f"hydra.run.dir={killed}"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 1200
        while not (killed / "checkpoints" / "step_0000010.ckpt").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.05)  # somewhere inside the steps that follow, or inside writing the next checkpoint
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (killed / "checkpoints" / "step_0000200.ckpt").exists()
    train(config_of(killed, *options))
    train(config_of(whole, *options))
    assert_identical(state_of(killed), state_of(whole))
