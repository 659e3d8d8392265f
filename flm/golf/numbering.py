"""Which block of a network a parameter belongs to, read off its name."""

import re

_BLOCK = re.compile(r"(?:^|\.)blocks\.(\d+)\.")


def block_of(name: str) -> int | None:
    """Number of the block, from the input's side: `i` of a name with `blocks.i.` in it; None for what is in no block."""
    found = _BLOCK.search(name)
    return None if found is None else int(found.group(1))
