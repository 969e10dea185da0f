"""Reads a JSON list of records, each an object."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

from mta_cli.pipeline.data.formats.detect import FileSample
from mta_cli.pipeline.data.formats.json_array import iter_array
from mta_cli.pipeline.data.formats.parse_results import ParseFindings, SourceLocation, json_type_name
from mta_cli.pipeline.data.formats.rows import RawRow


def recognise(sample: FileSample) -> bool:
    """Whether the file is a list of objects. Objects with a profile or queries belong to other formats."""
    return sample.is_json_list and sample.record is not None and not {"profile", "query"} & sample.record.keys()


def read_rows(stream: BinaryIO, file: str, findings: ParseFindings) -> Iterator[RawRow]:
    """Every member of the list; a member that is not an object is a fault."""
    for number, value in enumerate(iter_array(stream, file, findings), 1):
        place = SourceLocation(file, number)
        if isinstance(value, dict):
            yield place, value
        else:
            findings.add_fault(place, f"is {json_type_name(value)}, not an object")
