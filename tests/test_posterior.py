"""TokenPosterior against its dense twin, and categorical draws against exact laws."""

import warnings
from dataclasses import replace

import pytest
import torch
from chi_square import chi_square_limit
from live_memory import LiveMemory

import flm.device
import flm.posterior
import flm.vocabulary_losses
from flm.benchmark.dense_twin import dense_log_probabilities
from flm.device import compiled_on_device
from flm.outputs import Combination, RawOutput
from flm.posterior import TokenPosterior, truncate, truncated_logits
from flm.samplers.ending import Ending, Offer
from flm.vocabulary_losses import cross_entropy, squared_error

B, L, D, V = 3, 5, 8, 23


@pytest.fixture(params=[1, 7, 10_000])
def tokens_per_chunk(request, monkeypatch):
    monkeypatch.setitem(flm.posterior.CHUNK_ELEMENTS, "cpu", request.param * V)


class Constant:
    """An offset held whole."""

    def __init__(self, values):
        self.values = values

    def chunk(self, part):
        return self.values[part].clone()


def make(seed=0, softcap=3.0, temperature=0.7, dtype=torch.float64, offset=True):
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=dtype).requires_grad_()

    posterior = TokenPosterior(normal(B, L, D), normal(V, D), normal(V), softcap, temperature)
    return replace(posterior, offset=Constant(4 * torch.randn(B * L, V, generator=g, dtype=dtype))) if offset else posterior


@pytest.mark.parametrize("softcap,temperature", [(None, 1.0), (3.0, 1.0), (3.0, 0.7)])
@pytest.mark.parametrize("soft", [False, True])
def test_cross_entropy_and_gradients_equal_dense(softcap, temperature, soft, tokens_per_chunk):
    posterior = make(1, softcap, temperature)
    leaves = [posterior.hidden, posterior.table, posterior.bias]
    weight = torch.rand(B, L, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    if soft:
        share = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
        target = Combination((share, 1 - share), (make(3, None, 1.0).detach(), make(4, 2.0, 1.3).detach()))
        q = sum(
            w[:, None, None] * dense_log_probabilities(p).exp() for w, p in zip(target.weights, target.outputs, strict=True)
        )
    else:
        target = torch.randint(V, (B, L), generator=torch.Generator().manual_seed(5))
        q = torch.nn.functional.one_hot(target, V).double()

    total, per_token = cross_entropy(posterior, target, weight)
    dense = -(q * dense_log_probabilities(posterior)).sum(-1)
    torch.testing.assert_close(per_token, dense.detach(), rtol=0, atol=1e-12)
    got = torch.autograd.grad(2.5 * total, leaves)
    want = torch.autograd.grad(2.5 * (dense * weight).sum(), leaves)
    torch.testing.assert_close(total, (dense * weight).sum(), rtol=0, atol=1e-12)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_reductions_equal_dense(tokens_per_chunk):
    posterior = make(6)
    log_p = dense_log_probabilities(posterior).detach()
    tables = [torch.randn(V, k, dtype=torch.float64, generator=torch.Generator().manual_seed(k)) for k in (4, 6)]
    for got, table in zip(posterior.expected(tables), tables, strict=True):
        torch.testing.assert_close(got, log_p.exp() @ table, rtol=0, atol=1e-12)
    assert torch.equal(posterior.argmax(), log_p.argmax(-1))
    ids = torch.randint(V, (B, L), generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(posterior.log_prob(ids), log_p.gather(-1, ids[..., None])[..., 0], rtol=0, atol=1e-12)
    torch.testing.assert_close(posterior.entropy(), -(log_p.exp() * log_p).sum(-1), rtol=0, atol=1e-12)
    torch.testing.assert_close(posterior.probabilities(), log_p.exp(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("raw", [False, True])
def test_squared_error_and_gradients_equal_dense(raw, tokens_per_chunk):
    one, other, correction = make(1), make(3).detach(), make(4).detach()
    scale = torch.tensor([0.0, 0.5, -2.0], dtype=torch.float64)
    target = Combination((1.0, scale), (other, RawOutput(correction.hidden, correction.table, correction.bias)))
    dense_target = dense_log_probabilities(other).exp() + scale[:, None, None] * (
        correction.hidden @ correction.table.T + correction.bias
    )
    output = RawOutput(one.hidden, one.table, one.bias) if raw else one
    values = one.hidden @ one.table.T + one.bias if raw else dense_log_probabilities(one).exp()
    weight = torch.rand(B, L, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    total, per_token = squared_error(output, target, weight)
    dense = ((values - dense_target) ** 2).sum(-1)
    torch.testing.assert_close(per_token, dense.detach(), rtol=1e-12, atol=1e-12)
    leaves = [one.hidden, one.table, one.bias]
    got = torch.autograd.grad(-1.5 * total, leaves)
    for a, b in zip(got, torch.autograd.grad(-1.5 * (dense * weight).sum(), leaves), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)
    # what samplers ask of a combination
    table = torch.randn(V, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(target.expected([table])[0], dense_target @ table, rtol=0, atol=1e-10)
    assert torch.equal(target.argmax(), dense_target.argmax(-1))
    torch.testing.assert_close(target.rows(slice(1, 3)).chunk(slice(0, 2 * L)).view(2, L, V), dense_target[1:])


@pytest.mark.parametrize("top_k,top_p", [(None, None), (5, None), (None, 0.8)])
def test_draws_follow_the_probabilities(top_k, top_p):
    one = make(7, temperature=2.0, offset=False)
    count = 4000
    hidden = one.hidden[:1, :1].detach().expand(1, count, D)
    posterior = TokenPosterior(hidden, one.table.detach(), one.bias.detach(), one.softcap, one.temperature)
    draws = replace(posterior, top_k=top_k, top_p=top_p).draw(torch.Generator().manual_seed(0))[0]
    p = truncate(one.probabilities()[0, :1], top_k, top_p)[0]
    p = p / p.sum()
    counts = torch.bincount(draws, minlength=V).double()
    assert counts[p == 0].sum() == 0
    expected = count * p[p > 0]
    statistic = ((counts[p > 0] - expected) ** 2 / expected).sum().item()
    assert statistic < chi_square_limit(1e-4, int((p > 0).sum()) - 1)


def test_rare_tokens_are_drawn_at_their_rate():
    """float32 Gumbel noise cannot exceed 16.6: an fp32 draw would give the tail a rate far below the truth."""
    rare, size, count = 1e-7, 1000, 20_000  # a tail of mass 1e-4, each entry at float32 resolution near 1
    logits = torch.full((size + 1,), rare, dtype=torch.float64).log()
    logits[0] = torch.tensor(1 - size * rare, dtype=torch.float64).log()
    posterior = TokenPosterior(torch.ones(1, count, 1), torch.zeros(size + 1, 1), logits.float())
    draws = posterior.draw(torch.Generator().manual_seed(0))[0]
    assert 0 < int((draws > 0).sum()) < 10  # Poisson with mean 2
    # in the tail all entries are alike: the index must not pile up where float32 cumulative sums have their steps
    u = 1 - size * rare + rare * (torch.arange(size, dtype=torch.float64) + 0.5)
    cumulative = logits.exp().cumsum(0)
    found = torch.searchsorted(cumulative, u * cumulative[-1], right=True)
    assert found.unique().numel() == 1000


@pytest.mark.parametrize("options, most", [({}, 15), ({"top_k": 5}, 19)])
def test_draws_hold_few_copies_of_a_chunk(options, most, monkeypatch):
    """In bytes a logit, as samplers of all positions and of masks draw: 4 of fp32, 8 of float64 once, a quarter of it again."""
    vocab_size, chunk = 512, 2**16
    monkeypatch.setitem(flm.posterior.CHUNK_ELEMENTS, "cpu", chunk)
    normal = lambda *shape: torch.randn(*shape, generator=torch.Generator().manual_seed(0))  # noqa: E731
    posterior = TokenPosterior(normal(1, 512, 4), normal(vocab_size, 4), normal(vocab_size), **options)
    for drawing in (posterior, Offer(posterior, Ending())):
        if options and drawing is not posterior:
            continue  # it keeps what was there before top_k
        with LiveMemory() as memory:
            drawing.draw(torch.Generator().manual_seed(0))
        assert memory.peak < most * chunk, memory.peak / chunk


@pytest.mark.parametrize("top_k,top_p", [(3, None), (None, 0.6), (4, 0.8), (1, 1.0), (V + 1, 1e-308)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logits_are_cut_where_probabilities_are(top_k, top_p, dtype):
    logits = torch.randn(50, V, generator=torch.Generator().manual_seed(0), dtype=dtype) * 3
    logits[:, 2] = -torch.inf
    p = truncate(logits.double().softmax(-1), top_k, top_p)
    assert torch.equal(truncated_logits(logits.clone(), top_k, top_p), torch.where(p > 0, logits, -torch.inf))


def test_top_p_of_one_and_bad_values():
    p = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64)
    assert torch.equal(truncate(p, None, 1.0), p)
    assert torch.equal(truncate(p, None, 0.5), torch.tensor([[0.5, 0, 0]], dtype=torch.float64))
    assert torch.equal(truncate(p, 2, None), torch.tensor([[0.5, 0.3, 0]], dtype=torch.float64))
    for bad in ((0, None), (None, 0.0), (None, 1.5)):
        with pytest.raises(ValueError, match="sampling.top_"):
            truncate(p, *bad)
    with pytest.raises(ValueError, match="sampling.temperature"):
        make().tempered(0.0)


# Precision and compilation ------------------------------------------------------------------------------------------


def test_under_autocast_only_expected_rows_are_of_low_precision():
    posterior = make(11, softcap=30.0, temperature=1.0, dtype=torch.float32).detach()
    tokens = torch.randint(V, (B, L), generator=torch.Generator().manual_seed(5))

    def asked():
        drawn = posterior.draw(torch.Generator().manual_seed(0))
        return drawn, posterior.log_prob(tokens), posterior.entropy(), posterior.probabilities(), posterior.argmax()

    exact, exact_rows = asked(), posterior.expected([posterior.table])[0]
    with torch.autocast("cpu", torch.bfloat16):
        low, rows = asked(), posterior.expected([posterior.table])[0]
    assert all(torch.equal(a, b) for a, b in zip(exact, low, strict=True))
    assert rows.dtype == torch.float32 and not torch.equal(rows, exact_rows)
    torch.testing.assert_close(rows, exact_rows, rtol=0.1, atol=0.1)


@pytest.fixture(params=["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def compiled(request, monkeypatch):
    """Compiled on the CPU too. The quick backend runs what the compiler traced."""
    if request.param == "inductor" and flm.device.missing_compiler("cpu"):
        pytest.skip(flm.device.missing_compiler("cpu"))
    torch._dynamo.reset()
    calls, original = [], torch.compile

    def compile(function):
        calls.append(function.__name__)
        return original(function, backend=request.param)

    monkeypatch.setattr(flm.device.torch, "compile", compile)
    monkeypatch.setattr(flm.device, "missing_compiler", lambda device: None)
    for module, name in (
        (flm.vocabulary_losses, "cross_entropy_chunk"),
        (flm.vocabulary_losses, "squared_error_chunk"),
        (flm.posterior, "chunk_probabilities"),
    ):  # made anew: what is compiled here must not outlive the test
        monkeypatch.setattr(module, name, compiled_on_device(getattr(module, name).__wrapped__))
    yield calls
    torch._dynamo.reset()


def all_losses(low):
    """Values and gradients of every loss over the vocabulary, under autocast to bf16 if `low`."""
    results = []
    for seed, target in ((1, "ids"), (2, "soft"), (3, "squared"), (4, "raw")):
        posterior = make(seed, 3.0, 0.7, torch.float32)
        weight = torch.rand(B, L, generator=torch.Generator().manual_seed(seed))
        ids = torch.randint(V, (B, L), generator=torch.Generator().manual_seed(seed))
        mixture = Combination(
            (0.3, 0.7), (make(7, None, 1.0, torch.float32).detach(), make(8, 2.0, 1.3, torch.float32).detach())
        )
        output = RawOutput(posterior.hidden, posterior.table, posterior.bias) if target == "raw" else posterior
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            if target in ("ids", "soft"):
                total, per_token = cross_entropy(posterior, ids if target == "ids" else mixture, weight)
            else:
                total, per_token = squared_error(output, mixture, weight)
        leaves = [posterior.hidden, posterior.table, posterior.bias]
        results += [total.detach(), per_token, *torch.autograd.grad(total, leaves)]
    return results


@pytest.mark.parametrize("low", [False, True])
def test_compiled_losses_are_the_same_numbers(compiled, monkeypatch, low):
    monkeypatch.setitem(flm.posterior.CHUNK_ELEMENTS, "cpu", 4 * V)  # 15 tokens: chunks of 4, 4, 4 and 3

    eager = all_losses(low)
    assert compiled == []
    monkeypatch.setattr(flm.device, "COMPILED_ON", {"cpu"})
    again = all_losses(low)
    assert sorted(set(compiled)) == ["chunk_probabilities", "cross_entropy_chunk", "squared_error_chunk"]
    assert len(compiled) == 3  # once each
    tolerance = dict(rtol=2e-2, atol=2e-3) if low else dict(rtol=1e-5, atol=1e-6)
    for got, want in zip(again, eager, strict=True):
        torch.testing.assert_close(got, want, **tolerance)


@pytest.mark.parametrize("is_compiled", [False, True])
def test_rows_of_padding_change_nothing(is_compiled, compiled, monkeypatch):
    """V = 23 with a table of 64 rows: a padding row has no probability, no gradient and no part in a mean."""
    monkeypatch.setitem(flm.posterior.CHUNK_ELEMENTS, "cpu", 4 * V)
    if is_compiled:
        monkeypatch.setattr(flm.device, "COMPILED_ON", {"cpu"})
    other = torch.randn(V, 5, generator=torch.Generator().manual_seed(9))

    def found():
        with torch.autocast("cpu", torch.bfloat16):
            views = [make(seed, 3.0, 0.7, torch.float32).expected([other, other[:, :2]]) for seed in (1, 2)]
            truncated = replace(make(3, 3.0, 0.7, torch.float32), top_k=4).expected([other])
        return [*all_losses(low=True), *views[0], *views[1], *truncated]

    plain = found()
    monkeypatch.setattr(flm.posterior, "PADDED_ON", {"cpu"})
    table = make().table.float()
    with torch.autocast("cpu", torch.bfloat16):
        read = flm.posterior.padded_copy(table, table)
    assert read.shape == (64, D) and read.dtype == torch.bfloat16 and not read[V:].any()
    assert torch.equal(read[:V], table.bfloat16())
    assert flm.posterior.padded_copy(table, table) is table  # in full precision nothing is copied, so nothing is padded
    for got, want in zip(found(), plain, strict=True):
        assert got.shape == want.shape
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)


def test_gradients_of_the_table_are_summed_in_float32_by_the_product_where_it_can(monkeypatch):
    """A stand-in does what CUDA's product does. The other way rounds each chunk's sum to bf16, and is off by that."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(1, 4000, D, generator=generator).bfloat16().float(), torch.full((1, 4000), 1.0)
    table, tokens = torch.randn(V, D, generator=generator), torch.randint(V, (1, 4000), generator=generator)
    monkeypatch.setitem(flm.posterior.CHUNK_ELEMENTS, "cpu", 500 * V)
    product, asked = torch.addmm, []

    def addmm(sums, a, b, out_dtype=None):
        asked.append((a.dtype, b.dtype, out_dtype))
        return product(sums, a.float(), b.float()) if out_dtype is not None else product(sums, a, b)

    monkeypatch.setattr(torch, "addmm", addmm)
    found = []
    for able in (False, True):
        monkeypatch.setattr(flm.vocabulary_losses, "sums_in_float32", lambda *_, able=able: able)
        leaf = table.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            total, _ = cross_entropy(TokenPosterior(hidden, leaf), tokens, weight)
        found.append(torch.autograd.grad(total, leaf)[0])
    assert asked == [(torch.bfloat16, torch.bfloat16, torch.float32)] * 8
    logits = (hidden[0].bfloat16() @ table.bfloat16().T).float()
    slope = (logits.softmax(-1) - torch.nn.functional.one_hot(tokens[0], V)).bfloat16()  # as the products read it
    exact = slope.double().T @ hidden[0].double()
    off = [((gradient - exact).norm() / exact.norm()).item() for gradient in found]
    assert off[1] < 1e-4 < off[0] / 5, off


def test_without_a_compiler_the_losses_run_as_they_are_and_say_so(monkeypatch):
    monkeypatch.setattr(flm.device, "COMPILED_ON", {"cpu"})
    monkeypatch.setattr(flm.device, "missing_compiler", lambda device: "no compiler")
    double = compiled_on_device(lambda x: 2 * x)
    with pytest.warns(UserWarning, match="runs uncompiled, slower: no compiler"):
        assert torch.equal(double(torch.ones(2)), torch.full((2,), 2.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        double(torch.ones(2))
