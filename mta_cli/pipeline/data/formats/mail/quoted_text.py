"""Removes text from a mail that its sender did not write: quotes, forwarded mails and the signature."""

from __future__ import annotations

import re
from collections.abc import Sequence

# Lines after which nothing is the sender's own text.
_SIGNATURE = re.compile(r"--\s*")
_DIVIDER = re.compile(r"\s*(-{3,} ?\S[^\n]{2,80}\S ?-{3,}|_{10,}|Begin forwarded message:)\s*")
_DEVICE = re.compile(r"(Sent from my|Get Outlook for|Von meinem|Envoyé de mon|Enviado desde mi) .{2,60}")
_HEADER_FROM = re.compile(r"\W{0,3}(From|Von|De|Da|Van|Från|Fra|Od)\s?:.+")
_HEADER_NEXT = re.compile(r"\W{0,3}[^\W\d][\w-]{1,15}\s?:.*")
# One to three lines that introduce a quote.
_WROTE = re.compile(
    r"(On|Am|Le|El|Il|Op|Em|Den)\s.{3,300}\s"
    r"(wrote|schrieb|a écrit|escribió|ha scritto|schreef|escreveu|skrev)\b.{0,80}:"
)
_ANNOUNCES = re.compile(r".*(@|\d{4}|\d:\d\d|\b(wrote|writes|said)\b).*:")
_ANNOUNCE_LINES, _ANNOUNCE_CHARS = 3, 500


def without_quotes(text: str) -> str:
    """A mail's text without quotes and their introductory lines, forwarded mails and the signature.

    If the end of a quote is unclear, all following text is left out.
    """
    lines = [line.rstrip() for line in text.splitlines()]
    kept: list[str] = []
    for number, line in enumerate(lines):
        if line.startswith(">"):
            _drop_announcement(kept)
        elif _ends_own_text(lines, number):
            break
        else:
            kept.append(line)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).strip()


def _ends_own_text(lines: Sequence[str], number: int) -> bool:
    line, after = lines[number], lines[number + 1] if number + 1 < len(lines) else ""
    if _SIGNATURE.fullmatch(line) or _DIVIDER.fullmatch(line) or _DEVICE.fullmatch(line):
        return True
    if _HEADER_FROM.fullmatch(line) and _HEADER_NEXT.fullmatch(after):
        return True
    announced = _announcement_length(lines, number)
    below = lines[number + announced : number + announced + 2]
    return announced > 0 and not any(each.startswith(">") for each in below)


def _announcement_length(lines: Sequence[str], number: int) -> int:
    """The number of lines from this one on that introduce a quote ("… wrote:"); 0 if none."""
    for length in range(1, _ANNOUNCE_LINES + 1):
        joined = " ".join(lines[number : number + length])
        if len(joined) <= _ANNOUNCE_CHARS and _WROTE.fullmatch(joined):
            return length
    return 0


def _drop_announcement(kept: list[str]) -> None:
    """Remove the lines at the end that introduce the following quote."""
    last = len(kept) - (kept[-1:] == [""])
    for length in range(min(_ANNOUNCE_LINES, last), 0, -1):
        if _announcement_length(kept[last - length : last], 0) == length:
            del kept[last - length :]
            return
    if last and len(kept[last - 1]) <= _ANNOUNCE_CHARS and _ANNOUNCES.fullmatch(kept[last - 1]):
        del kept[last - 1 :]
