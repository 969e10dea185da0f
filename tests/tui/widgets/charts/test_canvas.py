"""The sheet that plots are written on: nothing leaves it, and nothing uncleaned enters it."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.style import Style

from mta_cli.tui.widgets.charts.canvas import Canvas, truncate_line


def rows(sheet: Canvas) -> list[str]:
    return sheet.to_rich_text(lambda name: Style()).plain.split("\n")


def test_text_is_written_from_its_cell_to_the_right() -> None:
    sheet = Canvas(8, 2)
    assert sheet.write_text(2, 1, "abc", "strong") == 5
    assert sheet.plain() == ["", "  abc"]
    assert [sheet.style_at(x, 1) for x in range(6)] == ["", "", "strong", "strong", "strong", ""]


def test_what_lies_outside_is_dropped() -> None:
    sheet = Canvas(4, 1)
    sheet.write_text(2, 0, "abc")
    sheet.write_text(-1, 0, "xyz")
    sheet.write_text(0, 1, "below")
    sheet.write_text(0, -1, "above")
    sheet.write_text(9, 0, "beside")
    assert sheet.plain() == ["  ab"]


def test_wide_characters_take_two_cells_and_are_never_cut_in_half() -> None:
    sheet = Canvas(5, 1)
    assert sheet.write_text(0, 0, "日本語") == 4
    assert rows(sheet) == ["日本 "]


def test_marks_that_join_stay_with_their_letter() -> None:
    sheet = Canvas(3, 1)
    assert sheet.write_text(0, 0, "e\u0301a") == 2
    assert rows(sheet) == ["e\u0301a "]


def test_no_control_character_reaches_a_cell() -> None:
    sheet = Canvas(20, 1)
    sheet.write_text(0, 0, "a\x1b[2Jb\x07\u202ec\nd\te\x9b")
    assert sheet.plain() == ["a[2Jbc d e"]


def test_markup_is_text_like_any_other() -> None:
    sheet = Canvas(20, 1)
    sheet.write_text(0, 0, "[red]x[/red]")
    assert sheet.to_rich_text(lambda name: Style()).plain.startswith("[red]x[/red]")


def test_free_cells_are_blank_and_there() -> None:
    sheet = Canvas(6, 1)
    sheet.write_text(3, 0, "x")
    assert sheet.is_blank(0, 0, 3)
    assert not sheet.is_blank(1, 0, 3)
    assert sheet.is_blank(4, 0, 2)
    assert not sheet.is_blank(4, 0, 3)
    assert not sheet.is_blank(-1, 0, 2)
    assert not sheet.is_blank(0, 1, 1)


def test_styles_are_asked_for_by_name() -> None:
    sheet = Canvas(4, 1)
    sheet.write_text(0, 0, "ab", "one")
    sheet.write_text(2, 0, "cd", "two")
    shown = sheet.to_rich_text(lambda name: Style(bold=name == "two"))
    assert [(shown.plain[span.start : span.end], span.style) for span in shown.spans] == [
        ("ab", Style(bold=False)),
        ("cd", Style(bold=True)),
    ]


def test_a_sheet_without_cells_takes_everything_and_shows_nothing() -> None:
    for width, height in ((0, 0), (-3, 2), (5, 0)):
        sheet = Canvas(width, height)
        sheet.write_text(0, 0, "text")
        assert "".join(rows(sheet)).strip() == ""


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.integers(-3, 14), st.text(max_size=16)), max_size=5))
def test_every_row_is_always_as_wide_as_the_sheet(writes: list[tuple[int, str]]) -> None:
    sheet = Canvas(12, 3)
    for y, (x, text) in enumerate(writes, start=-1):
        sheet.write_text(x, y, text)
    assert [cell_len(row) for row in rows(sheet)] == [12, 12, 12]


@settings(deadline=None)
@given(st.text(max_size=30), st.integers(0, 12))
def test_a_fitted_line_fits_and_is_one_line(text: str, width: int) -> None:
    shown = truncate_line(text, width)
    assert cell_len(shown) <= width
    assert "\n" not in shown and "\x1b" not in shown


def test_what_is_cut_ends_in_an_ellipsis() -> None:
    assert truncate_line("somebody", 8) == "somebody"
    assert truncate_line("somebody", 5) == "some…"
    assert truncate_line("日本語", 5) == "日本…"
    assert truncate_line("  a \r\n b ", 9) == "a b"
