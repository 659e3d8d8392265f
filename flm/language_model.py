"""The spine: a model loaded from a file, folder or name, which generates and scores text for the command line and Python.

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
        source: the description in its file; None for a model made in Python.
        steps: default number of sampling steps.
        options: default options of the sampler.
        check_length: raises ValueError for a length that the model cannot write, and warns of one beyond its training.
        precision: of sampling and `mode=golf_eval`; None: bf16-mixed on CUDA, 32-true elsewhere. Likelihoods are 32-true.
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
        autocast(self.device, name)  # raises ValueError for an unknown name
        self._precision = name

    @property
    def config(self) -> dict[str, Any]:
        """The config it was trained with, plain values; empty for a model made in Python."""
        return {} if self.source is None else self.source.config

    @property
    def length(self) -> int:
        """Positions of a training sequence, and of a text by default."""
        return self.algorithm.length

    @property
    def device(self) -> torch.device:
        return next(self.algorithm.parameters()).device

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | str | None = None) -> "LanguageModel":
        """Moves it, and rounds its weights to `dtype`, in which its networks then compute. Buffers keep their precision."""
        if device is not None:
            self.algorithm.to(device_named(device))
        if dtype is not None:
            kind = dtype_named(dtype)
            for parameter in self.algorithm.parameters():
                parameter.data = parameter.data.to(kind)
            self.precision = OF_WEIGHTS[kind]
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
            n: number of texts for each prompt.
            steps: of the sampler; None: `self.steps`. A model that writes from left to right ignores it.
            prompt: given text at the start; with several, n texts of the first come first, then n of the second, ...
            suffix: given text at the end.
            length: tokens in all, given ones included, at most 64 times `self.length`; None: `self.length`.
            seed: the same seed gives the same texts, for the same n and batch_size, on the same kind of device.
            batch_size: texts made at a time.
            on_step: called with each `Moment` of each batch: the tokens so far, and the confidence in them.
            chat: messages {"role": ..., "content": ...} in place of prompt and suffix. The tokenizer's chat template makes a
                prompt of them, and only answers are returned, up to their end tokens.
            progress: show a bar on standard error, if that is a terminal or a notebook.
            options: of the sampler (temperature, churn, gamma, ...), over `self.options`; None: the sampler's default.

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
            template: text with holes; the parts between holes are kept, and tokenised separately. Several are filled in turn.
            n, steps, seed, batch_size, on_step, progress, options: as in `generate`.

        Raises:
            ValueError: as `generate`; or the template has no hole, or one of 0 tokens.
        """
        check_call(LanguageModel.infill, locals())
        encode = lambda text, goes_on: self.tokenizer.encode_exactly(text, "infill", goes_on)  # noqa: E731
        templates = [template] if isinstance(template, str) else template
        every = [[pieces_of(one, encode, "infill")] * n for one in templates]  # all are checked before the first is filled
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
        """Token ids (B, L) for a canvas on `self.device`, which `generate` and `infill` decode; other arguments as there.

        The noise depends on the seed, `batch` and the shape of the canvas, not on steps or options.

        Args:
            batch: number of the batch, from 0; each has other noise. mode=sample_eval numbers and seeds in the same way.
        """
        check_call(LanguageModel.fill, locals())
        self.check_length(canvas.tokens.shape[1])
        size = self.algorithm.vocab_size
        if ((canvas.tokens < 0) | (canvas.tokens >= size)).any():  # CUDA would end the process
            raise ValueError(f"canvas: token ids must be at least 0 and below {size}, the size of the vocabulary")
        steps, chosen = self.steps if steps is None else steps, self.sampler_options(**options)
        generator = torch.Generator(self.device).manual_seed(mix_seed(seed, batch))
        with self.autocast():
            return self.algorithm.generate(canvas, steps, generator, on_step, **chosen)

    def sampler_options(self, **options: Any) -> dict[str, Any]:
        """The options in effect if sampling is called with `options`: these over `self.options`, without None.

        Raises:
            ValueError: the sampler has no such option, or does not take its value.
        """
        chosen = {key: value for key, value in (self.options | options).items() if value is not None}
        sampler_for(self.algorithm, chosen)
        return chosen

    @property
    def has_fixed_steps(self) -> bool:
        """Whether its sampler takes as many steps as there are positions to fill, whatever `steps` is."""
        return getattr(self.algorithm.sampler(**self.sampler_options()), "steps_are_fixed", False)

    def autocast(self) -> AbstractContextManager[Any]:
        """The context in which networks compute, by `precision`."""
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
        """Nats per token of many blocks, exact or an upper bound.

        Args:
            batches: blocks, all of one length.
            draws, seed: Monte Carlo draws of a bound for each block; an exact value needs none.
            bound: options of the algorithm's bound; None: its defaults.
            on_draw: called after each evaluation of one batch.
            sharing: how several processes divide the batches; None: there is one.
        """
        return likelihood(self._bounded("likelihood"), batches, draws, seed, bound, on_draw, sharing)

    def bound_variants(self, training: Iterable[Batch], seed: Seed = 0, **options: Any) -> dict[str, BoundVariant]:
        """The bounds that can be reported, by name; their free choices are fitted on training blocks, if there are any.

        Args:
            training: blocks that the model was trained on.
            seed: of draws on them, which differ from those of `likelihood`.
            options: as of the algorithm's `bound_variants`.
        """
        batches = [batch.to(self.device) for batch in training]
        return self.algorithm.bound_variants(batches, Draws(mix_seed(seed, 1), device=self.device), **options)

    def nll(self, text: str, draws: Few = 16, seed: Seed = 0) -> NegativeLogLikelihood:
        """-log p(text), or an upper bound on it, in nats of the whole text.

        Nothing is added around the text. Beyond `self.length` tokens it is cut into blocks, each scored on its own.
        A bound is drawn evenly along the whole path; mode=ppl_eval fits a tighter one on training text.

        Args:
            draws, seed: Monte Carlo draws of a bound; an exact value needs none.

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
        """The texts of the rows of each group, n at a time; batches, and so their noise, are numbered from 0 in each."""
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
    """The model in a run folder (its last checkpoint), a checkpoint, an exported folder or an artifact, here or on the hub.

    Nothing in any of them is executed. A checkpoint is one of this project, or a published one of FLM, MDLM or Duo.

    Args:
        source: a path; owner/model on the Hugging Face hub if there is no such path; builtin:text or builtin:puzzle, which
            come with the package.
        device: None: CUDA if there is one, else the CPU.
        use_average: take the averaged weights, not those of the last step; None: if the file has them. An exported folder
            holds only one of the two, which `source.weights` names.
        trusted_modules: modules outside this package whose model classes may be built; a file cannot name its own.
        revision: branch, tag or commit on the hub; None: main.
        file: path of a checkpoint in the repository on the hub, as owt_fmlm.ckpt; None: an exported model.
        dtype: float32, bfloat16 or float16, of the weights and their networks; None: not rounded, and `precision` decides.
        published: fields of `flm.checkpoints.foreign.ImportChoices`, which a published checkpoint leaves open.

    Raises:
        ValueError: there is nothing of that name, or it is not a whole model that this code can build.
    """
    check(ImportChoices, published, "", takes="load")
    device, default = device_named(device), torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)  # that files are of; in another, weights would be converted and noise be another
    try:
        algorithm, about = load_algorithm(source, use_average, trusted_modules, ImportChoices(**published), revision, file)
    finally:
        torch.set_default_dtype(default)
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
