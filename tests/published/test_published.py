"""Published checkpoints: recognised, named, mapped, and computing what their authors' network computes."""

import copy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from published_layouts import (
    WORDS,
    D,
    L,
    V,
    average_of,
    duo,
    flm_v1,
    fmlm_v2,
    lightning,
    mdlm,
    published_logits,
    ran,
    random_weights,
    shapes,
    tokenizer_folder,
    two_stage,
)

from flm.algos.flm import FLM
from flm.algos.fmlm import FMLM
from flm.checkpoints import restricted
from flm.checkpoints.foreign import ImportChoices
from flm.checkpoints.load import load_algorithm, read_checkpoint
from flm.models.dit import DiT
from flm.paths.gaussian import State
from flm.published.layout import config_value, is_published, layout_of
from flm.samplers.canvas import Canvas
from flm.two_stage.flm_distill import FLMDistill

CAPS = {"attention_softcap": 50.0, "output_softcap": 30.0}
FLMS = {
    "flm v1": (lambda: flm_v1(), FLM),
    "flm v1 compiled": (lambda: flm_v1(compiled=True), FLM),
    "fmlm v2": (fmlm_v2, FMLM),
    "two-stage student": (two_stage, FMLM),
}


def write(path: Path, content: dict) -> Path:
    torch.save(content, path)
    return path


def log_probs(posterior, shape) -> torch.Tensor:
    return torch.stack([posterior.log_prob(torch.full(shape, token)) for token in range(posterior.vocab_size)], -1).float()


def inputs(seed: int = 0):
    """A noised one-hot state (B, L, V), and two times on the clock."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(V, (3, L), generator=generator)
    noise = torch.randn(3, L, V, generator=generator)
    t = torch.tensor([0.2, 0.6, 0.9])[:, None, None]
    state = (1 - t) * noise + t * torch.nn.functional.one_hot(tokens, V)
    tau = torch.tensor([0.0, 0.31, 0.8])
    return state, tau, torch.tensor([1.0, 0.5, 0.9])


@pytest.mark.parametrize("two_times, loss_weight, count", [(0, 0, 130), (0, 1, 138), (1, 0, 134), (1, 1, 142)])
def test_the_fixtures_have_as_many_parameters_as_the_published_models_of_twelve_blocks(two_times, loss_weight, count):
    one, two = (len(shapes(V, bool(two_times), bool(loss_weight), blocks)) for blocks in (1, 2))
    assert two - one == 10 and two - 1 + 10 * (two - one) == count  # the buffer is no parameter


@pytest.mark.parametrize("name", FLMS)
@pytest.mark.parametrize("averaged", [True, False])
def test_flm_and_fmlm_compute_what_the_published_network_computes(tmp_path, name, averaged):
    make, kind = FLMS[name]
    content, trained, average = make()
    weights = average if averaged else trained
    said = ImportChoices(tokenizer=False, output_softcap=30.0) if name == "two-stage student" else None  # else told by the file
    algorithm, file = load_algorithm(write(tmp_path / "x.ckpt", content), use_average=averaged, choices=said)
    assert type(algorithm) is kind and (algorithm.vocab_size, algorithm.length) == (V, L) and file.step == 1234
    state, tau, tau_to = inputs()
    times = (tau, tau_to) if kind is FMLM else (tau,)
    with torch.no_grad():
        logits = published_logits(weights, state @ weights["vocab_embed.embedding"], times, **CAPS)
        denoiser = algorithm.denoiser()
        posterior = denoiser(State(tuple(state @ table for table in denoiser.tables)), *times)
    torch.testing.assert_close(log_probs(posterior, (3, L)), logits.log_softmax(-1), rtol=1e-4, atol=1e-4)
    # both caps bend these logits: without either the comparison would fail
    with torch.no_grad():
        for cap in CAPS:
            other = published_logits(weights, state @ weights["vocab_embed.embedding"], times, **{**CAPS, cap: None})
            assert (other - logits).abs().max() > 0.1
    assert ran == []


@pytest.mark.parametrize("make", [mdlm, lambda: mdlm(generation=1), duo])
def test_mdlm_and_duo_backbones_compute_what_the_published_network_computes(tmp_path, make):
    content, trained, average = make()
    layout = layout_of(restricted.read(write(tmp_path / "x.ckpt", content)), "x.ckpt")
    rows = len(trained["vocab_embed.embedding"])
    assert layout.vocab_size == rows and not layout.two_times
    model = DiT(layout.vocab_size, L, **layout.model, output_softcap=None).eval()
    tokens = torch.randint(rows, (3, L), generator=torch.Generator().manual_seed(0))
    tokens[:, 0] = rows - 1  # the mask
    sigma = torch.tensor([0.0, 0.7, 4.0])
    for ours, theirs in ((layout.weights, trained), (layout.averages["ema"], average)):
        model.load_state_dict({key.removeprefix("backbone."): weight for key, weight in ours.items()})
        with torch.no_grad():
            expected = published_logits(theirs, theirs["vocab_embed.embedding"][tokens], (sigma,)).log_softmax(-1)
            found = log_probs(model(model.input_table[tokens], sigma), (3, L))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_several_averages(tmp_path):
    path = write(tmp_path / "x.ckpt", flm_v1()[0])
    second = random_weights(3)["output_layer.linear.bias"]
    file = read_checkpoint(path, ImportChoices(imported_ema=0.99999, tokenizer=False))
    assert torch.equal(file.average["backbone.output_layer.linear.bias"], second)
    with pytest.raises(ValueError, match="eval.imported_ema=0.5: it holds averages 0.99990000, 0.99999000"):
        read_checkpoint(path, ImportChoices(imported_ema=0.5, tokenizer=False))
    assert file.description.average_updates == 777


def test_no_average(tmp_path):
    content, trained, _ = fmlm_v2()
    del content["ema"]
    path = write(tmp_path / "x.ckpt", content)
    with pytest.raises(ValueError, match="holds no average.*eval.disable_ema=true"):
        load_algorithm(path)
    algorithm, _ = load_algorithm(path, use_average=False)
    assert torch.equal(algorithm.backbone.input_table, trained["vocab_embed.embedding"])


def change(content: dict, **changes) -> dict:
    """Weights of the state dict replaced (or, with None, taken out); `a__b` stands for backbone.a.b."""
    content = copy.copy(content)
    content["state_dict"] = copy.copy(content["state_dict"])
    for key, weight in changes.items():
        key = "backbone." + key.replace("__", ".")
        content["state_dict"].pop(key, None)
        if weight is not None:
            content["state_dict"][key] = weight
    return content


@pytest.mark.parametrize(
    "changes, line",
    [
        ({"blocks__1__norm2__weight": None}, "backbone.blocks.1.norm2.weight missing$"),
        ({"blocks__0__extra": torch.zeros(1)}, "backbone.blocks.0.extra unexpected$"),
        ({"norm9": torch.zeros(1)}, "backbone.norm9 unexpected$"),
        ({"blocks__0__attn_out__weight": torch.zeros(D, 5)}, r"attn_out.weight has shape \(24, 5\), .* needs \(24, 24\)"),
        ({"blocks__7__norm1__weight": torch.zeros(D)}, r"backbone.blocks.2.norm1.weight missing.*; and \d+ more$"),
        ({"sigma_map__mlp__2__bias": None}, "backbone.sigma_map.mlp.2.bias missing"),
        ({"vocab_embed__embedding": torch.zeros(3)}, r"backbone.vocab_embed.embedding has shape \(3,\)"),
        ({"vocab_embed__embedding": torch.zeros(V + 1, D)}, r"output_layer.linear.weight has shape \(15, 24\)"),
        ({"rotary_emb__inv_freq": torch.ones(4)}, "not the rotary frequencies"),
        ({"rotary_emb__inv_freq": torch.ones(5)}, "no heads for a width of 24"),
        ({"norm9": "text"}, "state_dict entry 'backbone.norm9' is not a tensor"),
        ({"_orig_mod__blocks__0__norm1__weight": torch.zeros(D)}, "backbone.blocks.0.norm1.weight twice"),
    ],
)
def test_what_does_not_fit_is_named_key_by_key(tmp_path, changes, line):
    with pytest.raises(ValueError, match=line) as caught:
        load_algorithm(write(tmp_path / "x.ckpt", change(flm_v1()[0], **changes)))
    assert str(caught.value).startswith(f"{tmp_path}/x.ckpt: ") and "\n" not in str(caught.value)


def test_an_average_of_other_parameters(tmp_path):
    def fails(average, line):
        content = fmlm_v2()[0] | {"ema": average}
        with pytest.raises(ValueError, match=line):
            load_algorithm(write(tmp_path / "x.ckpt", content))

    weights = random_weights(1, two_times=True)
    whole = average_of(weights, 0.9999)
    # without the second time embedding: a loader that matches by position to the shorter list would shift all that follow
    fails(average_of(random_weights(1), 0.9999), r"ema holds \d+ tensors for \d+ parameters")
    fails(whole | {"shadow_params": whole["shadow_params"][:-1]}, r"ema holds \d+ tensors for \d+ parameters")
    swapped = list(whole["shadow_params"])
    swapped[0], swapped[1] = swapped[1], swapped[0]
    fails(whole | {"shadow_params": swapped}, r"ema: tensor 0 does not have the shape \(15, 24\) of backbone.vocab_embed")
    fails(whole | {"shadow_params": ["x"] * len(swapped)}, "tensor 0 does not have the shape .*; and")
    fails({"decay": 0.9}, "no list shadow_params")


def test_what_the_file_does_not_say_is_asked_for(tmp_path):
    folder = tokenizer_folder(tmp_path / "bert")
    choices = ImportChoices(tokenizer_name_or_path=str(folder))
    content = flm_v1()[0]
    path = write(tmp_path / "x.ckpt", content)
    with pytest.raises(ValueError, match="no tokenizer is known for 15 tokens: set eval.tokenizer_name_or_path"):
        read_checkpoint(path, ImportChoices())
    file = read_checkpoint(path, choices)
    assert file.tokenizer is not None and "cat" in file.tokenizer["json"]
    assert file.config["model"] | CAPS == file.config["model"] and file.description.length == L

    (folder / "vocab.txt").write_text("\n".join(WORDS[:-1]))
    # one short is what [PAD] is appended for, and this one has a [PAD]
    with pytest.raises(ValueError, match="weights have 15 tokens, the tokenizer .* has 14: set eval.tokenizer_name_or_path"):
        read_checkpoint(path, choices)
    with pytest.raises(ValueError, match="eval.tokenizer_name_or_path"):
        read_checkpoint(path, replace(choices, tokenizer_name_or_path=str(tmp_path)))
    tokenizer_folder(folder)

    bare = write(tmp_path / "bare.ckpt", {key: value for key, value in content.items() if key != "hyper_parameters"})
    with pytest.raises(ValueError, match="bare.ckpt: holds no config, .*: set eval.imported_as to one of duo, flm, mdlm"):
        read_checkpoint(bare, choices)
    with pytest.raises(ValueError, match="bare.ckpt: does not say how long its sequences are: set eval.length"):
        read_checkpoint(bare, replace(choices, imported_as="flm"))
    file = read_checkpoint(bare, replace(choices, imported_as="flm", length=9, output_softcap=None, attention_softcap=7))
    assert file.description.length == file.config["model"]["length"] == 9
    assert file.config["model"]["output_softcap"] is None and file.config["model"]["attention_softcap"] == 7.0
    for wrong in ({"length": 0}, {"imported_as": "gpt"}, {"output_softcap": "x"}, {"attention_softcap": -1}):
        with pytest.raises(ValueError, match=f"eval.{next(iter(wrong))} must be"):
            read_checkpoint(path, replace(choices, **wrong))


def test_the_kind_must_be_that_of_the_network(tmp_path):
    one, two = write(tmp_path / "1.ckpt", flm_v1()[0]), write(tmp_path / "2.ckpt", fmlm_v2()[0])
    with pytest.raises(ValueError, match="1.ckpt: has no second time embedding, so it is not FMLM"):
        load_algorithm(one, choices=ImportChoices(imported_as="fmlm", tokenizer=False))
    with pytest.raises(ValueError, match="2.ckpt: has a second time embedding, so it is not FLM"):
        load_algorithm(two, choices=ImportChoices(imported_as="flm", tokenizer=False))
    content = flm_v1()[0]
    content["hyper_parameters"]["config"]["algo"]["name"] = "sedd"
    with pytest.raises(ValueError, match="weights of algorithm 'sedd', which is not imported"):
        load_algorithm(write(tmp_path / "3.ckpt", content))


def test_a_residual_comes_with_its_flm(tmp_path):
    content, trained, average = two_stage()
    residual, base = write(tmp_path / "g.ckpt", content), write(tmp_path / "f.ckpt", flm_v1()[0])
    choices = ImportChoices(imported_as="flm_distill", output_softcap=30.0, tokenizer=False)
    with pytest.raises(ValueError, match="set eval.imported_base_path"):
        load_algorithm(residual, choices=choices)
    wrong = write(tmp_path / "w.ckpt", fmlm_v2()[0])
    with pytest.raises(ValueError, match="eval.imported_base_path: the weights do not fit"):
        load_algorithm(residual, choices=replace(choices, imported_base_path=str(wrong)))
    algorithm, _ = load_algorithm(residual, choices=replace(choices, imported_base_path=str(base)))
    assert type(algorithm) is FLMDistill
    flm_average = flm_v1()[2]
    state, tau, tau_to = inputs()
    with torch.no_grad():
        # f with its softcap and g without, as the first stage trains them
        f = published_logits(flm_average, state @ flm_average["vocab_embed.embedding"], (tau,), **CAPS).softmax(-1)
        g = published_logits(average, state @ average["vocab_embed.embedding"], (tau, tau_to), 50.0, None)
        s, t = (algorithm.clock.time(time.double()) for time in (tau, tau_to))
        expected = f + ((t - s) * (1 - s) / 2).float()[:, None, None] * g
        views = State(tuple(state @ table for table in algorithm.denoiser().tables))
        (found,) = algorithm.denoiser()(views, tau, tau_to).expected((torch.eye(V),))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    weight = average["learnable_loss_weighting.s_embed.mlp.0.weight"]
    assert torch.equal(algorithm.loss_weight.s_embed.mlp[0].weight, weight)


def test_a_learned_weight_that_flm_has_no_use_for_is_left_out_and_said(tmp_path, caplog):
    trained, average = (random_weights(seed, loss_weight=True) for seed in (1, 2))
    from published_layouts import config_of

    content = lightning(trained, config_of("flm"), ema=average_of(average, 0.9999))
    content["pytorch-lightning_version"] = "2.6.1"
    algorithm, _ = load_algorithm(write(tmp_path / "x.ckpt", content))
    assert "learned loss weight" in caplog.text
    assert torch.equal(algorithm.backbone.output_layer.linear.bias, average["output_layer.linear.bias"])


def test_the_config_is_read_without_being_built(tmp_path):
    content = restricted.read(write(tmp_path / "x.ckpt", flm_v1()[0]))
    assert config_value(content, "algo.name") == "dos_denoiser" and config_value(content, "model.length") == L
    for absent in ("algo", "hidden", "algo.name.more", "nothing", "dirs.0"):
        assert config_value(content, absent) is None
    assert config_value({}, "algo.name") is None
    assert is_published(content) and not is_published({"state_dict": {"backbone.x": 1}}) and not is_published([])


def test_a_published_file_of_plain_values_alone(tmp_path):
    """As a tool writes that has thrown the objects out."""
    content = fmlm_v2()[0]
    content["hyper_parameters"] = {"config": {"algo": {"name": "fmlm"}, "model": {"length": L}}}
    content["callbacks"] = {}
    torch.load(write(tmp_path / "x.ckpt", content), weights_only=True)
    assert type(load_algorithm(tmp_path / "x.ckpt")[0]) is FMLM


def test_nothing_beside_torch_is_needed(tmp_path):
    """A fresh process without OmegaConf and without the tokenizer's class reads and samples."""
    path = write(tmp_path / "x.ckpt", fmlm_v2()[0])
    code = f"""
import sys
for name in ("omegaconf", "published_layouts", "lightning", "hydra", "transformers"):
    sys.modules[name] = None
import torch
from flm.checkpoints.load import load_algorithm
from flm.samplers.canvas import Canvas
algorithm, _ = load_algorithm({str(path)!r})
canvas = Canvas.between([], [], 6, 2, "cpu")
print(algorithm.generate(canvas, 2, torch.Generator().manual_seed(0)).tolist())
"""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    algorithm, _ = load_algorithm(path)
    here = algorithm.generate(Canvas.between([], [], L, 2, torch.device("cpu")), 2, torch.Generator().manual_seed(0))
    assert done.stdout.strip() == str(here.tolist())
