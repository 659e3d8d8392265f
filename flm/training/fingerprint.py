"""Which batch it was, for whoever wants to see it again."""

import hashlib
from itertools import islice

from lightning.pytorch import Trainer

from flm.algos.algorithm import Batch

SHOWN = 8  # example numbers


def fingerprint(batch: Batch, batch_idx: int, trainer: Trainer) -> str:
    """The process, the SHA-256 of the tokens and, where the loader's batch sampler tells, the numbers of the examples.

    Args:
        batch_idx: micro-batches of this fit before it.
    """
    digest = hashlib.sha256(batch.tokens.cpu().numpy().tobytes()).hexdigest()[:12]
    text = f"process {trainer.global_rank}, batch sha256 {digest}"
    sampler = getattr(trainer.train_dataloader, "batch_sampler", None)
    if sampler is None:
        return text
    examples = next(islice(sampler, batch_idx, None), [])
    more = f" and {len(examples) - SHOWN} more" if len(examples) > SHOWN else ""
    return f"{text}, examples {', '.join(map(str, examples[:SHOWN]))}{more}"
