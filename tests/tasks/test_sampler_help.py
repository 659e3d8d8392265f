"""Each sampler's options can be seen, and what is shown is what is taken."""

import sys
from pathlib import Path

import pytest

from flm.schema import signature_of
from flm.tasks import sampler_help
from flm.tasks.command_line import main

ROOT = Path(__file__).parents[2]


def test_the_page_is_current():
    page = (ROOT / "docs" / "samplers.md").read_text(encoding="utf-8")
    assert page == sampler_help.markdown(), "run python scripts/describe_samplers.py"


def test_every_option_of_every_sampler_is_on_it_with_its_meaning():
    found = list(sampler_help.sections())
    names = [name for algos, _ in found for name in algos]
    assert sorted(names) == sorted(path.stem for path in (ROOT / "configs" / "algo").glob("*.yaml"))
    assert all(option.meaning for _, options in found for option in options), "an option without a line under Args"
    dfm = next(options for algos, options in found if "dfm" in algos)
    by_name = {option.name: option for option in dfm}
    assert by_name["eta"].solvers == ("p2",) and not by_name["temperature"].solvers
    assert by_name["threshold"].allowed == "a number in [0, 1]" and by_name["threshold"].default == "0.9"


def test_options_are_those_of_the_signatures():
    from flm.kl_flow.kl_flow import KLFlow

    options = next(options for algos, options in sampler_help.sections() if algos == ["kl_flow"])
    assert [option.name for option in options] == list(signature_of(KLFlow.samplers[""]).parameters)


def test_help_lists_them(monkeypatch, capfd):
    monkeypatch.setattr(sys, "argv", ["main.py", "--help"])
    with pytest.raises(SystemExit) as left:
        main()
    printed = capfd.readouterr().out
    assert left.value.code in (0, None) and "gamma: a number in [0, 1] (0.0)" in printed and "algo: " in printed
