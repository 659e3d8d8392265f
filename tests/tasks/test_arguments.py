"""What the shell hands over arrives as it is."""

import pytest
from running import config_of

from flm.samplers.canvas import pieces_of

TEXTS = ["The ", " a, b", "x=[1]", "it's", "back\\slash\\", "\\'", 'say "no"', "${oc.env:HOME}", "ünïcode", "{a: 1}", "#"]
TEXTS += ['"quoted"', "'quoted'", "\\${x}", "\\\\${x}", "a\\", "'", '"', "x\ny", "123", "true", "[1]", "a=b", "$x", "\\", "' '"]
PATHS = ["runs/epoch=1-step=20.ckpt", "a,b.ckpt", "[a].ckpt", "a]b", "it's.ckpt", "a b.ckpt", " a", "ünï.ckpt", "a#b", "(x)"]
PATHS += ["a;b", 'a"b', "x[0]/y", "{a", "f(x)", "a\nb", "C:\\x", "a=b,c=d", "@x", "a:b"]


@pytest.mark.parametrize("key", ["prompt", "suffix", "infill"])
@pytest.mark.parametrize("text", TEXTS)
def test_running_text_reaches_the_config_unchanged(key, text, tmp_path):
    assert config_of(tmp_path, f"sampling.{key}={text}").sampling[key] == text


def test_no_text_is_null_or_empty(tmp_path):
    assert config_of(tmp_path, "sampling.prompt=null").sampling.prompt is None
    assert config_of(tmp_path, "sampling.prompt=").sampling.prompt == ""


@pytest.mark.parametrize("path", PATHS)
def test_paths_reach_the_config_unchanged(path, tmp_path):
    assert config_of(tmp_path, f"eval.checkpoint_path={path}").eval.checkpoint_path == path
    assert config_of(tmp_path, "data=text", f"data.path={path}").data.path == path


def test_what_hydra_reads_is_left_to_it(tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_FOLDER", "/x/y=z")
    config = config_of(
        tmp_path, "trainer.max_steps=7", "optim.betas=[0.9,0.95]", "eval.checkpoint_path=${oc.env:SOME_FOLDER}/a=b"
    )
    assert config.trainer.max_steps == 7 and list(config.optim.betas) == [0.9, 0.95]
    assert config.eval.checkpoint_path == "/x/y=z/a=b"


@pytest.mark.parametrize(
    "override, expected",
    [
        ("eval.corpora={web: runs/a=1/x.txt, more: data}", {"web": "runs/a=1/x.txt", "more": "data"}),
        ("eval.corpora={two words: a b/c.txt, x/y: data}", {"two words": "a b/c.txt", "x/y": "data"}),
        ("callbacks.sample.options={temperature: 0.8}", {"temperature": 0.8}),
        ("callbacks.generation.options={}", {}),
    ],
)
def test_mappings_can_be_set(override, expected, tmp_path):
    key = override.partition("=")[0]
    value = config_of(tmp_path, override)
    for name in key.split("."):
        value = value[name]
    assert dict(value) == expected


def test_options_of_samplers_need_no_key_in_the_config(tmp_path):
    assert config_of(tmp_path, "sampling.temperature=0.8", "sampling.suppress=[1,2]").sampling.suppress == [1, 2]


@pytest.mark.parametrize(
    "template, expected",
    [
        ("a [3] b", ["a ", 3, " b"]),
        ("[2][1]", ["", 2, "", 1, ""]),
        ("x[[3]] [3]", ["x[3] ", 3, ""]),
        ("[[[3]]]", ["[", 3, "]"]),
        ("[x] [12]", ["[x] ", 12, ""]),
        ("[\u0663] [1]", ["[\u0663] ", 1, ""]),  # a digit that is not ASCII
        ("]] [[ [1]", ["] [ ", 1, ""]),
    ],
)
def test_templates(template, expected):
    assert pieces_of(template, lambda text, goes_on: text) == expected


@pytest.mark.parametrize(
    "template, says",
    [("[[3]]", "no hole"), ("[0] a", "0 tokens"), ("[\u0663]", "no hole"), ("[99999999999]", "longer")],
)
def test_templates_that_cannot_be(template, says):
    with pytest.raises(ValueError, match=says):
        pieces_of(template, lambda text, goes_on: text)
