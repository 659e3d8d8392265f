"""One likelihood in the units people compare: nats per token, bits per token, perplexity, bits per byte.

Bits per byte of UTF-8 text do not depend on the tokenizer, perplexities do. `num_tokens` is what the nats per token
were averaged over, `num_bytes` the UTF-8 length of the text those tokens spell, exact or estimated.
"""

import math
from collections.abc import Iterable


def perplexity(nats_per_token: float) -> float:
    """exp of the mean; inf where that overflows."""
    try:
        return math.exp(nats_per_token)
    except OverflowError:
        return math.inf


def bits_per_token(nats_per_token: float) -> float:
    """For a character tokenizer these are bits per character."""
    return nats_per_token / math.log(2)


def bits_per_byte(nats_per_token: float, num_tokens: int, num_bytes: float) -> float:
    """Total bits over total bytes. Raises ValueError where there is no byte."""
    if num_bytes <= 0:
        raise ValueError("bits per byte of an empty text are not defined")
    return bits_per_token(nats_per_token) * num_tokens / num_bytes


def nats_per_token(bits_per_byte: float, num_tokens: int, num_bytes: float) -> float:
    """The inverse of `bits_per_byte`. Raises ValueError where there is no token."""
    if num_tokens <= 0:
        raise ValueError("nats per token of an empty text are not defined")
    return bits_per_byte * math.log(2) * num_bytes / num_tokens


def utf8_bytes(texts: Iterable[str]) -> int:
    """Bytes of the texts in UTF-8."""
    return sum(len(text.encode("utf-8", errors="surrogatepass")) for text in texts)
