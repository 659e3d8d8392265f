"""A logger for Trackio, which keeps the metrics of runs on this machine and shows them in a browser."""

from argparse import Namespace
from typing import Any

from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from flm.ranges import Text


class TrackioLogger(Logger):
    """Logs to Trackio.

    Args:
        project: of the runs.
        name: of the run; an existing one is continued. None: Trackio chooses a name.
        space_id: owner/space on the Hugging Face hub to log to; None: this machine.

    Raises:
        ValueError: trackio is not installed.
    """

    def __init__(self, project: Text, name: Text | None = None, space_id: Text | None = None):
        super().__init__()
        try:
            import trackio  # noqa: F401
        except ImportError as error:
            raise ValueError("logger=trackio needs trackio: pip install trackio") from error
        self.project, self.space_id = project, space_id
        self._name, self._run, self._config = name, None, {}

    @property
    def name(self) -> str:
        return self.project

    @property
    def version(self) -> str | None:
        return self._name

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """Trackio's run, started at first use."""
        if self._run is None:
            import trackio

            self._run = trackio.init(
                project=self.project,
                name=self._name,
                space_id=self.space_id,
                config=self._config,
                resume="never" if self._name is None else "allow",
                embed=False,
            )
            self._name = self._run.name
        return self._run

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        self._config |= vars(params) if isinstance(params, Namespace) else dict(params)

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.experiment.log(dict(metrics), step=step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if self._run is not None:
            self._run.finish()
            self._run = None
