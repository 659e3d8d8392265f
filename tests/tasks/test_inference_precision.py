"""In which precision networks run outside a Trainer."""

import pytest
import torch
from running import config_of

from flm.tasks import assemble
from flm.tasks.assemble import inference_precision


@pytest.mark.parametrize(
    "device, precision, low",
    [
        ("cpu", "null", False),
        ("cpu", "bf16-mixed", True),
        ("cuda", "null", True),
        ("cuda", "bf16-mixed", True),
        ("cuda", "32-true", False),
    ],
)
def test_bf16_on_cuda_unless_something_else_is_asked_for(tmp_path, monkeypatch, device, precision, low):
    monkeypatch.setattr(assemble, "device_of", lambda config: torch.device(device))
    asked = {}

    class Autocast:
        def __init__(self, kind, dtype, enabled):
            asked.update(kind=kind, dtype=dtype, enabled=enabled)

    monkeypatch.setattr(assemble.torch, "autocast", Autocast)
    inference_precision(config_of(tmp_path, f"trainer.precision={precision}"))
    assert asked == {"kind": device, "dtype": torch.bfloat16, "enabled": low}
