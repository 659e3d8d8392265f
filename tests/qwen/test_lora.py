"""Adapters on a tiny Qwen3: where they begin, what they train, and what leaves with them."""

import pytest
import safetensors.torch
import torch
from tiny_qwen3 import tiny_qwen3, with_tokenizer

import flm
from flm.algos.algorithm import Batch
from flm.checkpoints import files
from flm.checkpoints.build import build_algorithm
from flm.checkpoints.description import KEY, Description
from flm.checkpoints.load import load_algorithm
from flm.data.pretrained_tokenizer import HuggingFaceTokenizer
from flm.draws import Draws
from flm.export.hf_folder import write_folder
from flm.export.model_card import model_card
from flm.qwen.backbone import architecture_of

pytest.importorskip("peft", reason="peft is not installed (pip install peft)")
LENGTH = 12
LORA = {"rank": 4, "alpha": 6.0, "layers": ["q_proj", "v_proj", "down_proj"]}


def posterior(algorithm, tokens):
    with torch.no_grad():
        return algorithm.eval().backbone(tokens).probabilities()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder, the model it begins as, that with adapters before and after eight steps, and its config and tokenizer."""
    root = tmp_path_factory.mktemp("lora")
    qwen = with_tokenizer(tiny_qwen3(root / "qwen3", vocab_size=264, eos_token_id=257))
    tokenizer = HuggingFaceTokenizer(qwen).build(lambda: iter(()))
    model = {"_target_": "flm.qwen.backbone.QwenBackbone", "length": LENGTH, "architecture": architecture_of(qwen)}
    config = {"algo": {"_target_": "flm.algos.dfm.DFM"}, "model": model | {"lora": LORA}, "sampling": {"steps": [2]}, "seed": 1}
    beginnings = {"pretrained": str(qwen)}
    plain = build_algorithm(config | {"model": model}, tokenizer.vocab_size, model_extra=beginnings)
    torch.manual_seed(0)
    adapted = build_algorithm(config, tokenizer.vocab_size, model_extra=beginnings)
    before = {name: tensor.clone() for name, tensor in adapted.state_dict().items()}
    tokens = torch.randint(0, 256, (4, LENGTH), generator=torch.Generator().manual_seed(2))
    start = posterior(adapted, tokens)
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=3e-2)
    losses = []
    for step in range(8):
        loss = adapted.train().loss(Batch(tokens, torch.ones(4, LENGTH)), Draws(step % 2))
        mean = loss.sum / loss.counts.sum()
        optimizer.zero_grad()
        mean.backward()
        optimizer.step()
        losses.append(mean.item())
    return {"root": root, "plain": plain, "adapted": adapted, "before": before, "start": start, "tokens": tokens,
            "losses": losses, "config": config, "tokenizer": tokenizer}  # fmt: skip


def test_training_begins_at_the_model_and_moves_adapters_alone(trained):
    assert torch.equal(trained["start"], posterior(trained["plain"], trained["tokens"]))
    after = trained["adapted"].state_dict()
    moved = {name for name in after if not torch.equal(after[name], trained["before"][name])}
    assert moved == {name for name in after if ".lora_" in name} and len(moved) == 2 * 3 * 2  # A and B of 3 layers of 2 blocks
    assert trained["losses"][6] < trained["losses"][0] and trained["losses"][7] < trained["losses"][1]  # of the same noise


def test_what_is_exported_is_one_model_that_needs_no_peft(trained):
    root, adapted, tokenizer = trained["root"], trained["adapted"], trained["tokenizer"]
    description = Description(trained["config"], tokenizer.to_dict(), tokenizer.vocab_size, LENGTH, 8).to_dict()
    state = {f"algorithm.{name}": value for name, value in adapted.state_dict().items()}
    files.save({"state_dict": state, KEY: description}, root / "run.ckpt")
    again, file = load_algorithm(root / "run.ckpt", use_average=False)
    wanted = posterior(adapted, trained["tokens"])
    assert torch.equal(posterior(again, trained["tokens"]), wanted)
    write_folder(root / "folder", again, file, model_card("name", again, file))
    folder = flm.load(root / "folder", device="cpu")
    assert "lora" not in folder.config["model"]
    torch.testing.assert_close(posterior(folder.algorithm, trained["tokens"]), wanted, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(wanted, trained["start"], atol=1e-3)
    weights = safetensors.torch.load_file(root / "folder" / "model.safetensors")
    assert weights.keys() == safetensors.torch.load_file(root / "qwen3" / "model.safetensors").keys()


def test_a_layer_that_is_not_there_is_named(trained):
    model = trained["config"]["model"] | {"lora": LORA | {"layers": ["query"]}}
    with pytest.raises(ValueError, match="model.lora.layers: no layer is called query; there are down_proj, "):
        build_algorithm(trained["config"] | {"model": model}, trained["tokenizer"].vocab_size)
    with pytest.raises(ValueError, match="model.lora.rank must be a whole number of at least 1, not 0"):
        build_algorithm(trained["config"] | {"model": model | {"lora": {"rank": 0}}}, trained["tokenizer"].vocab_size)
