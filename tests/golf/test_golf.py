"""The parameter-golf transformer against the same network written out position by position, with each part on and off."""

import math

import pytest
import torch

from flm.golf.attention import stretched_base, without_own
from flm.golf.parts import BigramTable, SmearGate
from flm.golf.transformer import GolfTransformer
from flm.models.causal import LeftToRight, left_to_right
from flm.models.dit import DiT
from flm.samplers.autoregressive import AutoregressiveSampler
from flm.samplers.canvas import Canvas
from flm.schema import check

V, L, D, BLOCKS, HEADS = 13, 7, 16, 3, 4
SIZES = {"length": L, "hidden_size": D, "num_blocks": BLOCKS, "num_heads": HEADS, "rotary_dims": 2, "bigram_rows": 6}
SIZES |= {"bigram_width": 5, "mlp_ratio": 2}
PLAIN = {"queries_per_key": 1, "rotary_dims": None, "exclusive": False, "value_residual": False, "gated": False}
PLAIN |= {"norm_scale": False, "mix_input": False, "skips": False, "smear": False, "bigram_rows": None, "leaky_slope": 0.0}
SWITCHES = [{name: value} for name, value in PLAIN.items()]


def build(seed=0, dtype=torch.float64, randomised=True, **options):
    torch.manual_seed(seed)
    model = GolfTransformer(V, **{**SIZES, **options}, causal=True, conditioned=False).to(dtype)
    if randomised:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.4 * torch.randn_like(parameter)
    return model.eval()


def some_tokens(batch=3, length=L):
    return torch.randint(V, (batch, length), generator=torch.Generator().manual_seed(3))


def written_out(
    model, tokens, num_blocks, queries_per_key=2, rotary_dims=2, leaky_slope=0.5, norm_scale=True, exclusive=True, **_
):
    """Logits (L, V) of one sequence, from the weights alone: no mask, no cache, one position and one head at a time."""
    p = dict(model.named_parameters())
    ids = [1, *tokens[:-1].tolist()]

    def norm(x):
        return x / torch.sqrt((x**2).mean() + torch.finfo(x.dtype).eps)

    def turn(row, position, dims):
        half = dims // 2
        first, second, rest = row[:half], row[half:dims], row[dims:]
        angle = position * 10000.0 ** (-torch.arange(half, dtype=row.dtype) * 2 / dims)
        return torch.cat([first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin(), rest])

    stream = []
    for i, token in enumerate(ids):
        x = p["input_table"][token]
        if "bigram.table" in p:
            rows = len(p["bigram.table"])
            row = rows - 1 if i == 0 else ((36313 * token) ^ (27191 * ids[i - 1])) % (rows - 1)
            x = x + p["bigram.scale"] * (p["bigram.project.weight"] @ p["bigram.table"][row])
        stream.append(norm(x))
    if "smear.gate" in p:
        g = 1 / (1 + torch.exp(-p["smear.gate"]))
        stream = [(1 - g) * x + (g * stream[i - 1] if i else 0) for i, x in enumerate(stream)]
    inputs, first, pushed, dh = list(stream), None, [], D // HEADS
    dims = dh if rotary_dims is None else rotary_dims
    for n in range(num_blocks):
        w = {key.removeprefix(f"blocks.{n}."): value for key, value in p.items() if key.startswith(f"blocks.{n}.")}
        if "skip_gain" in p and n >= num_blocks // 2 and pushed:
            added = pushed.pop()
            stream = [x + p["skip_gain"][n - num_blocks // 2] * y for x, y in zip(stream, added, strict=True)]
        if "stream_gain" in w:
            stream = [w["stream_gain"] * x + w["input_gain"] * x0 for x, x0 in zip(stream, inputs, strict=True)]
        r = 1 / math.sqrt(n + 1) if norm_scale else 1.0
        read = [r * norm(x) for x in stream]
        values = [(w["attention.value.weight"] @ h).view(-1, dh) for h in read]
        first = values if first is None else first
        if "attention.value_mix" in w and n:
            l0, l1 = w["attention.value_mix"]
            values = [l0 * old + l1 * new for old, new in zip(first, values, strict=True)]
        keys = [[turn(norm(k), j, dims) for k in (w["attention.key.weight"] @ h).view(-1, dh)] for j, h in enumerate(read)]
        mixed = []
        for i, h in enumerate(read):
            heads = []
            for head, q in enumerate((w["attention.query.weight"] @ h).view(-1, dh)):
                group = head // queries_per_key
                query = turn(norm(q), i, dims) * w["attention.query_gain"][head]
                scores = torch.stack([query @ keys[j][group] / math.sqrt(dh) for j in range(i + 1)])
                y = sum(a * values[j][group] for j, a in enumerate(scores.softmax(0)))
                if exclusive:
                    v = values[i][group]
                    y = y - (y @ v) / (v @ v) * v
                if "attention.gate.weight" in w:
                    y = y * torch.sigmoid(w["attention.gate.weight"][head] @ h + w["attention.gate.bias"][head])
                heads.append(y)
            mixed.append(w["attention.out.weight"] @ torch.cat(heads))
        stream = [x + w["attention_gain"] * y for x, y in zip(stream, mixed, strict=True)]
        inner = [w["mlp.into.weight"] @ (r * norm(x)) for x in stream]
        squared = [torch.where(h > 0, h, leaky_slope * h) ** 2 for h in inner]
        stream = [x + w["mlp_gain"] * (w["mlp.out.weight"] @ h) for x, h in zip(stream, squared, strict=True)]
        if n < num_blocks // 2:
            pushed.append(stream)
    return torch.stack([30 * torch.tanh(p["input_table"] @ norm(x) / 30) for x in stream])


@pytest.mark.parametrize("options", [{}, *SWITCHES, PLAIN, {"smear_stop_id": V - 1}, {"num_blocks": 5}], ids=str)
def test_it_is_the_network_written_out(options):
    model, tokens = build(**options), some_tokens()
    assert V - 1 not in tokens  # a token that is not there changes nothing
    with torch.no_grad():
        wanted = torch.stack([written_out(model, row, **{**SIZES, **options}) for row in tokens]).log_softmax(-1)
        torch.testing.assert_close(model(tokens).probabilities().log(), wanted, rtol=1e-5, atol=3e-7)


@pytest.mark.parametrize("options", [{}, *SWITCHES, PLAIN, {"smear_stop_id": 3}], ids=str)
def test_a_token_changes_predictions_after_it_and_none_before(options):
    model, tokens = build(**options), some_tokens(batch=1)
    with torch.no_grad():
        before = model(tokens).hidden
        for j in range(L):
            other = tokens.clone()
            other[0, j] = (other[0, j] + 5) % V
            changed = (model(other).hidden - before).abs().amax(-1)[0] > 1e-9
            assert not changed[: j + 1].any() and changed[j + 1 :].all(), j


@pytest.mark.parametrize("pieces", [[0] + [1] * (L - 1), [3, 1, 2], [L - 1], [0, L - 1], [1, L - 2]], ids=str)
@pytest.mark.parametrize("options", [{}, {"queries_per_key": 4, "smear_stop_id": 3}], ids=str)
def test_reading_in_pieces_predicts_what_reading_at_once_does(pieces, options):
    model, tokens = build(**options), some_tokens()
    whole = model(tokens).hidden.detach()
    cache, end = model.new_cache(L), 0
    for piece in pieces:
        found = model.next_token(tokens[:, end : end + piece], cache).hidden
        end += piece
        torch.testing.assert_close(found[:, 0], whole[:, end], rtol=0, atol=1e-6)  # rotary tables are fp32
    assert end == L - 1


def test_longer_text_leaves_predictions_as_they_are():
    """The rotary base is of the model, not of the sequence."""
    model, tokens = build(rotary_native_length=4), some_tokens(length=2 * L)
    assert model.rotary_base == stretched_base(10000.0, 2, L, 4)
    torch.testing.assert_close(model(tokens).hidden[:, :L], model(tokens[:, :L]).hidden, rtol=0, atol=1e-9)


def test_the_start_is_the_uniform_distribution_and_every_part_is_the_identity():
    model, tokens = build(dtype=torch.float32, randomised=False), some_tokens()
    x0 = model._embedded(torch.cat((torch.ones(3, 1, dtype=torch.long), tokens[:, :-1]), 1), None)
    torch.testing.assert_close(model(tokens).hidden, x0 / x0.square().mean(-1, keepdim=True).sqrt(), rtol=1e-4, atol=1e-5)
    nll = -model(tokens).log_prob(tokens)
    assert (nll - math.log(V)).abs().max() < 0.1  # the table is 0.005 wide
    wide = GolfTransformer(256, 64, 64, 11, 1, 1, causal=True, conditioned=False)
    for block in wide.blocks:
        for layer in (block.attention.query, block.attention.key, block.attention.value, block.mlp.into):
            w = layer.weight.detach()
            gram = w @ w.T if w.shape[0] <= w.shape[1] else w.T @ w
            torch.testing.assert_close(gram, torch.eye(len(gram)), atol=1e-5, rtol=0)
        assert not block.attention.out.weight.any() and not block.mlp.out.weight.any()
        assert torch.sigmoid(block.attention.gate.bias).eq(torch.sigmoid(torch.tensor(4.0))).all()
    assert not wide.bigram.table.any() and wide.bigram.scale.item() == pytest.approx(0.05)
    project = wide.bigram.project.weight.detach()  # 64 rows of 128: orthogonal times 1 / sqrt(2 * 11)
    torch.testing.assert_close(project @ project.T, torch.eye(64) / 22, atol=1e-5, rtol=0)


def test_exclusive_attention_leaves_nothing_along_the_own_value():
    y, v = torch.randn(2, 2, 4, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    kept = without_own(y, v)
    assert (kept * v).sum(-1).abs().max() < 1e-12
    torch.testing.assert_close(y - kept, (y * v).sum(-1, keepdim=True) / (v * v).sum(-1, keepdim=True) * v)


def test_the_base_stretches_with_the_length():
    assert stretched_base(10000.0, 16, 2048, 1024) == pytest.approx(22081.79, abs=0.005)
    assert stretched_base(10000.0, 16, 1024, 1024) == stretched_base(10000.0, 16, 4096, None) == 10000.0


def test_bigrams_are_hashed_as_specified():
    table = BigramTable(8)
    rows = table.hashed(torch.tensor([[5, 0, 1023, 1023], [1023, 5, 0, 1]]))
    assert rows[:, 0].tolist() == [4095, 4095]
    assert rows[0, 1].item() == (36313 * 0 ^ 27191 * 5) % 4095 and rows[1, 1].item() == (36313 * 5 ^ 27191 * 1023) % 4095
    assert rows[0, 3].item() == (36313 * 1023 ^ 27191 * 1023) % 4095
    many = table.hashed(torch.randint(1024, (8, 4096), generator=torch.Generator().manual_seed(0)))[:, 1:]
    assert many.min() >= 0 and many.max() <= 4094 and many.unique().numel() > 4000


def test_the_smear_gate_stops_at_a_beginning():
    x, tokens = torch.randn(1, 4, 6, generator=torch.Generator().manual_seed(0)), torch.tensor([[7, 2, 1, 3]])
    plain, stopped = SmearGate(6)(x, tokens), SmearGate(6, stop_id=1)(x, tokens)
    torch.testing.assert_close(plain[:, 0], x[:, 0] / 2)  # before the first there is nothing
    torch.testing.assert_close(plain[:, 1:], (x[:, 1:] + x[:, :-1]) / 2)
    assert torch.equal(stopped[:, 2], x[:, 2])
    torch.testing.assert_close(stopped[:, [0, 1, 3]], plain[:, [0, 1, 3]])


def test_sizes_of_the_track():
    with torch.device("meta"):
        model = GolfTransformer(1024, 2048, causal=True, conditioned=False)
    assert sum(p.numel() for p in model.parameters()) == 27_137_223
    assert all(sum(p.numel() for p in block.parameters()) == 2_365_458 for block in model.blocks)
    matrices = sum(p.numel() for name, p in model.named_parameters() if "blocks" in name and p.ndim == 2 and "gate" not in name)
    tables = model.input_table.numel() + model.bigram.table.numel()
    assert (matrices, tables) == (25_952_256, 524_288 + 524_288)
    assert model.rotary_base == pytest.approx(22081.79, abs=0.005)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) == 27_137_223 - 2  # the first block's value scalars do nothing


def test_every_trained_parameter_learns():
    model = build()
    posterior = model(some_tokens())
    (posterior.hidden @ posterior.table.T).square().sum().backward()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 1e-9} == trained
    assert set(dict(model.named_parameters())) - trained == {"blocks.0.attention.value_mix"}


def test_what_does_not_go_together_is_refused():
    for options, message in [
        ({"causal": False}, "algo=native_flow or algo=ar"),
        ({"conditioned": True}, "algo=native_flow or algo=ar"),
        ({"hidden_size": 18}, "model.hidden_size=18"),
        ({"queries_per_key": 3}, "model.queries_per_key=3"),
        ({"rotary_dims": 3}, "model.rotary_dims must .*not 3"),
        ({"rotary_dims": 6}, "model.rotary_dims=6"),
        ({"start_id": V}, "model.start_id=13"),
        ({"bigram_rows": 1}, "model.bigram_rows must .*not 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            check(GolfTransformer, options, "model", is_partial=True)
            GolfTransformer(V, **{**SIZES, "causal": True, "conditioned": False, **options})


def test_only_what_does_not_read_tokens_is_wrapped():
    golf = left_to_right(lambda **asked: GolfTransformer(**SIZES, **asked), V)
    dit = left_to_right(lambda **asked: DiT(length=L, hidden_size=D, num_blocks=1, num_heads=2, **asked), V)
    assert isinstance(golf, GolfTransformer) and isinstance(dit.body, DiT)
    assert isinstance(dit, LeftToRight) and not isinstance(dit.body, LeftToRight)


def test_the_sampler_writes_what_reading_the_whole_predicts():
    """Greedy writing, by cache, takes the most probable token of the whole-sequence prediction at each hole."""
    model = build(seed=4, dtype=torch.float32)
    given = some_tokens(batch=2)
    editable = torch.tensor([[True, False, True, True, False, True, True]]).expand(2, -1)
    tokens = AutoregressiveSampler(top_k=1)(model, Canvas(given * ~editable, editable), 1, torch.Generator().manual_seed(0))
    assert torch.equal(tokens[~editable], given[~editable])
    assert torch.equal(model(tokens).argmax()[editable], tokens[editable])
