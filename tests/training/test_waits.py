"""How often a training step makes the CPU wait for the device: counted on a CPU, where the same operations are called.

Numbers that are on the CPU with every device are read by `tolist`, which no dispatch sees."""

import torch
from every_algorithm import CASES, IDS, build, ragged_batch
from torch.utils._python_dispatch import TorchDispatchMode

from flm.draws import Draws
from flm.training.average import Average
from flm.training.optimizers import AdamW

WAITS = {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "_unique2", "bincount"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}  # by a mask: how many rows, only the device knows

# what waits, by the class of the algorithm, and why it stays
ALLOWED = {
    "AR": "rows of several documents are cut into rows of their own, whose number the batch says",
    "NativeFlow": "as AR",
    "Duo": "draws among all tokens but the drawn ones are repeated until they differ; while the curriculum lasts",
    "DuoDistill": "as Duo; and at the beginning of a round",
}


class Waits(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.removeprefix("aten::")
        by_mask = name in INDEXING and any(index is not None and index.dtype == torch.bool for index in args[1])
        if name in WAITS or by_mask:
            self.found.append(name)
        return function(*args, **(kwargs or {}))


def waits_of_a_step(algorithm, monkeypatch):
    # one number that all processes draw alike comes from a generator of the CPU, whatever the device
    monkeypatch.setattr(Draws, "shared_uniform", lambda draws: torch.rand((), generator=draws.shared).numpy().item())
    trained = [parameter for parameter in algorithm.parameters() if parameter.requires_grad]
    optimizer, average, batch = AdamW(trained), Average(algorithm, 0.9), ragged_batch()
    with Waits() as waits:
        algorithm.loss(batch, Draws(3)).total.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        average.update(algorithm)
    return waits.found


def test_steps_do_not_wait(monkeypatch):
    """Of any algorithm, the next one too, but for those named above, all of which do."""
    found = {}
    for case, name in zip(CASES, IDS, strict=True):
        algorithm = build(*case)
        found.setdefault(type(algorithm).__name__, {})[name] = waits_of_a_step(algorithm, monkeypatch)
    waiting = {kind: names for kind, names in found.items() if any(names.values())}
    assert {"FLM", "FMLM", "KLFlow", "FLMDistill"} <= set(found) - set(waiting)
    assert set(waiting) == set(ALLOWED), waiting
    assert {"DFM", "DBTM", "MPDC"} <= set(found)


def test_a_wait_is_seen():
    with Waits() as waits:
        values = torch.arange(3.0)
        values[values > 1] = values.sum().item()
    assert waits.found == ["_local_scalar_dense", "index_put_"]
