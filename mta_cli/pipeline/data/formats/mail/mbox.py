"""mbox: a sequence of mails, each after a line that begins with `From `.

The standard library's `mailbox` needs a path and indexes every mail first; this module reads a stream, mail by mail.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import BinaryIO

from mta_cli.pipeline.data.formats.detect import FileSample
from mta_cli.pipeline.data.formats.mail.message import MAIL_BYTES, Mail, read_mail
from mta_cli.pipeline.data.formats.parse_results import ParseFindings, SourceLocation

_HEADER = re.compile(rb">?[!-9;-~]+:")
_START = re.compile(rb"From [^\n]*\n" + _HEADER.pattern)
_ESCAPED = re.compile(rb">+From ")
_PIECE_BYTES = 1 << 16


def recognise(sample: FileSample) -> bool:
    """Whether a line `From …` and a header's line begin the file."""
    return bool(_START.match(sample.start))


def read_mails(stream: BinaryIO, file: str, findings: ParseFindings) -> Iterator[Mail]:
    """Every mail, in the file's order."""
    for number, content in enumerate(split_mails(stream), 1):
        yield from read_mail(content, SourceLocation(file, number), findings)


def split_mails(stream: BinaryIO) -> Iterator[bytes]:
    """Yields the bytes of each mail, without its `From ` line, cut after `MAIL_BYTES`, with `>From ` unescaped.

    A mail begins with a line `From …` that is the first of the file or follows an empty line, and precedes a header.
    """
    lines, size, begun, line_begins, after_blank = list[bytes](), 0, False, True, True
    following = stream.readline(_PIECE_BYTES)
    while line := following:
        following = stream.readline(_PIECE_BYTES)
        if after_blank and line.startswith(b"From ") and _HEADER.match(following):
            if begun:
                yield b"".join(lines)
            lines, size, begun = [], 0, True
        elif begun and size < MAIL_BYTES:
            lines.append(line[1:] if line_begins and _ESCAPED.match(line) else line)
            size += len(line)
        after_blank = line_begins and line in (b"\n", b"\r\n")
        line_begins = line.endswith(b"\n")
    if begun:
        yield b"".join(lines)
