"""Qwen3 made a flow model: the pretrained function at the start, both ways of looking, shift, packing, time, loading."""

import json
import shutil

import pytest
import safetensors.torch
import torch
from tiny_qwen3 import SHAPE, tiny_qwen3
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen3ForCausalLM

from flm.models.token_backbone import TokenBackbone, token_backbone
from flm.qwen.backbone import QwenBackbone, architecture_of
from flm.qwen.configuration_flow_qwen3 import FlowMatchingConfig
from flm.qwen.modeling_flow_qwen3 import FlowMatchingLanguageModel, TimeEmbedding, aligned, frame_of

V, MASK = 100, 100  # ids of the data: rows 101 .. 127 stay unused
TIMED = ("add", "adaln")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_qwen3(tmp_path_factory.mktemp("qwen3"))


@pytest.fixture(scope="module")
def base(folder):
    return Qwen3ForCausalLM.from_pretrained(folder).eval()


def load(folder, **fields):
    return FlowMatchingLanguageModel.from_pretrained(folder, **{"mask_token_id": MASK} | fields).eval()


def backbone(folder, **options):
    given = {"vocab_size": V + 1, "length": 32, "architecture": architecture_of(folder), "pretrained": folder}
    return QwenBackbone(**given | options)


def tokens(*shape, seed=0):
    return torch.randint(2, V, shape, generator=torch.Generator().manual_seed(seed))


def but_mask(logits):
    return torch.cat((logits[..., :MASK], logits[..., MASK + 1 :]), -1)  # its row is a new one, and tied


LARGE = {"vocab_size": 151936, "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128}
COUNTS = [
    ({}, 82_304),
    ({"head_dim": 32}, 106_944),
    (LARGE | {"hidden_size": 1024, "intermediate_size": 3072}, 596_049_920),
    (LARGE | {"hidden_size": 2048, "intermediate_size": 6144}, 1_720_574_976),
]


@pytest.mark.parametrize(("changes", "count"), COUNTS)
def test_parameters_are_those_of_the_published_sizes(changes, count):
    with torch.device("meta"):
        model = FlowMatchingLanguageModel(FlowMatchingConfig(**SHAPE | {"mask_token_id": MASK} | changes))
    assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize("time_mode", ["none", *TIMED])
@pytest.mark.parametrize("kind", ["sinusoidal", "learned"])
def test_causal_again_it_is_qwen3(folder, base, time_mode, kind):
    x, t = tokens(3, 12), torch.tensor([0.0, 0.4, 1.0])
    expected = base(x).logits
    model = load(folder, is_causal=True, shift=False, time_mode=time_mode, time_embedding_type=kind)
    torch.testing.assert_close(but_mask(model(x, t).logits), but_mask(expected), atol=1e-5, rtol=0)
    # with a shift: what Qwen3 says after the token before, the first token following the anchor
    model = load(folder, is_causal=True, shift=True, time_mode=time_mode, time_embedding_type=kind)
    anchored = base(torch.cat((torch.full((3, 1), 1), x), 1)).logits[:, :-1]
    torch.testing.assert_close(but_mask(model(x, t).logits), but_mask(anchored), atol=1e-5, rtol=0)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("shape", [{}, {"head_dim": 32}])
def test_every_token_sees_all_others_padded_or_not(tmp_path, attention, shape):
    model = load(tiny_qwen3(tmp_path, **shape), attn_implementation=attention)
    x = tokens(2, 12)
    changed = x.clone()
    changed[:, 9] = (x[:, 9] + 1) % V
    for mask in (None, torch.ones(2, 12), torch.ones(2, 12).index_fill(1, torch.tensor([10, 11]), 0)):
        difference = (model(x, attention_mask=mask).logits - model(changed, attention_mask=mask).logits).abs().amax(-1)
        assert (difference[:, :10] > 1e-6).all()
    causal = load(tmp_path, is_causal=True, attn_implementation=attention)
    difference = (causal(x).logits - causal(changed).logits).abs().amax(-1)
    assert (difference[:, :10] < 1e-6).all() and (difference[:, 10:] > 1e-6).all()


@pytest.mark.parametrize(("attention", "shift"), [("sdpa", True), ("eager", True), ("sdpa", False)])
def test_documents_read_alone_wherever_they_stand(folder, attention, shift):
    """Packed, in another order, between padding: the logits of each document are those of a row of its own."""
    model = load(folder, attn_implementation=attention, shift=shift, time_mode="add")
    with torch.no_grad():  # so that the time matters
        model.time_embedding.last.weight.normal_(generator=torch.Generator().manual_seed(3))
    first, second, t = tokens(1, 5, seed=1), tokens(1, 7, seed=2), torch.tensor([0.3])
    alone = model(first, t).logits, model(second, t).logits
    pad = torch.full((1, 2), 1)
    rows = torch.cat([torch.cat((first, second, pad, pad), 1), torch.cat((pad, second, first, pad), 1)])
    ids = [[0] * 5 + [1] * 7 + [-1] * 4, [-1] * 2 + [8] * 7 + [3] * 5 + [-1] * 2]
    together = model(rows, t.expand(2), documents=torch.tensor(ids)).logits
    for row, start, expected in ((0, 0, alone[0]), (0, 5, alone[1]), (1, 9, alone[0]), (1, 2, alone[1])):
        found = together[row : row + 1, start : start + expected.shape[1]]
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)


def test_padding_is_not_attended_by_position_and_not_by_id(folder):
    model = load(folder)
    x = tokens(1, 6)
    x[0, 2] = 1  # an end token that is text
    padded, mask = torch.cat((torch.full((1, 3), 1), x, torch.full((1, 2), 7)), 1), torch.tensor([[0] * 3 + [1] * 6 + [0] * 2])
    torch.testing.assert_close(model(padded, attention_mask=mask).logits[:, 3:9], model(x).logits, atol=1e-5, rtol=0)
    other = x.clone()
    other[0, 2] = 5
    assert (model(other).logits - model(x).logits).abs().max() > 1e-3


def test_shift_reads_each_token_off_the_position_before_it():
    """Hidden states that name their position: a token's predictor is the token before, and at a beginning its anchor."""
    documents = torch.tensor([[4, 4, 4, 9, 9, -1], [-1, 2, 2, 2, 2, 2]])
    x = torch.arange(12).view(2, 6) + 50
    frame = frame_of(x, documents, anchor=7)
    named = torch.stack((frame.tokens, frame.documents, frame.positions), -1)
    found = aligned(named, frame, 6)
    assert found[0, :5].tolist() == [[7, 4, 0], [50, 4, 1], [51, 4, 2], [7, 9, 0], [53, 9, 1]]
    assert found[1, 1:].tolist() == [[7, 2, 0], [57, 2, 1], [58, 2, 2], [59, 2, 3], [60, 2, 4]]
    whole = frame_of(x, None, anchor=7)
    assert aligned(whole.tokens, whole, 6).tolist() == [[7, *range(50, 55)], [7, *range(56, 61)]]
    unshifted = frame_of(x, documents, anchor=None)
    assert torch.equal(aligned(unshifted.tokens, unshifted, 6), x)
    assert unshifted.positions.tolist() == [[0, 1, 2, 0, 1, 0], [0, 0, 1, 2, 3, 4]]


@pytest.mark.parametrize("time_mode", TIMED)
def test_time_begins_at_zero_however_the_model_is_made_and_then_matters(folder, tmp_path, time_mode):
    x, t = tokens(2, 8), torch.tensor([0.1, 0.9])
    made = FlowMatchingLanguageModel(FlowMatchingConfig(**SHAPE, mask_token_id=MASK, time_mode=time_mode)).eval()
    for model in (made, load(folder, time_mode=time_mode)):
        assert torch.equal(model(x, t).logits, model(x, 1 - t).logits)
        for _ in range(2):  # from zero, gradients reach the first layer of what conditions in the second step
            loss = model(x, t).logits.square().mean()
            model.zero_grad()
            loss.backward()
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if "time_" in name:
                        parameter -= 3.0 * parameter.grad
        assert model.time_embedding.first.weight.grad.abs().sum() > 0
        assert (model(x, t).logits - model(x, 1 - t).logits).abs().max() > 1e-5
    with pytest.raises(ValueError, match="needs t"):
        model(x)


def test_time_features_are_fp32_whatever_the_weights(folder):
    exact, low = TimeEmbedding(32), TimeEmbedding(32)
    low.load_state_dict(exact.state_dict())
    low.to(torch.bfloat16)
    t = torch.tensor([0.5, 0.5005])  # 0.5 radians of the fastest: no difference at all in bf16
    assert (low(t)[0] - low(t)[1]).abs().max() > 0 and low(t).dtype == torch.bfloat16
    assert (low(t).float() - exact(t)).abs().max() < 0.05
    model = load(folder, time_mode="adaln", dtype=torch.bfloat16)
    assert model(tokens(2, 4), t).logits.dtype == torch.bfloat16


def test_fields_and_weights_survive_a_round_trip(folder, tmp_path):
    fields = {"is_causal": False, "mask_token_id": 101, "real_vocab_size": 99, "shift": False, "anchor_token_id": 5}
    fields |= {"source": "uniform", "scheduler_type": "cosine", "scheduler_n": 2.5, "num_sampling_steps": 7}
    fields |= {"time_mode": "adaln", "time_embedding_dim": 24, "time_embedding_type": "learned"}
    model = load(folder, **fields)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "time_" in name:
                parameter.normal_()
    model.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    again = FlowMatchingLanguageModel.from_pretrained(tmp_path).eval()
    for key, value in fields.items():
        assert stored[key] == value and getattr(again.config, key) == value
    x, t = tokens(2, 8), torch.tensor([0.2, 0.8])
    assert torch.equal(again(x, t).logits, model(x, t).logits)
    assert again.lm_head.weight is again.model.embed_tokens.weight


def test_exported_code_stands_alone(folder, tmp_path):
    """transformers opens a saved folder with the file inside it, under its own name for the module."""
    from transformers import AutoConfig, AutoModelForMaskedLM

    model = load(folder, time_mode="add")
    model.save_pretrained(tmp_path / "saved")
    for name in ("configuration_flow_qwen3.py", "modeling_flow_qwen3.py"):
        assert "import flm" not in (code := (tmp_path / "saved" / name).read_text()) and "from flm" not in code
    config = AutoConfig.from_pretrained(tmp_path / "saved")
    assert type(config) is FlowMatchingConfig  # without trust: what is registered, not what lies there
    found = AutoModelForMaskedLM.from_pretrained(tmp_path / "saved").eval()
    x, t = tokens(1, 6), torch.tensor([0.5])
    assert torch.equal(found(x, t).logits, model(x, t).logits)


def damaged(folder, target, change):
    shutil.copytree(folder, target)
    weights = safetensors.torch.load_file(target / "model.safetensors")
    change(weights)
    safetensors.torch.save_file(weights, target / "model.safetensors", {"format": "pt"})
    return target


def test_missing_and_unexpected_weights_stop_loading(folder, tmp_path):
    lacking = damaged(folder, tmp_path / "lacking", lambda w: w.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.up_proj\.weight missing"):
        load(lacking, time_mode="add")
    strange = damaged(folder, tmp_path / "strange", lambda w: w.update({"model.other": torch.ones(2)}))
    with pytest.raises(ValueError, match=r"model\.other unexpected"):
        load(strange)
    level = damaged(folder, tmp_path / "level", lambda w: [w.update({f"net.{k}": w.pop(k)}) for k in list(w)])
    with pytest.raises(ValueError, match="do not fit"):
        load(level)
    load(folder, time_mode="add").save_pretrained(tmp_path / "timed")
    partly = damaged(tmp_path / "timed", tmp_path / "partly", lambda w: w.pop("time_embedding.last.weight"))
    with pytest.raises(ValueError, match=r"time_embedding\.last\.weight missing"):
        FlowMatchingLanguageModel.from_pretrained(partly)
    with pytest.raises(ValueError, match="unexpected"):
        FlowMatchingLanguageModel.from_pretrained(tmp_path / "timed", time_mode="none")
    shutil.copytree(folder, tmp_path / "empty", ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save({}, tmp_path / "empty" / "pytorch_model.bin")
    with pytest.raises(ValueError, match="no safetensors"):
        backbone(folder, pretrained=tmp_path / "empty")


def test_mask_row_is_the_mean_of_the_tokens_and_is_trained_after(folder, tmp_path, base):
    table = base.model.embed_tokens.weight
    model = load(folder)
    torch.testing.assert_close(model.model.embed_tokens.weight[MASK], table[:V].mean(0))
    assert torch.equal(model.model.embed_tokens.weight[:V], table[:V])
    inside = load(folder, mask_token_id=40, real_vocab_size=V)
    others = torch.cat((table[:40], table[41:V]))
    torch.testing.assert_close(inside.model.embed_tokens.weight[40], others.mean(0))
    with torch.no_grad():
        model.model.embed_tokens.weight[MASK] = 3.0
    model.save_pretrained(tmp_path)
    assert (FlowMatchingLanguageModel.from_pretrained(tmp_path).model.embed_tokens.weight[MASK] == 3.0).all()
    assert torch.equal(load(folder, source="uniform").model.embed_tokens.weight, table)


def test_backbone_takes_the_first_free_row_and_never_predicts_it(folder):
    network = token_backbone(lambda vocab_size: backbone(folder, vocab_size=vocab_size), V, masked=True)
    assert isinstance(network, TokenBackbone) and (network.mask_id, network.real_vocab_size) == (V, V)
    x = tokens(2, 6)
    x[:, 2:4] = V
    p = network(x, torch.tensor([0.5, 0.5])).probabilities()
    logits = network.network(x).logits
    torch.testing.assert_close(p, logits[..., :V].softmax(-1))
    inside = backbone(folder, mask_id=40)
    p = inside(x.clamp(max=99)).probabilities()
    assert p.shape[-1] == V and (p[..., 40] == 0).all() and torch.allclose(p.sum(-1), torch.ones(2, 6))


def test_backbone_refuses_what_does_not_fit(folder, tmp_path):
    with pytest.raises(ValueError, match="no row is left for a mask.*model.mask_id"):
        backbone(folder, vocab_size=SHAPE["vocab_size"] + 1)
    assert backbone(folder, vocab_size=SHAPE["vocab_size"] + 1, mask_id=40).mask_id == 40
    with pytest.raises(ValueError, match="128 rows, the tokenizer 200"):
        backbone(folder, vocab_size=201)
    assert backbone(folder).most_positions == 511
    with pytest.raises(ValueError, match="reads at most 512 positions, not 513"):
        backbone(folder, length=512)
    with pytest.raises(ValueError, match=r"model\.pretrained_path is not set"):
        backbone(folder, architecture=None)
    with pytest.raises(ValueError, match="time_mode must be one of"):
        backbone(folder, time_mode="film")
    with pytest.raises(ValueError, match="model.source as algo.source"):
        token_backbone(lambda vocab_size: backbone(folder, vocab_size=vocab_size), V, masked=False)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match="of type 'llama'"):
        architecture_of(tmp_path)
    with pytest.raises(ValueError, match="cannot be read"):
        architecture_of(tmp_path / "nothing")
    with pytest.raises(ValueError, match="sliding_attention"):
        FlowMatchingConfig(**SHAPE, mask_token_id=MASK, use_sliding_window=True, max_window_layers=1)
    with pytest.raises(ValueError, match="fills all positions at once"):
        load(folder).generate(tokens(1, 3))


def test_packed_rows_need_attention_that_takes_a_mask(folder):
    model = load(folder)
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="packed or padded rows need sdpa"):
        model(tokens(1, 4), documents=torch.tensor([[0, 0, 1, 1]]))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_rows_that_need_a_mask_are_read_by_blocks_where_flex_attention_runs(folder, monkeypatch):
    """As on CUDA, with what is compiled there left as it is: hidden states and gradients are those under a dense mask."""
    from torch.nn.attention import flex_attention
    from transformers import masking_utils
    from transformers.integrations.flex_attention import WrappedFlexAttention

    made, create = [], masking_utils.create_block_mask

    def counted(*args, _compile, **options):
        made.append(_compile)
        return create(*args, **options)

    monkeypatch.setattr("flm.qwen.backbone.FLEX_ON", {"cpu"})
    monkeypatch.setattr(masking_utils, "create_block_mask", counted)
    monkeypatch.setattr(WrappedFlexAttention, "__call__", lambda wrapped: flex_attention.flex_attention)
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)
    x, documents = tokens(2, 16), torch.tensor([[0] * 3 + [1] * 13, [0] * 6 + [4] * 8 + [-1] * 2])
    found = []
    for attention in (None, "sdpa"):
        network = backbone(folder, attention=attention).train()
        hidden = network(x, None, documents).hidden[documents >= 0]
        (hidden * torch.randn(hidden.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
        found.append((hidden.detach(), {name: p.grad for name, p in network.named_parameters() if p.grad is not None}))
        assert network.network.config._attn_implementation == ("flex_attention" if attention is None else "sdpa")
        network(x)  # without documents no mask is needed
        assert network.network.config._attn_implementation == "sdpa"
    assert made == [True]  # once for all layers
    torch.testing.assert_close(found[0][0], found[1][0], atol=2e-5, rtol=0)
    assert found[0][1].keys() == found[1][1].keys() and len(found[0][1]) > 10
    for name, gradient in found[1][1].items():
        assert (found[0][1][name] - gradient).norm() <= 1e-4 * gradient.norm(), name


def test_layers_computed_again_give_the_same_gradients(folder):
    x, t, documents = tokens(2, 8), torch.tensor([0.2, 0.7]), torch.tensor([[0] * 3 + [1] * 5, [0] * 6 + [-1] * 2])
    found = []
    for again in (False, True):
        network = backbone(folder, time_mode="adaln", activation_checkpointing=again).train()
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                if "time_modulation" in name:
                    parameter.normal_(std=0.02, generator=torch.Generator().manual_seed(1))
                if "time_embedding" in name:
                    parameter.fill_(0.01)
        calls = []
        network.network.model.layers[0].mlp.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        network(x, t, documents).hidden.square().sum().backward()
        assert len(calls) == 1 + again
        found.append({name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name])


def test_annealing_goes_from_causal_to_full_and_only_while_training(tmp_path):
    folder = tiny_qwen3(tmp_path, num_hidden_layers=1)  # more would pass on what few have seen
    network = backbone(folder, shift=False)
    x = tokens(1, 12)
    changed = x.clone()
    changed[:, 11] = (x[:, 11] + 1) % V

    def reach(share, training=True):
        """How many earlier positions notice the change."""
        network.train(training)
        network.set_future_share(share)
        hidden = []
        for row in (x, changed):
            torch.manual_seed(5)
            hidden.append(network(row).hidden)
        return int(((hidden[0] - hidden[1]).abs().amax(-1)[0, :11] > 1e-7).sum())

    assert reach(0.0) == 0 and reach(1.0) == 11 and reach(None) == 11 and reach(0.0, training=False) == 11
    assert 0 < reach(0.4) < 11
    causal = load(folder, is_causal=True, shift=False)
    network.set_future_share(0.0)
    torch.testing.assert_close(network.train()(x).hidden, causal.encode(x), atol=1e-5, rtol=0)


def test_end_tokens_learn_though_they_pad(tmp_path):
    """nn.Embedding gives its padding row no gradient; here padding is told by position."""
    network = backbone(tiny_qwen3(tmp_path, pad_token_id=1, tie_word_embeddings=False))
    x = tokens(1, 6)
    x[0, 3] = 1
    network(x).hidden.square().sum().backward()
    assert network.network.model.embed_tokens.weight.grad[1].abs().sum() > 0


def test_flops_are_those_of_the_products(folder):
    network = backbone(folder, shift=False, attention="eager").eval()
    with FlopCounterMode(display=False) as counter:
        network(tokens(2, 16)).probabilities()
    assert counter.get_total_flops() == 2 * 16 * network.flops_per_token(16)
