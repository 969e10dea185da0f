"""Reads Apache Parquet tables."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, datetime
from decimal import Decimal
from typing import Any, BinaryIO

from mta_cli.errors import BadInput, UsageError, extra_hint
from mta_cli.pipeline.data.formats.detect import FileSample
from mta_cli.pipeline.data.formats.parse_results import ParseFindings, SourceLocation
from mta_cli.pipeline.data.formats.rows import RawRow

BATCH_ROWS = 1_000  # rows in memory at once


def recognise(sample: FileSample) -> bool:
    """Whether the file begins with Parquet's magic bytes."""
    return sample.start.startswith(b"PAR1")


def read_rows(stream: BinaryIO, file: str, findings: ParseFindings) -> Iterator[RawRow]:
    """Every row, with dates in ISO 8601. Raises UsageError without pyarrow, and `BadInput` for a damaged file."""
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise UsageError("Parquet files need pyarrow", hint=extra_hint("parquet")) from error
    try:
        batches = ParquetFile(stream).iter_batches(BATCH_ROWS)
        rows = (row for batch in batches for row in _rows(batch))
        for number, row in enumerate(rows, 1):
            yield SourceLocation(file, number), row
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise BadInput(f"{file} is not a Parquet file that can be read: {reason}") from error


def _rows(batch: Any) -> Iterator[dict[str, Any]]:
    columns = [[_plain(value) for value in _values(column)] for column in batch.columns]
    return (dict(zip(batch.schema.names, row, strict=True)) for row in zip(*columns, strict=True))


def _values(column: Any) -> Any:
    """The cells of a column. Times that Python cannot represent (years after 9999, nanoseconds) become text."""
    try:
        return column.to_pylist()
    except (ValueError, OverflowError):
        return column.cast("string").to_pylist()


def _plain(value: Any) -> Any:
    if isinstance(value, date | datetime):
        return value.isoformat()
    return str(value) if isinstance(value, Decimal) else value
