"""Measured cost: benchmark.json of mode=benchmark."""

from typing import Annotated

from pydantic import Field

from flm.results.files import Content, Real, Text, checked
from flm.results.kinds import KeyNumber, Reading, ResultKind, Source, Table


class _Cost(Content):
    seconds: Real | None = None
    tokens_per_second: Real | None = None
    model_flop_utilisation: Real | None = None
    peak_memory_mb: Real | None = None
    failed: Text | None = None


class _Benchmark(Content):
    device: Text
    training_step: Annotated[dict[Text, _Cost], Field(max_length=200)]
    sampling: Annotated[dict[Text, _Cost], Field(max_length=200)] = {}


def read(source: Source) -> Reading:
    content = checked(_Benchmark, source.content)
    columns = ("algorithm", "device", "seconds", "tokens per second", "FLOP utilisation", "peak memory, MB", "failed")
    tables = [
        Table(name, columns, tuple((algorithm, content.device, *_cells(cost)) for algorithm, cost in found.items()))
        for name, found in (("training_step_cost", content.training_step), ("sampling_cost", content.sampling))
        if found
    ]
    numbers = [
        KeyNumber("training tokens per second", algorithm, cost.tokens_per_second, "higher")
        for algorithm, cost in content.training_step.items()
        if cost.tokens_per_second is not None
    ]
    return Reading(tables=tuple(tables), numbers=tuple(numbers))


def _cells(cost: _Cost) -> tuple[float | str | None, ...]:
    return cost.seconds, cost.tokens_per_second, cost.model_flop_utilisation, cost.peak_memory_mb, cost.failed


KIND = ResultKind(
    files=("benchmark.json",),
    read=read,
    heading="Cost beside other algorithms",
    note="A dense twin computes the same numbers with tensors of batch times length times vocabulary.",
)
