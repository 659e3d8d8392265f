"""The models of a sweep, and the combinations of sampler options with which each is sampled."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from rich.console import Console

from flm.annotations import shown
from flm.language_model import LanguageModel
from flm.samplers.canvas import Canvas
from flm.samplers.options import sampler_for
from flm.schema import signature_of
from flm.tasks.evaluation import EvalOptions, load_model
from flm.tasks.machine import Machine
from flm.tasks.processes import Team
from flm.tasks.samples import Generation, Request, generate, possible_steps

FIRST = "temperature"  # curves run along this option if it is swept


@dataclass(frozen=True)
class Setting:
    """A point of a sweep.

    Attributes:
        settings: as result files name them: run, steps, and the options with lists as text.
        options: of the sampler.
    """

    settings: dict[str, Any]
    options: dict[str, Any]


@dataclass(frozen=True)
class Swept:
    """A model in the sweep.

    Attributes:
        steps: numbers of steps to sample with.
        combinations: sets of option values to sample with, by name.
    """

    label: str
    lm: LanguageModel
    canvas: Canvas
    steps: list[int]
    combinations: list[dict[str, Any]]

    @property
    def sweeps(self) -> dict[str, list[Any]]:
        """The values of each option that it is sampled with."""
        found: dict[str, list[Any]] = {}
        for options in self.combinations:
            for name, value in options.items():
                if value not in found.setdefault(name, []):
                    found[name].append(value)
        return found

    @property
    def along(self) -> str:
        """The setting along which curves run. It has only numbers, and several of them if such a setting exists."""
        swept = self.sweeps
        always = [name for name in swept if all(is_number(options.get(name)) for options in self.combinations)]
        numeric = sorted(always, key=lambda name: (len(swept[name]) == 1, name != FIRST))
        return numeric[0] if numeric else "steps"

    def settings(self) -> Iterator[Setting]:
        for steps, options in product(self.steps, self.combinations):
            plain = {name: shown(value) if isinstance(value, list | tuple) else value for name, value in options.items()}
            yield Setting({"run": self.label, "steps": steps, **plain}, options)

    def generate(self, setting: Setting, request: Request, seed: int, team: Team) -> Generation:
        return generate(self.lm, self.canvas, setting.settings["steps"], request.batches, seed, team, **setting.options)

    def defaults(self) -> dict[str, Any]:
        """The default values of the swept options."""
        solver = self.lm.options.get("solver", next(iter(self.lm.algorithm.samplers), ""))
        sampler = self.lm.algorithm.samplers.get(solver)
        parameters = {} if sampler is None else signature_of(sampler).parameters
        found = {name: parameters[name].default for name in self.sweeps if name in parameters}
        return found | ({"solver": solver} if "solver" in self.sweeps else {})


def axes_of(temperature: Any, sweep: Mapping[str, Any] | None) -> dict[str, list[Any]]:
    """Values by option, in the given order.

    Raises:
        ValueError: an option has no value, or the same value twice.
    """
    axes = {name: values for name, values in ({FIRST: temperature} | dict(sweep or {})).items() if values is not None}
    found = {name: list(values) if isinstance(values, list | tuple) else [values] for name, values in axes.items()}
    for name, values in found.items():
        if not values or len({repr(value) for value in values}) < len(values):
            raise ValueError(f"{key_of(name, sweep)} must be a value or several different ones, not {shown(axes[name])}")
    return found


def key_of(name: str, sweep: Mapping[str, Any] | None) -> str:
    """The config key of an axis."""
    return f"frontier.{name}" if name == FIRST and name not in (sweep or {}) else f"frontier.sweep.{name}"


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def loaded(
    evaluation: EvalOptions,
    named: Mapping[str, str] | None,
    machine: Machine,
    request: Request,
    steps: list[int],
    axes: Mapping[str, list[Any]],
    keys: Mapping[str, str],
    console: Console,
) -> list[Swept]:
    """All models. Every option is tried on their samplers before any is sampled.

    Args:
        named: checkpoints by label; None: the one of `evaluation`.
        steps: wanted numbers of steps.
        axes: wanted values of the options to sweep, by name.
        keys: config keys of the options, for errors.

    Raises:
        ValueError: no sampler takes a value, or models differ in tokenizer or length, so that entropies do not compare.
    """
    models: list[Swept] = []
    for label, path in (named or {None: evaluation.checkpoint_path}).items():
        lm = load_model(replace(evaluation, checkpoint_path=path), machine)
        request.set_options(lm)
        combinations = possible(lm, axes, keys)
        canvas = request.canvas(lm)
        label = str(label) if label is not None else evaluation.label or lm.source.label
        models.append(Swept(label, lm, canvas, possible_steps(steps, lm, canvas, console), combinations))
    for name, values in axes.items():
        for value in values:
            if not any(value in model.sweeps.get(name, ()) for model in models):
                reason = refused(models[0].lm, {name: value}, keys) or "null alone is no value to sweep"
                raise ValueError(f"{keys[name]}: no sampler here takes it ({reason}): set {keys[name]}=null")
    first = models[0]
    for model in models[1:]:
        if model.lm.tokenizer.fingerprint() != first.lm.tokenizer.fingerprint():
            raise ValueError(
                f"frontier.checkpoints: {model.label} and {first.label} have different tokenizers: entropies do not compare"
            )
        if model.canvas.tokens.shape != first.canvas.tokens.shape:
            raise ValueError(f"frontier.checkpoints: {model.label} and {first.label} differ in length: set sampling.length")
    return models


def possible(lm: LanguageModel, axes: Mapping[str, list[Any]], keys: Mapping[str, str]) -> list[dict[str, Any]]:
    """The combinations of option values that the model's sampler takes.

    Options whose values are all text (solver, endpoint, ...) are chosen first. Each choice is combined with all values of those
    other options that go with it: churn, for example, is an option of one solver and not of another.

    Raises:
        ValueError: the sampler has an option, but does not take its value.
    """

    def takes(given: Mapping[str, Any], name: str) -> bool:
        return any(value is not None and refused(lm, {**given, name: value}, keys) is None for value in axes[name])

    names = [name for name, values in axes.items() if all(isinstance(value, str) for value in values)]
    found = []
    for chosen in product(*(axes[name] for name in names if takes({}, name))):
        given = dict(zip((name for name in names if takes({}, name)), chosen, strict=True))
        if refused(lm, given, keys) is not None:
            continue
        further = [name for name in axes if name not in names and takes(given, name)]
        for values in product(*(axes[name] for name in further)):
            options = given | dict(zip(further, values, strict=True))
            reason = refused(lm, options, keys)
            if reason is not None:
                raise ValueError(reason)
            found.append({name: options[name] for name in axes if name in options})
    return found


def refused(lm: LanguageModel, options: Mapping[str, Any], keys: Mapping[str, str]) -> str | None:
    """The reason why the model's sampler does not take the options, which are named by `keys`; None: it takes them."""
    given = {key: value for key, value in (lm.options | options).items() if value is not None}
    try:
        sampler_for(lm.algorithm, given, "sampling")
    except ValueError as error:
        return re.sub(r"sampling\.(\w+)", lambda found: keys.get(found[1], found[0]), str(error))
    return None
