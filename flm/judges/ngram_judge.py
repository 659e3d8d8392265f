"""A 3-gram model of held-out text as a judge of samples and of that text itself.

A model scores the text it was fitted on too well to compare real with generated text. So there are two models, one of each
half of the blocks. A real block is scored by the model of the other half, a generated one by the mean of both. Either way the
result is the expected cross-entropy under a model of half the text. The halves are the first and the second, not odd and
even blocks, which would share documents.
"""

from collections.abc import Sequence

from flm.measures.diversity import TokenRows, token_rows
from flm.measures.estimate import Estimate
from flm.measures.ngram import NGramModel


class HeldOutNGrams:
    """Two n-gram models, of the first and the second half of the blocks.

    Args:
        blocks: at least two blocks of ids below vocab_size.
        vocab_size: V.
        order: n; 3 means two tokens of context.

    Raises:
        ValueError: fewer than two blocks.
    """

    def __init__(self, blocks: Sequence[Sequence[int]], vocab_size: int, order: int = 3):
        if len(blocks) < 2:
            raise ValueError(f"an n-gram judge needs at least two blocks of held-out text, not {len(blocks)}")
        self.order, self._blocks, self._middle = order, blocks, len(blocks) // 2
        self._first = NGramModel(blocks[: self._middle], vocab_size, order)
        self._second = NGramModel(blocks[self._middle :], vocab_size, order)

    def describe(self) -> dict[str, str | None]:
        """The judge, for result files, under the keys that describe scorers."""
        return {
            "name": f"{self.order}-gram of validation text",
            "revision": None,
            "protocol": "every token",
            "protocol_description": f"mean of two {self.order}-gram models, one for each half of {len(self._blocks)} blocks of "
            "validation text; real text: of the half it is not in",
            "dtype": "float64",
        }

    def generated(self, tokens: TokenRows) -> Estimate:
        """Nats per token of samples; the error is over samples."""
        rows = token_rows(tokens)
        sums = [-(self._first.log_prob(row).sum() + self._second.log_prob(row).sum()) / 2 for row in rows]
        return Estimate.ratio(sums, [len(row) for row in rows])

    def real(self, indices: Sequence[int]) -> Estimate:
        """Nats per token of the held-out blocks at these indices."""
        sums = []
        for index in indices:
            other = self._second if index < self._middle else self._first
            sums.append(-other.log_prob(self._blocks[index]).sum())
        return Estimate.ratio(sums, [len(self._blocks[index]) for index in indices])
