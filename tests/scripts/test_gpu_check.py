"""scripts/gpu_check.py on a CPU, at toy sizes: that each section runs, and that what is off is told."""

import importlib.util
import json
import sys
import time

import pytest
import torch
from launching import SCRIPTS, run_script


@pytest.fixture
def module(monkeypatch):
    spec = importlib.util.spec_from_file_location("gpu_check", SCRIPTS / "gpu_check.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_check", module)  # dataclasses look their module up
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec.loader.exec_module(module)
    return module


def run(module, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--device", "cpu", "--small", *arguments])
    return module.main()


def test_sections_run_and_nothing_is_off(module, monkeypatch, capsys):
    sections = ["tests", "correct", "pieces", "step", "sampling", "graphs"]
    assert run(module, monkeypatch, *sections) == 0
    out = capsys.readouterr().out
    assert [line.split()[1] for line in out.splitlines() if line.startswith("== ")] == sections
    about = json.loads(out.splitlines()[-1])
    assert about["off"] == about["broken_off"] == [] and out.count("   ok ") > 40 and "OFF" not in out
    for name in ("FLM", "FMLM", "MDLM", "Duo", "KLFlow"):
        assert f"   {name}: loss" in out and f"   {name}, uncompiled: loss" in out


@pytest.mark.slow
def test_the_trainer_runs_and_goes_on(module, monkeypatch, capsys):
    assert run(module, monkeypatch, "trainer") == 0
    out = capsys.readouterr().out
    assert out.count("status 0") == 3 and "ok   a run that went on beside one that never stopped: 0.0e+00" in out


def test_it_keeps_its_time(module, monkeypatch, capsys):
    """A section that does not end is broken off, with all exceptions in between; the next one has its share."""

    def endless(check):
        while True:
            try:
                time.sleep(0.01)
            except Exception:
                continue

    monkeypatch.setitem(module.SECTIONS, "pieces", (endless, 30))
    monkeypatch.setitem(module.SECTIONS, "sampling", (lambda check: check.say("sampled"), 570))
    start = time.perf_counter()
    assert run(module, monkeypatch, "--minutes", "0.2", "pieces", "sampling") == 0
    out = capsys.readouterr().out
    assert time.perf_counter() - start < 120  # of an endless section
    assert "its time is up" in out and json.loads(out.splitlines()[-1])["broken_off"] == ["pieces"]
    assert out.index("its time is up") < out.index("sampled")


def test_draws_of_another_law_are_noticed(module, monkeypatch, capsys):
    """Float32 noise acts as a lower temperature; so does this."""
    draw = module.TokenPosterior.draw
    monkeypatch.setattr(module.TokenPosterior, "draw", lambda self, generator: draw(self.tempered(0.9), generator))
    check = module.Check(torch.device("cpu"), module.SMALL)
    module._draws(check)
    assert len(check.failed) == 1 and "chi-square" in check.failed[0]


def test_what_is_off_is_told(module, monkeypatch, capsys):
    """An attention that forgets its mask, and a section that ends in an exception."""
    exact = module.attention
    monkeypatch.setattr(module, "attention", lambda q, k, v, cap=None, causal=False, mask=None: exact(q, k, v, cap, causal))
    monkeypatch.setattr(module, "_products", lambda *_: torch.ones(2) @ torch.ones(3))
    assert run(module, monkeypatch, "correct", "pieces") == 1
    out = capsys.readouterr().out
    off = json.loads(out.splitlines()[-1])["off"]
    assert "pieces" in off and {name for name in off if "documents" in name} and not [name for name in off if "causal" in name]
    assert out.count("OFF ") == len(off) - 1


def test_without_a_gpu_one_line_says_so(module, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu_check.py"])
    if not torch.cuda.is_available():
        assert module.main() == 1 and "torch finds no CUDA device" in capsys.readouterr().err
    assert run(module, monkeypatch, "everything") == 1
    assert "no section everything; there are tests, correct, pieces" in capsys.readouterr().err


def test_the_script_hands_its_arguments_on(tmp_path):
    stub = '[ "$1" != -u ] && [ "$1" != -m ] || shift; [ "$1" != pytest ] || exit 0\nset -- main.py "$@"\n'
    done, (call,) = run_script("gpu_check.sh", tmp_path, "correct", "--small", stub=stub)
    assert done.returncode == 0, done.stderr
    assert call == ["scripts/gpu_check.py", "correct", "--small"]
