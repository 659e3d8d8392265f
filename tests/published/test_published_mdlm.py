"""Published MDLM weights as an MDLM here: where the mask is, what it predicts, and that it samples and imports."""

import json
import sys
from pathlib import Path

import pytest
import torch
from published_layouts import (
    WORDS,
    L,
    V,
    average_of,
    config_of,
    lightning,
    mdlm,
    published_logits,
    ran,
    random_weights,
    tokenizer_folder,
)

sys.path.insert(0, str(Path(__file__).parents[1] / "tasks"))
from running import command

from flm.algos.mdlm import MDLM
from flm.checkpoints.foreign import ImportChoices
from flm.checkpoints.load import load_algorithm, read_checkpoint
from flm.samplers.canvas import Canvas

OWN_MASK = WORDS.index("[MASK]")


def with_own_mask():
    """As on LM1B: the tokenizer has a mask, so the tables have no row of their own for it."""
    trained, average = (random_weights(seed) for seed in (12, 13))
    return lightning(trained, config_of("mdlm", parameterization="subs"), ema=average_of(average, 0.9999)), trained, average


@pytest.mark.parametrize("make, mask", [(mdlm, V), (lambda: mdlm(generation=1), V), (with_own_mask, OWN_MASK)])
@pytest.mark.parametrize("averaged", [True, False])
def test_it_predicts_what_the_published_network_predicts_without_the_mask(tmp_path, make, mask, averaged):
    content, trained, average = make()
    weights = average if averaged else trained
    torch.save(content, tmp_path / "x.ckpt")
    choices = ImportChoices(tokenizer_name_or_path=str(tokenizer_folder(tmp_path / "bert")))
    algorithm, file = load_algorithm(tmp_path / "x.ckpt", use_average=averaged, choices=choices)
    assert type(algorithm) is MDLM and algorithm.source.mask_id == mask and file.step == 1234
    assert (algorithm.vocab_size, algorithm.length) == (V, L)
    state = torch.randint(V, (3, L), generator=torch.Generator().manual_seed(0))
    state[:, ::2] = mask
    with torch.no_grad():
        logits = published_logits(weights, weights["vocab_embed.embedding"][state], (torch.zeros(3),))
        logits[..., mask] = -torch.inf
        found = algorithm.denoiser()(state).probabilities()
        torch.testing.assert_close(found, logits.softmax(-1)[..., :V], rtol=1e-4, atol=1e-6)
    assert found.shape == (3, L, V) and (found[..., OWN_MASK] == 0).all() == (mask == OWN_MASK)
    canvas = Canvas.from_pieces([[5, 6], L - 2], 200)
    tokens = algorithm.generate(canvas, 3, torch.Generator().manual_seed(1))
    assert (tokens[:, :2] == torch.tensor([5, 6])).all() and tokens.max() < V
    assert ((tokens == OWN_MASK).sum() == 0) == (mask == OWN_MASK)
    assert ran == []


@pytest.mark.parametrize("make", [mdlm, with_own_mask])
def test_what_is_imported_loads_with_nothing_else_and_samples_alike(tmp_path, monkeypatch, make):
    source, run = tmp_path / "published.ckpt", tmp_path / "run"
    folder = tokenizer_folder(tmp_path / "bert")
    torch.save(make()[0], source)
    options = ["mode=import", f"eval.checkpoint_path={source}", f"eval.tokenizer_name_or_path={folder}", f"hydra.run.dir={run}"]
    assert command(monkeypatch, *options) == 0
    found = json.loads((run / "import.json").read_text())
    assert found["algorithm"] == "MDLM" and found["vocab_size"] == V and found["model"]["output_softcap"] is None
    choices = ImportChoices(tokenizer_name_or_path=str(folder))
    direct, through = (load_algorithm(source, choices=choices)[0], load_algorithm(run / found["file"])[0])
    assert direct.source == through.source
    canvas = Canvas.blank(5, L)
    tokens = [m.generate(canvas, 4, torch.Generator().manual_seed(2)) for m in (direct, through)]
    assert torch.equal(*tokens)


def test_where_the_mask_is_without_a_tokenizer(tmp_path):
    torch.save(mdlm()[0], tmp_path / "x.ckpt")
    file = read_checkpoint(tmp_path / "x.ckpt", ImportChoices(tokenizer=False))
    assert file.config["algo"]["mask_id"] is None and file.description.vocab_size == V
    weights = random_weights(1, vocab_size=30522)  # BERT's, whose mask is 103
    torch.save(lightning(weights, config_of("mdlm"), ema=average_of(weights, 0.9999)), tmp_path / "b.ckpt")
    file = read_checkpoint(tmp_path / "b.ckpt", ImportChoices(tokenizer=False))
    assert file.config["algo"]["mask_id"] == 103 and file.description.vocab_size == 30522


def test_a_tokenizer_without_a_mask_for_tables_without_a_row_for_it(tmp_path):
    content = with_own_mask()[0]
    torch.save(content, tmp_path / "x.ckpt")
    folder = tmp_path / "bert"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(word if word != "[MASK]" else "word" for word in WORDS) + "\n")
    with pytest.raises(ValueError, match=r"x.ckpt: the weights have no row beyond the 15 tokens .* has no \[MASK\]"):
        load_algorithm(tmp_path / "x.ckpt", choices=ImportChoices(tokenizer_name_or_path=str(folder)))
