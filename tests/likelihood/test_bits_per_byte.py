import math

import pytest

from flm.likelihood.bits_per_byte import bits_per_byte, bits_per_token, nats_per_token, perplexity, utf8_bytes


def test_by_hand():
    # 8 bits a token, 4 bytes a token: 2 bits a byte, perplexity 256
    nats = 8 * math.log(2)
    assert bits_per_token(nats) == pytest.approx(8)
    assert bits_per_byte(nats, num_tokens=10, num_bytes=40) == pytest.approx(2)
    assert perplexity(nats) == pytest.approx(256)
    assert nats_per_token(2.0, num_tokens=10, num_bytes=40) == pytest.approx(nats)


def test_a_uniform_model_of_bytes_needs_eight_bits_a_byte_in_any_script():
    texts = ["plain", "\u017cywy \u6587\u5b57", ""]
    count = utf8_bytes(texts)
    assert count == 5 + (2 + 3 + 1 + 3 + 3)
    assert bits_per_byte(math.log(256), count, count) == pytest.approx(8)


def test_limits():
    assert perplexity(1e4) == math.inf
    with pytest.raises(ValueError, match="empty"):
        bits_per_byte(1.0, 1, 0)
    with pytest.raises(ValueError, match="empty"):
        nats_per_token(1.0, 0, 1)
