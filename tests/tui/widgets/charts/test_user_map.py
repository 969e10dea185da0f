"""The map widget: where users, anchors and neighbours are drawn, and how keys and clicks go between them."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from textual.app import App, ComposeResult

from mta_cli.pipeline.bank.user_map import MapAnchor, UserMap
from mta_cli.tui.widgets.charts.anchor_colours import anchor_letter
from mta_cli.tui.widgets.charts.recipe_bar import RecipePart
from mta_cli.tui.widgets.charts.user_map import HighlightedUser, UserMapView
from store.records import Anchor

CORNERS = {1: (-1.0, 1.0), 2: (1.0, 1.0), 3: (-1.0, -1.0), 4: (1.0, -1.0), 5: (0.0, 0.0)}


def landmark(user_id: int | None, place: tuple[float, float] | None, nearest: int = 1) -> MapAnchor:
    number = user_id or 99
    return MapAnchor(
        Anchor(number, 1, user_id, f"p{number}", number, 3, 5, "d", 2.0, 1.0, user_id is None), place, nearest
    )


def made(places: dict[int, tuple[float, float]], anchors: tuple[int, ...] = (), nearest: Any = None) -> UserMap:
    """A map of users at these places, some of whom are anchors."""
    users = sorted(places)
    found = np.full(len(places), -1) if nearest is None else np.array(nearest)
    at = np.array([places[user] for user in users], np.float32).reshape(-1, 2)
    marks = tuple(landmark(user, places[user]) for user in anchors)
    return UserMap(np.array(users, np.int64), at, (0.5, 0.25), marks, found.astype(np.int16))


def drawn(
    shown: UserMap | None, lit: HighlightedUser | None = None, *, size: tuple[int, int] = (21, 11), **named: Any
) -> Any:
    """The sheet of a view, which needs no screen."""
    view = UserMapView()
    view.set_reactive(UserMapView.selected_anchor, named.pop("selected", None))
    view._user_map, view._highlighted_user = shown, lit
    view._waiting_text = named.pop("waiting", "")
    return view.draw_map(*size)


class Alone(App[None]):
    """A view alone, with its messages."""

    def __init__(self, shown: UserMap) -> None:
        super().__init__()
        self._shown = shown
        self.said: list[tuple[str, int]] = []

    def compose(self) -> ComposeResult:
        yield UserMapView()

    def on_mount(self) -> None:
        self.query_one(UserMapView).show_map(self._shown)
        self.query_one(UserMapView).focus()

    def on_user_map_view_anchor_selected(self, event: UserMapView.AnchorSelected) -> None:
        self.said.append(("anchor", event.number))

    def on_user_map_view_user_clicked(self, event: UserMapView.UserClicked) -> None:
        self.said.append(("user", event.user_id))


def driven(shown: UserMap, *does: str | tuple[int, int], size: tuple[int, int] = (42, 24)) -> list[tuple[str, int]]:
    """What a view says to keys and clicks."""

    async def drive() -> list[tuple[str, int]]:
        app = Alone(shown)
        async with app.run_test(size=size) as pilot:
            for one in does:
                await (pilot.press(one) if isinstance(one, str) else pilot.click(UserMapView, offset=one))
                await pilot.pause()
        return app.said

    return asyncio.run(drive())


def test_users_are_dots_at_their_places() -> None:
    rows = drawn(made(CORNERS)).plain()
    dots = {(x, y) for y, row in enumerate(rows[:-1]) for x, char in enumerate(row) if char > "\u2800"}
    assert dots == {(1, 1), (19, 1), (1, 8), (19, 8), (10, 5)}


def test_up_is_up() -> None:
    rows = drawn(made({1: (0.0, 0.0), 2: (1.0, 1.0)}, (1, 2))).plain()
    first = next(y for y, row in enumerate(rows) if "B" in row)
    last = next(y for y, row in enumerate(rows) if "A" in row)
    assert first < last


def test_anchors_are_letters_over_the_dots() -> None:
    sheet = drawn(made(CORNERS, (1, 4)))
    assert sheet.plain()[1][1] == "A"
    assert sheet.plain()[8][19] == "B"
    assert sheet.style_at(1, 1) == "anchor-0" and sheet.style_at(19, 8) == "anchor-1"


def test_there_are_letters_for_many_anchors_and_one_sign_for_the_rest() -> None:
    letters = [anchor_letter(number) for number in range(100)]
    assert len(set(letters[:62])) == 62
    assert set(letters[62:]) == {"◆"}


def test_the_person_and_their_neighbours_stand_out() -> None:
    sheet = drawn(made(CORNERS, (1,)), HighlightedUser(5, "ann", (2, 3, 77)))
    assert "\n".join(sheet.plain()).count("○") == 3  # two on the map, one in the legend
    assert sheet.plain()[1][19] == "○"
    assert sum(row.count("●") for row in sheet.plain()[:-1]) == 1
    assert sheet.plain()[-1].startswith("● ann")


def test_an_anchor_who_is_the_person_keeps_the_letter_in_the_persons_colour() -> None:
    sheet = drawn(made(CORNERS, (1,)), HighlightedUser(1, "ann"))
    assert sheet.plain()[1][1] == "A"
    assert sheet.style_at(1, 1) == "user"
    assert not any("●" in row for row in sheet.plain()[:-1])


def test_somebody_who_is_not_on_the_map_is_said_so() -> None:
    rows = drawn(made(CORNERS), HighlightedUser(9, "kim"), size=(60, 11)).plain()
    assert rows[-1].startswith("kim has no profile")
    assert not any("●" in row for row in rows)


def test_the_legend_says_how_many_and_how_much_is_seen() -> None:
    assert drawn(made(CORNERS, (1, 2, 3)), size=(60, 11)).plain()[-1] == "A…C anchors  5 users, 75 % of variance"


def test_a_hostile_name_is_one_clean_line_of_the_legend() -> None:
    sheet = drawn(made(CORNERS), HighlightedUser(5, "[red]\x1b[2J\nx\u202e" + "y" * 50), size=(60, 11))
    assert sheet.plain()[-1].startswith("● [red][2J xyyyyyyyyy…")


def test_the_users_of_the_selected_anchor_are_coloured() -> None:
    shown = made(CORNERS, (1, 2), nearest=[0, 1, 0, 1, 1])
    styles = {number: {drawn(shown, selected=number).style_at(x, y) for x, y in ((1, 8), (19, 8))} for number in (0, 1)}
    assert styles == {0: {"anchor-0", "near-1"}, 1: {"near-0", "anchor-1"}}
    assert drawn(shown, selected=0).style_at(1, 1) == "selected-0"


def test_in_a_full_map_only_the_users_of_the_selected_anchor_are_coloured() -> None:
    places = {n: (-1.0 if n % 2 else 1.0, n / 100) for n in range(200)}
    shown = made(places, (0, 1), nearest=[n % 2 for n in range(200)])
    assert drawn(shown, selected=1).style_at(1, 4) == "anchor-1"
    assert drawn(shown, selected=1).style_at(19, 4) in ("few", "some", "many", "most")


def recipe(**weights: float) -> list[RecipePart]:
    """Parts of a recipe: `a` is the first anchor; `rest` the task adapter."""
    places = {"a": 0, "b": 1, "c": 2, "rest": None}
    return [RecipePart(places[name], name, weight, f"{weight:.2f}"[1:]) for name, weight in weights.items()]


def test_lines_go_to_the_anchors_of_the_recipe_the_stronger_the_heavier() -> None:
    lit = HighlightedUser(5, "ann", recipe=recipe(a=0.5, b=0.2, c=0.05, rest=0.25))
    sheet = drawn(made(CORNERS, (1, 2, 3, 4)), lit, size=(61, 31))
    styles = {(x, y): sheet.style_at(x, y) for x in range(61) for y in range(30) if "link" in sheet.style_at(x, y)}
    dots = dict.fromkeys(styles.values(), 0)
    for (x, y), name in styles.items():
        dots[name] += (ord(sheet.plain()[y][x]) - 0x2800).bit_count()
        way = {"0": (True, True), "1": (False, True), "2": (True, False)}[name.split("-")[1]]
        assert abs(x - 30) < 3 or (x < 30, y < 15) == way
    assert dots["link-0-strong"] > 1.5 * dots["link-1-medium"] > 2.5 * dots["link-2-faint"] > 0
    assert set(dots) == {"link-0-strong", "link-1-medium", "link-2-faint"}, "none to the fourth anchor"
    assert sheet.plain()[-1] == "● ann  A .50  B .20  C .05  ░ .25  5 users, 75 % of variance"
    assert all(name in "\n".join(sheet.plain()[:-1]) for name in ("p1", "p2", "p3", "p4", "ann"))


def test_there_is_no_line_to_a_forgotten_anchor_nor_from_a_user_without_a_profile() -> None:
    shown = made(CORNERS, (1, 2))
    gone = UserMap(
        shown.user_ids,
        shown.points,
        shown.explained_variance,
        (landmark(None, None, 0), shown.map_anchors[1]),
        shown.nearest_anchor,
    )
    for one, user in ((gone, 5), (shown, 9)):
        sheet = drawn(one, HighlightedUser(user, "ann", recipe=recipe(a=1.0)), size=(40, 11))
        assert not any("link" in sheet.style_at(x, y) for x in range(40) for y in range(11))
        assert "A .00" in sheet.plain()[-1]


def test_users_of_one_cell_are_a_fuller_dot() -> None:
    rows = drawn(made({1: (-1.0, 1.0), 2: (-1.0, 1.0), 3: (1.0, -1.0)})).plain()
    assert rows[1][1] == "⠿" and rows[8][19] == "⠶"


def test_full_places_are_brighter_than_thin_ones() -> None:
    places = dict.fromkeys(range(500), (-1.0, 1.0)) | {999: (1.0, -1.0), 998: (1.0, 1.0)}
    sheet = drawn(made(places))
    assert sheet.style_at(1, 1) == "most"
    assert sheet.style_at(19, 8) == "few"


@pytest.mark.parametrize("size", [(0, 0), (3, 2), (4, 3), (80, 1), (10, 4), (300, 90)])
def test_every_size_can_be_drawn(size: tuple[int, int]) -> None:
    lit = HighlightedUser(5, "ann", (3,), recipe(a=0.5, b=0.2, rest=0.3))
    sheet = drawn(made(CORNERS, (1, 2)), lit, size=size)
    assert len(sheet.plain()) == size[1]


@pytest.mark.parametrize("places", [{}, {1: (0.0, 0.0)}, {1: (0.5, 0.0), 2: (0.5, 1.0)}])
def test_few_users_can_be_drawn(places: dict[int, tuple[float, float]]) -> None:
    sheet = drawn(made(places), size=(40, 9))
    if not places:
        assert "No user has a profile yet." in "\n".join(sheet.plain())
    else:
        assert sum(char > "\u2800" for row in sheet.plain()[:-1] for char in row) == len(places)


def test_what_is_waited_for_is_said() -> None:
    assert "Reading profiles" in "\n".join(drawn(None, waiting="Reading profiles …").plain())


def test_arrows_go_to_the_next_anchor_that_way() -> None:
    shown = made(CORNERS, (1, 2, 3, 4))  # A B over C D
    assert driven(shown, "right", "right", "down", "left", "up") == [
        ("anchor", 0),
        ("anchor", 1),
        ("anchor", 3),
        ("anchor", 2),
        ("anchor", 0),
    ]
    assert driven(shown, "right", "left", "up") == [("anchor", 0)]


def test_arrows_pass_over_anchors_without_a_place() -> None:
    shown = made(CORNERS, (1, 2))
    shown = UserMap(
        shown.user_ids,
        shown.points,
        shown.explained_variance,
        (landmark(None, None, 0), *shown.map_anchors),
        shown.nearest_anchor,
    )
    assert driven(shown, "right", "right", "left") == [("anchor", 1), ("anchor", 2), ("anchor", 1)]
    assert driven(made(CORNERS), "right") == []


def test_a_click_selects_an_anchor_or_names_a_user() -> None:
    shown = made(CORNERS, (1,))
    assert driven(shown, (2, 2)) == [("anchor", 0)]
    assert driven(shown, (39, 2)) == [("user", 2)]
    assert driven(shown, (12, 12)) == []


def test_another_map_keeps_the_selection_only_where_it_can() -> None:
    view = UserMapView()
    view.set_reactive(UserMapView.selected_anchor, 1)
    view.show_map(made(CORNERS, (1, 2)))
    assert view.selected_anchor == 1
    view.show_map(made(CORNERS, (1,)))
    assert view.selected_anchor is None
