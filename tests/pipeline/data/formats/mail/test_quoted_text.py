"""What is left of a mail's text: the sender's own words."""

from __future__ import annotations

import time

import pytest

from mta_cli.pipeline.data.formats.mail.quoted_text import without_quotes


@pytest.mark.parametrize(
    ("text", "own"),
    [
        ("Yes.\n\n> No?\n>> Perhaps\n", "Yes."),
        ("> First?\nYes.\n\n> Second?\nNo.", "Yes.\n\nNo."),
        ("Yes.\n\nOn Mon, 2 Mar 2026 at 09:15, Bob <bob@x.example> wrote:\n\n> No?", "Yes."),
        ("Yes.\n\nOn Mon, 2 Mar 2026 at 09:15, Bob Lane of the Harbour\n<bob@x.example> wrote:\n> No?", "Yes."),
        ("On Monday Bob wrote:\n> No?\n\nYes.", "Yes."),
        ("Yes.\n\nOn Mon, 2 Mar 2026, Bob wrote:\nNo?\nNot quoted.", "Yes."),
        ("Ja.\n\nAm 02.03.2026 um 09:15 schrieb Bob Lane:\n> Nein?", "Ja."),
        ("Oui.\n\nLe 2 mars 2026 à 09:15, Bob <bob@x.example> a écrit :\n> Non ?", "Oui."),
        ("Bob Lane <bob@x.example> writes:\n\n> No?\nYes.", "Yes."),
        ("I need:\n> brushes\nOf course.", "I need:\nOf course."),
        ("Yes.\n-- \nAnn Reed\nHarbour", "Yes."),
        ("Yes.\n--\nAnn", "Yes."),
        ("a -- b\n--- c", "a -- b\n--- c"),
        ("See below.\n\n---------- Forwarded message ---------\nFrom: Bob\nNo.", "See below."),
        ("Yes.\n\n-----Ursprüngliche Nachricht-----\nNein?", "Yes."),
        ("Yes.\n\n________________________________\nFrom: Bob", "Yes."),
        ("Yes.\n\nFrom: Bob\nSent: Monday\nNo?", "Yes."),
        ("Yes.\n\n*Von:* Bob\n*Gesendet:* Montag\nNein?", "Yes."),
        ("From: where I sit, all is well.", "From: where I sit, all is well."),
        ("Yes.\n\nSent from my telephone\n", "Yes."),
        ("Yes.\r\n\r\n\r\n\r\n\r\nNo.", "Yes.\n\nNo."),
        ("> all\n> quoted", ""),
        ("", ""),
    ],
)
def test_only_the_senders_words_stay(text: str, own: str) -> None:
    assert without_quotes(text) == own


@pytest.mark.parametrize("piece", ["On ", "On x wrote", "-", "From: ", "@:", "--- a", "a: ", "Sent from my "])
def test_long_lines_take_little_time(piece: str) -> None:
    line = piece * 200_000
    started = time.process_time()
    without_quotes("\n".join([line, line, "> quoted"]))
    assert time.process_time() - started < 2
