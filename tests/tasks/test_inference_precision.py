"""In which precision networks run outside a Trainer: as trainer.precision says there too."""

import pytest
import torch
from running import config_of

from flm.device import autocast
from flm.tasks.machine import Machine


def machine(tmp_path, *overrides):
    config = config_of(tmp_path, *overrides)
    return Machine.of(config.trainer, config.model)


@pytest.mark.parametrize("precision, dtype", [("null", None), ("32-true", None), ("bf16-mixed", torch.bfloat16)])
def test_on_a_cpu(tmp_path, precision, dtype):
    found = machine(tmp_path, "trainer.accelerator=cpu", f"trainer.precision={precision}")
    with autocast(found.device, found.precision):
        assert torch.is_autocast_enabled("cpu") == (dtype is not None)
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == (dtype or torch.float32)


def test_bf16_is_what_a_gpu_computes_in(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "autocast", lambda *asked: asked)  # the real one asks the GPU
    found = machine(tmp_path)
    assert autocast(found.device, found.precision) == ("cuda", torch.bfloat16)
