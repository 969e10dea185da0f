"""Reads JSONL: one JSON object per line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

from mta_cli.pipeline.data.formats.detect import FileSample
from mta_cli.pipeline.data.formats.parse_results import ParseFindings, SourceLocation, json_type_name
from mta_cli.pipeline.data.formats.reading import iter_lines, strict_json_loads
from mta_cli.pipeline.data.formats.rows import RawRow


def recognise(sample: FileSample) -> bool:
    """Whether the first line is an object."""
    return not sample.is_json_list and sample.record is not None


def read_rows(stream: BinaryIO, file: str, findings: ParseFindings) -> Iterator[RawRow]:
    """The object on every line that is not blank; a line without an object is a fault."""
    number = 0
    for line, content in iter_lines(stream, file, findings):
        if not content.strip():
            continue
        number += 1
        place = SourceLocation(file, number, line)
        try:
            value = strict_json_loads(content.decode())
        except UnicodeDecodeError as error:
            findings.add_fault(
                place, f"is not UTF-8: byte 0x{content[error.start]:02x} at offset {error.start:,} of the line"
            )
        except ValueError as error:
            findings.add_fault(place, f"is not JSON: {error}")
        else:
            if isinstance(value, dict):
                yield place, value
            else:
                findings.add_fault(place, f"is {json_type_name(value)}, not an object")
