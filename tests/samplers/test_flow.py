"""FLM's samplers against the dense twin, closed forms and each other."""

import pytest
import torch

from flm.benchmark.dense_twin import dense_euler
from flm.models.dit import DiT
from flm.paths import gaussian
from flm.paths.clock import DecodingErrorClock, IdentityClock
from flm.paths.gaussian import State
from flm.posterior import TokenPosterior
from flm.samplers.canvas import Canvas
from flm.samplers.flow import FlowSampler
from flm.samplers.fresh_noise import FlowMapSampler
from flm.schema import check

V, L, B = 40, 6, 5


class TinyDenoiser:
    """A DiT with weights large enough for its prediction to depend on state and time."""

    def __init__(self, seed=0, clock=None):
        torch.manual_seed(seed)
        self.backbone = DiT(V, L, 16, 2, 2, cond_dim=8, dropout=0.0).double().eval()
        with torch.no_grad():
            for parameter in self.backbone.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        self.clock = clock or DecodingErrorClock(V)

    @property
    def tables(self):
        return (self.backbone.input_table,)

    def __call__(self, state, tau, tau_to=None):
        return self.backbone(state.views[0], tau.double())


def dense_noise(seed=0):
    return torch.randn(B, L, V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("steps", [1, 2, 7, 32])
@pytest.mark.parametrize("canvas", ["blank", "holes"])
def test_euler_equals_dense_euler_token_for_token(steps, canvas):
    denoiser = TinyDenoiser()
    canvas = Canvas.blank(B, L) if canvas == "blank" else Canvas.from_pieces([[3], 2, [7, 1], 1], B)
    noise = dense_noise()
    start = State((noise @ denoiser.tables[0],))
    got = FlowSampler().integrate(denoiser, canvas, steps, start, torch.Generator())
    want = dense_euler(denoiser.backbone, denoiser.clock, canvas, steps, noise)
    assert torch.equal(got, canvas.fill(want))
    assert got.unique().numel() > 3  # the comparison is not between constants


class ExactTwoTokens:
    """One position, two tokens with probabilities (p, 1-p), seen through the identity table: the exact posterior."""

    p = 0.3

    def __init__(self):
        self.tables = (torch.eye(2, dtype=torch.float64),)
        self.clock = IdentityClock()

    def __call__(self, state, tau, tau_to=None):
        t = tau.double()[:, None, None]
        prior = torch.tensor([self.p, 1 - self.p], dtype=torch.float64).log()
        logits = prior + t * state.views[0] / (1 - t) ** 2
        return TokenPosterior(logits, torch.eye(2, dtype=torch.float64))


@pytest.mark.parametrize("options", [{}, {"solver": "heun"}, {"churn": 0.1}])
def test_exact_denoiser_gives_the_data_distribution(options):
    count = 20_000
    canvas = Canvas.blank(count, 1)
    tokens = FlowSampler(**options)(ExactTwoTokens(), canvas, 64, torch.Generator().manual_seed(0))
    share = (tokens == 0).double().mean().item()
    assert abs(share - 0.3) < 4 * (0.3 * 0.7 / count) ** 0.5 + 0.003  # 0.003: discretisation of 64 steps


class ShowLast(TinyDenoiser):
    """Keeps every state it is shown."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seen = []

    def __call__(self, state, tau, tau_to=None):
        self.seen.append((tau[0].item(), state.views[0].clone()))
        return super().__call__(state, tau)


@pytest.mark.parametrize("solver,order", [("euler", 1), ("heun", 2)])
def test_order_of_convergence(solver, order):
    """Halving the step divides the error of the state at a fixed time by 2^order."""
    noise = dense_noise(3)

    def state_late(steps):
        denoiser = ShowLast(clock=IdentityClock())
        start = State((noise @ denoiser.tables[0],))
        FlowSampler(solver).integrate(denoiser, Canvas.blank(B, L), steps, start, torch.Generator())
        return next(view for tau, view in reversed(denoiser.seen) if abs(tau - 0.75) < 1e-6)

    truth = state_late(768)
    errors = [(state_late(steps) - truth).abs().max() for steps in (16, 32)]
    assert order - 0.25 < torch.log2(errors[0] / errors[1]) < order + 0.35


@pytest.mark.parametrize("options", [{}, {"solver": "heun"}, {"churn": 0.5}])
def test_given_positions_stay_on_their_conditional_path(options):
    """At every network call a given position's view is (1 - t) noise + t W[token]; without churn, with its own noise."""
    denoiser = ShowLast()
    canvas = Canvas.from_pieces([[3], 2, [7, 1], 1], B)
    noise = dense_noise()
    (table,) = denoiser.tables
    start = State((noise @ table,))
    tokens = FlowSampler(**options).integrate(denoiser, canvas, 9, start, torch.Generator().manual_seed(1))
    given = ~canvas.editable[0]
    assert torch.equal(tokens[:, given], canvas.tokens[:, given])
    for tau, view in denoiser.seen:
        t = denoiser.clock.time(torch.tensor(tau, dtype=torch.float64))
        residual = view - t * table[canvas.tokens]
        if "churn" in options:
            # fresh noise came in: the law is what must stay (1 - t)^2 W^T W
            scale = (residual[:, given] ** 2).mean() / ((1 - t) ** 2 * (table**2).sum(0).mean())
            assert 0.6 < scale < 1.5
        else:
            torch.testing.assert_close(residual[:, given], ((1 - t) * start.views[0])[:, given], rtol=0, atol=1e-7)


def test_churn_needs_more_than_one_step_and_keeps_the_noise_law():
    denoiser = TinyDenoiser()
    plain, churned = FlowSampler(), FlowSampler(churn=0.9)
    canvas = Canvas.blank(B, L)
    one = [s(denoiser, canvas, 1, torch.Generator().manual_seed(4)) for s in (plain, churned)]
    many = [s(denoiser, canvas, 8, torch.Generator().manual_seed(4)) for s in (plain, churned)]
    assert torch.equal(*one) and not torch.equal(*many)


def test_bad_options_name_their_key():
    for options, key in (({"solver": "rk9"}, "sampling.solver"), ({"churn": -1.0}, "sampling.churn")):
        with pytest.raises(ValueError, match=key):
            check(FlowSampler, options, "sampling")
    with pytest.raises(ValueError, match="sampling.steps"):
        FlowSampler()(TinyDenoiser(), Canvas.blank(1, 2), 0, torch.Generator())
    with pytest.raises(ValueError, match="nothing to fill"):
        Canvas.between([1, 2], [3], 3, 1)


@pytest.mark.parametrize("sampler", [FlowSampler(churn=0.5), FlowSampler(solver="heun"), FlowMapSampler(gamma=0.5)])
def test_a_sample_factors_its_noise_once(sampler, monkeypatch):
    factored = []

    class Counting(gaussian.ProjectedNoise):
        def _gram(self):
            factored.append(1)
            return super()._gram()

    monkeypatch.setattr(gaussian, "ProjectedNoise", Counting)
    sampler(TinyDenoiser(), Canvas.blank(B, L), 4, torch.Generator().manual_seed(0))
    assert len(factored) == 1
