"""The measures and judges of a set of texts, built once from the group `eval` and applied for every number of steps."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import flm
from flm.judges.gen_ppl import PublishedProtocol, Scorer, ScoreResult, ScoringProtocol, TokenScorer, WholeTextProtocol
from flm.judges.huggingface_scorer import HuggingFaceScorer
from flm.judges.ngram_judge import HeldOutNGrams
from flm.language_model import LanguageModel
from flm.measures.diversity import TokenFrequencies, self_bleu_4, token_diversity
from flm.measures.estimate import Estimate
from flm.measures.mauve import Mauve
from flm.registry import entries, load
from flm.tasks.evaluation import EvalOptions, SampleOptions
from flm.tasks.held_out import RealText

PROTOCOLS = {"published": PublishedProtocol, "whole_text": lambda length: WholeTextProtocol()}  # by length


@dataclass(frozen=True)
class Judge:
    """A scorer, and whether it reads token ids, because it has the tokenizer of the samples, or text."""

    scorer: Scorer
    reads_tokens: bool

    def score(self, rows: Sequence[Sequence[int]], texts: Sequence[str], protocol: ScoringProtocol) -> ScoreResult:
        return self.scorer.score_tokens(rows, protocol) if self.reads_tokens else self.scorer.score(texts, protocol)


@dataclass(frozen=True)
class Measures:
    """All measures of one run.

    Attributes:
        judges: for generative perplexity, in the order of `eval`; empty: it is not measured.
        protocols: by name, which tokens they score.
        ngrams: judge without download; None without real text.
        unigrams: the same for single tokens, to show what the order of tokens adds.
        frequencies: of tokens in held-out text, without the real blocks to compare with; None without such text.
        mauve: None unless eval.mauve.
    """

    judges: Sequence[Judge]
    protocols: dict[str, ScoringProtocol]
    ngrams: HeldOutNGrams | None
    unigrams: HeldOutNGrams | None
    frequencies: TokenFrequencies | None
    mauve: Mauve | None

    def of_generated(self, rows: Sequence[Sequence[int]], texts: Sequence[str]) -> dict[str, Any]:
        """The measures by name, plain JSON values. Given tokens (a prompt) count like all others."""
        judged = None if self.ngrams is None else self.ngrams.generated(rows)
        singly = None if self.unigrams is None else self.unigrams.generated(rows)
        score = None if self.mauve is None else self.mauve.score(texts)
        return self._common(rows, texts) | _judged(judged, singly) | {"mauve": score}

    def of_real(self, real: RealText, texts: Sequence[str]) -> dict[str, Any]:
        """The same for real text, each block scored by n-grams that were not fitted on it."""
        judged = None if self.ngrams is None else self.ngrams.real(real.chosen)
        singly = None if self.unigrams is None else self.unigrams.real(real.chosen)
        return self._common(real.rows, texts) | _judged(judged, singly) | {"mauve": None}

    def gen_ppl(self, rows: Sequence[Sequence[int]], texts: Sequence[str]) -> list[dict[str, Any]]:
        """One entry for each judge and protocol."""
        return [
            perplexity_entry(judge.score(rows, texts, protocol), name, judge.reads_tokens)
            for judge in self.judges
            for name, protocol in self.protocols.items()
        ]

    def log_ppl(self, rows: Sequence[Sequence[int]], texts: Sequence[str]) -> Estimate | None:
        """Nats per scored token of samples by the first judge and protocol, or by 3-grams if there is no judge.

        None if no token is scored.
        """
        if not self.judges:
            assert self.ngrams is not None
            return self.ngrams.generated(rows)
        return nats_of(self.judges[0].score(rows, texts, next(iter(self.protocols.values()))))

    @property
    def first_scorer(self) -> dict[str, Any] | None:
        """The judge of the first entry of `gen_ppl`, for the head of a result file; None without judges."""
        if not self.judges:
            return None
        scorer, protocol = self.judges[0].scorer, next(iter(self.protocols))
        description = self.protocols[protocol].describe(scorer.context)
        return {
            "name": scorer.name,
            "revision": scorer.revision,
            "protocol": protocol,
            "protocol_description": description,
            "dtype": scorer.dtype,
        }

    def _common(self, rows: Sequence[Sequence[int]], texts: Sequence[str]) -> dict[str, Any]:
        found = token_diversity(rows)
        return {
            "entropy_nats": plain(found.entropy_nats),
            "distinct_tokens": plain(found.distinct_tokens),
            "tokens_used": found.tokens_used,
            "token_js_bits": None if self.frequencies is None else self.frequencies.js_bits(rows),
            "distinct_1": found.distinct_1,
            "distinct_2": found.distinct_2,
            "distinct_3": found.distinct_3,
            "rep_4": plain(found.rep_4),
            "longest_run": plain(found.longest_run),
            "longest_run_of_all": found.longest_run_of_all,
            "self_bleu_4": plain(self_bleu_4(texts)),
            "gen_ppl": self.gen_ppl(rows, texts),
        }


def measures(wanted: SampleOptions, judges: Sequence[Judge], lm: LanguageModel, length: int, real: RealText | str) -> Measures:
    """Everything that `eval` asks to be measured on samples of `length` tokens.

    Args:
        judges: from `judges_of`.
        real: the real text, or the reason why there is none.
    """
    ngrams = unigrams = frequencies = mauve = None
    if isinstance(real, RealText) and len(real.blocks) > 1:
        ngrams, unigrams = (HeldOutNGrams(real.blocks, lm.tokenizer.vocab_size, order) for order in (3, 1))
    if isinstance(real, RealText) and len(real.chosen) < len(real.blocks):
        frequencies = TokenFrequencies(real.blocks, without=real.rows)
    if wanted.mauve:
        if isinstance(real, str):
            raise ValueError(f"eval.mauve=true compares with real text, and there is none: {real}")
        texts = [lm.tokenizer.decode(row) for row in real.rows]
        mauve = Mauve(texts, wanted.mauve_model_name_or_path, lm.device)
    protocols = protocols_of(wanted.protocols, length if judges else None)
    return Measures(judges, protocols if judges else {}, ngrams, unigrams, frequencies, mauve)


def _judged(ngrams: Estimate | None, unigrams: Estimate | None) -> dict[str, Any]:
    """Cross-entropy under 3-grams, and its gain over that under single tokens, which is due to the order of tokens."""
    gain = None if ngrams is None or unigrams is None else unigrams.mean - ngrams.mean
    return {"ngram_ce_nats": plain(ngrams), "ngram_gain_nats": gain}


def protocols_of(wanted: str | Sequence[str], length: int | None) -> dict[str, ScoringProtocol]:
    """The protocols of eval.protocols (a name or a list) by name. `length`: max_tokens of the published one; None: no judge."""
    names = [wanted] if isinstance(wanted, str) else list(wanted)
    try:
        return {} if length is None else {name: PROTOCOLS[name](length) for name in names}
    except ValueError as error:
        raise ValueError(f"sampling.length={length}: {error}") from error


def judges_of(wanted: EvalOptions, lm: LanguageModel) -> list[Judge]:
    """The scorers that `eval` asks for, loaded, for samples of a model.

    Raises:
        ValueError: one of them cannot be loaded. No other takes its place.
    """
    names = wanted.gen_ppl_eval_model_name_or_path
    names = [] if names is None else [names] if isinstance(names, str) else list(names)
    options = {"device": lm.device, "dtype": wanted.scorer_dtype, "batch_size": wanted.scorer_batch_size}
    judges = [Judge(HuggingFaceScorer(str(name), **options), reads_tokens=False) for name in names]
    name, path, size = wanted.scorer, wanted.scorer_checkpoint_path, wanted.scorer_batch_size
    if name is None:
        return judges
    others = entries("judges")
    if name in others:
        return [*judges, Judge(load(others[name])(path, lm.device, size), reads_tokens=False)]
    return [*judges, checkpoint_judge(str(path), lm, wanted.trusted_modules, size)]


def checkpoint_judge(path: str, judged: LanguageModel, trusted_modules: Sequence[str], batch_size: int) -> Judge:
    """A model of this project with `nll(tokens (B, L)) -> (B, L)` as a judge; with averaged weights if it has them."""
    try:
        lm = flm.load(path, judged.device, None, trusted_modules)
    except ValueError as error:
        raise ValueError(f"eval.scorer_checkpoint_path: {error}") from error
    nll = getattr(lm.algorithm, "nll", None)
    if not callable(nll):
        kind = type(lm.algorithm).__name__
        raise ValueError(f"eval.scorer_checkpoint_path={path}: {kind} gives no next-token likelihood: train one with algo=ar")
    assert lm.source is not None
    name, revision = f"ar:{lm.source.label}", lm.source.sha256
    scorer = TokenScorer(nll, lm.tokenizer, name, lm.length, batch_size, lm.device, revision=revision)
    return Judge(scorer, reads_tokens=lm.tokenizer.fingerprint() == judged.tokenizer.fingerprint())


def perplexity_entry(result: ScoreResult, protocol: str, reads_tokens: bool) -> dict[str, Any]:
    """A score as result files hold it; perplexity and nats are None if nothing was scored."""
    return {
        "scorer": result.scorer,
        "revision": result.revision,
        "dtype": result.dtype,
        "protocol": protocol,
        "protocol_description": result.protocol,
        "reads": "tokens" if reads_tokens else "text",
        "ppl": result.ppl if result.ppl is not None and math.isfinite(result.ppl) else None,
        "nats_per_token": plain(nats_of(result)),
        "num_samples": result.num_samples,
        "num_without_scored_tokens": result.num_without_scored_tokens,
        "num_scored_tokens": result.num_scored_tokens,
    }


def nats_of(result: ScoreResult) -> Estimate | None:
    """Nats per scored token; None if nothing was scored."""
    if result.nats_per_token is None:
        return None
    return Estimate(result.nats_per_token, result.standard_error, result.num_samples - result.num_without_scored_tokens)


def plain(estimate: Estimate | None) -> dict[str, Any] | None:
    return None if estimate is None else asdict(estimate)
