"""Everything a report is made from: result files with what each says."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from flm.report.frontier.result_kind import Frontier
from flm.results.kinds import Reading, ResultKind, Source

Record = TypeVar("Record")


@dataclass(frozen=True)
class Results:
    """Sources with their readings, runs in one order throughout.

    Attributes:
        kinds: by name, those that were looked for.
        differences: by label of the run, what tells it from the others, value by config key.
        names: by label, what the run was called before others of that name were told apart.
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
        """Labels; a sweep over several checkpoints is several runs."""
        swept = {frontier.source.path: frontier.runs for frontier in self.of(Frontier)}
        return list(dict.fromkeys(label for source in self.sources for label in swept.get(source.path, [source.label])))
