"""A trained model as strings in, strings out.

import flm
lm = flm.load("folder, checkpoint or name on the hub")
lm.generate(n=4, steps=8)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flm.algos.algorithm import Algorithm, Batch
from flm.checkpoints.export import CONFIG, generation_defaults, read_folder
from flm.checkpoints.hub import download, is_hub_name
from flm.checkpoints.imported import ImportChoices
from flm.checkpoints.load import load_algorithm
from flm.data.tokenizers import Tokenizer
from flm.draws import Draws, mix_seed
from flm.precision import autocast
from flm.samplers.canvas import Canvas
from flm.samplers.options import sampler_for
from flm.samplers.template import pieces_of


@dataclass(frozen=True)
class NegativeLogLikelihood:
    """-log p(text) in nats; float() gives `nats`.

    Attributes:
        nats: of the whole text.
        kind: "exact", or the sort of bound that `nats` estimates: the text is then at least as probable as it says.
        standard_error: of the estimate, from drawing it; 0 where it is exact, None where one draw was made.
        num_tokens: of the text.
    """

    nats: float
    kind: str
    standard_error: float | None
    num_tokens: int

    @property
    def nats_per_token(self) -> float:
        return self.nats / self.num_tokens

    def __float__(self) -> float:
        return self.nats


class LanguageModel:
    """A model with its tokenizer; `flm.load` makes one.

    Attributes:
        algorithm: the torch module, in evaluation mode.
        tokenizer: `encode` and `decode`.
        config: what it was trained with, plain values.
        steps: sampling steps unless asked otherwise.
        options: options of the sampler unless asked otherwise, those that the config records.
        precision: of sampling, "32-true" or "bf16-mixed"; None: bf16-mixed on CUDA, 32-true elsewhere. Likelihoods are 32-true.
    """

    precision: str | None = None

    def __init__(self, algorithm: Algorithm, tokenizer: Tokenizer, config: dict[str, Any], steps: int, options: dict[str, Any]):
        self.algorithm, self.tokenizer, self.config = algorithm.eval(), tokenizer, config
        self.steps, self.options = steps, options

    @property
    def length(self) -> int:
        """Positions of a text unless asked otherwise: what the model was trained on."""
        return self.algorithm.length

    @property
    def device(self) -> torch.device:
        return next(self.algorithm.parameters()).device

    def to(self, device: torch.device | str) -> "LanguageModel":
        self.algorithm.to(device)
        return self

    def generate(
        self,
        n: int = 1,
        steps: int | None = None,
        prompt: str | None = None,
        suffix: str | None = None,
        length: int | None = None,
        seed: int = 0,
        batch_size: int = 32,
        **options: Any,
    ) -> list[str]:
        """Texts of `length` tokens, each beginning with the prompt and ending with the suffix.

        Args:
            n: how many.
            steps: of the sampler; None: `self.steps`. A model that writes from left to right takes no notice.
            prompt: given text at the start.
            suffix: given text at the end.
            length: tokens in all, given ones included; None: `self.length`.
            seed: the same seed gives the same texts, for the same n and batch_size, on the same kind of device.
            batch_size: texts made at a time.
            options: of the sampler (temperature, churn, gamma, ... as it has them), over `self.options`; None: its default.

        Raises:
            ValueError: a number is below 1, prompt and suffix leave nothing to fill, or the sampler has no such option.
        """
        length = _at_least_one("length", self.length if length is None else length)
        named = {"prompt": prompt, "suffix": suffix}
        given = [self.tokenizer.encode_exactly(text, name) if text else [] for name, text in named.items()]
        hole = length - len(given[0]) - len(given[1])
        if hole < 1:
            raise ValueError(
                f"prompt ({len(given[0])} tokens) and suffix ({len(given[1])}) leave nothing to fill in {length} tokens: "
                "shorten them or raise length"
            )
        return self._texts([given[0], hole, given[1]], n, steps, seed, batch_size, options)

    def infill(
        self, template: str, n: int = 1, steps: int | None = None, seed: int = 0, batch_size: int = 32, **options: Any
    ) -> list[str]:
        """Texts with the holes of a template filled: "The [8] sat on the [4]." has holes of 8 and 4 tokens.

        Args:
            template: the text between holes is kept; it is tokenized stretch by stretch.
            n, steps, seed, batch_size, options: as in `generate`.

        Raises:
            ValueError: as `generate`; or the template has no hole, or one of 0 tokens.
        """
        pieces = pieces_of(template, lambda text: self.tokenizer.encode_exactly(text, "infill"), "infill")
        return self._texts(pieces, n, steps, seed, batch_size, options)

    def fill(self, canvas: Canvas, steps: int | None = None, seed: int = 0, batch: int = 0, **options: Any) -> Tensor:
        """Token ids (B, L) for a canvas on `self.device`: what `generate` and `infill` decode; arguments as there.

        The noise depends on the seed, `batch` and the shape of the canvas, not on steps or options.

        Args:
            batch: number of the batch, from 0: another one, other noise. mode=sample_eval counts and seeds in the same way.
        """
        chosen = {key: value for key, value in (self.options | options).items() if value is not None}
        steps = _at_least_one("steps", self.steps if steps is None else steps)
        sampler_for(self.algorithm, chosen)
        generator = torch.Generator(self.device).manual_seed(mix_seed(seed, batch))
        with autocast(self.device, self.precision):
            return self.algorithm.generate(canvas, steps, generator, **chosen)

    def nll(self, text: str, draws: int = 16, seed: int = 0) -> NegativeLogLikelihood:
        """How improbable the model finds a text: -log p(text) or an upper bound on it, in nats of the whole text.

        The text stands alone: nothing is put before or behind it. One of more than `self.length` tokens is cut into blocks
        of that length, each scored on its own, as evaluation does. A bound is taken along the whole path; mode=ppl_eval,
        which may look at training text, chooses a tighter one.

        Args:
            draws: Monte Carlo draws of a bound; an exact value takes none.
            seed: of the draws.

        Raises:
            ValueError: the algorithm has no likelihood, the text has no tokens, or draws is below 1.
        """
        algorithm = self.algorithm
        if algorithm.bound_kind is None:
            raise ValueError(f"{type(algorithm).__name__} has no likelihood bound: nll needs a model that has one")
        tokens = self.tokenizer.encode(text)
        if not tokens:
            raise ValueError("nll: the text has no tokens")
        exact = algorithm.bound_kind == "exact"
        rows = 1 if exact else _at_least_one("draws", draws)
        nats, variance = 0.0, 0.0
        for index, start in enumerate(range(0, len(tokens), self.length)):
            block = torch.tensor(tokens[start : start + self.length], device=self.device).expand(rows, -1)
            batch = Batch(block, torch.ones(block.shape, device=self.device))
            with torch.no_grad():  # a row a draw: times are stratified over the rows
                values = algorithm.bound(batch, Draws(seed, index, device=self.device)).nats.double()
            nats += values.mean().item()
            variance += values.var().item() / rows if rows > 1 else 0.0
        error = math.sqrt(variance) if rows > 1 else None
        return NegativeLogLikelihood(nats, algorithm.bound_kind, 0.0 if exact else error, len(tokens))

    def _texts(
        self, pieces: Sequence[list[int] | int], n: int, steps: int | None, seed: int, batch_size: int, options: dict[str, Any]
    ) -> list[str]:
        _at_least_one("n", n)
        _at_least_one("batch_size", batch_size)
        rows: list[list[int]] = []
        while len(rows) < n:
            canvas = Canvas.from_pieces(pieces, min(batch_size, n - len(rows)), self.device)
            rows += self.fill(canvas, steps, seed, len(rows) // batch_size, **options).tolist()
        return [self.tokenizer.decode(row) for row in rows]

    def __repr__(self) -> str:
        return (
            f"LanguageModel({type(self.algorithm).__name__}, length={self.length}, "
            f"vocabulary={self.algorithm.vocab_size}, tokenizer={self.tokenizer.name!r}, device={self.device})"
        )


def load(
    source: str | Path,
    device: torch.device | str | None = None,
    use_average: bool = True,
    trusted_modules: Sequence[str] = (),
    revision: str | None = None,
    **published: Any,
) -> LanguageModel:
    """The model of an exported folder, a checkpoint file, or a name on the Hugging Face hub. Executes nothing in any.

    A checkpoint file is one of this project, or a published one of FLM, MDLM or Duo.

    Args:
        source: a path, or owner/model if there is no such path.
        device: None: CUDA where it is, else the CPU.
        use_average: of a checkpoint: take the averaged weights rather than the last step's. A folder holds one of them.
        trusted_modules: modules outside this package whose model classes may be built; your word, never the file's.
        revision: branch, tag or commit on the hub; None: main.
        published: what a published checkpoint does not say, as fields of `flm.checkpoints.imported.ImportChoices`:
            tokenizer_name_or_path, length, imported_as, ... Not read for others.

    Raises:
        ValueError: there is nothing of that name, or it is not a whole model that this code can build.
    """
    path = Path(source)
    unknown = set(published) - {item.name for item in fields(ImportChoices)}
    if unknown:
        raise ValueError(f"load takes no {', '.join(sorted(unknown))}")
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if path.is_file():
        algorithm, file = load_algorithm(path, use_average, trusted_modules, ImportChoices(**published))
        if file.tokenizer is None:
            raise ValueError(f"{path}: holds no tokenizer")
        found: tuple[Any, ...] = (file.tokenizer, file.config, generation_defaults(file.config))
    else:
        if not path.is_dir():
            if not is_hub_name(str(source)) or path.suffix in (".ckpt", ".pt", ".pth", ".bin", ".safetensors"):
                raise ValueError(f"{source}: no such file or folder, and no name on the Hugging Face hub (owner/model)")
            path = download(str(source), revision)
        if not (path / CONFIG).is_file():
            raise ValueError(f"{source}: not an exported model: it has no {CONFIG}; give that folder, or a .ckpt file")
        algorithm, folder = read_folder(path, trusted_modules)
        found = (folder.tokenizer, folder.config, folder.generation)
    tokenizer, config, generation = found
    try:
        tokenizer = Tokenizer.from_dict(tokenizer)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    # a model may have a row for a mask that its tokenizer lacks
    if not algorithm.vocab_size - 1 <= tokenizer.vocab_size <= algorithm.vocab_size:
        raise ValueError(f"{source}: its tokenizer has {tokenizer.vocab_size} tokens, its model {algorithm.vocab_size}")
    return LanguageModel(algorithm.to(device), tokenizer, config, generation["steps"], generation["options"])


def _at_least_one(name: str, value: int) -> int:
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}")
    return value
