"""Reads CSV and similar tables: a header line, and cells separated by commas, semicolons or tabs."""

from __future__ import annotations

import csv
import itertools
from collections import Counter
from collections.abc import Iterator
from typing import BinaryIO

from mta_cli.pipeline.data.formats.detect import FileSample
from mta_cli.pipeline.data.formats.parse_results import ParseFindings, SourceLocation, format_value
from mta_cli.pipeline.data.formats.reading import LINE_BYTES, iter_lines
from mta_cli.pipeline.data.formats.rows import RawRow

_SEPARATORS = (",", ";", "\t")


def recognise(sample: FileSample) -> bool:
    """Whether the first line is not JSON and has at least two cells."""
    line = sample.first_line
    return line[:1] not in "{[" and "\0" not in line and _count_cells(line, _find_separator(line)) > 1


def read_rows(stream: BinaryIO, file: str, findings: ParseFindings) -> Iterator[RawRow]:
    """Every row below the header. The separator is the one that gives the first line the most columns.

    A first column without a name is ignored, because it usually holds row numbers; other columns without a name are
    named by position. Invalid UTF-8 bytes become lone surrogates.
    """
    lines = ((line, text.decode("utf-8", "surrogateescape")) for line, text in iter_lines(stream, file, findings))
    first = next((pair for pair in lines if pair[1].strip()), None)
    if first is None:
        return
    at, number, names = 1, 0, list[str]()

    def texts() -> Iterator[str]:
        nonlocal at
        for at, text in itertools.chain([first], lines):  # noqa: B007
            yield text

    csv.field_size_limit(LINE_BYTES)
    table = csv.reader(texts(), delimiter=_find_separator(first[1]), strict=True)
    try:
        names = [" ".join(cell.splitlines()).strip() for cell in next(table)]
        counts = Counter(name.casefold() for name in names if name)
        twice = sorted(name for name, count in counts.items() if count > 1)
        for name in twice:
            findings.add_fault(SourceLocation(file), f"the column {format_value(name)} appears twice", "header")
        for cells in table if not twice else ():
            if not any(cells):
                continue
            number += 1
            place = SourceLocation(file, number, at)
            if len(cells) == len(names):
                yield place, _name_cells(names, cells)
            else:
                findings.add_fault(place, f"has {len(cells)} cells where the header has {len(names)}")
    except csv.Error as error:
        place = SourceLocation(file, number + 1, at) if names else SourceLocation(file)
        findings.add_fault(place, f"is not CSV: {error}", "" if names else "header", of_record=False)


def _name_cells(names: list[str], cells: list[str]) -> dict[str, str]:
    row = {name: cell for name, cell in zip(names, cells, strict=True) if name}
    if len(row) < len(names):
        row |= {f"column {n}": cell for n, cell in enumerate(cells, 1) if n > 1 and cell and not names[n - 1]}
    return row


def _find_separator(header: str) -> str:
    return max(_SEPARATORS, key=lambda separator: _count_cells(header, separator))


def _count_cells(header: str, separator: str) -> int:
    try:
        return len(next(csv.reader([header], delimiter=separator), []))
    except csv.Error:
        return 0
