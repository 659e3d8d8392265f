"""A language small enough to know everything about it, and networks for it: exact ones, and a toy that can learn them.

V tokens, L positions, every one of the V^L sequences with its probability. The input table is the identity, so a view is the
dense state x (B, L, V). In m = t/(1-t) and z = x/(1-t) the flow dx/dt = (D_t(x) - x)/(1-t) reads dz/dm = D, with
D the marginals of the posterior p(y) exp(m sum_l z_{l,y_l}). A jump changes z by (m_t - m_s) delta_{s,t}, so delta_{s,t} is the
plain average of D over m: integrated here, by Runge-Kutta.
"""

import math
from functools import partial

import torch
from torch import Tensor, nn

from flm.algos.algorithm import Algorithm, Batch
from flm.algos.flm import SingleTimeDenoiser
from flm.algos.fmlm import TwoTimeDenoiser
from flm.draws import Draws
from flm.paths.clock import DecodingErrorClock, IdentityClock
from flm.paths.gaussian import State
from flm.posterior import TokenPosterior

# At t = 1, m is infinite. From here on the posterior is a vertex to within e^-100 for all but a sliver of states.
LARGEST_M = 12.0
# Low frequencies of the clock only: a derivative in time amplifies what the toy does between the times it has learned.
FEATURES = 4


class ExactWorld:
    """joint: probabilities, one axis of size V a position. clock: identity, or the decoding-error clock for V = 2."""

    def __init__(self, joint, clock: str = "identity"):
        self.joint = torch.tensor(joint, dtype=torch.float64)
        self.vocab_size, self.length = self.joint.shape[0], self.joint.ndim
        assert clock == "identity" or self.vocab_size == 2
        self.clock = IdentityClock() if clock == "identity" else DecodingErrorClock(2)

    def ratio(self, tau: Tensor) -> Tensor:
        """m = t/(1-t) of a clock time, differentiable, float64; LARGEST_M at most."""
        tau = tau.double()
        final = tau > 1 - 1e-9
        inside = torch.where(final, torch.full_like(tau, 0.5), tau)
        m = inside / (1 - inside) if isinstance(self.clock, IdentityClock) else 2 * torch.erfinv(inside)
        return torch.where(final, torch.full_like(tau, LARGEST_M), m.clamp(max=LARGEST_M))

    def log_marginals(self, evidence: Tensor) -> Tensor:
        """log D (B, L, V) for the evidence m z (B, L, V)."""
        scores = self.joint.log()[None]
        for position in range(self.length):
            shape = [-1] + [1] * self.length
            shape[position + 1] = self.vocab_size
            scores = scores + evidence[:, position].reshape(shape)
        scores = scores - scores.flatten(1).logsumexp(1).reshape([-1] + [1] * self.length)
        axes = range(1, self.length + 1)
        others = [[a for a in axes if a != position + 1] for position in range(self.length)]
        marginals = [scores.logsumexp(dims) if dims else scores for dims in others]
        return torch.stack(marginals, 1)

    def denoise(self, x: Tensor, t: Tensor) -> Tensor:
        """log D_t(x), straight from Bayes' rule; t (B,) < 1."""
        return self.log_marginals((t / (1 - t) ** 2)[:, None, None] * x)

    def log_delta(self, x: Tensor, m: Tensor, m_to: Tensor, nodes: int = 100) -> Tensor:
        """log delta between two values of m (B,), differentiable in everything."""
        m, width = m[:, None, None], (m_to - m)[:, None, None]
        z = x.double() * (1 + m)
        average = torch.zeros_like(z)

        def slope(q: float, average: Tensor) -> Tensor:
            here = m + q * width
            return self.log_marginals(here * (z + width * average)).exp()

        h = 1 / nodes
        for i in range(nodes):
            q = i * h
            k1 = slope(q, average)
            k2 = slope(q + h / 2, average + h / 2 * k1)
            k3 = slope(q + h / 2, average + h / 2 * k2)
            k4 = slope(q + h, average + h * k3)
            average = average + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        # going all the way to t = 1, the average is the posterior that the flow ends in
        final = self.log_marginals(m_to[:, None, None] * (z + width * average))
        whole_way = (m_to >= LARGEST_M)[:, None, None]
        return torch.where(whole_way, final, average.clamp_min(1e-300).log())

    def jump(self, x: Tensor, s: Tensor, t: Tensor, nodes: int = 1000) -> Tensor:
        """X_{s,t}(x) by integrating z; s, t (B,) physical, t < 1."""
        m, m_to = s / (1 - s), t / (1 - t)
        delta = self.log_delta(x, m, m_to, nodes).exp()
        z = x * (1 + m)[:, None, None] + (m_to - m)[:, None, None] * delta
        return z / (1 + m_to)[:, None, None]

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Sequences (count, L)."""
        flat = torch.multinomial(self.joint.flatten(), count, replacement=True, generator=generator)
        return torch.stack(torch.unravel_index(flat, self.joint.shape), 1)

    def state(self, tau: Tensor, generator: torch.Generator) -> Tensor:
        """x_t (B, L, V) of random sequences at clock times (B,), float64."""
        t = self.clock.time(tau.double())[:, None, None]
        clean = nn.functional.one_hot(self.sample(len(tau), generator), self.vocab_size).double()
        return t * clean + (1 - t) * torch.randn(clean.shape, generator=generator, dtype=torch.float64)

    def batch(self, count: int, generator: torch.Generator) -> Batch:
        return Batch(self.sample(count, generator), torch.ones(count, self.length))

    def denoiser(self) -> TwoTimeDenoiser:
        return TwoTimeDenoiser(ExactBackbone(self), self.clock)


def correlated(clock: str = "decoding") -> ExactWorld:
    """Two positions of two tokens that depend on each other."""
    return ExactWorld([[0.45, 0.05], [0.15, 0.35]], clock)


def single_token(p: float = 0.3, clock: str = "decoding") -> ExactWorld:
    return ExactWorld([p, 1 - p], clock)


def three_tokens() -> ExactWorld:
    return ExactWorld([0.5, 0.3, 0.2])


class ExactBackbone(nn.Module):
    """delta_{s,t}, and D_s without an end, as the posterior of a backbone."""

    def __init__(self, world: ExactWorld, nodes: int = 100):
        super().__init__()
        self.world, self.nodes = world, nodes
        self.register_buffer("input_table", torch.eye(world.vocab_size, dtype=torch.float64))

    def forward(self, view: Tensor, tau: Tensor, tau_to: Tensor | None = None) -> TokenPosterior:
        m = self.world.ratio(tau)
        if tau_to is None:
            log_p = self.world.log_marginals((m * (1 + m))[:, None, None] * view.double())
        else:
            log_p = self.world.log_delta(view, m, self.world.ratio(tau_to), self.nodes)
        return TokenPosterior(log_p.to(self.input_table.dtype), self.input_table)


class ExactTeacher(Algorithm):
    """An FLM that has learned its world perfectly."""

    def __init__(self, world: ExactWorld):
        super().__init__(world.vocab_size, world.length)
        self.backbone, self.clock = ExactBackbone(world).float(), world.clock

    def denoiser(self) -> SingleTimeDenoiser:
        return SingleTimeDenoiser(self.backbone, self.clock)


class ToyBackbone(nn.Module):
    """A perceptron over the whole state, quick to train to an exact map."""

    def __init__(self, vocab_size: int, length: int, width: int = 64, two_times: bool = False):
        super().__init__()
        self.vocab_size, self.length, self.width = vocab_size, length, width
        self.register_buffer("input_table", torch.eye(vocab_size))
        self.register_buffer("frequencies", math.pi * torch.arange(FEATURES), persistent=False)
        self.read = nn.Linear(length * vocab_size, width)
        self.time_embedding = nn.Linear(FEATURES, 2 * width)
        self.second_time_embedding = nn.Linear(FEATURES, 2 * width) if two_times else None
        if two_times:
            nn.init.zeros_(self.second_time_embedding.weight)
            nn.init.zeros_(self.second_time_embedding.bias)
        self.body = nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, length * width), nn.SiLU())
        self.output_layer = nn.Linear(width, vocab_size)

    def forward(self, view: Tensor, tau: Tensor, tau_to: Tensor | None = None) -> TokenPosterior:
        condition = self.time_embedding(self._features(tau))
        if self.second_time_embedding is not None:
            condition = condition + self.second_time_embedding(self._features(tau if tau_to is None else tau_to))
        shift, scale = condition.chunk(2, 1)
        hidden = self.body(self.read(view.flatten(1)) * (1 + 3 * scale) + shift).unflatten(1, (self.length, self.width))
        return TokenPosterior(hidden, self.output_layer.weight, self.output_layer.bias)

    def _features(self, tau: Tensor) -> Tensor:
        return (tau[:, None] * self.frequencies).cos()


def toy(world: ExactWorld, **options):
    """What an algorithm takes as `backbone`."""
    return partial(ToyBackbone, length=world.length, **options)


def train(algorithm: Algorithm, world: ExactWorld, steps: int, size: int = 128, lr: float = 1.5e-2, seed: int = 0) -> None:
    """Adam with a linear decay to zero."""
    trained = [p for p in algorithm.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=lr, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, steps)
    generator = torch.Generator().manual_seed(seed)
    algorithm.train()
    for step in range(steps):
        optimizer.zero_grad()
        algorithm.loss(world.batch(size, generator), Draws(seed, step)).total.backward()
        optimizer.step()
        schedule.step()
    algorithm.eval()


# the whole way last
GRID = ((0.0, 0.25), (0.0, 0.5), (0.0, 0.9), (0.2, 0.6), (0.4, 0.95), (0.6, 0.8), (0.0, 1.0))


@torch.no_grad()
def map_error(denoiser, world: ExactWorld, pairs=GRID, count: int = 500) -> Tensor:
    """Mean absolute error of delta's probabilities at each pair of clock times, over states of the path; (len(pairs),)."""
    errors = []
    for k, (start, end) in enumerate(pairs):
        tau, tau_to = (torch.full((count,), value, dtype=torch.float64) for value in (start, end))
        x = world.state(tau, torch.Generator().manual_seed(k))
        exact = world.log_delta(x, world.ratio(tau), world.ratio(tau_to)).exp()
        posterior = denoiser(State((x.float(),) * len(denoiser.tables)), tau.float(), tau_to.float())
        errors.append((posterior.chunk(slice(None)).view_as(exact) - exact).abs().mean())
    return torch.stack(errors)
