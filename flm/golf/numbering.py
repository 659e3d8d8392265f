"""The block of a network that a parameter belongs to, by the parameter's name."""

import re

_BLOCK = re.compile(r"(?:^|\.)blocks\.(\d+)\.")


def block_of(name: str) -> int | None:
    """The number i, from 0 at the input, in a name that contains `blocks.i.`; None if the parameter is in no block."""
    found = _BLOCK.search(name)
    return None if found is None else int(found.group(1))
