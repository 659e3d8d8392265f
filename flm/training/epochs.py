"""How often each source of a streamed mixture has been read."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class SourceEpochs(Callback):
    """Logs data/epochs_<source>: passes over it completed, on average over the readers of the first process."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        for name, epochs in trainer.datamodule.epochs().items():
            pl_module.log(f"data/epochs_{name}", epochs, batch_size=1)
