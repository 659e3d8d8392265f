"""The likelihood bound where the truth is known: two letters of an alphabet of three, all nine words enumerated.

    PYTHONPATH=.:tests python tests/likelihood/likelihood_gap.py

prints the tables of docs/likelihood.md; the tests use its pieces.
"""

import torch
from algos.exact_world import ExactBackbone, ExactWorld, toy, train
from torch import Tensor

from flm.algos.algorithm import Algorithm, Batch
from flm.algos.flm import FLM
from flm.draws import Draws
from flm.paths.gaussian_bound import Plan
from flm.posterior import TokenPosterior

SHARE = 0.5


def words() -> ExactWorld:
    return ExactWorld([[0.30, 0.04, 0.06], [0.02, 0.20, 0.03], [0.10, 0.05, 0.20]])


class SpoiltBackbone(ExactBackbone):
    """The exact posterior, mixed with the uniform one; or deaf: its evidence grows no more from a ratio m on."""

    def __init__(self, world: ExactWorld, mixed: float = 0.0, deaf_from: float | None = None):
        super().__init__(world)
        self.mixed, self.deaf_from = mixed, deaf_from

    def forward(self, view: Tensor, tau: Tensor, tau_to: Tensor | None = None) -> TokenPosterior:
        m = self.world.ratio(tau)
        heard = 1.0 if self.deaf_from is None else (self.deaf_from / m.clamp_min(self.deaf_from)) ** 2
        log_p = self.world.log_marginals((heard * m * (1 + m))[:, None, None] * view.double())
        p = (1 - self.mixed) * log_p.exp() + self.mixed / self.world.vocab_size
        return TokenPosterior(p.log(), self.input_table)


def flm_of(world: ExactWorld, backbone: torch.nn.Module) -> FLM:
    return FLM(lambda vocab_size: backbone, world.vocab_size, world.length, clock=world.clock)


def every_sequence(world: ExactWorld) -> tuple[Tensor, Tensor]:
    """All V^L sequences, and their probabilities."""
    sequences = torch.cartesian_prod(*[torch.arange(world.vocab_size)] * world.length).view(-1, world.length)
    return sequences, world.joint.flatten()


def entropy(world: ExactWorld) -> float:
    """Nats per sequence: what no bound, averaged over the language, is below."""
    return torch.special.entr(world.joint).sum().item()


def bounds_of(algorithm: Algorithm, world: ExactWorld, repeats: int, seed: int = 0, **options) -> tuple[Tensor, Tensor]:
    """The bound of every sequence, in nats (V^L,), and its standard error."""
    sequences, _ = every_sequence(world)
    tokens = sequences.repeat(repeats, 1)
    nats = algorithm.bound(Batch(tokens, torch.ones(tokens.shape)), Draws(seed), **options).nats.view(repeats, -1)
    return nats.mean(0), nats.std(0) / repeats**0.5


def average(world: ExactWorld, bounds: tuple[Tensor, Tensor]) -> tuple[float, float]:
    """Over the language: mean and standard error."""
    p = world.joint.flatten()
    return (p @ bounds[0]).item(), (p**2 @ bounds[1] ** 2).sqrt().item()


def plans_of(algorithm: FLM, world: ExactWorld, size: int = 512, batches: int = 4) -> dict[str, Plan]:
    """The three bounds of the tables."""
    generator = torch.Generator().manual_seed(1)
    training = [world.batch(size, generator) for _ in range(batches)]
    variants = algorithm.bound_variants(training, Draws(2), exact_evidence=True, evidence_share=SHARE)
    tuned = [variant.options["plan"] for variant in variants.values()]
    return {"whole path": Plan.even(world.vocab_size), "cut": tuned[0], "cut, with evidence": tuned[1]}


def row(name: str, algorithm: FLM, world: ExactWorld, repeats: int) -> None:
    columns = []
    for plan in plans_of(algorithm, world, size=4096).values():
        mean, error = average(world, bounds_of(algorithm, world, repeats, plan=plan))
        end = plan.edges[-1] / (1 + plan.edges[-1])
        columns.append(f"{mean - entropy(world):+.3f} ({error:.3f}), {end:.2f}")
    print(f"| {name} | {' | '.join(columns)} |", flush=True)


def main(repeats: int = 40_000) -> None:
    torch.set_num_threads(1)
    world = words()
    print(f"entropy {entropy(world):.4f} nats per word; gap of the bound above it (standard error), t where it is cut\n")
    print("| denoiser | whole path | cut | cut, with evidence |\n|---|---|---|---|")
    for mixed in (0.3, 0.1, 0.03, 0.01, 0.0):
        name = f"exact, {mixed:.0%} of uniform mixed in" if mixed else "exact"
        row(name, flm_of(world, SpoiltBackbone(world, mixed)), world, repeats)
    for deaf in (1.0, 2.0, 4.0):
        row(f"deaf from t = {deaf / (1 + deaf):.2f} on", flm_of(world, SpoiltBackbone(world, deaf_from=deaf)), world, repeats)
    for steps in (0, 30, 100, 300, 1000):
        torch.manual_seed(0)
        learner = FLM(toy(world), world.vocab_size, world.length)
        if steps:
            train(learner, world, steps)
        row(f"perceptron, {steps} training steps", learner, world, repeats)


if __name__ == "__main__":
    main()
