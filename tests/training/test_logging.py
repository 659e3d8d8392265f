"""Callbacks log where a logger will write it and nowhere else: a number that is logged becomes a tensor on the device."""

import inspect
from functools import partial
from pathlib import Path

import pytest
import yaml
from hydra.utils import instantiate
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger
from torch.utils._python_dispatch import TorchDispatchMode
from toy import ToyData, make_module, make_trainer

from flm.qwen.callbacks import Forecast, GradientNorms, SourceEpochs  # noqa: F401  imported, so that they are among the subclasses
from flm.tasks.command_line import CONFIGS
from flm.tasks.run_folder import Record
from flm.training.generation import AfterValidations
from flm.training.module import Module
from flm.training.status import _Begun

STEPS, EVERY, ACCUMULATE = 11, 4, 2
BY_HAND = {
    "Record": lambda folder: Record(folder, {}),
    "_Begun": _Begun,
    "AttentionAnnealing": None,  # of networks that can look back alone: it sets an attribute of theirs
    "AfterValidations": None,  # a base
}


def nodes(content):
    """Nodes of callbacks anywhere in a YAML."""
    if isinstance(content, dict):
        if str(content.get("_target_", "")).startswith(("flm.", "lightning.pytorch.callbacks")):
            yield content
        for value in content.values():
            yield from nodes(value)


def configured():
    found = {}
    for path in sorted(CONFIGS.glob("callbacks/*.yaml")) + sorted(CONFIGS.glob("experiment/*.yaml")):
        content = yaml.safe_load(path.read_text())
        for node in nodes(content if path.parent.name == "callbacks" else content.get("callbacks")):
            found.setdefault(node["_target_"].rpartition(".")[2], node)
    return found


CONFIGURED = configured()


def subclasses(kind):
    return {kind}.union(*map(subclasses, kind.__subclasses__()))


def test_every_callback_of_this_package_is_among_them():
    ours = {one.__name__ for one in subclasses(Callback) if one.__module__.startswith("flm.")}
    assert ours <= set(CONFIGURED) | set(BY_HAND), ours - set(CONFIGURED) - set(BY_HAND)


def made(name, folder):
    if name in BY_HAND:
        return BY_HAND[name](folder)
    node = {key: value for key, value in CONFIGURED[name].items() if not str(value).startswith("${trainer")}
    node = {key: str(folder) if str(value).startswith("${run_dir}") else value for key, value in node.items()}
    found = instantiate(node)
    given = {"decode": lambda tokens: ["text"] * len(tokens), "reference": [[0, 1, 2]] * 4}
    if isinstance(found, partial):
        found = found(**{key: value for key, value in given.items() if key in inspect.signature(found.func).parameters})
    return found


class Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


def watched(callback, monkeypatch):
    """(step, whether an accumulation ends, hook) wherever a hook of training batches logs something or lets torch compute."""
    busy, log = [], Module.log
    logged = []
    monkeypatch.setattr(Module, "log", lambda *args, **options: (logged.append(1), log(*args, **options)))

    def wrap(name, hook):
        def call(trainer, *rest):
            before = len(logged)
            with Operations() as operations:
                hook(trainer, *rest)
            if operations.count or len(logged) > before:
                busy.append((trainer.fit_loop.epoch_loop._batches_that_stepped + 1, name))

        return call

    for name in dir(Callback):
        if name.startswith("on_") and ("batch" in name or "backward" in name or "optimizer" in name or "zero" in name):
            setattr(callback, name, wrap(name, getattr(callback, name)))
    return busy


class Epochs(ToyData):
    def epochs(self):
        return {"one": 0.5}


@pytest.mark.parametrize("name", sorted({*CONFIGURED, *(name for name, make in BY_HAND.items() if make is not None)}))
def test_batches_between_two_writings_cost_nothing(name, tmp_path, monkeypatch):
    callback = made(name, tmp_path)
    if isinstance(callback, AfterValidations):
        callback.sample = None  # no validation comes
    busy = watched(callback, monkeypatch)
    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=1)
    options = {"enable_progress_bar": name == "StepProgressBar", "logger": logger, "log_every_n_steps": EVERY}
    trainer = make_trainer(tmp_path, STEPS, callbacks=[callback], accumulate_grad_batches=ACCUMULATE, **options)
    trainer.fit(make_module(), datamodule=Epochs())
    written, logs = {step for step, _ in busy}, {"Throughput", "SourceEpochs", "GradientNorms", "LearningRateMonitor"}
    # a line of progress has the loss, which is read for it: of the last step, here
    assert written == ({EVERY, 2 * EVERY} if name in logs else {STEPS} if name == "StepProgressBar" else set()), busy
    # once a step, not for every micro-batch; Lightning's own callback does so, in the steps that are written
    assert len(busy) == (ACCUMULATE if name == "LearningRateMonitor" else 1) * len(written)
    columns = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()[0]
    assert ("perf/" in columns) is (name == "Throughput") and ("data/epochs_one" in columns) is (name == "SourceEpochs")
    assert ("grad/norm" in columns) is (name == "GradientNorms") and "train/loss" in columns
