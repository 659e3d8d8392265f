"""The likelihood bound of algorithms whose denoiser reads one view of the Gaussian path."""

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
    """A bound each draw of which evaluates one part.

    Attributes:
        drawn: which part it was, (B,) bool by name: nats of 0 do not tell, where the model is certain.
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
        """One draw of the variational bound. plan: None draws evenly along the whole path.

        steps: that of what is written in so many steps (`flm.paths.step_bound`), a flow map's by its own jumps.
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
        """The network's own bound and, with exact_evidence, the one that hands a share of the evidence to the logits; for each
        of bound_steps, that of what is written in so many steps.

        Where the path is cut and how draws are spread is chosen on the training batches; without any, the whole path is
        drawn from evenly.
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
        """D for the rows of a batch: attention stays within documents, and given tokens are shown as in training."""
        denoiser = self.denoiser(document_mask(batch.documents))
        tables, given = denoiser.tables, Given(batch.tokens, batch.given, self.clean_given)
        (table,) = tables

        def predict(state: State, tau: Tensor, tau_to: Tensor | None = None) -> TokenPosterior:
            return denoiser(given.seen(state, tables), tau, tau_to)

        return GaussianDenoiser(predict, table, denoiser.clock, self.vocab_size)
