"""An algorithm of one's own in one file: FLM with physical time drawn uniformly. No line of the package changes.

python examples/own_algorithm.py                    # trains it on the puzzle, and counts valid grids
python examples/own_algorithm.py trainer.max_steps=20
"""

import sys
from pathlib import Path

import flm
from flm.__main__ import main
from flm.algos.algorithm import Algorithm, Batch, Loss
from flm.algos.flm import SingleTimeDenoiser
from flm.algos.losses import token_loss
from flm.draws import Draws
from flm.paths.clock import IdentityClock
from flm.paths.gaussian import corrupt
from flm.puzzles.sudoku_rules import SudokuRules
from flm.samplers.flow import FlowSampler

RUN = Path("outputs/examples/own_algorithm")


class PlainTime(Algorithm):
    """`loss` says what is learned, `denoiser` what a sampler asks; the config names the class."""

    samplers = {"": FlowSampler}

    def __init__(self, backbone, vocab_size: int, length: int):
        super().__init__(vocab_size, length)
        self.backbone, self.clock = backbone(vocab_size=vocab_size), IdentityClock()

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        t = draws.stratified(len(batch.tokens))
        state = corrupt(batch.tokens, t.float(), (self.backbone.input_table,), draws.rows)
        return token_loss(self.backbone(state.views[0], t.float()), batch, t)

    def denoiser(self) -> SingleTimeDenoiser:
        return SingleTimeDenoiser(self.backbone, self.clock)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))  # where own_algorithm is found by name
    mine = ["~algo", "+algo={_target_: own_algorithm.PlainTime}"]
    if main(["train", "experiment=sudoku4_flm", *mine, f"hydra.run.dir={RUN}", *sys.argv[1:]]):
        sys.exit(1)
    # a checkpoint may come from anyone: classes outside the package are built only where you say so
    lm = flm.load(RUN, trusted_modules=["own_algorithm"])
    grids = lm.generate(n=100, steps=16, batch_size=100)
    print(f"{sum(map(SudokuRules(4).valid, grids))} of 100 grids are valid")
