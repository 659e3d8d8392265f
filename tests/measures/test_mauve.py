"""The package mauve-text is optional: what it computes is tested where it is installed, what it is given everywhere."""

import random
import sys
from types import SimpleNamespace

import pytest
import torch
from tasks.random_gpt2 import random_gpt2

from flm.measures.mauve import KEY, Mauve

TEXTS = ["the cat sees the sea.", "", "a dog hears rain " * 9]
CONTEXT = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return random_gpt2(tmp_path_factory.mktemp("gpt2") / "judge", context=CONTEXT)


@torch.no_grad()
def test_features_are_the_last_hidden_state_of_the_last_token(folder, monkeypatch):
    from transformers import AutoTokenizer, GPT2LMHeadModel

    given = []

    def compute_mauve(p_features, q_features, **_):
        given.extend([p_features, q_features])
        return SimpleNamespace(mauve=0.5)

    monkeypatch.setitem(sys.modules, "mauve", SimpleNamespace(compute_mauve=compute_mauve))
    assert Mauve(TEXTS, str(folder)).score(TEXTS[::-1]) == 0.5
    model, tokenizer = GPT2LMHeadModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    for text, feature in zip(TEXTS, given[1], strict=True):
        ids = tokenizer(text)["input_ids"][:CONTEXT] or [tokenizer.eos_token_id]
        hidden = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0, -1]
        assert torch.allclose(torch.from_numpy(feature), hidden, atol=1e-5)
    assert (given[0] == given[1][::-1]).all()


def test_scores_follow_the_distribution(folder):
    pytest.importorskip("mauve")
    rng = random.Random(0)

    def texts(words):
        return [" ".join(rng.choice(words) for _ in range(8)) for _ in range(60)]

    words = "cat sees sea dog hears rain bird".split()
    real = texts(words)
    judge = Mauve(real, str(folder))
    alike, other = judge.score(texts(words)), judge.score(texts(["zz", "qq"]))
    assert judge.score(real) == pytest.approx(1) and alike > 0.6 > 0.3 > other


def test_errors_name_what_to_do(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mauve", None)
    with pytest.raises(ValueError, match="pip install mauve-text"):
        Mauve(TEXTS, str(folder))
    monkeypatch.setitem(sys.modules, "mauve", SimpleNamespace(compute_mauve=None))
    with pytest.raises(ValueError, match=f"{KEY}=.*absent cannot be loaded"):
        Mauve(TEXTS, str(tmp_path / "absent"))
    with pytest.raises(ValueError, match="fewer than two"):
        Mauve(TEXTS[:1], str(folder))
