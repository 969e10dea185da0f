"""Checks JSON values against structs that declare other programs' formats. Unknown fields are ignored."""

from __future__ import annotations

import re
from typing import TypeVar

import msgspec

from mta_cli.pipeline.data.formats.parse_results import ParseFindings, SourceLocation

T = TypeVar("T")
_MISMATCH = re.compile(r"Expected `([^`]*)`, got `([^`]*)`")
_WORDS = {
    "str": "text",
    "int": "a number",
    "float": "a number",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
}


def convert(value: object, form: type[T], place: SourceLocation, findings: ParseFindings) -> T | None:
    """`value` as the struct `form`; if a field has another type, reports it to the findings and returns None."""
    try:
        return msgspec.convert(value, form)
    except msgspec.ValidationError as error:
        what, _, path = str(error).partition(" - at `$")
        if found := _MISMATCH.fullmatch(what):
            what = f"is {_in_words(found[2])}, not {_in_words(found[1])}"
        findings.add_fault(place, what, path.removeprefix(".").removesuffix("`"))
        return None


def _in_words(types: str) -> str:
    return " or ".join(dict.fromkeys(_WORDS.get(each, each) for each in types.split(" | ")))
