"""Names: any printable text is one; what could fool a terminal, a shell or a reader is not."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mta_cli.errors import BadInput
from mta_cli.pipeline.chat.remote import BASE_MODEL
from mta_cli.pipeline.users.serve_keys import EVERYBODY
from store.names import MAX_NAME_CHARS, RESERVED_NAMES, check_name, normalise_name, quote_text


@pytest.mark.parametrize(
    "name",
    [
        "alice",
        "../x",
        "..",
        "/etc/passwd",
        "C:\\x",
        "O'Brien",
        '"; DROP TABLE users',
        "王小明",
        "Zoë 🌲",
        "a-b",
        "%s{0}",
        "a" * 200,
    ],
)
def test_any_printable_text_is_a_name(name: str) -> None:
    assert check_name(name) == unicodedata.normalize("NFC", name)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "is empty"),
        ("\u200cann", "U+200C"),
        ("ann\u200d", "U+200D"),
        ("a\u200c b", "U+200C"),
        ("\u3164", "invisible"),
        ("an\u115fn", "invisible"),
        ("\u2800", "invisible"),
        (" \t ", "is empty"),
        ("--help", "flag"),
        ("*", "another meaning"),
        ("@", "another meaning"),
        ("-", "another meaning"),
        ("base", "another meaning"),
        ("-x", "flag"),
        ("a" * 201, "201 characters"),
        ("a" * 10_000, "10,000 characters"),
        ("two\nlines", "U+000A"),
        ("nul\0", "U+0000"),
        ("\x1b[31mred", "U+001B"),
        ("c1\x9b31m", "U+009B"),
        ("ecila\u202e", "U+202E"),
        ("\u200fmark", "U+200F"),
        ("zero\u200bwidth", "U+200B"),
        ("half\ud800", "U+D800"),
        ("private\ue000", "U+E000"),
        ("none\uffff", "U+FFFF"),
        ("line\u2028", "U+2028"),
        ("paragraph\u2029", "U+2029"),
    ],
)
def test_what_cannot_be_a_name(name: str, why: str) -> None:
    with pytest.raises(BadInput) as caught:
        check_name(name)
    assert why in caught.value.message
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 200


def test_words_that_mean_something_else_are_on_one_list() -> None:
    assert {EVERYBODY, BASE_MODEL, "@", "-"} == set(RESERVED_NAMES)
    assert [check_name(name) for name in ("**", "Base", "base2", "a-b", "@ann")]


@pytest.mark.parametrize("name", ["مهدی\u200cزاده", "क्\u200dष", "شه\u200cناز علی"])
def test_joiners_that_shape_a_script_are_part_of_a_name(name: str) -> None:
    assert check_name(name) == name
    assert normalise_name(name) == normalise_name(name.replace("\u200c", "").replace("\u200d", ""))


def test_stored_form_is_composed() -> None:
    assert check_name("Zoe\u0308") == "Zoë"
    assert len(check_name("e\u0308" * MAX_NAME_CHARS)) == MAX_NAME_CHARS  # the limit counts stored characters


@settings(deadline=None)
@given(st.text(max_size=300))
@example("\u0344" * 200)
def test_a_checked_name_is_printable_short_and_stays_itself(raw: str) -> None:
    try:
        name = check_name(raw)
    except BadInput as error:
        assert error.message.isprintable()
        return
    assert 0 < len(name) <= MAX_NAME_CHARS
    assert not name.startswith("-")
    assert all(unicodedata.category(char)[0] != "C" for char in name)
    assert check_name(name) == name


def test_folded_names_are_equal_where_people_overlook_the_difference() -> None:
    assert normalise_name("Zoë") == normalise_name("ZOE\u0308") == normalise_name(" zoë ")
    assert normalise_name("ﬁn") == normalise_name("FIN")
    assert normalise_name("ann") != normalise_name("anne")


def test_shown_is_cut_and_escaped() -> None:
    assert quote_text("a\n") == "'a\\n'"
    assert len(quote_text("x" * 1000)) == 62
