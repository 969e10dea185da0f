"""Readers of the file formats that `mta data import` knows.

Read `detect` first; add a format in a module of its own, with an entry here.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

    from mta_cli.pipeline.data.formats.detect import FileSample
    from mta_cli.pipeline.data.formats.parse_results import ParseFindings
    from mta_cli.pipeline.data.formats.rows import RawRow


class Reader(Protocol):
    """A format's module."""

    def recognise(self, sample: FileSample) -> bool:
        """Whether a file that begins so has this format, whatever its name."""
        ...


class RowReader(Reader, Protocol):
    """The module of a format whose files are rows of named cells."""

    def read_rows(self, stream: BinaryIO, file: str, findings: ParseFindings) -> Iterator[RawRow]:
        """The rows with their places; faults go to the findings. `stream` is at its start, text is UTF-8."""
        ...


@dataclass(frozen=True)
class Format:
    """A format: its meaning in a line, the module beside this one, and the endings of its files' names.

    `rows`: the module is a `RowReader`, and columns can be mapped. The others bring users and queries of their own.
    """

    meaning: str
    module: str
    endings: tuple[str, ...] = ()
    rows: bool = True

    def load(self) -> Reader:
        """The module."""
        return cast(Reader, import_module(f"{__name__}.{self.module}"))

    def load_rows(self) -> RowReader:
        """The module of a format of rows."""
        return cast(RowReader, self.load())


FORMATS = {
    "lamp": Format("LaMP's questions, with --outputs also its answers", "lamp", rows=False),
    "users": Format("one JSON list of users with profile and held-out queries", "users", rows=False),
    "parquet": Format("an Apache Parquet table", "parquet", (".parquet",)),
    "jsonl": Format("one JSON record a line", "json_lines", (".jsonl", ".ndjson")),
    "json": Format("one JSON list of records", "json_records", (".json",)),
    "csv": Format("a table with a header line; commas, semicolons or tabs", "delimited", (".csv", ".tsv")),
}
"""In the order in which they are tried on a file: csv comes last, because most text could be a table."""
