"""The public example of the project that the retrofit comes from, on a tiny folder, under its own names."""

import pytest
import torch
from tiny_qwen3 import tiny_qwen3, with_tokenizer

MASK = 151669  # of Qwen3, which the example does not say


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return with_tokenizer(tiny_qwen3(tmp_path_factory.mktemp("qwen3"), vocab_size=151_936, hidden_size=16, eos_token_id=257))


def test_the_example_runs_as_it_is(folder):
    from transformers import AutoTokenizer

    from FlowMatchingLM import FlowMatchingLanguageModel
    from FlowMatchingLM.generation_utils import FlowMatchingGenerationConfig, FlowMatchingSampler

    model = FlowMatchingLanguageModel.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = FlowMatchingGenerationConfig(num_steps=32, temperature=0.7, top_p=0.95)
    sampler = FlowMatchingSampler(model, config)
    ids = tokenizer("def quicksort(arr):", return_tensors="pt").input_ids
    written = sampler.generate(prompt_ids=ids, max_length=256)
    assert written.shape == (1, 256) and torch.equal(written[:, : ids.shape[1]], ids) and (written < MASK).all()
    prefix = tokenizer("def mean(numbers):\n    ", return_tensors="pt").input_ids
    suffix = tokenizer("\n    return total", return_tensors="pt").input_ids
    filled = sampler.infill(prefix_ids=prefix, suffix_ids=suffix, infill_length=50)
    assert torch.equal(filled[:, : prefix.shape[1]], prefix) and torch.equal(filled[:, -suffix.shape[1] :], suffix)


def test_names_lie_where_they_did():
    from flm.qwen import flow_matching
    from FlowMatchingLM import model_config, modeling_fm, modeling_utils

    assert model_config.FlowMatchingConfig is flow_matching.FlowMatchingConfig
    assert modeling_fm.FlowMatchingLanguageModel is flow_matching.FlowMatchingLanguageModel
    assert modeling_utils.DiscreteFlowPath is flow_matching.DiscreteFlowPath
    path = modeling_utils.DiscreteFlowPath()
    x_0, x_1 = torch.zeros(4, 5000, dtype=torch.long), torch.ones(4, 5000, dtype=torch.long)
    found = path.sample(x_0, x_1, torch.tensor([0.0, 0.3, 0.7, 1.0])).x_t.double().mean(1)
    assert torch.allclose(found, torch.tensor([0.0, 0.3, 0.7, 1.0]).double(), atol=0.03)
