"""Watching generation while a run goes on: distillation can lower its loss and collapse, so its samples are measured."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer

from flm.measures.diversity import token_diversity
from flm.measures.ngram import NGramModel
from flm.training.checkpointing import save_everywhere
from flm.training.module import Module

GENERATION = 6  # stream of the run's seed, beside those in training.module and training.samples


class GenerationMonitor(Callback):
    """After validations, samples with the averaged weights and logs what the samples are like, by number of steps.

    gen/entropy_nats_<steps>_steps        unigram entropy within a sample
    gen/distinct_tokens_<steps>_steps     different tokens in a sample
    gen/ngram_ce_nats_<steps>_steps       cross-entropy per token under a 3-gram model of the validation text

    Has its own random stream, a function of (seed, step): training is the same with and without it. Several processes share
    the sampling, and each measures all samples; all stop together.

    Args:
        reference: the validation text as blocks of tokens, for the 3-gram model.
        folder: for best.ckpt.
        every_n_validations: sample after every so many.
        count: samples each time.
        steps: numbers of sampling steps.
        options: of the sampler, as in the `sampling` config.
        min_entropy_nats: stop the run when the entropy at the first number of steps is below; None: never.
        keep_best: keep <folder>/best.ckpt, the checkpoint with the lowest 3-gram cross-entropy at the first number of steps
            among those whose entropy is within `entropy_tolerance` of the validation text's.
        entropy_tolerance: in nats.
    """

    def __init__(
        self,
        reference: Sequence[Sequence[int]],
        folder: str | Path,
        every_n_validations: int = 1,
        count: int = 32,
        steps: Sequence[int] = (1,),
        options: Mapping[str, Any] | None = None,
        min_entropy_nats: float | None = None,
        keep_best: bool = False,
        entropy_tolerance: float = 0.3,
    ):
        if min(every_n_validations, count, *steps) < 1:
            raise ValueError("callbacks.generation: every_n_validations, count and steps must be at least 1")
        self._reference, self._folder, self._every = reference, Path(folder), every_n_validations
        self._count, self._steps, self._options = count, tuple(steps), dict(options or {})
        self._min_entropy, self._keep_best, self._tolerance = min_entropy_nats, keep_best, entropy_tolerance
        self._judge: NGramModel | None = None
        self._data_entropy = math.nan
        self._validations, self._best = 0, math.inf

    def state_dict(self) -> dict[str, Any]:
        return {"validations": self._validations, "best": self._best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._validations, self._best = state_dict["validations"], state_dict["best"]

    def on_fit_start(self, trainer: Trainer, pl_module: Module) -> None:
        pl_module.check_sampler(self._options, "callbacks.generation.options")

    def on_validation_end(self, trainer: Trainer, pl_module: Module) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        self._validations += 1
        if self._validations % self._every:
            return
        entropy, judged = trainer.strategy.broadcast(self._measure(trainer, pl_module))  # one verdict, whatever the machines
        if self._keep_best and judged < self._best and abs(entropy - self._data_entropy_of(pl_module)) < self._tolerance:
            self._best = judged
            save_everywhere(trainer, self._folder / "best.ckpt", getattr(trainer.checkpoint_callback, "last_path", None))
        if self._min_entropy is not None and entropy < self._min_entropy:
            trainer.should_stop = True
            if trainer.is_global_zero:
                print(
                    f"stopped at step {trainer.global_step}: samples in {self._steps[0]} step(s) have an entropy of "
                    f"{entropy:.2f} nats, below callbacks.generation.min_entropy_nats={self._min_entropy}: generation "
                    "has collapsed"
                )

    def _measure(self, trainer: Trainer, pl_module: Module) -> tuple[float, float]:
        if self._judge is None:
            self._judge = NGramModel(self._reference, pl_module.algorithm.vocab_size)
        first: tuple[float, float] | None = None
        for steps in self._steps:
            tokens = pl_module.generate(self._count, steps, GENERATION, options=self._options)
            diversity, judged = token_diversity(tokens), self._judge.cross_entropy(tokens)
            name = f"{steps}_step{'s' * (steps > 1)}"
            metrics = {
                f"gen/entropy_nats_{name}": diversity.entropy_nats.mean,
                f"gen/distinct_tokens_{name}": diversity.distinct_tokens.mean,
                f"gen/ngram_ce_nats_{name}": judged.mean,
            }
            for logger in trainer.loggers:
                logger.log_metrics(metrics, step=trainer.global_step)
            first = first or (diversity.entropy_nats.mean, judged.mean)
        assert first is not None
        return first

    def _data_entropy_of(self, pl_module: Module) -> float:
        if math.isnan(self._data_entropy):
            self._data_entropy = token_diversity(self._reference[: 20 * self._count]).entropy_nats.mean
        return self._data_entropy
