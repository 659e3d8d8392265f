"""Adapters in a folder of their own: with their base the same model, merged or beside it, for flm and for peft alike."""

import json

import pytest
import safetensors.torch
import torch
from tiny_qwen3 import tiny_qwen3, with_tokenizer

import flm
from flm.__main__ import main
from flm.checkpoints import files
from flm.checkpoints.build import build_algorithm
from flm.checkpoints.description import KEY, Description
from flm.data.pretrained_tokenizer import HuggingFaceTokenizer
from flm.qwen.adapters import OWN, PEFT, WEIGHTS, load_adapter, save_adapter
from flm.qwen.backbone import architecture_of

pytest.importorskip("peft", reason="peft is not installed (pip install peft)")
LENGTH = 12


@pytest.fixture(scope="module", params=[{}, {"time_mode": "add"}], ids=["masks", "time"])
def trained(request, tmp_path_factory):
    """A run's checkpoint whose adapters are far from zero, with the base that it began with."""
    root = tmp_path_factory.mktemp("adapters")
    qwen = with_tokenizer(tiny_qwen3(root / "qwen3", vocab_size=264, eos_token_id=257))
    tokenizer = HuggingFaceTokenizer(qwen).build(lambda: iter(()))
    model = {"_target_": "flm.qwen.backbone.QwenBackbone", "length": LENGTH, "architecture": architecture_of(qwen)}
    model |= {"lora": {"rank": 4, "alpha": 6.0, "layers": ["q_proj", "down_proj"]}} | request.param
    config = {"algo": {"_target_": "flm.algos.dfm.DFM"}, "model": model, "sampling": {"steps": [2]}, "seed": 1}
    algorithm = build_algorithm(config, tokenizer.vocab_size, model_extra={"pretrained": str(qwen)})
    generator = torch.Generator().manual_seed(3)
    for name, parameter in algorithm.named_parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
        else:
            assert "lora_" not in name
    config["model"]["pretrained_path"] = str(qwen)
    description = Description(config, tokenizer.to_dict(), tokenizer.vocab_size, LENGTH, 8).to_dict()
    state = {f"algorithm.{name}": value for name, value in algorithm.state_dict().items()}
    files.save({"state_dict": state, KEY: description}, root / "run.ckpt")
    return root


@pytest.fixture(scope="module")
def folder(trained):
    assert main(["adapter", str(trained / "run.ckpt"), str(trained / "adapter")]) == 0
    return trained / "adapter"


def posterior(lm):
    tokens = torch.randint(0, 256, (4, LENGTH), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        return lm.algorithm.backbone(tokens, torch.full((4,), 0.3)).probabilities()


def test_with_its_base_it_is_the_same_model(trained, folder):
    whole = flm.load(trained / "run.ckpt", "cpu", use_average=None)
    assert (folder / WEIGHTS).stat().st_size < (trained / "qwen3" / "model.safetensors").stat().st_size / 3
    merged, beside = flm.load(folder, "cpu"), load_adapter(folder, merged=False, device="cpu")
    assert torch.equal(posterior(beside), posterior(whole))
    torch.testing.assert_close(posterior(merged), posterior(whole), rtol=1e-4, atol=1e-6)
    assert "lora" not in merged.config["model"] and beside.config["model"]["lora"]["rank"] == 4
    assert not any("lora" in name for name in merged.algorithm.state_dict())
    base = safetensors.torch.load_file(trained / "qwen3" / "model.safetensors")
    changed = merged.algorithm.backbone.network.state_dict()["model.layers.0.mlp.down_proj.weight"]
    assert (changed - base["model.layers.0.mlp.down_proj.weight"]).abs().max() > 0.1
    assert merged.generate(n=2, seed=4) == whole.generate(n=2, seed=4)


def test_peft_opens_it(trained, folder):
    from peft import PeftModel

    lm = flm.load(trained / "run.ckpt", "cpu", use_average=None)
    model = {key: value for key, value in lm.config["model"].items() if key not in ("lora", "pretrained_path")}
    plain = build_algorithm(
        {**lm.config, "model": model}, lm.tokenizer.vocab_size, model_extra={"pretrained": str(trained / "qwen3")}
    )
    opened = PeftModel.from_pretrained(plain.backbone.network, str(folder))
    own = lm.algorithm.backbone.network.state_dict()
    theirs = {name.removeprefix("base_model.model."): value for name, value in opened.state_dict().items()}
    assert own.keys() == theirs.keys()
    assert all(torch.equal(own[name], theirs[name]) for name in own)


def test_what_is_read_back_is_saved_again_the_same(trained, folder):
    again = load_adapter(folder, merged=False, device="cpu")
    save_adapter(again, trained / "again", base=trained / "qwen3")
    first, second = (safetensors.torch.load_file(place / WEIGHTS) for place in (folder, trained / "again"))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert (
        json.loads((folder / OWN).read_text())["base_sha256"]
        == json.loads((trained / "again" / OWN).read_text())["base_sha256"]
    )


def test_the_command_line_takes_it_as_a_model(trained, folder, capsys):
    assert main(["generate", str(folder), "-n", "1", "--json"]) == 0
    text = json.loads(capsys.readouterr().out)
    assert text == flm.load(folder, "cpu").generate()[0]


def test_another_base_or_none_is_refused(trained, folder, tmp_path, capsys):
    other = with_tokenizer(tiny_qwen3(tmp_path / "other", seed=1, vocab_size=264, eos_token_id=257))
    capsys.readouterr()
    with pytest.raises(ValueError, match="other is not its base: the adapters were trained beside other weights"):
        load_adapter(folder, base=other)
    peft = json.loads((folder / PEFT).read_text())
    moved = tmp_path / "moved"
    moved.mkdir()
    for file in folder.iterdir():
        (moved / file.name).write_bytes(file.read_bytes())
    (moved / PEFT).write_text(json.dumps(peft | {"base_model_name_or_path": "/nowhere"}))
    assert main(["generate", str(moved)]) == 1
    said = capsys.readouterr().err
    assert "no weights of the base at /nowhere: write its folder as base_model_name_or_path" in said and said.count("\n") == 1
    (moved / OWN).write_text("{}")
    with pytest.raises(ValueError, match="damaged: config, tokenizer, .* missing"):
        flm.load(moved)


def test_a_model_without_adapters_has_none_to_save(folder, tmp_path):
    with pytest.raises(ValueError, match="no adapters of its own .model.lora.: mode=export writes it whole"):
        save_adapter(flm.load(folder, "cpu"), tmp_path)
    assert main(["adapter", "builtin:text", str(tmp_path / "none")]) == 1
