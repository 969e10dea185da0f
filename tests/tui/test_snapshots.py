"""Each screen as plain text beside this file. Nothing in it depends on a model's numbers.

`MTA_TEST_SNAPSHOTS=write` writes them anew; read the difference before it is committed.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from textual.pilot import Pilot

from mta_cli.errors import BadInput
from mta_cli.tui.app import MtaApp
from store.registry import Registry
from tests.pipeline import town
from tests.tui.driving import open_app, run, screen_text, settled, until

FOLDER = Path(__file__).parent / "snapshots"
Walk = Callable[[MtaApp, Pilot[None]], Awaitable[None]]


@pytest.fixture
def peopled_store(empty_store: Path) -> Path:
    """Twelve people with histories and held-out queries, and no bank."""
    with Registry.open(empty_store, create=True) as reg:
        town.people(reg)
    return empty_store


@pytest.fixture(autouse=True)
def users_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """The window opens in Users."""
    monkeypatch.setattr(MtaApp, "DEFAULT_MODE", "users")


def keys(*pressed: str) -> Walk:
    """Press keys one after another."""

    async def walk(app: MtaApp, pilot: Pilot[None]) -> None:
        for key in pressed:
            await pilot.press(key)
            await settled(app, pilot)

    return walk


def shows(key: str, words: str) -> Walk:
    """Press a key and wait for words."""

    async def walk(app: MtaApp, pilot: Pilot[None]) -> None:
        app.screen.set_focus(None)
        await pilot.press(key)
        await until(pilot, lambda: words in screen_text(app))

    return walk


async def trouble(app: MtaApp, pilot: Pilot[None]) -> None:
    """An error with faults."""
    app.show_error(
        BadInput("people.csv: 2 faults; nothing was imported", hint="correct the file", faults=("row 3", "row 7"))
    )
    await settled(app, pilot)


async def question(app: MtaApp, pilot: Pilot[None]) -> None:
    """A removal that asks first."""
    await pilot.press("d")
    await until(pilot, lambda: "Yes" in screen_text(app))


def compared(name: str, shown: str) -> None:
    """The screen is what the snapshot says."""
    path = FOLDER / f"{name}.txt"
    if os.environ.get("MTA_TEST_SNAPSHOTS") == "write":
        FOLDER.mkdir(exist_ok=True)
        path.write_text(shown + "\n", encoding="utf-8")
    assert shown + "\n" == path.read_text(encoding="utf-8")


def look(store: Path, walk: Walk, size: tuple[int, int]) -> str:
    """The screen after a walk."""

    async def drive() -> str:
        async with open_app(store, size) as (app, pilot):
            await walk(app, pilot)
            return screen_text(app)

    return run(drive())


@pytest.mark.parametrize("screen", range(7))
def test_a_screen_of_an_empty_store_says_how_to_begin(empty_store: Path, screen: int) -> None:
    compared(f"empty-{screen}", look(empty_store, keys(str(screen)), (80, 24)))


@pytest.mark.parametrize("size", [(80, 24), (130, 30)])
def test_people_without_a_bank(peopled_store: Path, size: tuple[int, int]) -> None:
    compared(f"people-{size[0]}", look(peopled_store, keys("down"), size))


@pytest.mark.parametrize(
    ("name", "walk"),
    [
        ("help", shows("f1", "Keys")),
        ("filter", keys("/", "j", "o")),
        ("compare", keys("enter", "2")),
        ("form", shows("a", "user adapt")),
        ("trouble", trouble),
        ("question", question),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_opens_over_people(peopled_store: Path, name: str, walk: Walk) -> None:
    compared(name, look(peopled_store, walk, (80, 24)))
