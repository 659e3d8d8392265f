"""The real loading code on a folder that holds a tiny random GPT-2."""

import json
import os
import shutil

import pytest
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers, trainers

from flm.judges.gen_ppl import PublishedProtocol, WholeTextProtocol
from flm.judges.huggingface_scorer import KEY, HuggingFaceScorer

END = "<|endoftext|>"
CONTEXT = 24
TEXTS = [
    "the cat sat on the mat and the dog ran",
    "",
    "a",
    END,
    f"{END}the dog sat on the hill{END}a cat ran under the mat{END}",
    f"the mat{END}the dog{END}the cat and a dog",
    "the dog ran under the hill and the cat sat on the dog and then the cat ran on the mat and the dog sat",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    path = tmp_path_factory.mktemp("judge")
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=290, special_tokens=[END], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator([text.replace(END, " ") for text in TEXTS], trainer)
    PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=END, eos_token=END).save_pretrained(path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = GPT2Config(vocab_size=290, n_layer=2, n_embd=32, n_head=2, n_positions=CONTEXT, bos_token_id=0, eos_token_id=0)
        model = GPT2LMHeadModel(config)
        for parameter in model.parameters():  # larger than at initialisation, so that context and position matter
            parameter.data.mul_(5)
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def scorer(folder):
    return HuggingFaceScorer(folder)


@pytest.fixture(scope="module")
def model(folder):
    from transformers import GPT2LMHeadModel

    return GPT2LMHeadModel.from_pretrained(folder).double().eval()


@torch.no_grad()
def nll_after(model, before, token):
    """-log p of one token, from a pass over exactly what stands before it."""
    return -model(torch.tensor([before])).logits[0, -1].log_softmax(-1)[token].item()


def by_hand_published(model, ids, max_tokens, eos=0):
    """One text alone, really padded to max_tokens, one token at a time; the end-token rule as a running count."""
    padded = ids[:max_tokens] + [eos] * (max_tokens - len(ids))
    total, count = 0.0, 0
    for start in range(0, max_tokens, CONTEXT):
        piece = padded[start : start + CONTEXT]
        for i in range(1, len(piece)):
            if piece[i] != eos or piece[: i + 1].count(eos) == 1:
                total += nll_after(model, piece[:i], piece[i])
                count += 1
    return total, count


@pytest.mark.parametrize("max_tokens", [2, 8, 12, CONTEXT, 30, 60])
def test_published_protocol_is_the_loop_by_hand(scorer, model, max_tokens):
    ids = scorer.encode(TEXTS)
    assert ids[1] == [] and ids[3] == [0] and len(ids[6]) > CONTEXT  # cases worth having
    expected = [by_hand_published(model, row, max_tokens) for row in ids]
    result = scorer.score(TEXTS, PublishedProtocol(max_tokens))
    assert result.tokens_per_sample == [count for _, count in expected]
    assert result.nll_per_sample == pytest.approx([total for total, _ in expected], rel=1e-4, abs=1e-6)
    assert result.num_scored_tokens == sum(count for _, count in expected)
    pooled = sum(total for total, _ in expected) / sum(count for _, count in expected)
    assert result.nats_per_token == pytest.approx(pooled, rel=1e-5)
    assert result.num_samples == len(TEXTS)
    assert result.num_without_scored_tokens == 2  # the empty text and the end token alone


@pytest.mark.parametrize("stride", [None, 5, CONTEXT - 1])
def test_whole_text_protocol_is_the_loop_by_hand(scorer, model, stride):
    step, expected = stride or CONTEXT // 2, []
    ids = scorer.encode(TEXTS)
    for row in ids:
        total = 0.0
        for i in range(1, len(row)):
            # the first window that reaches token i
            start = max(0, -(-(i + 1 - CONTEXT) // step)) * step
            total += nll_after(model, row[start:i], row[i])
        expected.append(total)
    result = scorer.score(TEXTS, WholeTextProtocol(stride))
    assert result.tokens_per_sample == [max(0, len(row) - 1) for row in ids]
    assert result.nll_per_sample == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("protocol", [PublishedProtocol(20), WholeTextProtocol()])
def test_batches_and_order_do_not_matter(folder, scorer, protocol):
    expected = scorer.score(TEXTS, protocol)
    for batch_size in (1, 3, 100):
        found = HuggingFaceScorer(folder, batch_size=batch_size).score(TEXTS[::-1], protocol)
        assert found.tokens_per_sample == expected.tokens_per_sample[::-1]
        assert found.nll_per_sample == pytest.approx(expected.nll_per_sample[::-1], rel=1e-5)


def test_a_shorter_context_is_obeyed(folder, model):
    scorer = HuggingFaceScorer(folder, context=8)
    row = scorer.encode(TEXTS[:1])[0]
    assert len(row) > 8
    total = sum(nll_after(model, row[:i], row[i]) for i in range(1, 8))
    total += sum(nll_after(model, row[8:i], row[i]) for i in range(9, len(row)))
    expected = (total, len(row) - 2)
    found = scorer.score(TEXTS[:1], PublishedProtocol(len(row)))
    assert (found.nll_per_sample[0], found.num_scored_tokens) == (pytest.approx(expected[0], rel=1e-4), expected[1])


def test_result_says_where_it_comes_from(folder, scorer):
    result = HuggingFaceScorer(folder, dtype="bfloat16").score(TEXTS, PublishedProtocol(20)).to_dict()
    assert json.loads(json.dumps(result)) == result
    assert (result["scorer"], result["revision"], result["dtype"]) == (str(folder), None, "bfloat16")
    assert result["protocol"] == "published: first 20 tokens, up to the first end token, context 24"
    exact = scorer.score(TEXTS, PublishedProtocol(20))
    assert result["nats_per_token"] != exact.nats_per_token  # it did compute in bfloat16
    assert result["nats_per_token"] == pytest.approx(exact.nats_per_token, rel=0.05)


def in_the_cache(folder, tmp_path, monkeypatch):
    """The judge as someone/judge in an otherwise empty hub cache, without network: its commit and its folder."""
    import huggingface_hub.constants

    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--someone--judge"
    snapshot = shutil.copytree(folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return commit, snapshot


def test_a_hub_model_in_the_cache_needs_no_network(folder, scorer, tmp_path, monkeypatch):
    commit, _ = in_the_cache(folder, tmp_path, monkeypatch)
    cached = HuggingFaceScorer("someone/judge").score(TEXTS, PublishedProtocol(20))
    assert (cached.scorer, cached.revision) == ("someone/judge", commit)
    assert cached.nll_per_sample == scorer.score(TEXTS, PublishedProtocol(20)).nll_per_sample


def test_an_unreachable_name_says_that_a_folder_works(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=f"{KEY}=nobody/nothing cannot be loaded .* give a local folder") as error:
        HuggingFaceScorer("nobody/nothing")
    assert "\n" not in str(error.value)


def test_no_such_folder(tmp_path):
    with pytest.raises(ValueError, match=f"{KEY}=.*absent.*no config.json"):
        HuggingFaceScorer(tmp_path / "absent")


class Bomb:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def test_pickled_weights_are_refused_unread(folder, tmp_path):
    pickled = shutil.copytree(folder, tmp_path / "pickled")
    (pickled / "model.safetensors").unlink()
    torch.save(Bomb(tmp_path / "executed"), pickled / "pytorch_model.bin")
    with pytest.raises(ValueError, match=f"{KEY}=.*no safetensors weights .pickled"):
        HuggingFaceScorer(pickled)
    assert not (tmp_path / "executed").exists()


def test_pickled_weights_in_the_cache_are_refused_too(folder, model, tmp_path, monkeypatch):
    _, snapshot = in_the_cache(folder, tmp_path, monkeypatch)
    (snapshot / "model.safetensors").unlink()
    torch.save(model.state_dict(), snapshot / "pytorch_model.bin")
    with pytest.raises(ValueError, match=f"{KEY}=someone/judge cannot be loaded"):
        HuggingFaceScorer("someone/judge")


@pytest.mark.parametrize("model_type", ["gpt2", "their_own"])
def test_code_in_the_folder_is_not_run(folder, scorer, tmp_path, model_type):
    theirs = shutil.copytree(folder, tmp_path / "theirs")
    marker = tmp_path / "executed"
    (theirs / "code.py").write_text(f"import os\nos.mkdir({str(marker)!r})\nclass C: pass\nclass M: pass\nclass T: pass\n")
    config = json.loads((theirs / "config.json").read_text())
    automatic = {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}
    (theirs / "config.json").write_text(json.dumps(config | {"model_type": model_type, "auto_map": automatic}))
    described = json.loads((theirs / "tokenizer_config.json").read_text())
    (theirs / "tokenizer_config.json").write_text(json.dumps(described | {"auto_map": {"AutoTokenizer": [None, "code.T"]}}))
    if model_type == "gpt2":  # a known architecture is built from the library's own code
        assert HuggingFaceScorer(theirs).score(TEXTS, PublishedProtocol(20)).ppl == pytest.approx(
            scorer.score(TEXTS, PublishedProtocol(20)).ppl
        )
    else:
        with pytest.raises(ValueError, match=KEY):
            HuggingFaceScorer(theirs)
    assert not marker.exists()


def test_weights_that_are_missing_are_not_made_up(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    partial = shutil.copytree(folder, tmp_path / "partial")
    weights = load_file(partial / "model.safetensors")
    del weights["transformer.h.1.mlp.c_fc.weight"]
    save_file(weights, partial / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"{KEY}=.*lack transformer.h.1.mlp.c_fc.weight"):
        HuggingFaceScorer(partial)


def test_a_tokenizer_without_an_end_token(folder, tmp_path):
    endless = shutil.copytree(folder, tmp_path / "endless")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (endless / name).exists():
            values = json.loads((endless / name).read_text())
            (endless / name).write_text(json.dumps({k: v for k, v in values.items() if k != "eos_token"}))
    with pytest.raises(ValueError, match=f"{KEY}=.*no end token"):
        HuggingFaceScorer(endless)


def test_arguments_are_checked(folder):
    with pytest.raises(ValueError, match="dtype"):
        HuggingFaceScorer(folder, dtype="int8")
    with pytest.raises(ValueError, match="reads at most 24 tokens"):
        HuggingFaceScorer(folder, context=25)
