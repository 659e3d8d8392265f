"""Names, defaults and shapes of the API in token ids, and that it writes what the model says."""

import inspect

import pytest
import torch
from chi_square import chi_square_limit
from tiny_qwen3 import tiny_qwen3, with_tokenizer

from flm.qwen.flow_matching import (
    DiscreteFlowPath,
    FlowMatchingGenerationConfig,
    FlowMatchingLanguageModel,
    FlowMatchingSampler,
    TimeEmbedding,
)

V = MASK = 258


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return with_tokenizer(tiny_qwen3(tmp_path_factory.mktemp("qwen3"), vocab_size=264, eos_token_id=257))


@pytest.fixture(scope="module")
def model(folder):
    return FlowMatchingLanguageModel.from_pretrained(folder, mask_token_id=MASK)


def sampler(model, **options):
    return FlowMatchingSampler(model, FlowMatchingGenerationConfig(**{"num_steps": 4, "mask_token_id": MASK} | options))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_completion_as_documented(folder, model):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = FlowMatchingGenerationConfig(num_steps=32, temperature=0.7, top_p=0.95, mask_token_id=MASK)
    writer = FlowMatchingSampler(model, config)
    prompt = "def fibonacci(n):\n    "
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    found = writer.generate(ids, max_length=256)
    assert found.shape == (1, 256) and found.max() < V
    assert tokenizer.decode(found[0]).startswith(prompt)


def test_infilling_as_documented(folder, model):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    prefix = tokenizer("def area(radius):\n    ", return_tensors="pt").input_ids
    suffix = tokenizer("\n    return result", return_tensors="pt").input_ids
    found = sampler(model, num_steps=8).infill(prefix, suffix, infill_length=50)
    assert found.shape == (1, prefix.shape[1] + 50 + suffix.shape[1]) and found.max() < V
    assert torch.equal(found[:, : prefix.shape[1]], prefix) and torch.equal(found[:, -suffix.shape[1] :], suffix)


def test_names_and_defaults():
    generation = FlowMatchingGenerationConfig()
    assert vars(generation) == {
        "num_steps": 32, "temperature": 1.0, "top_k": None, "top_p": None, "mask_token_id": 151669, "solver_type": "euler",
        "guidance_scale": 1.0,
    }  # fmt: skip

    def defaults(method):
        return {name: p.default for name, p in inspect.signature(method).parameters.items() if name != "self"}

    found = defaults(FlowMatchingSampler.generate)
    expected = {"prompt_ids": None, "max_length": 256, "batch_size": 1, "num_steps": None}
    expected |= {"use_confidence": True, "verbose": False}
    assert list(found)[:6] == list(expected) and {name: found[name] for name in expected} == expected
    assert list(defaults(FlowMatchingSampler.generate_with_prefix))[:3] == ["prefix_ids", "suffix_length", "num_steps"]
    assert list(defaults(FlowMatchingSampler.infill))[:4] == ["prefix_ids", "suffix_ids", "infill_length", "num_steps"]
    assert TimeEmbedding(8)(torch.rand(3)).shape == (3, 8)


def test_lengths_batches_and_generators(model, capsys):
    writer = sampler(model)
    assert writer.generate(max_length=9, batch_size=3).shape == (3, 9)
    prompt = torch.tensor([[5, 6, 7]])
    assert writer.generate(prompt, max_length=8, batch_size=2).shape == (2, 8)
    found = writer.generate_with_prefix(prompt, suffix_length=4, num_steps=2, verbose=True)
    assert found.shape == (1, 7) and torch.equal(found[:, :3], prompt)
    assert capsys.readouterr().out.startswith("step 1 of 2")
    assert torch.equal(writer.generate(max_length=8, generator=seeded()), writer.generate(max_length=8, generator=seeded()))
    torch.manual_seed(1)
    first, second = writer.generate(max_length=8), writer.generate(max_length=8)
    torch.manual_seed(1)
    assert torch.equal(writer.generate(max_length=8), first) and not torch.equal(first, second)


@pytest.mark.parametrize("use_confidence", [True, False])
def test_ragged_prompts_are_single_rows(model, use_confidence):
    prompts = [[5, 6, 7, 8, 9], [11], [20, 21, 22]]
    # a step a position: in any order of writing, greedy choices do not depend on the other rows
    writer = sampler(model, temperature=0.0, num_steps=64)
    options = {"max_length": 12, "use_confidence": True}
    together = writer.generate(prompts, **options)
    for row, prompt in zip(together, prompts, strict=True):
        assert torch.equal(row, writer.generate([prompt], **options)[0])
        assert row[: len(prompt)].tolist() == prompt
    found = sampler(model).generate(prompts, max_length=12, use_confidence=use_confidence)
    assert all(row[: len(prompt)].tolist() == prompt for row, prompt in zip(found, prompts, strict=True))


def test_masks_inside_a_prompt_are_holes(model):
    given = torch.tensor([[5, MASK, 7, MASK, MASK, 10]])
    found = sampler(model).generate(given, max_length=6)
    assert found[0, [0, 2, 5]].tolist() == [5, 7, 10] and found.max() < V


@pytest.mark.parametrize("solver", [{"use_confidence": True}, {"use_confidence": False}])
def test_one_hole_is_drawn_from_the_models_posterior(model, solver):
    """Temperature, top_k and top_p included: chi-square at level 1e-4, 4000 draws."""
    rows = torch.tensor([[5, MASK, 7]]).expand(4000, -1)
    logits = model(rows[:1]).logits[0, 1, :V].double()
    writer = sampler(model, temperature=0.5, top_k=6, num_steps=2)
    p = (logits / 0.5).softmax(-1)
    kept = p.topk(6)
    drawn = writer.generate(rows, max_length=3, generator=seeded(2), **solver)[:, 1]
    counts = torch.stack([(drawn == index).sum() for index in kept.indices])
    assert counts.sum() == 4000
    expected = kept.values / kept.values.sum() * 4000
    assert (expected > 5).all()
    assert ((counts - expected) ** 2 / expected).sum() < chi_square_limit(1e-4, 5)
    greedy = sampler(model, temperature=0.0).generate(rows[:5], max_length=3, **solver)[:, 1]
    assert (greedy == logits.argmax()).all()
    narrow = sampler(model, top_p=1e-6).generate(rows[:5], max_length=3, **solver)[:, 1]
    assert (narrow == logits.argmax()).all()


def test_what_would_do_nothing_is_refused(folder, model):
    for options, message in (
        ({"solver_type": "midpoint"}, "solver_type must be one of euler, exact"),
        ({"guidance_scale": 2.0}, "there is no guidance"),
        ({"num_steps": 0}, "num_steps must be at least 1"),
        ({"temperature": -1.0}, "temperature must be at least 0"),
    ):
        with pytest.raises(ValueError, match=message):
            sampler(model, **options)
    with pytest.raises(ValueError, match="mask_token_id=151669, but the model's mask is 258"):
        FlowMatchingSampler(model, FlowMatchingGenerationConfig())
    writer, prompt = sampler(model), torch.tensor([[5, 6, 7]])
    for call, message in (
        (lambda: writer.generate(prompt, max_length=3), "nothing to fill"),
        (lambda: writer.generate(prompt, max_length=2), "counts the prompt too"),
        (lambda: writer.generate_with_prefix(prompt, 0), "nothing to fill"),
        (lambda: writer.infill(prompt, prompt, 0), "nothing to fill"),
        (lambda: writer.infill(prompt, prompt.expand(2, -1), 3), "1 prefixes, but 2 suffixes"),
        (lambda: writer.generate(prompt.expand(2, -1), 8, batch_size=3), "there are 2 prompts"),
        (lambda: writer.generate(torch.tensor([[V + 1]]), 8), "token id 259 is not one of the model's 258"),
        (lambda: writer.generate(max_length=512), "reads at most 511"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    uniform = FlowMatchingLanguageModel.from_pretrained(folder, mask_token_id=MASK, source="uniform", time_mode="add")
    with pytest.raises(ValueError, match="use_confidence=False"):
        sampler(uniform).generate(max_length=8)
    assert sampler(uniform).generate(prompt, max_length=8, use_confidence=False)[:, :3].tolist() == [[5, 6, 7]]


@pytest.mark.parametrize(("kind", "n"), [("polynomial_convex", 2.0), ("linear", 1.0), ("cosine", 1.0)])
def test_path_shows_data_with_the_schedules_probability(kind, n):
    path, t = DiscreteFlowPath(kind, n), torch.tensor([0.0, 0.3, 0.8, 1.0])
    x_0, x_1 = torch.zeros(4, 20000, dtype=torch.long), torch.ones(4, 20000, dtype=torch.long)
    found = path.sample(x_0, x_1, t, seeded(3))
    kappa = {"polynomial_convex": t**n, "linear": t, "cosine": 1 - torch.cos(torch.pi / 2 * t)}[kind]
    share = found.x_t.double().mean(1)
    assert (share - kappa).abs().max() < 4 * (0.25 / 20000) ** 0.5
    assert share[0] == 0 and share[3] == 1 and found.x_0 is x_0 and found.x_1 is x_1 and found.t is t
    with pytest.raises(ValueError, match="scheduler_type must be"):
        DiscreteFlowPath("variance_preserving")


@pytest.mark.parametrize("shift", [True, False])
def test_holes_of_any_length_between_any_texts_are_filled_as_each_alone(folder, shift):
    writer = sampler(FlowMatchingLanguageModel.from_pretrained(folder, mask_token_id=MASK, shift=shift), temperature=0.0)
    prefixes, suffixes, holes = [[5, 6, 7], [8], []], [[9], [10, 11, 12, 13], [14]], [4, 2, 6]
    together = writer.infill(prefixes, suffixes, holes)
    assert together.shape == (3, 8)
    for row, prefix, suffix, hole in zip(together, prefixes, suffixes, holes, strict=True):
        alone = writer.infill([prefix], [suffix], hole)[0]
        assert torch.equal(row[: len(alone)], alone) and (row[len(alone) :] == (writer.model.config.anchor_token_id or 0)).all()
    with pytest.raises(ValueError, match="2 lengths of holes"):
        writer.infill(prefixes, suffixes, [1, 2])
