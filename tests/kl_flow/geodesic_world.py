"""KL-flow in a language small enough to enumerate: exact posteriors and exact jumps, read from centred logits.

The input table is the identity and features are "log", so a view is l_t up to a constant, from which m = l / (1 - t) follows.
"""

import torch
from algos.exact_world import ExactWorld
from torch import Tensor, nn

from flm.kl_flow.geodesic import Geodesic, GeodesicClock, log_evidence
from flm.kl_flow.kl_flow import GeodesicDenoiser
from flm.kl_flow.kl_flow_map import TwoTimeGeodesicDenoiser
from flm.posterior import TokenPosterior


def path_to(signal: float, vocab_size: int, **options) -> Geodesic:
    """The path that ends at this signal."""
    gap = Geodesic.of(vocab_size, 0.5, **options).gap
    return Geodesic.of(vocab_size, signal / (signal + gap), **options)


class ExactBackbone(nn.Module):
    """p(token | x_t) at a clock time, or the average p_{a,b} along the flow between two, by Runge-Kutta."""

    def __init__(self, world: ExactWorld, path: Geodesic, nodes: int = 100):
        super().__init__()
        self.world, self.path, self.clock, self.nodes = world, path, GeodesicClock(path.max_t), nodes
        self.register_buffer("input_table", torch.eye(path.vocab_size, dtype=torch.float64))

    def posterior(self, m: Tensor, signal: Tensor, clean: Tensor) -> Tensor:
        """p (B, L, V) of m (B, L, V) at signals (B,); clean positions hold the logits of their token."""
        s = signal[:, None, None].expand(*m.shape[:2], 1).reshape(-1, 1)
        evidence = log_evidence(m.reshape(-1, m.shape[-1]), s, self.path.concentration).view_as(m)
        certain = torch.where(m == m.amax(-1, keepdim=True), 0.0, -1e4)
        return self.world.log_marginals(torch.where(clean[..., None], certain, evidence)).exp()

    def average(self, m: Tensor, a: Tensor, b: Tensor, clean: Tensor) -> Tensor:
        """(m_b - m_a) / (s_b - s_a)."""
        h, start = ((b - a) / self.nodes)[:, None, None], m
        for k in range(self.nodes):
            s, half = a + (b - a) * k / self.nodes, (b - a) / self.nodes / 2
            k1 = self.posterior(m, s, clean)
            k2 = self.posterior(m + h / 2 * k1, s + half, clean)
            k3 = self.posterior(m + h / 2 * k2, s + half, clean)
            k4 = self.posterior(m + h * k3, s + 2 * half, clean)
            m = m + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return (m - start) / (b - a)[:, None, None]

    def forward(self, view: Tensor, tau: Tensor, tau_to: Tensor | None = None) -> TokenPosterior:
        t = self.clock.time(tau.double())
        m, signal = view.double() / (1 - t)[:, None, None], self.path.signal(t)
        gap, v = self.path.gap, self.path.vocab_size
        clean = (view.amax(-1) - gap * (1 - 1 / v)).abs() + (view.amin(-1) + gap / v).abs() < 1e-12
        if tau_to is None or torch.equal(tau, tau_to):
            p = self.posterior(m, signal, clean)
        else:
            p = self.average(m, signal, self.path.signal(self.clock.time(tau_to.double())), clean)
        return TokenPosterior(p.clamp_min(1e-300).log(), self.input_table)


class DoubleTimes(nn.Module):
    """Samplers tell networks fp32 times; the identities here are finer than that. Rounds each to the nearest of a grid."""

    def __init__(self, backbone: ExactBackbone, steps: int):
        super().__init__()
        self.backbone, self.steps, self.input_table = backbone, steps, backbone.input_table

    def forward(self, view: Tensor, *times: Tensor) -> TokenPosterior:
        return self.backbone(view, *((t.double() * self.steps).round() / self.steps for t in times))


def exact_denoiser(world: ExactWorld, path: Geodesic, steps: int) -> GeodesicDenoiser:
    """For samplers of so many steps."""
    return GeodesicDenoiser(DoubleTimes(ExactBackbone(world, path), steps), path, GeodesicClock(path.max_t), "log")


def exact_map(world: ExactWorld, path: Geodesic, steps: int, nodes: int = 100) -> TwoTimeGeodesicDenoiser:
    backbone = DoubleTimes(ExactBackbone(world, path, nodes), steps)
    return TwoTimeGeodesicDenoiser(backbone, path, GeodesicClock(path.max_t), "log")
