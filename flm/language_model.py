"""The spine: from a file, folder or name to something that generates and scores, for the command line and Python alike.

import flm
lm = flm.load("run folder, checkpoint, exported folder, artifact, name on the hub, or builtin:text")
lm.generate(n=4, steps=8)
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flm.algos.algorithm import Algorithm, Batch, BoundVariant
from flm.checkpoints.foreign import ImportChoices
from flm.checkpoints.load import load_algorithm
from flm.checkpoints.model_file import ModelSource, generation_defaults
from flm.data.pretrained_tokenizer import answer_in, prompt_of_chat
from flm.data.tokenizers import Tokenizer
from flm.device import OF_WEIGHTS, autocast, device_named, dtype_named
from flm.draws import Draws, mix_seed
from flm.likelihood.held_out import Likelihood, NegativeLogLikelihood, Sharing, likelihood, text_likelihood
from flm.ranges import Count, Few, Index, Length, Seed, Steps
from flm.samplers.canvas import Canvas, LengthCheck, Pieces, Text, pieces_of, positions
from flm.samplers.flow import OnStep
from flm.samplers.options import sampler_for
from flm.samplers.progress import progress_bar
from flm.schema import check, check_call


class LanguageModel:
    """A model with its tokenizer; `flm.load` makes one.

    Attributes:
        algorithm: the torch module, in evaluation mode.
        tokenizer: `encode` and `decode`.
        source: what the file it was loaded from says; None for a model made in Python.
        steps: sampling steps unless asked otherwise.
        options: options of the sampler unless asked otherwise.
        check_length: raises ValueError for a number of tokens that cannot be asked of it, and says of one beyond its training.
        precision: of sampling and of `mode=golf_eval`, "32-true" or "bf16-mixed"; None: bf16-mixed on CUDA, 32-true elsewhere.
            Likelihoods are 32-true.
    """

    _precision: str | None = None

    def __init__(
        self,
        algorithm: Algorithm,
        tokenizer: Tokenizer,
        source: ModelSource | None = None,
        steps: int | None = None,
        options: dict[str, Any] | None = None,
    ):
        self.algorithm, self.tokenizer, self.source = algorithm.eval(), tokenizer, source
        defaults = generation_defaults({}) if source is None else source.generation
        self.check_length = LengthCheck(self.length, getattr(getattr(algorithm, "backbone", None), "most_positions", None))
        self.steps: int = defaults["steps"] if steps is None else steps
        self.options: dict[str, Any] = dict(defaults["options"] if options is None else options)

    @property
    def precision(self) -> str | None:
        return self._precision

    @precision.setter
    def precision(self, name: str | None) -> None:
        autocast(self.device, name)  # raises ValueError for one that is not known
        self._precision = name

    @property
    def config(self) -> dict[str, Any]:
        """What it was trained with, plain values; empty for a model made in Python."""
        return {} if self.source is None else self.source.config

    @property
    def length(self) -> int:
        """Positions of a text unless asked otherwise: what the model was trained on."""
        return self.algorithm.length

    @property
    def device(self) -> torch.device:
        return next(self.algorithm.parameters()).device

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | str | None = None) -> "LanguageModel":
        """Moves it; and rounds its weights to `dtype`, which its networks then compute in. A clock's table stays as it is."""
        if device is not None:
            self.algorithm.to(device_named(device))
        if dtype is not None:
            for parameter in self.algorithm.parameters():
                parameter.data = parameter.data.to(dtype_named(dtype))
            self.precision = OF_WEIGHTS[dtype_named(dtype)]
        return self

    def generate(
        self,
        n: Few = 1,
        steps: Steps | None = None,
        prompt: str | Sequence[str] | None = None,
        suffix: str | None = None,
        length: Length | None = None,
        seed: Seed = 0,
        batch_size: Count = 32,
        on_step: OnStep = None,
        chat: Sequence[Mapping[str, str]] | None = None,
        progress: bool = False,
        **options: Any,
    ) -> list[Text]:
        """Texts of `length` tokens, each beginning with the prompt and ending with the suffix; with their `ids`.

        Args:
            n: how many, of each prompt.
            steps: of the sampler; None: `self.steps`. A model that writes from left to right takes no notice.
            prompt: given text at the start; of several prompts the texts come in their order, n of the first, n of the second.
            suffix: given text at the end.
            length: tokens in all, given ones included, at most 64 times `self.length`; None: `self.length`.
            seed: the same seed gives the same texts, for the same n and batch_size, on the same kind of device.
            batch_size: texts made at a time.
            on_step: called with each `Moment` of each batch: what stands, and how sure it is.
            chat: messages, {"role": ..., "content": ...} each, in place of prompt and suffix. The tokenizer's chat template
                writes them as a prompt, and the answers alone come back, each up to its end token.
            progress: show a bar on standard error, where that is a terminal or a notebook.
            options: of the sampler (temperature, churn, gamma, ... as it has them), over `self.options`; None: its default.

        Raises:
            ValueError: a number is out of range, prompt and suffix leave nothing to fill, or the sampler has no such option.
        """
        check_call(LanguageModel.generate, locals())
        length = self.length if length is None else length
        prompt = prompt if chat is None else prompt_of_chat(self.tokenizer, chat, prompt or suffix)
        end = self.tokenizer.encode_exactly(suffix, "suffix", goes_on=True) if suffix else []
        rows: list[Pieces] = []
        for text in [prompt] if prompt is None or isinstance(prompt, str) else prompt:
            start = self.tokenizer.encode_exactly(text, "prompt") if text else []
            hole = length - len(start) - len(end)
            if hole < 1:
                both = f"prompt ({len(start)} tokens) and suffix ({len(end)})"
                raise ValueError(f"{both} leave nothing to fill in {length} tokens: shorten them or raise length")
            rows += [[start, hole, end]] * n
        texts = self._texts([rows], steps, seed, batch_size, on_step, progress, options)
        return texts if chat is None else [answer_in(self.tokenizer, text.ids, len(start)) for text in texts]

    def infill(
        self,
        template: str | Sequence[str],
        n: Few = 1,
        steps: Steps | None = None,
        seed: Seed = 0,
        batch_size: Count = 32,
        on_step: OnStep = None,
        progress: bool = False,
        **options: Any,
    ) -> list[Text]:
        """Texts with the holes of a template filled: "The [8] sat on the [4]." has holes of 8 and 4 tokens.

        Args:
            template: the text between holes is kept; it is tokenized stretch by stretch. Several are filled one by one.
            n, steps, seed, batch_size, on_step, progress, options: as in `generate`.

        Raises:
            ValueError: as `generate`; or the template has no hole, or one of 0 tokens.
        """
        check_call(LanguageModel.infill, locals())
        encode = lambda text, goes_on: self.tokenizer.encode_exactly(text, "infill", goes_on)  # noqa: E731
        templates = [template] if isinstance(template, str) else template
        every = [[pieces_of(one, encode, "infill")] * n for one in templates]  # none is begun before all are read
        return self._texts(every, steps, seed, batch_size, on_step, progress, options)

    @torch.no_grad()
    def fill(
        self,
        canvas: Canvas,
        steps: Steps | None = None,
        seed: Seed = 0,
        batch: Index = 0,
        on_step: OnStep = None,
        **options: Any,
    ) -> Tensor:
        """Token ids (B, L) for a canvas on `self.device`: what `generate` and `infill` decode; arguments as there.

        The noise depends on the seed, `batch` and the shape of the canvas, not on steps or options.

        Args:
            batch: number of the batch, from 0: another one, other noise. mode=sample_eval counts and seeds in the same way.
            on_step: called with each `Moment` of sampling.
        """
        check_call(LanguageModel.fill, locals())
        self.check_length(canvas.tokens.shape[1])
        steps, chosen = self.steps if steps is None else steps, self.sampler_options(**options)
        generator = torch.Generator(self.device).manual_seed(mix_seed(seed, batch))
        with self.autocast():
            return self.algorithm.generate(canvas, steps, generator, on_step, **chosen)

    def sampler_options(self, **options: Any) -> dict[str, Any]:
        """Those that sampling with `options` takes: over `self.options`, without those left to the sampler (None).

        Raises:
            ValueError: the sampler has no such option, or does not take its value.
        """
        chosen = {key: value for key, value in (self.options | options).items() if value is not None}
        sampler_for(self.algorithm, chosen)
        return chosen

    @property
    def has_fixed_steps(self) -> bool:
        """Whether its sampler takes as many steps as the canvas has positions to fill, whatever it is asked for."""
        return getattr(self.algorithm.sampler(**self.sampler_options()), "steps_are_fixed", False)

    def autocast(self) -> AbstractContextManager[Any]:
        """What networks compute in within, as `precision` says."""
        return autocast(self.device, self.precision)

    def likelihood(
        self,
        batches: Iterable[Batch],
        draws: int = 16,
        seed: int = 0,
        bound: dict[str, Any] | None = None,
        on_draw: Callable[[], None] | None = None,
        sharing: Sharing | None = None,
    ) -> Likelihood:
        """Nats per token of many blocks, exactly or bounded.

        Args:
            batches: blocks, all of one length.
            draws, seed: Monte Carlo draws of a bound for each block; an exact value takes none.
            bound: options of the algorithm's bound, where it has several.
            on_draw: called after each evaluation of one batch.
            sharing: processes that share the batches out.
        """
        return likelihood(self._bounded("likelihood"), batches, draws, seed, bound, on_draw, sharing)

    def bound_variants(self, training: Iterable[Batch], seed: Seed = 0, **options: Any) -> dict[str, BoundVariant]:
        """The bounds that can be reported, by name; what they leave free is chosen on training blocks, if there are any.

        Args:
            training: blocks that the model was trained on; seed: of draws on them, which are not those of `likelihood`.
            options: as of the algorithm's `bound_variants`.
        """
        batches = [batch.to(self.device) for batch in training]
        return self.algorithm.bound_variants(batches, Draws(mix_seed(seed, 1), device=self.device), **options)

    def nll(self, text: str, draws: Few = 16, seed: Seed = 0) -> NegativeLogLikelihood:
        """How improbable the model finds a text: -log p(text) or an upper bound on it, in nats of the whole text.

        The text stands alone: nothing is put before or behind it. One of more than `self.length` tokens is cut into blocks
        of that length, each scored on its own, as evaluation does. A bound is taken along the whole path; mode=ppl_eval,
        which may look at training text, chooses a tighter one.

        Args:
            draws, seed: Monte Carlo draws of a bound; an exact value takes none.

        Raises:
            ValueError: the algorithm has no likelihood, the text has no tokens, or draws is below 1.
        """
        check_call(LanguageModel.nll, locals())
        algorithm, tokens = self._bounded("nll"), self.tokenizer.encode(text)
        if not tokens:
            raise ValueError("nll: the text has no tokens")
        return text_likelihood(algorithm, tokens, self.length, draws, seed)

    def _bounded(self, use: str) -> Algorithm:
        if self.algorithm.bound_kind is None:
            raise ValueError(f"{type(self.algorithm).__name__} has no likelihood bound: {use} needs a model that has one")
        return self.algorithm

    def _texts(
        self, groups: Sequence[Sequence[Pieces]], steps: int | None, seed: int, n: int, on_step: OnStep, bar: bool, options: Any
    ) -> list[Text]:
        """Of the rows of each group, n at a time; noise is numbered from 0 in each."""
        self.check_length(max((positions(row) for rows in groups for row in rows), default=0))
        batches = [(start // n, rows[start : start + n]) for rows in groups for start in range(0, len(rows), n)]
        found: list[list[int]] = []
        with progress_bar(bar, len(batches), on_step) as watched:
            for place, (batch, rows) in enumerate(batches):
                canvas = Canvas.stacked([Canvas.from_pieces(row, 1, self.device) for row in rows])
                found += self.fill(canvas, steps, seed, batch, watched(place), **options).tolist()
        return [Text.of(self.tokenizer.decode(ids), ids) for ids in found]

    def __repr__(self) -> str:
        return (
            f"LanguageModel({type(self.algorithm).__name__}, length={self.length}, "
            f"vocabulary={self.algorithm.vocab_size}, tokenizer={self.tokenizer.name!r}, device={self.device})"
        )


def load(
    source: str | Path,
    device: torch.device | str | None = None,
    use_average: bool | None = True,
    trusted_modules: Sequence[str] = (),
    revision: str | None = None,
    file: str | None = None,
    dtype: torch.dtype | str | None = None,
    **published: Any,
) -> LanguageModel:
    """The model of a run folder (its last checkpoint), a checkpoint, an exported folder, an artifact, or a name on the hub.

    Executes nothing in any of them. A checkpoint file is one of this project, or a published one of FLM, MDLM or Duo.

    Args:
        source: a path; owner/model on the Hugging Face hub if there is no such path; builtin:text or builtin:puzzle, which
            come with the package.
        device: None: CUDA where it is, else the CPU.
        use_average: of a checkpoint: take the averaged weights rather than the last step's; None: where it has them. An
            exported folder holds one of them, which `source.weights` names.
        trusted_modules: modules outside this package whose model classes may be built; your word, never the file's.
        revision: branch, tag or commit on the hub; None: main.
        file: path of a checkpoint inside the repository on the hub, owt_fmlm.ckpt; None: an exported model.
        dtype: that the weights are rounded to and the networks compute in: float32, bfloat16, float16; None: as they are, and
            `precision`.
        published: what a published checkpoint does not say, as fields of `flm.checkpoints.foreign.ImportChoices`:
            tokenizer_name_or_path, length, imported_as, ... Not read for others.

    Raises:
        ValueError: there is nothing of that name, or it is not a whole model that this code can build.
    """
    check(ImportChoices, published, "", takes="load")
    device = device_named(device)
    algorithm, about = load_algorithm(source, use_average, trusted_modules, ImportChoices(**published), revision, file)
    if about.tokenizer is None:
        raise ValueError(f"{source}: holds no tokenizer")
    try:
        tokenizer = Tokenizer.from_dict(about.tokenizer)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    # a model may have a row for a mask that its tokenizer lacks
    if not algorithm.vocab_size - 1 <= tokenizer.vocab_size <= algorithm.vocab_size:
        raise ValueError(f"{source}: its tokenizer has {tokenizer.vocab_size} tokens, its model {algorithm.vocab_size}")
    return LanguageModel(algorithm.to(device), tokenizer, about).to(dtype=dtype)
