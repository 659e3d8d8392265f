"""Columns of .parquet files and of the .arrow files that `datasets` writes by `save_to_disk`."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

GROUP_BYTES = 1 << 31  # expanded, of the wanted columns of a row group: what is in memory at once
_BATCH = 1000  # rows


def table_column(file: Path, column: str, key: str) -> Iterator[str]:
    """The texts of a column, null ones left out.

    Args:
        key: config key that names the file, for errors.

    Raises:
        ValueError: one line with key and file: unreadable, without the column, or it holds no text.
    """
    try:
        for batch in row_batches(file, [column]):
            if column not in batch:
                advice = "data=hub with data.name, data.path and data.text_key reads others"
                raise ValueError(f'no column "{column}", only {", ".join(batch)}: {advice}')
            for value in batch[column]:
                if isinstance(value, str):
                    yield value
                elif value is not None:
                    raise ValueError(f'"{column}" holds {type(value).__name__}, not text')
    except GeneratorExit:
        raise
    except Exception as error:  # the library raises its own
        raise ValueError(f"{key}: {file}: {' '.join(str(error).split()) or type(error).__name__}") from error


def row_batches(file: Path, columns: list[str]) -> Iterator[dict[str, list[Any]]]:
    """Rows in batches, values by column; where a column is missing, an empty batch of all names first.

    One row group at a time: the reader of `datasets` reads ahead of a slow consumer without end.

    Raises:
        ValueError: a row group says that it expands to more than GROUP_BYTES; or what the library raises.
    """
    with ExitStack() as stack:
        if file.suffix == ".arrow":
            from pyarrow import ipc, memory_map

            rows = stack.enter_context(ipc.open_stream(stack.enter_context(memory_map(str(file)))))
            names, batches = rows.schema.names, rows
        else:
            from pyarrow.parquet import ParquetFile

            found = stack.enter_context(ParquetFile(file, pre_buffer=False))
            _check_sizes(found.metadata, columns)
            names = found.schema_arrow.names
            present = [name for name in columns if name in names]
            batches = found.iter_batches(batch_size=_BATCH, columns=present, use_threads=False)
        if not set(columns) <= set(names):
            yield dict.fromkeys(names, [])  # whose names the error tells
        for batch in batches:
            wanted = batch.select([name for name in columns if name in names])
            for start in range(0, wanted.num_rows, _BATCH):
                yield wanted.slice(start, _BATCH).to_pydict()


def _check_sizes(metadata: Any, columns: list[str]) -> None:
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        chunks = [group.column(index) for index in range(group.num_columns)]
        size = sum(c.total_uncompressed_size for c in chunks if c.path_in_schema.partition(".")[0] in columns)
        if size > GROUP_BYTES:
            raise ValueError(f"row group {number} expands to {size:,} bytes: write it anew with smaller row groups")
