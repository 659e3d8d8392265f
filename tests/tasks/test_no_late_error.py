"""Values that pass the checks are run: whatever a command then refuses, it refuses before text is read, weights are made or
files are written. The accepted exceptions are in LATE.

Every key of the groups below is tried with VALUES; those that the checks refuse are the business of test_every_key.py.
"""

import contextlib
import functools
import io
import logging
import random
import signal
import warnings
from collections import defaultdict
from pathlib import Path

import hydra
import pytest
from code_files import HUMAN_EVAL, write
from key_walk import Place, changed, places
from omegaconf.errors import OmegaConfBaseException
from running import config_of, tiny, write_corpus
from work import watched

from flm.tasks.check import check_config
from flm.tasks.command_line import user_error
from flm.tasks.train import train
from flm.training.module import Module

VALUES = [0, 1, 10**12, 0.5, None, True, "junk"]
STEPS, SECONDS = 3, 60  # after which a run is taken to go well
QUICK = [
    "logger=none",
    "trainer.max_steps=2",
    "trainer.val_check_interval=1",
    "trainer.limit_val_batches=1",
    "callbacks.generation.count=2",
    "callbacks.sample.count=1",
]
SAMPLED = ["sampling.num_sample_batches=1", "sampling.steps=[1]", "loader.eval_batch_size=2", "eval.max_examples=2"]
# What only the text, the model or the network can tell, by the end of a key's path or the start of the error.
LATE = {
    "model.length": "how much text there is, only the text says",
    "eval.gen_ppl_eval_model_name_or_path": "whether the hub has a judge, only the network says",
    "sampling.prompt": "what can be written, the model's tokenizer says",
    "sampling.suffix": "as above",
    "algo.teacher": "an object that no config can give",
    "frontier.gamma": "which sampler there is, the model's file says",
    "algo.mask_id": "whether an id is one of the vocabulary's, the tokenizer says",
}
# Options that need files or a network which are not here.
ELSEWHERE = ("hub", "lm1b", "wikitext", "openwebtext", "ag_news", "arxiv", "fineweb", "lambada", "lamini", "ptb", "pubmed")
ELSEWHERE += ("tinystories", "wmt14", "text8", "text27", "qwen3", "mixture", "golf", "tinygsm", "gpt2", "bert", "huggingface")
ELSEWHERE += ("sentencepiece", "wandb", "fsdp2", "fsdp2_split", "overfit", "profile", "pairs")
TRAINED = (
    "algo",
    "model",
    "optim",
    "lr_scheduler",
    "trainer",
    "callbacks",
    "loader",
    "training",
    "checkpointing",
    "seed",
    "data",
)
MODES = {"sampling": "sample_eval", "eval": "sample_eval"}


class Enough(BaseException):
    """The run is well under way."""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("late")
    corpus = write_corpus(root / "corpus", documents=20)
    for name in ("flm", "ar"):
        train(config_of(root / name, *tiny(corpus, *QUICK, f"algo={name}", "callbacks.generation=null")))
    write(root / "problems.jsonl", HUMAN_EVAL)
    return root


@pytest.fixture(autouse=True)
def bounded(monkeypatch):
    """No run goes on for long."""
    begun = [0]
    original = Module.training_step

    def step(self, *args, **kwargs):
        begun[0] += 1
        if begun[0] > STEPS:
            raise Enough
        return original(self, *args, **kwargs)

    def ring(*_):
        raise Enough

    monkeypatch.setattr(Module, "training_step", step)
    monkeypatch.setattr(Module, "begun", begun, raising=False)
    before = signal.signal(signal.SIGALRM, ring)
    logging.disable(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.disable(logging.NOTSET)
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def overrides_of(place: Place, world: Path) -> list[str] | None:
    """A command that reads the key; None where one cannot be run here."""
    root, option = place.path.partition(".")[0], place.overrides[-1]
    if any(name in option for name in ELSEWHERE):
        return None
    model, text = f"eval.checkpoint_path={world / 'flm' / 'checkpoints' / 'last.ckpt'}", f"data.path={world / 'corpus'}"
    if option.startswith("mode=") or root in MODES:
        mode = option if option.startswith("mode=") else f"mode={MODES[root]}"
        if root in TRAINED or mode in ("mode=train", "mode=benchmark", "mode=report", "mode=side_by_side", "mode=import"):
            return None
        further = [f"code_eval.path={world / 'problems.jsonl'}"] if mode == "mode=code_eval" else []
        return ["debug=tiny", mode, model, *SAMPLED, *further, *([] if mode == option else [option])]
    if root not in TRAINED:
        return None
    data = [] if root == "data" and option != "debug=tiny" else ["data=text", text, "data.valid_fraction=0.2"]
    teachers = ["algo.teacher_path", "algo.teacher_f_path", "algo.teacher_g_path"]
    composed = config_of(world / "run", *place.overrides)
    named = [f"{key}={model.partition('=')[2]}" for key in teachers if key.partition(".")[2] in composed.algo]
    return [*place.overrides, *data, "tokenizer=characters", *QUICK, *named]


@functools.cache
def all_places() -> list[Place]:
    return list(places())


def refusals(group: str, world: Path, share: float) -> tuple[dict[str, list[str]], int]:
    """Late and broken runs of a group's keys, and how many runs there were."""
    faults: dict[str, list[str]] = defaultdict(list)
    count, rng = 0, random.Random(group)
    for place in all_places():
        if place.path.partition(".")[0] != group or rng.random() > share:
            continue
        overrides = overrides_of(place, world)
        if overrides is None:
            continue
        chosen = None
        for value in VALUES:
            folder = world / "runs" / f"{group}-{count}"
            chosen = config_of(folder, *overrides) if chosen is None else chosen
            try:
                with changed(chosen, place.path, value) as config:
                    with contextlib.suppress(OmegaConfBaseException):
                        check_config(config)
                        count += 1
                        config.run_dir = str(folder)
                        run(config, folder, place, value, faults)
            except ValueError:
                continue  # refused at once
    return faults, count


def run(config, folder: Path, place: Place, value: object, faults: dict[str, list[str]]) -> None:
    said = f"{' '.join(place.overrides)} {place.path}={value!r}"
    Module.begun[0] = 0
    signal.alarm(SECONDS)
    try:
        with watched(folder) as work, contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            hydra.utils.get_method(config.mode._target_)(config)
    except Enough:
        pass
    except Exception as error:
        line = user_error(error)
        if line is None:
            faults["traceback"].append(f"{said}: {type(error).__name__}: {error}")
        elif work.done and not any(place.path == key or line.startswith(key) for key in LATE):
            faults["late"].append(f"{said}: {line}; before it: {work.done}")
    finally:
        signal.alarm(0)


def report(group: str, faults: dict[str, list[str]], count: int) -> None:
    print(f"{group}: {count} runs of accepted values; exceptions: {LATE}; options left out: {', '.join(ELSEWHERE)}")
    assert not faults, "\n".join(f"{kind}: {text}" for kind, texts in faults.items() for text in texts)


@pytest.mark.slow
@pytest.mark.parametrize("group", [*TRAINED, *MODES, "code_eval", "frontier", "export", "artifact", "golf_eval", "solve_eval"])
def test_no_error_is_late(world, group):
    faults, count = refusals(group, world, 1.0)
    report(group, faults, count)


def test_the_measure_sees_what_a_run_does(world, tmp_path):
    with watched(tmp_path) as work:
        train(config_of(tmp_path / "run", *tiny(world / "corpus", *QUICK)))
    assert set(work.done) == {"text", "a network", "files"}


@pytest.mark.parametrize("group", ["training"])
def test_no_error_is_late_in_small_groups(world, group):
    report(group, *refusals(group, world, 1.0))
