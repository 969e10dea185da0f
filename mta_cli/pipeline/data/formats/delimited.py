"""Reads CSV and similar tables: a header line, and cells separated by commas, semicolons or tabs."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from mta_cli.pipeline.data.formats.detect import FileSample
from mta_cli.pipeline.data.formats.parse_results import ParseFindings, SourceLocation, format_value
from mta_cli.pipeline.data.formats.reading import LINE_BYTES, iter_lines
from mta_cli.pipeline.data.formats.rows import RawRow

MAX_HEADER_LINES = 100
_SEPARATORS = (",", ";", "\t")


def recognise(sample: FileSample) -> bool:
    """Whether the first line is not JSON and has at least two cells."""
    line = sample.first_line
    return line[:1] not in "{[" and "\0" not in line and len(_split_header(line)[0]) > 1


def read_rows(stream: BinaryIO, file: str, findings: ParseFindings) -> Iterator[RawRow]:
    """Every row below the header line. The separator is the one that gives the header the most columns.

    A first column without a name is ignored, as row numbers; other columns without a name are named by position.
    Invalid UTF-8 bytes become lone surrogates.
    """
    numbered = iter_lines(stream, file, findings)
    texts = (text for _, text in _decode_lines(numbered))
    head = next((text for text in texts if text.strip()), None)
    if head is None:
        return
    names, separator = _split_header(head)
    while _has_open_quote(head, separator):
        if head.count("\n") > MAX_HEADER_LINES or not (more := next(texts, "")):
            findings.add_fault(SourceLocation(file), "has a quote that is not closed", "header")
            return
        head += more
        names, separator = _split_header(head)
    counts = Counter(name.casefold() for name in names if name)
    twice = sorted(name for name, count in counts.items() if count > 1)
    for name in twice:
        findings.add_fault(SourceLocation(file), f"the column {format_value(name)} appears twice", "header")
    if not twice:
        yield from _read_body(numbered, names, separator, file, findings)


def _read_body(
    lines: Iterator[tuple[int, bytes]], names: list[str], separator: str, file: str, findings: ParseFindings
) -> Iterator[RawRow]:
    at = [1]

    def texts() -> Iterator[str]:
        for line, text in _decode_lines(lines):
            at[0] = line
            yield text

    csv.field_size_limit(LINE_BYTES)
    number = 0
    try:
        for cells in csv.reader(texts(), delimiter=separator, strict=True):
            if not any(cells):
                continue
            number += 1
            place = SourceLocation(file, number, at[0])
            if len(cells) == len(names):
                yield place, _name_cells(names, cells)
            else:
                findings.add_fault(place, f"has {len(cells)} cells where the header has {len(names)}")
    except csv.Error as error:
        findings.add_fault(SourceLocation(file, number + 1, at[0]), f"is not CSV: {error}", of_record=False)


def _name_cells(names: list[str], cells: list[str]) -> dict[str, str]:
    row = {name: cell for name, cell in zip(names, cells, strict=True) if name}
    if len(row) < len(names):
        row |= {f"column {n}": cell for n, cell in enumerate(cells, 1) if n > 1 and cell and not names[n - 1]}
    return row


def _decode_lines(lines: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, str]]:
    return ((line, content.decode("utf-8", "surrogateescape")) for line, content in lines)


def _split_header(header: str) -> tuple[list[str], str]:
    """The names of the columns, without white space around them, and the separator between them."""
    found = [(_split_line(header, each), each) for each in _SEPARATORS]
    return max(found, key=lambda split: len(split[0]))


def _split_line(header: str, separator: str) -> list[str]:
    try:
        cells = next(csv.reader([header], delimiter=separator), [])
    except csv.Error:
        return []
    return [" ".join(cell.splitlines()).strip() for cell in cells]


def _has_open_quote(header: str, separator: str) -> bool:
    """Whether the next line still belongs to the header's last cell."""
    try:
        return len(list(csv.reader([header, "next"], delimiter=separator))) == 1
    except csv.Error:
        return False
