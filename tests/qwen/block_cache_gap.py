"""What a block cache saves, and what it changes where all positions see all; a small network trained for so many seconds.

    PYTHONPATH=.:tests python tests/qwen/block_cache_gap.py 25

prints the numbers of docs/qwen.md.
"""

import sys
import time
from pathlib import Path

import torch
from tiny_qwen3 import SHAPE

import flm
from flm.algos.algorithm import Batch
from flm.algos.dfm import DFM
from flm.draws import Draws
from flm.qwen.backbone import QwenBackbone
from flm.qwen.block_cache import BlockReader
from flm.samplers.canvas import Canvas

V, LENGTH, PROMPT, BLOCK, STEPS = 128, 256, 64, 32, 96
WIDER = {"vocab_size": 136, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "head_dim": 32}


@torch.enable_grad()
def trained(seconds: float) -> tuple[DFM, torch.Tensor]:
    """On the source of this package, in ASCII; and four texts of it."""
    torch.manual_seed(0)
    architecture = SHAPE | WIDER | {"bos_token_id": 0, "eos_token_id": 0, "model_type": "qwen3"}
    algorithm = DFM(lambda vocab_size: QwenBackbone(vocab_size, LENGTH, architecture, mask_id=V), V, LENGTH)
    text = "".join(path.read_text(encoding="utf-8") for path in sorted(Path(flm.__file__).parent.rglob("*.py")))
    ids, generator = torch.tensor([min(ord(c), V - 1) for c in text]), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(algorithm.parameters(), lr=2e-3)
    begun, step = time.process_time(), 0
    while time.process_time() - begun < seconds:
        starts = torch.randint(len(ids) - 128, (16,), generator=generator)
        tokens = torch.stack([ids[start : start + 128] for start in starts])
        loss = algorithm.loss(Batch(tokens, torch.ones(tokens.shape)), Draws(0, step)).total
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(algorithm.parameters(), 1.0)
        optimizer.step()
        step += 1
    print(f"{step} steps, loss {loss.item():.2f}")
    starts = torch.randint(len(ids) - LENGTH, (4,), generator=generator)
    return algorithm.eval(), torch.stack([ids[start : start + LENGTH] for start in starts])


@torch.no_grad()
def main(seconds: float) -> None:
    algorithm, tokens = trained(seconds)
    editable = torch.arange(LENGTH).expand(len(tokens), -1) >= PROMPT
    for sees in ("all", "earlier"):
        found = {}
        for keep in (False, True):
            options = {"solver": "top_probability", "block_length": BLOCK, "block_sees": sees, "block_cache": keep}
            begun = time.process_time()
            canvas, generator = Canvas(tokens * ~editable, editable), torch.Generator().manual_seed(0)
            written = algorithm.generate(canvas, STEPS, generator, temperature=0.0, **options)
            found[keep] = written, time.process_time() - begun
        same = (found[False][0] == found[True][0])[:, PROMPT:].double().mean()
        print(f"sees {sees}: {found[False][1]:.2f} s, cached {found[True][1]:.2f} s; {100 * same:.1f}% of the tokens the same")
    blocks, rows, t = (editable.cumsum(1) - 1) // BLOCK, torch.ones(len(tokens), dtype=torch.bool), torch.zeros(len(tokens))
    order = torch.randperm(BLOCK, generator=torch.Generator().manual_seed(1))
    for block in (0, 5):
        begins = PROMPT + BLOCK * block
        state = torch.where(blocks >= block, V, tokens)
        reader = BlockReader(algorithm.backbone.network, blocks, None, False, True)
        reader(state, t, rows, block)
        for count in (8, 16, 24):  # of the block's positions, from the truth
            now, left = state.clone(), begins + order[count:]
            now[:, begins + order[:count]] = tokens[:, begins + order[:count]]
            kept, new = reader(now, t, rows, block), algorithm.backbone.network.encode(now)
            p, q = (algorithm.backbone._posterior(hidden[:, left]).probabilities() for hidden in (kept, new))
            divergence = (q * (q / p.clamp_min(1e-30)).clamp_min(1e-30).log()).sum(-1).mean()
            print(f"block {block}, {count} of {BLOCK} written: KL {divergence:.1e} nats")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(float(sys.argv[1]))
