"""Mailboxes: where a mail begins."""

from __future__ import annotations

import io

import pytest

from mta_cli.pipeline.data.formats.mail.mbox import split_mails


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize(
    "body",
    [
        "How are you?\nFrom the beginning it was fine.\nAnn",
        "How are you?\nFrom ten on\nNote: I am here.\nAnn",
        "How are you?\n\nFrom the beginning it was fine.\n\nAnn",
        "From ten on I am here.\nAnn",
    ],
)
def test_a_line_of_the_text_that_begins_with_from_is_text(body: str, end: str) -> None:
    mails = [f"Subject: {number}\n\n{body}\n\n".replace("\n", end).encode() for number in (1, 2)]
    box = b"".join(b"From x Mon Mar  2 08:15:00 2026" + end.encode() + each for each in mails)
    assert list(split_mails(io.BytesIO(box))) == mails


def test_an_escaped_from_loses_its_sign() -> None:
    box = b"From x\nSubject: 1\n\n>From ten on\n>>From two on\n"
    assert list(split_mails(io.BytesIO(box))) == [b"Subject: 1\n\nFrom ten on\n>From two on\n"]
