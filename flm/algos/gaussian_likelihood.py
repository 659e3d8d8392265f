"""The likelihood bound of algorithms whose denoiser reads the state of the Gaussian path through one table."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from flm.algos.algorithm import Batch, Bound, BoundVariant
from flm.draws import Draws
from flm.models.attention import DocumentMask, document_mask
from flm.paths.gaussian import Given, State
from flm.paths.gaussian_bound import GaussianDenoiser, Plan, estimate, measure
from flm.paths.step_bound import steps_estimate
from flm.posterior import TokenPosterior


@dataclass
class DrawnBound(Bound):
    """A bound of several parts, of which each draw evaluates one.

    Attributes:
        drawn: (B,) bool by name, which part was evaluated. Its nats cannot tell: they are 0 too where the model is certain.
    """

    drawn: dict[str, Tensor] = field(default_factory=dict)


class GaussianLikelihood:
    """Mixin for an Algorithm whose `denoiser()` has one table; see `flm.paths.gaussian_bound`."""

    bound_kind = "variational upper bound"
    vocab_size: int
    clean_given: bool

    def denoiser(self, mask: DocumentMask | None = None) -> Any:
        raise NotImplementedError

    def bound(self, batch: Batch, draws: Draws, plan: Plan | None = None, steps: int | None = None) -> Bound:
        """One draw of the variational bound.

        Args:
            plan: where on the path to draw; None: evenly along all of it.
            steps: the bound of a sampler with this many steps instead, jumps if the model is a flow map
                (`flm.paths.step_bound`); None: the bound of the continuous path.
        """
        if steps is not None:
            return Bound(*steps_estimate(self._gaussian(batch), batch.tokens, steps, draws, batch.scored))
        plan = Plan.even(self.vocab_size) if plan is None else plan
        return DrawnBound(*estimate(self._gaussian(batch), batch.tokens, plan, draws, batch.scored))

    def bound_variants(
        self,
        training: Sequence[Batch],
        draws: Draws,
        exact_evidence: bool = False,
        evidence_share: float = 0.5,
        bound_steps: Sequence[int] = (),
    ) -> dict[str, BoundVariant]:
        """The network's own bound, and those that the options ask for.

        Where the path is cut and how draws are spread is fitted on the training batches; without any, draws are even.

        Args:
            exact_evidence: also the bound with a share of the exact evidence added to the logits.
            evidence_share: that share, in (0, 1).
            bound_steps: also the bound of a sampler with each of these numbers of steps.
        """
        if not isinstance(exact_evidence, bool):
            raise ValueError(f"eval.exact_evidence must be true or false, not {exact_evidence}")
        if not isinstance(evidence_share, int | float) or not 0 < evidence_share < 1:
            raise ValueError(f"eval.evidence_share must lie between 0 and 1, not {evidence_share}")
        shares = {"network": 0.0} | ({"with evidence": evidence_share} if exact_evidence else {})
        variants = {}
        for name, share in shares.items():
            if not training:
                variants[name] = BoundVariant({"plan": Plan.even(self.vocab_size, share)})
                continue
            pilot = measure([(self._gaussian(batch), batch.tokens, batch.scored) for batch in training], draws, share)
            variants[name] = BoundVariant({"plan": pilot.plan()}, pilot.bounds().min().item(), pilot.rows())
        return variants | {f"of {steps} steps": BoundVariant({"steps": steps}) for steps in bound_steps}

    def _gaussian(self, batch: Batch) -> GaussianDenoiser:
        """The denoiser for a batch: attention stays within documents, and given tokens are shown as in training."""
        denoiser = self.denoiser(document_mask(batch.documents))
        tables, given = denoiser.tables, Given(batch.tokens, batch.given, self.clean_given)
        (table,) = tables

        def predict(state: State, tau: Tensor, tau_to: Tensor | None = None) -> TokenPosterior:
            return denoiser(given.seen(state, tables), tau, tau_to)

        return GaussianDenoiser(predict, table, denoiser.clock, self.vocab_size)
