"""Reads JSON from a file: a whole document, or an array with only one member in memory at a time."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from mta_cli.errors import BadInput
from mta_cli.pipeline.data.formats import reading
from mta_cli.pipeline.data.formats.archive import ArchivedFile
from mta_cli.pipeline.data.formats.parse_results import ParseFindings, SourceLocation, format_value

CHUNK_BYTES = 1 << 20

_SPACE = re.compile(r"[ \t\n\r]*")
_NUMBER_TAIL = re.compile(r"[-+.eE0-9]*")
_DECODER = json.JSONDecoder(parse_constant=reading.reject_constant)
_KINDS = {"{": "an object", '"': "text", "n": "null", "t": "true or false", "f": "true or false"}
_KINDS |= dict.fromkeys("-0123456789", "a number")
_LONGEST_WORD = 16  # characters: `-Infinity`, or an escaped surrogate pair


def iter_array(stream: BinaryIO, file: str, findings: ParseFindings) -> Iterator[Any]:
    """Yields the members of the array. An empty array, or another value instead, is a fault.

    Raises `BadInput` for invalid UTF-8 or JSON and for values that are too deep or too large.
    """
    text = JsonText(stream, file)
    start, found = text.peek(), False
    if start != "[":
        if not start:
            raise BadInput(f"{file} is empty")
        if start not in _KINDS:
            raise BadInput(f"{file} is not JSON: no JSON value begins with {format_value(start)}")
        findings.add_fault(SourceLocation(file), f"is {_KINDS[start]}, not a list")
        return
    for _ in text.members():
        found = True
        yield text.read_value()
    if not found:
        findings.add_fault(SourceLocation(file), "is an empty list")
    text.require_end()


def read_document(path: Path | ArchivedFile) -> Any:
    """The JSON document in a file. Raises only `NotFound` or `BadInput`."""
    with reading.open_file(path) as stream:
        return JsonText(stream, path.name).read_whole()


class JsonText:
    """A parser of a JSON document that decodes the stream in chunks and drops the text it has read.

    `values_read` counts the complete values read.
    """

    def __init__(self, stream: BinaryIO, file: str) -> None:
        self._stream, self._file = stream, file
        self._utf8 = codecs.getincrementaldecoder("utf-8")()
        self._text, self._at, self._ended = "", 0, False
        self._bytes, self.values_read = 0, 0

    def peek(self) -> str:
        """The next character that is not white space; empty at the end."""
        while True:
            found = _SPACE.match(self._text, self._at)
            self._at = found.end() if found else self._at
            if self._at < len(self._text) or self._ended:
                return self._text[self._at : self._at + 1]
            self._read_more(CHUNK_BYTES)

    def read_char(self) -> str:
        """Read and return the next character that is not white space."""
        found = self.peek()
        self._at += len(found)
        return found

    def members(self) -> Iterator[None]:
        """Yields once before each member of the array that begins here; the caller must then read the member."""
        self.read_char()
        if self.peek() == "]":
            self.read_char()
            return
        separator = ","
        while separator == ",":
            yield
            separator = self.read_char()
        if separator != "]":
            self.fail("Expecting ',' delimiter")

    def names(self) -> Iterator[str]:
        """Yields the name of each member of the object that begins here; the caller must then read its value."""
        self.read_char()
        if self.peek() == "}":
            self.read_char()
            return
        separator = ","
        while separator == ",":
            if self.peek() != '"':
                self.fail("Expecting property name enclosed in double quotes")
            key = str(self.read_value())
            if self.read_char() != ":":
                self.fail("Expecting ':' delimiter")
            yield key
            separator = self.read_char()
        if separator != "}":
            self.fail("Expecting ',' delimiter")

    def require_end(self) -> None:
        """Raises `BadInput` if anything but white space follows."""
        if self.peek():
            self.fail("Extra data")

    def read_value(self) -> Any:
        """Read and return the value that begins here."""
        self.values_read += 1
        self.peek()
        size = CHUNK_BYTES
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                # An error inside a string, word, number or escape may only mean that the chunk ends there.
                word = 0 if self._ended else _LONGEST_WORD
                cut = error.msg.startswith("Unterminated string") or error.pos >= len(self._text.rstrip()) - word
                if self._ended or not cut:
                    self.fail(error.msg, cut=cut)
            except (RecursionError, ValueError) as error:
                deep = isinstance(error, RecursionError)
                raise BadInput(f"{self._file}: {'the JSON is nested too deep' if deep else error}") from error
            else:
                # a number at the end of the chunk may continue
                if self._ended or not _NUMBER_TAIL.fullmatch(self._text, end):
                    self._at = end
                    return value
            self._read_more(size)
            size *= 2  # doubling keeps the total decoding time of a long value linear

    def read_whole(self) -> Any:
        """Read and return the only value of the document. Raises `BadInput` if there is none or more."""
        if not self.peek():
            raise BadInput(f"{self._file} is empty")
        value = self.read_value()
        self.require_end()
        return value

    def fail(self, message: str, *, cut: bool = False) -> NoReturn:
        """Raises `BadInput` with `message` and the number of the current record."""
        what = "is cut short" if cut or not self.peek() else "is not JSON"
        raise BadInput(f"{self._file} {what}: {message} (record {self.values_read})")

    def _read_more(self, size: int) -> None:
        piece = self._stream.read(size)
        start, before = self._bytes, len(self._utf8.getstate()[0])
        self._bytes += len(piece)
        if self._bytes > reading.FILE_BYTES:
            reading.raise_too_large(Path(self._file), self._bytes)
        if start == 0:
            reading.reject_magic_bytes(piece, self._file)
        try:
            decoded = self._utf8.decode(piece, final=not piece)
        except UnicodeDecodeError as error:
            reading.raise_not_utf8(self._file, error, start - before)
        self._ended = not piece
        self._text = self._text[self._at :] + (decoded.removeprefix("\ufeff") if start == 0 else decoded)
        self._at = 0
