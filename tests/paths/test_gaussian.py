"""The V-free Gaussian path against the dense one: law of the views, loss, gradients in expectation."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from flm.paths import gaussian
from flm.paths.gaussian import (
    DenseNoise,
    ProjectedNoise,
    State,
    _ProjectNoise,
    combine,
    context_free_cross_entropy,
    corrupt,
    embed,
    noise_for,
    step,
)

V = 40


def tables(*widths, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(V, d, generator=g, dtype=dtype) for d in widths]


def moments(noise, count=40_000):
    state = noise.sample(1, count, torch.Generator().manual_seed(1))
    joint = torch.cat([view[0] for view in state.views], -1)
    return joint.mean(0), joint.T @ joint / count


@pytest.mark.parametrize("law", [DenseNoise, ProjectedNoise])
@pytest.mark.parametrize("case", ["one", "two widths", "student near teacher", "equal tables"])
def test_views_have_the_dense_mean_and_covariance(law, case):
    dtype = torch.float32 if case in ("student near teacher", "equal tables") else torch.float64
    if case == "one":
        ws = tables(6)
    elif case == "two widths":
        ws = tables(4, 7)
    else:
        a, difference = tables(5, 5, dtype=dtype)
        ws = [a, a + (1e-4 * difference if case == "student near teacher" else 0)]
    count = 40_000
    mean, covariance = moments(law(ws), count)
    joint = torch.cat(ws, 1)
    truth = joint.T @ joint
    scale = truth.diagonal().sqrt()
    # standard error of a Gaussian second moment: sqrt((c_ii c_jj + c_ij^2) / n)
    error = (covariance - truth).abs() / ((scale[:, None] * scale) ** 2 + truth**2).sqrt() * count**0.5
    assert error.max() < 4.5
    assert (mean.abs() / scale * count**0.5).max() < 4.5
    if case == "equal tables":
        state = law(ws).sample(2, 3, torch.Generator().manual_seed(2))
        assert torch.equal(state.views[0], state.views[1])
    if case == "student near teacher":  # the small difference itself has the right law, not only the sum
        state = law(ws).sample(1, count, torch.Generator().manual_seed(3))
        got = (state.views[1] - state.views[0])[0].double()
        gap = (ws[1] - ws[0]).double()
        assert ((got.T @ got / count - gap.T @ gap).abs().max() / (gap.T @ gap).diagonal().max()) < 0.05


@pytest.mark.parametrize("case", ["constant table", "difference of rank one", "three on a line"])
def test_tables_that_nearly_depend_on_each_other_are_factored(case):
    """Their Gram matrix has rounding errors above any small jitter in float32."""
    g = torch.Generator().manual_seed(0)
    table = 0.1 * torch.randn(2000, 128, generator=g)
    if case == "constant table":
        used = [torch.ones(2000, 128) + 1e-5 * table]
    elif case == "difference of rank one":
        used = [table, table + 1e-3 * torch.sign(torch.randn(2000, 1, generator=g) @ torch.randn(1, 128, generator=g))]
    else:
        step_to = 1e-3 * torch.randn(2000, 128, generator=g)
        used = [table, table + step_to, table + 0.1 * step_to]
    used = [table.requires_grad_() for table in used]
    noise = ProjectedNoise(used)
    views = noise.sample(4, 500, torch.Generator().manual_seed(1)).views
    for view, table in zip(views, used, strict=True):
        ratio = view.detach().double().square().sum() / (2000 * table.detach().double().square().sum())
        assert 0.8 < ratio < 1.25
    gradients = torch.autograd.grad([view.sum() for view in views], used)
    assert all(torch.isfinite(gradient).all() and gradient.norm() < 1e4 for gradient in gradients)


def test_the_path_picks_the_cheaper_law():
    assert isinstance(noise_for(tables(20, 20)), DenseNoise)
    assert isinstance(noise_for(tables(20)), ProjectedNoise)


@pytest.mark.parametrize("widths, dtype", [((5, 5, 3), torch.float64), ((5, 5, 3), torch.float32), ((30, 30), torch.float64)])
def test_the_law_of_the_first_tables_is_a_part_of_the_law_of_all(widths, dtype, monkeypatch):
    """As if it had been made of them alone: same noise from the same numbers, and the same gradients."""
    monkeypatch.setattr(ProjectedNoise, "COLUMNS", 4)  # cuts through tables
    monkeypatch.setattr(ProjectedNoise, "ROWS", 7)
    given = [table.to(dtype).requires_grad_() for table in tables(*widths)]
    for count in range(1, len(given) + 1):
        results = []
        for law in (noise_for(given).first(count), type(noise_for(given))(given[:count])):
            views = law.sample(2, 3, torch.Generator().manual_seed(count)).views
            results.append((*views, *torch.autograd.grad(sum(view.sin().sum() for view in views), given[:count])))
        tolerance = dict(rtol=1e-9, atol=1e-9) if dtype == torch.float64 else dict(rtol=1e-4, atol=1e-5)
        for got, want in zip(*results, strict=True):
            torch.testing.assert_close(got, want, **tolerance)


def test_the_gram_matrix_is_whole_although_half_of_it_is_computed(monkeypatch):
    monkeypatch.setattr(ProjectedNoise, "COLUMNS", 3)
    monkeypatch.setattr(ProjectedNoise, "ROWS", 9)
    a, b, c = tables(5, 5, 3)
    columns = torch.cat([a, b - a, c], dim=1)  # the second table enters as its difference from the first
    torch.testing.assert_close(ProjectedNoise([a, b, c])._gram(), columns.T @ columns, rtol=1e-12, atol=1e-12)


def test_corruption_is_affine_in_token_and_noise():
    (w,) = tables(6)
    tokens = torch.randint(V, (2, 7), generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.25, 0.9], dtype=torch.float64)
    x = corrupt(tokens, t, [w], torch.Generator().manual_seed(5))
    noise = noise_for([w]).sample(2, 7, torch.Generator().manual_seed(5))
    want = t[:, None, None] * w[tokens] + (1 - t)[:, None, None] * noise.views[0]
    torch.testing.assert_close(x.views[0], want)


def test_step_moves_along_the_conditional_path():
    """With the true token as target, a step from any t lands exactly on (1 - t') noise + t' onehot."""
    (w,) = tables(6)
    tokens = torch.randint(V, (2, 7), generator=torch.Generator().manual_seed(0))
    noise, clean = noise_for([w]).sample(2, 7, torch.Generator().manual_seed(1)), embed(tokens, [w])

    def at(t):
        return combine((1 - t, noise), (t, clean))

    torch.testing.assert_close(step(at(0.3), clean, 0.3, 0.8).views[0], at(0.8).views[0])


# Gradients in expectation ---------------------------------------------------------------------------------------------
# Three losses: plain cross-entropy; a stop-gradient target computed from the same state through the same table; a frozen
# second table that reads the same state. Each compares the mean gradient of many V-free draws with that of as many dense
# draws, entry by entry against the standard error.


def small_loss(kind, trained, frozen, views, tokens):
    def logits(view, table):
        return torch.tanh(view) @ table.T

    log_p = logits(views[0], trained).log_softmax(-1)
    if kind == "cross-entropy":
        q = torch.nn.functional.one_hot(tokens, trained.shape[0]).double()
    elif kind == "same state":
        q = (logits(2 * views[0], trained)).softmax(-1).detach()
    else:
        q = logits(views[1], frozen).softmax(-1).detach()
    return -(q * log_p).sum(-1)


@pytest.mark.parametrize("kind", ["cross-entropy", "same state", "frozen table"])
def test_projected_gradient_is_the_dense_one_in_expectation_with_less_variance(kind):
    g = torch.Generator().manual_seed(11)
    size, width, draws, groups = 12, 3, 30_000, 150
    trained = (0.7 * torch.randn(size, width, generator=g, dtype=torch.float64)).requires_grad_()
    frozen = 0.7 * torch.randn(size, width, generator=g, dtype=torch.float64)
    used = [trained, frozen] if kind == "frozen table" else [trained]
    tokens = torch.randint(size, (draws, 1), generator=g)
    t = 0.4

    def gradients(views):
        """Mean gradient of the trained table in each group of draws."""
        losses = small_loss(kind, trained, frozen, views, tokens)[:, 0].view(groups, -1).mean(1)
        return torch.stack([torch.autograd.grad(loss, trained, retain_graph=True)[0] for loss in losses])

    dense = torch.randn(draws, 1, size, generator=g, dtype=torch.float64)
    noise = ProjectedNoise(used)
    white = torch.randn(draws, 1, sum(w.shape[1] for w in used), generator=g, dtype=torch.float64)
    clean = embed(tokens, used)
    state_dense = combine((t, clean), (1 - t, State(tuple(dense @ w for w in used))))
    state_projected = combine((t, clean), (1 - t, State(_ProjectNoise.apply(white, noise, *used))))
    a, b = gradients(state_dense.views), gradients(state_projected.views)
    error = ((a.var(0) + b.var(0)) / groups).sqrt()
    assert ((a.mean(0) - b.mean(0)).abs() / error).max() < 4.5
    assert b.var(0).sum() < 0.95 * a.var(0).sum()
    assert b.mean(0).norm() > 10 * error.norm() / size  # there is a gradient to compare


def test_projected_gradient_is_the_conditional_mean_of_the_dense_one():
    """On the same views exactly: dense noise n gives W-gradient n^T g; V-free must give (projection of n)^T g."""
    ws = [w.requires_grad_() for w in tables(3, 4)]
    noise = ProjectedNoise(ws)
    white = torch.randn(5, 2, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    upstream = [torch.randn(5, 2, d, generator=torch.Generator().manual_seed(d), dtype=torch.float64) for d in (3, 4)]
    views = _ProjectNoise.apply(white, noise, *ws)
    got = torch.autograd.grad(views, ws, upstream)
    joint = torch.cat(ws, 1).detach()
    projected = torch.cat(views, -1).detach() @ torch.linalg.pinv(joint)  # the least-norm n with these views
    for gradient, up in zip(got, upstream, strict=True):
        torch.testing.assert_close(gradient, projected.reshape(-1, V).T @ up.reshape(-1, up.shape[-1]), atol=1e-6, rtol=0)


def test_context_free_cross_entropy_in_closed_form():
    """Two tokens: the posterior log-odds are Gaussian, so the entropy is a one-dimensional integral."""
    counts = torch.tensor([1.0, 3.0])
    t = torch.tensor([0.2, 0.5, 0.7], dtype=torch.float64)
    got = context_free_cross_entropy(counts, t, torch.Generator().manual_seed(0), num_draws=40_000)
    z = torch.linspace(-9, 9, 4001, dtype=torch.float64)
    density = torch.exp(-(z**2) / 2) / (2 * torch.pi) ** 0.5 * (z[1] - z[0])
    for i, time in enumerate(t):
        s = time / (1 - time)
        truth = 0.0
        for pi, other in ((0.25, 0.75), (0.75, 0.25)):
            odds = torch.log(torch.tensor(pi / other)) + s**2 + s * 2**0.5 * z
            truth += pi * (density * torch.nn.functional.softplus(-odds)).sum()
        assert abs(got[i] - truth) < 0.01


def test_gradients_of_tables_may_be_tf32_and_noise_may_not(monkeypatch):
    """Where it applies, and what it costs: ten bits of mantissa move a product by less than bf16 does."""
    monkeypatch.setattr(gaussian, "TF32_ON", {"cpu"})

    class Products(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function._schema.name in ("aten::mm", "aten::bmm") and args[0].dtype == torch.float32:
                found.append(torch.get_float32_matmul_precision())
            return function(*args, **(kwargs or {}))

    table = torch.randn(300, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    before, found = torch.get_float32_matmul_precision(), []
    with Products():
        (view,) = ProjectedNoise((table,)).sample(2, 9, torch.Generator().manual_seed(1)).views
        assert found and set(found) == {before}
        found.clear()
        view.sum().backward()
    assert found and set(found) == {"high"} and torch.get_float32_matmul_precision() == before

    def ten_bits(x):
        return ((x.view(torch.int32) + 2**12) & ~(2**13 - 1)).view(torch.float32)

    a, b = (torch.randn(400, 64, generator=torch.Generator().manual_seed(seed)) for seed in (2, 3))
    exact = a.double().T @ b.double()
    off = [
        ((read(a).double().T @ read(b).double() - exact).norm() / exact.norm()) for read in (ten_bits, torch.Tensor.bfloat16)
    ]
    assert off[0] < 5e-4 < 3e-3 > off[1] > 1e-3
