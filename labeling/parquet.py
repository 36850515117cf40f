"""Parquet files that are whole or not there, written at once or piece by piece."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from labeling.durable import put_in_place

# Rows that are read and written at one time where a file may be larger than memory.
BATCH = 4096


@contextmanager
def table_writer(
    path: Path,
    schema: pa.Schema,
    compression: str = "snappy",
    dictionary_bytes: int = 2**20,
    is_private: bool = False,
) -> Iterator[pq.ParquetWriter]:
    """Write Parquet piece by piece, each table a row group, so that `path` is either the whole new
    file or what it was before.

    `dictionary_bytes` is how large the dictionary of a column may grow in a row group: values
    within it are stored once. `lz4` reads faster where there is much text; `zstd` now and then gave
    other bytes for the same content. `is_private`: only the owner may read the file.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        if is_private:
            partial.touch()  # the writer keeps the mode of what is there
            partial.chmod(0o600)
        with pq.ParquetWriter(
            partial, schema, compression=compression, dictionary_pagesize_limit=dictionary_bytes
        ) as writer:
            yield writer
        put_in_place(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_table(
    table: pa.Table,
    path: Path,
    compression: str = "snappy",
    row_group_size: int | None = None,
    is_private: bool = False,
) -> None:
    """Write Parquet so that `path` is either the whole new file or what it was before."""
    with table_writer(path, table.schema, compression, is_private=is_private) as writer:
        writer.write_table(table, row_group_size)


def read_batches(path: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Read the rows of a file in order, `BATCH` or fewer at a time, one row group in memory."""
    with pq.ParquetFile(path, buffer_size=2**20) as file:
        for group in range(file.num_row_groups):  # asked for all, it would keep all it has read
            yield from file.iter_batches(BATCH, [group], columns)
