"""Parses the bytes of one mail into its headers and its text without quotes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from email import message_from_bytes
from email.message import EmailMessage, MIMEPart
from email.policy import EmailPolicy
from email.utils import getaddresses, parsedate_to_datetime
from typing import Any, cast

from mta_cli.pipeline.data.formats.mail.quoted_text import without_quotes
from mta_cli.pipeline.data.formats.parse_results import ParseFindings, SourceLocation
from mta_cli.pipeline.data.formats.turns import clean_text, known_time

MAIL_BYTES = 2 << 20
"""The bytes of a mail that are read; text comes before attachments."""
HEADER_CHARS, ADDRESS_CHARS = 2_000, 1 << 16
"""At most this many characters of a header are parsed, and `ADDRESS_CHARS` of a header with addresses or ids."""
MAX_PARTS = 30
UNREADABLE, DELETED, DRAFT = "mails that cannot be read", "deleted mails", "drafts"

_MESSAGE_ID = re.compile(r"<[^<>\s]{1,998}>")
_ADDRESS = re.compile(r"<([^<>\s@]{1,998}@[^<>\s@]{1,998})>")
# Thunderbird marks a deleted mail by bit 8 of its status until it compacts the folder.
_DELETED_STATUS = re.compile(r"[0-9a-f]{3}[89a-f]\b", re.IGNORECASE)
_ANSWER_MARKS = re.compile(r"(\s*(re|fwd?|aw|wg|sv|vs|antw|tr)\s*(\[\d+\])?\s*:)+\s*", re.IGNORECASE)
# Other transfer encodings, and the slow charsets, take quadratic time in the length of the text.
_ENCODINGS = ("7bit", "8bit", "binary", "quoted-printable", "base64")
_SLOW_CHARSETS = ("punycode", "idna")


@dataclass(frozen=True)
class Mail:
    """A mail, with the id of the mail that it answers (or "") and its addresses in folded case.

    `text` is without quotes and signature; None if the mail has no plain text.
    """

    place: SourceLocation
    id: str
    answered: str
    sender: str
    receivers: tuple[str, ...]
    subject: str
    text: str | None
    time: str | None


class _BoundedPolicy(EmailPolicy):
    """The library's default policy, but only the beginning of long headers is parsed, because parsing takes quadratic
    time.
    """

    def header_fetch_parse(self, name: str, value: str) -> Any:
        return super().header_fetch_parse(name, value[:HEADER_CHARS])


_POLICY = _BoundedPolicy()


def read_mail(content: bytes, place: SourceLocation, findings: ParseFindings) -> Iterator[Mail]:
    """Yields the mail, or nothing if it is left out, which is counted. `content` may be cut after `MAIL_BYTES`."""
    try:
        mail = _parse(content, place)
    except Exception:
        mail = UNREADABLE
    if isinstance(mail, str):
        findings.skip_counts[mail] += 1
    else:
        yield mail


def _parse(content: bytes, place: SourceLocation) -> Mail | str:
    """The mail, or the reason to leave it out."""
    if content.count(b"ultipart/") > MAX_PARTS:
        return UNREADABLE
    message = cast(EmailMessage, message_from_bytes(content, policy=_POLICY))
    if _DELETED_STATUS.match(_raw(message, "x-mozilla-status")):
        return DELETED
    if "Drafts" in (place.file, *map(str.strip, _raw(message, "x-gmail-labels").split(","))):
        return DRAFT
    # `getaddresses` misreads names such as `Ann @ Work`.
    senders = _ADDRESS.findall(_raw(message, "from")) or _addresses(message, "from")
    if not senders:
        return UNREADABLE
    answered = _MESSAGE_ID.findall(_raw(message, "in-reply-to")) or _MESSAGE_ID.findall(_raw(message, "references"))
    return Mail(
        place,
        next(iter(_MESSAGE_ID.findall(_raw(message, "message-id"))), ""),
        answered[-1] if answered else "",
        senders[-1].casefold(),
        tuple(_addresses(message, "to", "cc", "delivered-to")),
        _ANSWER_MARKS.sub("", clean_text(str(message.get("subject", ""))), count=1),
        _plain_text(message),
        _time(_raw(message, "date")),
    )


def _raw(message: EmailMessage, name: str) -> str:
    """The unparsed values of a header."""
    found = (str(raw) for key, raw in message.raw_items() if key.lower() == name)
    return clean_text(" ".join(found)[:ADDRESS_CHARS])


def _addresses(message: EmailMessage, *names: str) -> list[str]:
    pairs = [pair for name in names for pair in getaddresses([_raw(message, name)])]
    return list(dict.fromkeys(address.casefold() for _, address in pairs if "@" in address))


def _plain_text(message: EmailMessage) -> str | None:
    body = message.get_body(("plain",))
    if body is None:
        return None
    parts = _text_parts(message, body)
    if any(str(part.get("content-transfer-encoding", "7bit")).casefold() not in _ENCODINGS for part in parts):
        return None
    if any(str(part.get_param("charset", "")).casefold() in _SLOW_CHARSETS for part in parts):
        return None
    return without_quotes("\n".join(clean_text(part.get_content()) for part in parts))


def _text_parts(message: EmailMessage, body: MIMEPart) -> list[MIMEPart]:
    """The body, and the text parts after it that continue it between pictures."""
    for outer in cast(Iterator[MIMEPart], message.walk()):
        parts = list(outer.iter_parts()) if outer.get_content_type() == "multipart/mixed" else []
        if body in parts:
            first = parts.index(body)
            return [body, *filter(_continues_body, parts[first + 1 : first + MAX_PARTS])]
    return [body]


def _continues_body(part: MIMEPart) -> bool:
    """Whether a part continues the body: it is text, but neither a file (which has a name) nor a mailing list's footer
    (which is `inline`).
    """
    unnamed = part.get_content_disposition() is None and part.get_filename() is None
    return unnamed and part.get_content_type() == "text/plain"


def _time(date: str) -> str | None:
    try:
        return known_time(parsedate_to_datetime(date).isoformat())
    except ValueError:
        return None
