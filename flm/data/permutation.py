"""A shuffled order of any number of items that takes no memory."""

from flm.draws import mix_seed

_ROUNDS = 8
_WORD = (1 << 64) - 1
_SPREAD = 0xD6E8FEB86659FD93  # odd, half of its bits set


class Permutation:
    """A seeded bijection of 0 .. count-1: a balanced Feistel network on the next power of four, walked until inside.

    A Feistel network permutes its whole domain, and following that permutation from inside the range until it comes
    back into the range permutes the range (cycle walking: Black and Rogaway, "Ciphers with Arbitrary Finite Domains",
    2002). The domain is less than four times `count` (or 4 itself), so a call takes less than four passes on average.
    """

    def __init__(self, count: int, seed: int):
        if count < 1:
            raise ValueError(f"a permutation needs at least one item, not {count}")
        self.count = count
        self._half_bits = max(1, ((count - 1).bit_length() + 1) // 2)
        self._keys = [mix_seed(seed, number) | 1 for number in range(_ROUNDS)]

    def __len__(self) -> int:
        return self.count

    def __call__(self, index: int) -> int:
        """Where item `index`, in [0, count), goes."""
        if not 0 <= index < self.count:
            raise IndexError(f"{index} is not in [0, {self.count})")
        place = self._pass(index)
        while place >= self.count:
            place = self._pass(place)
        return place

    def _pass(self, place: int) -> int:
        bits = self._half_bits
        left, right = place >> bits, place & ((1 << bits) - 1)
        for key in self._keys:
            hashed = (right + 1) * key & _WORD
            hashed = (hashed ^ hashed >> 32) * _SPREAD & _WORD
            left, right = right, left ^ hashed >> 64 - bits
        return left << bits | right
