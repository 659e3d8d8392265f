"""A trained Qwen3 flow model as a folder that transformers, this package and the next stage of training open alike."""

import json
import shutil

import pytest
import safetensors.torch
import torch
from tiny_qwen3 import tiny_qwen3, with_tokenizer

import flm
from flm.checkpoints import files
from flm.checkpoints.build import build_algorithm
from flm.checkpoints.description import KEY, Description
from flm.checkpoints.load import load_algorithm
from flm.data.pretrained_tokenizer import HuggingFaceTokenizer
from flm.export.hf_folder import write_folder
from flm.export.model_card import model_card
from flm.qwen.backbone import QwenBackbone, architecture_of

LENGTH = 16
CHANGED = {"time_mode": "adaln", "shift": True, "pretrained_path": "/home/someone/qwen3"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The checkpoint of a run whose starting folder is gone, and its folder; weights are random everywhere."""
    root = tmp_path_factory.mktemp("export")
    qwen = with_tokenizer(tiny_qwen3(root / "qwen3", vocab_size=264, eos_token_id=257))
    tokenizer = HuggingFaceTokenizer(qwen).build(lambda: iter(()))
    tokenizer.name = "qwen3"
    model = {"_target_": "flm.qwen.backbone.QwenBackbone", "length": LENGTH, "architecture": architecture_of(qwen)} | CHANGED
    schedule = {"_target_": "flm.paths.mixture.Polynomial", "exponent": 2.0}
    algo = {"_target_": "flm.algos.dfm.DFM", "schedule": schedule}
    config = {"algo": algo, "model": model, "sampling": {"steps": [2, 5]}, "seed": 1}
    shutil.rmtree(qwen)
    torch.manual_seed(0)
    algorithm = build_algorithm(config, tokenizer.vocab_size)
    state = {name: torch.randn_like(tensor) * 0.3 for name, tensor in algorithm.state_dict().items()}
    state["backbone.network.lm_head.weight"] = state["backbone.network.model.embed_tokens.weight"]
    description = Description(config, tokenizer.to_dict(), tokenizer.vocab_size, LENGTH, 12).to_dict()
    content = {"state_dict": {f"algorithm.{name}": value for name, value in state.items()}, KEY: description}
    files.save(content, root / "run.ckpt")
    algorithm, file = load_algorithm(root / "run.ckpt", use_average=False)
    write_folder(root / "folder", algorithm, file, model_card("name", algorithm, file))
    return algorithm, root / "folder"


def test_a_checkpoint_needs_no_folder_and_keeps_the_tie(saved):
    network = saved[0].backbone.network
    assert network.lm_head.weight is network.model.embed_tokens.weight
    assert (saved[0].backbone.mask_id, saved[0].backbone.real_vocab_size) == (258, 258)


def test_transformers_opens_it(saved):
    from transformers import AutoTokenizer

    from flm.qwen.flow_matching import FlowMatchingGenerationConfig, FlowMatchingLanguageModel, FlowMatchingSampler

    algorithm, folder = saved
    model = FlowMatchingLanguageModel.from_pretrained(folder)
    x, t = torch.randint(258, (2, LENGTH)), torch.tensor([0.2, 0.9])
    assert torch.equal(model(x, t).logits, algorithm.backbone.network(x, t).logits)
    config = model.config
    assert (config.scheduler_type, config.scheduler_n, config.num_sampling_steps) == ("polynomial_convex", 2.0, 5)
    assert (config.mask_token_id, config.real_vocab_size, config.anchor_token_id) == (258, 258, 1)
    names = safetensors.torch.load_file(folder / "model.safetensors").keys()
    assert "model.embed_tokens.weight" in names and "lm_head.weight" not in names
    content = json.loads((folder / "config.json").read_text())
    assert content["auto_map"] == {
        "AutoConfig": "configuration_flow_qwen3.FlowMatchingConfig",
        "AutoModelForMaskedLM": "modeling_flow_qwen3.FlowMatchingLanguageModel",
    }
    assert "/home/someone" not in (folder / "config.json").read_text()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    writer = FlowMatchingSampler(model, FlowMatchingGenerationConfig(2, mask_token_id=258))
    assert tokenizer.decode(writer.generate(tokenizer("ab", return_tensors="pt").input_ids, 8)[0]).startswith("ab")


def test_this_package_opens_it(saved):
    algorithm, folder = saved
    again, _ = load_algorithm(folder)
    assert again.backbone.network.lm_head.weight is again.backbone.network.model.embed_tokens.weight
    state = again.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in algorithm.state_dict().items())
    lm = flm.load(folder, device="cpu")
    (text,) = lm.infill("ab[3]cd", steps=2)
    assert text.startswith("ab") and text.endswith("cd")


def test_the_next_stage_begins_there(saved):
    algorithm, folder = saved
    network = QwenBackbone(259, LENGTH, architecture_of(folder), pretrained=folder)
    assert (network.network.config.time_mode, network.network.config.shift, network.mask_id) == ("adaln", True, 258)
    for name, tensor in algorithm.backbone.network.state_dict().items():
        assert torch.equal(network.network.state_dict()[name], tensor)
