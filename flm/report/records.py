"""The input of a report: result files, and the records read from each."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from flm.report.frontier.result_kind import Frontier
from flm.results.kinds import Reading, ResultKind, Source

Record = TypeVar("Record")


@dataclass(frozen=True)
class Results:
    """Sources with their readings, sorted by run.

    Attributes:
        read: each source with its reading.
        kinds: the known kinds of results, by name.
        differences: by label of the run, the config values in which it differs from others, by key.
        names: by label, the run's name before labels were told apart.
    """

    read: tuple[tuple[Source, Reading], ...]
    kinds: Mapping[str, ResultKind]
    differences: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)

    @property
    def sources(self) -> list[Source]:
        return [source for source, _ in self.read]

    def of(self, record: type[Record]) -> list[Record]:
        """All records of a type."""
        return [one for _, reading in self.read for one in reading.records if isinstance(one, record)]

    @property
    def runs(self) -> list[str]:
        """Labels of the runs. A sweep over several checkpoints has several runs."""
        swept = {frontier.source.path: frontier.runs for frontier in self.of(Frontier)}
        return list(dict.fromkeys(label for source in self.sources for label in swept.get(source.path, [source.label])))
