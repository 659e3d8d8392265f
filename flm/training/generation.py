"""Samples during training, and their quality: distillation can collapse while its loss falls."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import MinLen
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from flm import atomic
from flm.measures.diversity import TokenFrequencies, TokenRows, token_diversity
from flm.measures.ngram import NGramModel
from flm.ranges import Count, Few, Folder, NonNegative, Share, Steps
from flm.training.checkpointing import save_everywhere
from flm.training.module import Module

SAMPLES, GENERATION = 5, 6  # streams of the run's seed, beside those in training.module


class AfterValidations(Callback):
    """Base of callbacks that sample after validations of a fit; subclasses define `sample`.

    Args:
        every: number of validations between samples.
        options: of the sampler, as in the group `sampling`.
        path: of these options in the config, for errors.
    """

    def __init__(self, every: int, options: Mapping[str, Any] | None, path: str):
        self._every, self._options, self._path = every, dict(options or {}), path
        self._validations = 0

    def sample(self, trainer: Trainer, pl_module: Module) -> None:
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        return {"validations": self._validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._validations = state_dict["validations"]

    def on_fit_start(self, trainer: Trainer, pl_module: Module) -> None:
        pl_module.check_sampler(self._options, self._path)

    def on_validation_end(self, trainer: Trainer, pl_module: Module) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        self._validations += 1
        if self._validations % self._every == 0:
            self.sample(trainer, pl_module)


class SampleEvery(AfterValidations):
    """After validations, writes a few samples of the averaged weights to <folder>/step_0001000.txt and to the logger.

    It has its own random stream, a function of (seed, step), so training is the same with and without it. Several processes
    divide the work.

    Args:
        decode: maps tokens (B, L) on the CPU to B texts.
        folder: for the files.
        every_n_validations: number of validations between samples.
        count: number of samples.
        steps: of the sampler.
        length: L of a sample; None: the training length.
        options: of the sampler, as in the group `sampling`.
    """

    def __init__(
        self,
        decode: Callable[[Tensor], list[str]],
        folder: Folder,
        every_n_validations: Count = 1,
        count: Few = 4,
        steps: Steps = 32,
        length: Few | None = None,
        options: Mapping[str, Any] | None = None,
    ):
        super().__init__(every_n_validations, options, "callbacks.sample.options")
        self._decode, self._folder = decode, Path(folder)
        self._count, self._steps, self._length = count, steps, length

    def sample(self, trainer: Trainer, pl_module: Module) -> None:
        step = trainer.global_step
        tokens = pl_module.generate(self._count, self._steps, SAMPLES, self._length, self._options)
        if not trainer.is_global_zero:
            return
        texts = self._decode(tokens)
        marked = [f"--- sample {index + 1} of {len(texts)}\n{text}\n" for index, text in enumerate(texts)]
        atomic.write_text(self._folder / f"step_{step:07d}.txt", "\n".join(marked))
        for logger in trainer.loggers:
            if hasattr(logger, "log_text"):
                logger.log_text("samples", columns=["step", "text"], data=[[step, text] for text in texts], step=step)


class GenerationMonitor(AfterValidations):
    """After validations, samples with the averaged weights and logs measures of the samples for each number of steps.

    gen/entropy_nats_<steps>_steps        unigram entropy within a sample
    gen/distinct_tokens_<steps>_steps     different tokens in a sample
    gen/tokens_used_<steps>_steps         different tokens in all samples
    gen/token_js_bits_<steps>_steps       Jensen-Shannon divergence of the samples' token frequencies from the validation text's
    gen/ngram_ce_nats_<steps>_steps       cross-entropy per token under a 3-gram model of the validation text

    It has its own random stream, a function of (seed, step), so training is the same with and without it. Several processes
    divide the sampling, each measures all samples, and all stop together.

    Args:
        reference: the validation text as blocks of tokens, for the 3-gram model.
        folder: for best.ckpt.
        every_n_validations: number of validations between samples.
        count: number of samples.
        steps: numbers of sampling steps.
        options: of the sampler, as in the group `sampling`.
        min_entropy_nats: stop the run if the entropy at the first number of steps is lower; None: never.
        max_token_js_bits: stop the run if the divergence at the first number of steps is larger by more than this than that of
            as many real blocks; None: never.
        keep_best: keep <folder>/best.ckpt, the checkpoint with the lowest 3-gram cross-entropy at the first number of steps,
            of those whose entropy is within `entropy_tolerance` of that of real blocks, and whose divergence exceeds theirs by
            less than `js_tolerance`.
        entropy_tolerance: in nats.
        js_tolerance: in bits.

    Attributes:
        reason: why this callback stopped the run; None: it did not.
    """

    def __init__(
        self,
        reference: Sequence[Sequence[int]],
        folder: Folder,
        every_n_validations: Count = 1,
        count: Few = 32,
        steps: Annotated[Sequence[Steps], MinLen(1)] = (1,),
        options: Mapping[str, Any] | None = None,
        min_entropy_nats: NonNegative | None = None,
        max_token_js_bits: Share | None = None,
        keep_best: bool = False,
        entropy_tolerance: NonNegative = 0.3,
        js_tolerance: NonNegative = 0.1,
    ):
        super().__init__(every_n_validations, options, "callbacks.generation.options")
        self._reference, self._folder = reference, Path(folder)
        self._count, self._steps = count, tuple(steps)
        self._min_entropy, self._max_js, self._keep_best = min_entropy_nats, max_token_js_bits, keep_best
        self._entropy_tolerance, self._js_tolerance = entropy_tolerance, js_tolerance
        self._judge: tuple[NGramModel, TokenFrequencies] | None = None
        self._real: _Generated | None = None
        self._best = math.inf
        self.reason: str | None = None

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"best": self._best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._best = state_dict["best"]

    def sample(self, trainer: Trainer, pl_module: Module) -> None:
        found = trainer.strategy.broadcast(self._measure(trainer, pl_module))  # so that all processes decide alike
        real = self._real_text(pl_module)
        excess = found.token_js_bits - real.token_js_bits
        alike = abs(found.entropy_nats - real.entropy_nats) < self._entropy_tolerance and excess < self._js_tolerance
        if self._keep_best and found.ngram_ce_nats < self._best and alike:
            self._best = found.ngram_ce_nats
            save_everywhere(trainer, self._folder / "best.ckpt", getattr(trainer.checkpoint_callback, "last_path", None))
        problem = None
        if self._min_entropy is not None and found.entropy_nats < self._min_entropy:
            problem = f"an entropy of {found.entropy_nats:.2f} nats, below min_entropy_nats={self._min_entropy}"
        elif self._max_js is not None and excess > self._max_js:
            problem = (
                f"token frequencies {found.token_js_bits:.3f} bits from the validation text's, real text of that many samples "
                f"{real.token_js_bits:.3f}: further than max_token_js_bits={self._max_js} allows"
            )
        if problem is not None:
            trainer.should_stop, self.reason = True, "generation has collapsed"
            if trainer.is_global_zero:
                print(
                    f"stopped at step {trainer.global_step}: generation has collapsed: in {self._steps[0]} step(s) samples "
                    f"have {problem} (callbacks.generation)"
                )

    def _measure(self, trainer: Trainer, pl_module: Module) -> "_Generated":
        """Logs the measures at each number of steps; returns those at the first."""
        measured = []
        for steps in self._steps:
            tokens = pl_module.generate(self._count, steps, GENERATION, options=self._options)
            found = self._of(tokens, pl_module)
            measured.append(found)
            name = f"{steps}_step{'s' * (steps > 1)}"
            metrics = {f"gen/{measure}_{name}": float(value) for measure, value in asdict(found).items()}
            for logger in trainer.loggers:
                logger.log_metrics(metrics, step=trainer.global_step)
        return measured[0]

    def _of(self, tokens: TokenRows, pl_module: Module, frequencies: TokenFrequencies | None = None) -> "_Generated":
        if self._judge is None:
            ngrams = NGramModel(self._reference, pl_module.algorithm.vocab_size)
            self._judge = ngrams, TokenFrequencies(self._reference)
        ngrams, text = self._judge
        diversity, frequencies = token_diversity(tokens), frequencies or text
        return _Generated(
            diversity.entropy_nats.mean,
            diversity.distinct_tokens.mean,
            diversity.tokens_used,
            frequencies.js_bits(tokens) or 0.0,
            ngrams.cross_entropy(tokens).mean,
        )

    def _real_text(self, pl_module: Module) -> "_Generated":
        """The measures of as many blocks of the validation text, compared with its other blocks."""
        if self._real is None:
            blocks = self._reference
            count = max(1, min(self._count, len(blocks) // 2))
            chosen = [blocks[index * len(blocks) // count] for index in range(count)]
            rest = TokenFrequencies(blocks, without=chosen if len(blocks) > 1 else ())
            self._real = self._of(chosen, pl_module, rest)
        return self._real


@dataclass(frozen=True)
class _Generated:
    """Measures of a set of samples, under the names that are logged."""

    entropy_nats: float
    distinct_tokens: float
    tokens_used: int
    token_js_bits: float
    ngram_ce_nats: float
