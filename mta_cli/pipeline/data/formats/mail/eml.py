"""Reads a file with one mail, as mail programs save it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import BinaryIO

from mta_cli.pipeline.data.formats.detect import FileSample
from mta_cli.pipeline.data.formats.mail.message import MAIL_BYTES, Mail, read_mail
from mta_cli.pipeline.data.formats.parse_results import ParseFindings, SourceLocation

_HEADER_LINES = re.compile(rb"([!-9;-~]+:[^\n]*\n([ \t][^\n]*\n)*)+")
_FROM = re.compile(rb"^from:", re.IGNORECASE | re.MULTILINE)
_TELLING = re.compile(rb"^(date|message-id|received|mime-version|subject):", re.IGNORECASE | re.MULTILINE)


def recognise(sample: FileSample) -> bool:
    """Whether a mail's header begins the file."""
    header = _HEADER_LINES.match(sample.start)
    return header is not None and bool(_FROM.search(header[0]) and _TELLING.search(header[0]))


def read_mails(stream: BinaryIO, file: str, findings: ParseFindings) -> Iterator[Mail]:
    """Yields the mail, or nothing if it cannot be read."""
    yield from read_mail(stream.read(MAIL_BYTES), SourceLocation(file), findings)
