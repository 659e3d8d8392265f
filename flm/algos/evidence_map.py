"""A flow map that reads evidence: the two-time denoiser that `FMLM` trains with reads="evidence".

Its network reads the evidence of x_s toward t (`flm.paths.evidence`) through its input table, and the same evidence is added
to its logits. At s = t this is what the teacher reads. So at every pair of times it starts near the flow map of text without
context, and learns what the context changes. From pure noise a denoiser would see only the token frequencies; this network
sees which tokens the noise at hand favours.

B batch, L length, N = B * L, V vocabulary.
"""

from dataclasses import replace

import torch
from torch import Tensor

from flm.algos.flm import EvidenceDenoiser
from flm.outputs import Combination
from flm.paths.evidence import FullState, Held, LocalEvidence, Pinned, Stepped, embed_evidence, kept
from flm.paths.flow_map import TimePairs, semigroup_weight
from flm.paths.gaussian import Given, State
from flm.posterior import TokenPosterior

# The latest clock time that evidence is taken toward: m = t / (1 - t) has no limit at 1. Here the favoured tokens are all but
# decided, as in the exact map without context, and yet the context can overrule them.
LATEST = 0.99


class EvidenceMap(EvidenceDenoiser):
    """delta_{s,t}(x) = softmax(backbone + evidence of x toward t)."""

    times = 2

    def __call__(self, state: State, tau: Tensor, tau_to: Tensor | None = None) -> TokenPosterior:
        x = state.views[0]
        clean = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device) if state.clean is None else state.clean
        return self.jump(Held(x.flatten(0, 1)), clean, tau, tau if tau_to is None else tau_to)

    def evidence(self, x: FullState, clean: Tensor, tau: Tensor, tau_to: Tensor) -> LocalEvidence:
        """Of x at clock times tau (B,), toward tau_to (B,); clean (B, L): which positions are at t = 1."""
        start = self.clock.time(tau.double())
        end = self.clock.time(torch.maximum(tau.double(), tau_to.double().clamp_max(LATEST)))
        t, toward = (at[:, None].expand(clean.shape).masked_fill(clean, 1.0).reshape(-1) for at in (start, end))
        return LocalEvidence(x, t, self.log_prior, toward)

    def read(self, evidence: LocalEvidence, length: int) -> Tensor:
        """The input of the backbone, (B, L, D)."""
        view = embed_evidence(evidence, self.backbone.input_table)
        return view.view(-1, length, view.shape[-1])

    def jump(self, x: FullState, clean: Tensor, tau: Tensor, tau_to: Tensor) -> TokenPosterior:
        """delta_{tau,tau_to}(x) for a state that is read chunk by chunk; clean (B, L) as in `evidence`."""
        evidence = self.evidence(x, clean, tau, tau_to)
        return replace(self.backbone(self.read(evidence, clean.shape[1]), tau, tau_to, **self.options), offset=evidence)


@torch.no_grad()
def two_jumps(denoiser: EvidenceMap, x: FullState, given: Given, clean: Tensor, pairs: TimePairs) -> Combination:
    """lam delta_{s,u}(x) + (1 - lam) delta_{u,t}(X_{s,u} x): `flow_map_objectives.Semigroup` on whole states, not views.

    Every reader computes X_{s,u} x anew, chunk by chunk, at the price of one more product with the output table.
    """
    s, u, t = (denoiser.clock.time(tau) for tau in (pairs.start, pairs.middle, pairs.end))
    tau_s, tau_u, tau_t = (tau.float() for tau in (pairs.start, pairs.middle, pairs.end))
    first = denoiser.jump(x, clean, tau_s, tau_u)
    fraction = ((u - s) / (1 - s))[:, None].expand(clean.shape).masked_fill(clean, 0.0).reshape(-1)
    landed = Stepped(x, Pinned(first, given.tokens.reshape(-1), given.mask.reshape(-1)), fraction)
    second = denoiser.jump(kept(landed, len(fraction), denoiser.log_prior), clean, tau_u, tau_t)
    share = semigroup_weight(s, u, t)
    return Combination((share, 1 - share), (first, second))
