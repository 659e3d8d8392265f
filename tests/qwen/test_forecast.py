from types import SimpleNamespace

import torch

from flm.algos.algorithm import Batch
from flm.qwen import callbacks as module
from flm.qwen.callbacks import Forecast, forecast


def test_tokens_count_once_over_accumulation_and_processes_and_validation_is_left_out(monkeypatch, capsys):
    """Three micro-batches of 2 x 8 tokens a step on 4 processes, a micro-batch a second; the first step takes a minute more."""
    now = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    batch = Batch(torch.zeros(2, 8, dtype=torch.long), torch.ones(2, 8))
    trainer = SimpleNamespace(global_step=10, max_steps=1010, world_size=4, is_global_zero=True)
    callback = Forecast(after_steps=5)
    callback.on_train_start(trainer, None)
    for micro in range(30):
        now[0] += 61.0 if micro == 0 else 1.0
        trainer.global_step += micro % 3 == 2
        callback.on_train_batch_end(trainer, None, None, batch, micro)
        if micro == 7:
            callback.on_validation_start(trainer, None)
            now[0] += 500.0
            callback.on_validation_end(trainer, None)
    # measured to step 16: 994 steps of 192 tokens in 3 seconds are left
    expected = "64 tokens/s: 994 more steps of 192 tokens (0.00 billion in all) take 49.7 minutes without validation"
    assert callback.message == expected and capsys.readouterr().out == expected + "\n"


def test_in_words():
    said = forecast(1_048_576, 1_048_576 / 99_000, 0, 210_000)
    assert (
        said
        == "99,000 tokens/s: 210,000 more steps of 1,048,576 tokens (220.20 billion in all) take 25.7 days without validation"
    )
    assert forecast(10, 1.0, 90, 100).endswith("take 10 seconds without validation")
