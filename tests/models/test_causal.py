"""The causal transformer against a forward pass written out, its causality, and reading it piece by piece."""

import math
from functools import partial

import pytest
import torch

from flm.models.causal import CausalTransformer, KeyValues
from flm.models.dit import DiT

V, L, D, HEADS = 7, 9, 24, 3


def build(seed=0, dtype=torch.float64, randomised=True, **options):
    torch.manual_seed(seed)
    sizes = {"length": L, "hidden_size": D, "num_blocks": 2, "num_heads": HEADS, "dropout": 0.0}
    model = CausalTransformer(partial(DiT, **sizes, **options), V).to(dtype)
    if randomised:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.3 * torch.randn_like(parameter)
    return model.eval()


def some_tokens(batch=4, length=L):
    return torch.randint(V, (batch, length), generator=torch.Generator().manual_seed(3))


def written_out(p, tokens, softcap=None):
    """Log-probabilities (L, V) of one sequence (L,), position by position, without a mask anywhere."""

    def norm(x, weight):
        centred = x - x.mean(-1, keepdim=True)
        return centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-5) * weight

    def turn(row, position):
        half = len(row) // 2
        angle = torch.tensor([position * 10000 ** (-2 * j / len(row)) for j in range(half)], dtype=row.dtype)
        a, b = row[:half], row[half:]
        return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()])

    x = torch.stack([p["start"], *p["body.input_table"][tokens[:-1]]])
    dh = D // HEADS
    for n in range(2):
        w = {key.removeprefix(f"body.blocks.{n}."): value for key, value in p.items()}
        q, k, v = (norm(x, w["norm1.weight"]) @ w["attn_qkv.weight"].T).chunk(3, dim=1)
        rows = []
        for i in range(len(x)):
            heads = []
            for h in range(HEADS):
                part = slice(h * dh, (h + 1) * dh)
                query = turn(q[i, part], i)
                scores = torch.stack([query @ turn(k[j, part], j) for j in range(i + 1)]) / math.sqrt(dh)
                if softcap is not None:
                    scores = softcap * torch.tanh(scores / softcap)
                heads.append(torch.softmax(scores, 0) @ v[: i + 1, part])
            rows.append(torch.cat(heads))
        x = x + torch.stack(rows) @ w["attn_out.weight"].T
        h = norm(x, w["norm2.weight"]) @ w["mlp.0.weight"].T + w["mlp.0.bias"]
        h = h / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
        x = x + h @ w["mlp.2.weight"].T + w["mlp.2.bias"]
    x = norm(x, p["body.output_layer.norm_final.weight"])
    logits = x @ p["body.output_layer.linear.weight"].T + p["body.output_layer.linear.bias"]
    return torch.log_softmax(30 * torch.tanh(logits / 30), dim=-1)


@pytest.mark.parametrize("softcap", [None, 0.5])
def test_forward_is_the_written_out_one(softcap):
    model, tokens = build(attention_softcap=softcap), some_tokens()
    with torch.no_grad():
        wanted = torch.stack([written_out(model.state_dict(), row, softcap) for row in tokens])
        torch.testing.assert_close(model(tokens).probabilities().log(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("softcap", [None, 50.0])
def test_a_token_changes_all_predictions_after_it_and_none_before(softcap):
    model, tokens = build(attention_softcap=softcap), some_tokens(batch=1)
    with torch.no_grad():
        before = model(tokens).hidden
        for j in range(L):
            other = tokens.clone()
            other[:, j] = (other[:, j] + 1) % V
            moved = (model(other).hidden - before).abs().amax((0, 2))
            assert moved[: j + 1].max() < 1e-12
            assert j == L - 1 or moved[j + 1 :].min() > 1e-4


@pytest.mark.parametrize("softcap", [None, 0.5])
@pytest.mark.parametrize("pieces", [[0, 1, 1, 1, 1, 1, 1, 1, 1], [3, 1, 4], [8], [0, 8], [1, 7]], ids=str)
def test_reading_in_pieces_predicts_what_reading_at_once_does(pieces, softcap):
    model, tokens = build(attention_softcap=softcap), some_tokens()
    assert sum(pieces) == L - 1
    with torch.no_grad():
        whole = model(tokens).probabilities()
    cache, end = model.new_cache(L), 0
    for piece in pieces:
        posterior = model.next_token(tokens[:, end : end + piece], cache)
        end += piece
        torch.testing.assert_close(posterior.probabilities()[:, 0], whole[:, end], rtol=0, atol=1e-10)
    assert all(layer.length == L for layer in cache)


def test_every_parameter_learns_and_none_is_about_time():
    model = build()
    names = {name for name, _ in model.named_parameters()}
    assert not any("time" in name or "adaLN" in name for name in names)
    posterior = model(some_tokens())
    (posterior.hidden @ posterior.table.T + posterior.bias).square().sum().backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 1e-9} == names


def test_a_fresh_model_is_uniform_and_depends_on_its_input():
    model, tokens = build(dtype=torch.float32, randomised=False), some_tokens()
    with torch.no_grad():
        posterior = model(tokens)
        torch.testing.assert_close(posterior.log_prob(tokens), torch.full(tokens.shape, -math.log(V)))
        assert (posterior.hidden[0, 1:] - posterior.hidden[1, 1:]).abs().max() > 0.1


def test_causal_with_a_time_too():
    """The two options of the backbone are independent."""
    torch.manual_seed(0)
    model = DiT(V, L, D, 2, HEADS, cond_dim=8, causal=True).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
        embedded, tau = torch.randn(1, L, D, dtype=torch.float64), torch.tensor([0.4], dtype=torch.float64)
        whole, other = model.hidden(embedded, tau), embedded.clone()
        other[:, 4] *= -1
        moved = (model.hidden(other, tau) - whole).abs().amax((0, 2)) > 1e-9
        assert moved.tolist() == [i >= 4 for i in range(L)]
        cache = model.new_cache(L)
        parts = [model.hidden(part, tau, cache=cache) for part in embedded.split(4, dim=1)]
        torch.testing.assert_close(torch.cat(parts, dim=1), whole)


def test_what_does_not_go_together_is_refused():
    embedded, tau = torch.randn(2, L, D), torch.rand(2)
    plain, causal = DiT(V, L, D, 1, HEADS), DiT(V, L, D, 1, HEADS, causal=True, conditioned=False)
    for call, message in [
        (lambda: causal(embedded, tau), "takes no time"),
        (lambda: plain(embedded), "needs tau"),
        (lambda: plain(embedded, tau, cache=plain.new_cache(L)), "causal=True"),
        (lambda: causal(embedded, mask=torch.ones(L, L, dtype=torch.bool), cache=causal.new_cache(L)), "no mask"),
        (lambda: causal(embedded, cache=causal.new_cache(L - 1)), "do not fit"),
        (lambda: DiT(V, L, D, 1, HEADS, two_times=True, conditioned=False), "two_times"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


def test_a_cache_keeps_what_it_gave():
    cache, pieces = KeyValues(5), torch.arange(2 * 5 * 3.0).view(2, 1, 5, 3).split([2, 3], dim=2)
    first, _ = cache.extend(pieces[0], -pieces[0])
    copy = first.clone()
    keys, values = cache.extend(pieces[1], -pieces[1])
    assert torch.equal(first, copy)
    assert torch.equal(keys, torch.cat(pieces, dim=2)) and torch.equal(values, -keys)


def test_piecewise_reading_never_compiles():
    model, tokens = build(attention_softcap=50.0), some_tokens()
    torch._dynamo.reset()
    compiled = []

    def backend(graph, _):
        compiled.append(graph)
        return graph.forward

    for block in model.body.blocks:
        block.compile(backend=backend, fullgraph=True)
    with torch.no_grad():
        whole = model(tokens).probabilities()
        count = len(compiled)
        assert count > 0
        cache = model.new_cache(L)
        for j in range(L):
            posterior = model.next_token(tokens[:, max(j - 1, 0) : j], cache)
            torch.testing.assert_close(posterior.probabilities()[:, 0], whole[:, j], rtol=0, atol=1e-10)
    assert len(compiled) == count
    torch._dynamo.reset()


def test_under_autocast_pieces_and_whole_agree():
    model, tokens = build(dtype=torch.float32), some_tokens()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        whole, cache = model(tokens).probabilities(), model.new_cache(L)
        steps = [model.next_token(tokens[:, max(j - 1, 0) : j], cache).probabilities() for j in range(L)]
    with torch.no_grad():
        exact = model(tokens).probabilities()
    assert cache[0]._stored[0].dtype == torch.bfloat16
    assert (torch.cat(steps, dim=1) - whole).abs().max() < 0.05 and (whole - exact).abs().max() < 0.1
