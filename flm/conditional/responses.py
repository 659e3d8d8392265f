"""How near generated responses come to reference responses: exact match, BLEU, ROUGE-L, BERTScore.

Each prompt has n responses. Of a score, `mean` is over all of them, `best` over each prompt's best one ("top-n": a reader who
may choose with the reference in hand), `consensus` over the one that a reader without it would choose, by minimum Bayes risk.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

from flm.measures.estimate import Estimate

_WORD = re.compile(r"\w+")


def rouge_l(response: str, reference: str) -> float:
    """F1 of the longest common subsequence of words, in [0, 1] (Lin, "ROUGE", 2004, with beta = 1, no stemming).

    Words are runs of letters, digits and underscores, in any script, without regard to case. Two texts without words score 0.
    """
    first, second = (_WORD.findall(text.casefold()) for text in (response, reference))
    common = longest_common_subsequence(first, second)
    return 2 * common / (len(first) + len(second)) if common else 0.0


def longest_common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Its length. Time O(n m / 64): row by row, each a bit vector whose zeros are the steps of the table (Hyyro, 2004)."""
    places: dict[str, int] = {}
    for place, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << place
    full = (1 << len(first)) - 1
    row = full
    for word in second:
        matches = row & places.get(word, 0)
        row = ((row + matches) | (row - matches)) & full
    return len(first) - row.bit_count()


def sentence_bleu(response: str, reference: str) -> float:
    """BLEU-4 of one response in [0, 1], unsmoothed: 0 where it shares no four words in a row (sacrebleu, tokenizer 13a)."""
    from sacrebleu.metrics.bleu import BLEU

    # as a corpus of one sentence: the method for sentences warns that smoothed scores suit them better
    return BLEU(smooth_method="none").corpus_score([response], [[reference]]).score / 100


def corpus_bleu(responses: Sequence[str], references: Sequence[str]) -> tuple[float, str]:
    """BLEU-4 of all together in [0, 100], and sacrebleu's signature of how it was computed."""
    from sacrebleu.metrics.bleu import BLEU

    metric = BLEU()
    return metric.corpus_score(list(responses), [list(references)]).score, str(metric.get_signature())


def exact_match(response: str, reference: str) -> float:
    """1 where they are the same but for white space at the ends, else 0."""
    return float(response.strip() == reference.strip())


def consensus_of(responses: Sequence[str]) -> int:
    """Index of the response with the greatest mean sentence BLEU against the others, smoothed: the one of minimum Bayes risk.

    The first of those that are equal; responses of one prompt are draws of one model (Kumar and Byrne, 2004).
    """
    from sacrebleu.metrics.bleu import BLEU

    metric = BLEU(effective_order=True)
    gains = [
        sum(metric.sentence_score(one, [other]).score for place, other in enumerate(responses) if place != index)
        for index, one in enumerate(responses)
    ]
    return max(range(len(responses)), key=gains.__getitem__)


def response_scores(
    responses: Sequence[Sequence[str]], references: Sequence[str], bert_score_model: str | None = None
) -> dict[str, Any]:
    """All scores, in [0, 1] but for corpus_bleu.

    Args:
        responses: n of each prompt.
        references: one of each prompt.
        bert_score_model: hub name or local folder of the model; None: no BERTScore.

    Raises:
        ValueError: there is nothing to score; or BERTScore is asked for and its package or model is not there.
    """
    if not references:
        raise ValueError("no responses to score")
    bert = None if bert_score_model is None else bert_scores(responses, references, bert_score_model)
    measures: dict[str, Callable[[str, str], float]] = {
        "exact_match": exact_match,
        "bleu": sentence_bleu,
        "rouge_l": rouge_l,
    }
    scores = {
        name: [[f(r, ref) for r in given] for given, ref in zip(responses, references, strict=True)]
        for name, f in measures.items()
    }
    if bert is not None:
        scores["bert_score"] = bert
    chosen = [consensus_of(given) for given in responses]
    flat = [text for given in responses for text in given]
    score, signature = corpus_bleu(flat, [ref for given, ref in zip(responses, references, strict=True) for _ in given])
    return {
        "prompts": len(references),
        "samples": len(responses[0]),
        "corpus_bleu": score,
        "corpus_bleu_signature": signature,
        **{
            name: {
                "mean": vars(Estimate.of([sum(row) / len(row) for row in rows])),
                "best": vars(Estimate.of([max(row) for row in rows])),
                "consensus": vars(Estimate.of([row[index] for row, index in zip(rows, chosen, strict=True)])),
            }
            for name, rows in scores.items()
        },
    }


def bert_scores(responses: Sequence[Sequence[str]], references: Sequence[str], model: str) -> list[list[float]]:
    """BERTScore F1 (arXiv 1904.09675) of each response, by the package bert-score."""
    try:
        from bert_score import score
    except ImportError as error:
        raise ValueError(
            f"conditional_eval.bert_score_model needs the package bert-score: pip install bert-score ({error})"
        ) from error
    flat = [text for given in responses for text in given]
    targets = [ref for given, ref in zip(responses, references, strict=True) for _ in given]
    try:
        values = iter(score(flat, targets, model_type=model)[2].tolist())
    except (OSError, KeyError) as error:
        raise ValueError(f"conditional_eval.bert_score_model={model} cannot be loaded ({error})") from error
    return [[next(values) for _ in given] for given in responses]
