"""Bank: anchors and the map of people, on a small town's store."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from textual.widgets import DataTable

from mta_cli.tui.app import MtaApp
from mta_cli.tui.dialogs.basic import ErrorDialog
from mta_cli.tui.dialogs.form import FormDialog
from mta_cli.tui.screens import bank as module
from mta_cli.tui.screens.bank import BankScreen
from mta_cli.tui.screens.base import SCREEN_TITLES, BaseScreen
from mta_cli.tui.widgets.charts.user_map import UserMapView
from store.records import Profile
from store.registry import Registry
from tests.store import making
from tests.tui.driving import open_app, run, screen_text, settled, until


@pytest.fixture(autouse=True)
def this_screen_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other screens are empty ones."""
    others = {name: type(f"{title}Stub", (BaseScreen,), {"SCREEN_NAME": name}) for name, title in SCREEN_TITLES.items()}
    monkeypatch.setattr(MtaApp, "MODES", {**others, "bank": BankScreen})
    monkeypatch.setattr(MtaApp, "DEFAULT_MODE", "bank")


def table(app: MtaApp) -> DataTable[Any]:
    return app.screen.query_one("#anchors", DataTable)


def view(app: MtaApp) -> UserMapView:
    return app.screen.query_one(UserMapView)


def head(app: MtaApp) -> str:
    return screen_text(app).splitlines()[1].strip()


@pytest.mark.parametrize("size", [(80, 24), (200, 50)])
async def test_the_bank_its_anchors_and_the_map_are_shown(demo_store: Path, size: tuple[int, int]) -> None:
    async with open_app(demo_store, size) as (app, _):
        text = screen_text(app)
        assert head(app).startswith("Bank lamp-2 v1 · task lamp-2 · ready · 3 anchors · ")
        assert "11 users" in text and "A…C anchors" in text
        with Registry.open(demo_store) as reg:
            anchors = reg.banks.anchors(reg.banks.get("lamp-2").id)
        assert table(app).row_count == 3
        for anchor, sign in zip(anchors, "ABC", strict=True):
            row = next(line for line in text.splitlines() if f" {sign}  {anchor.user}" in line)
            assert f"{anchor.loss_first:.2f} → {anchor.loss_last:.2f}" in row
        assert "users when it was chosen" in text and "In 2 recipes" in text


async def test_the_verdicts_of_the_banks_ladder_are_shown(demo_store: Path) -> None:
    def row(step: str, below: str) -> dict[str, Any]:
        return {"step": step, "below": below, "value": 0.5, "low": 0.4, "high": 0.6, "p": 0.001, "verdict": "worth it"}

    memory = {**row("common+memory", "common"), "adds": "label memory", "p_holm": 0.001, "why": "", "detectable": 0.2}
    ladder = {"unit": "users", "units": 9, "questions": 90, "comparisons": [memory], "control": None}
    with Registry.open(demo_store) as reg:
        bank = reg.banks.get("lamp-2")
        lost = {**row("common+memory", "no-model"), "verdict": "worse"}
        reg.banks.set_bank_config(bank.id, {**bank.config, "ladder": {**ladder, "no_model": lost}})

    async with open_app(demo_store, (200, 50)) as (app, _):
        text = " ".join(screen_text(app).split())
        assert "worse than answers without a model" in text and "Label memory: worth it" in text


async def test_an_empty_store_says_what_to_type(empty_store: Path) -> None:
    async with open_app(empty_store) as (app, pilot):
        text = screen_text(app)
        assert "There is no bank yet." in text and "mta bank build --task TASK" in text
        await pilot.press("n")
        await until(pilot, lambda: isinstance(app.screen, FormDialog))
        assert "bank build" in screen_text(app)


async def test_table_and_map_select_the_same_anchor(demo_store: Path) -> None:
    async with open_app(demo_store) as (app, pilot):
        table(app).focus()
        await pilot.press("down")
        await settled(app, pilot)
        assert view(app).selected_anchor == 1
        await pilot.press("m", "left", "left", "left", "up", "up", "up")
        await settled(app, pilot)
        assert app.focused is view(app)
        assert table(app).cursor_row == view(app).selected_anchor


async def test_enter_chooses_the_anchors_user_and_shows_their_neighbours(demo_store: Path) -> None:
    async with open_app(demo_store) as (app, pilot):
        table(app).focus()
        await pilot.press("down", "enter")
        await settled(app, pilot)
        with Registry.open(demo_store) as reg:
            anchors = reg.banks.anchors(reg.banks.get("lamp-2").id)
        assert app.selected_user == anchors[1].user
        assert f"● {app.selected_user}  ○ nearest" in screen_text(app)


async def test_the_selected_users_recipe_is_lines_on_the_map_and_weights_below_it(demo_store: Path) -> None:
    async with open_app(demo_store) as (app, pilot):
        app.select_user("ida")
        await settled(app, pilot)
        with Registry.open(demo_store) as reg:
            bank = reg.banks.get("lamp-2")
            recipe = reg.recipes.get(reg.users.get("ida").id, "lamp-2", bank.id)
            places = [anchor.id for anchor in reg.banks.anchors(bank.id)]
        assert recipe is not None
        legend = next(line for line in screen_text(app).splitlines() if "● ida" in line and "users" in line)
        for share in recipe.shares:
            letter = "ABC"[places.index(share.anchor_id)]
            assert f"{letter} {share.weight:.2f}".replace(" 0.", " .") in legend
        plot = view(app)
        sheet = plot.draw_map(*plot.content_size)
        styles = {sheet.style_at(x, y) for x in range(sheet.width) for y in range(sheet.height)}
        assert any(name.startswith("link-") for name in styles)
        app.select_user("user0")
        await settled(app, pilot)
        sheet = plot.draw_map(*plot.content_size)
        assert not any("link" in sheet.style_at(x, y) for x in range(sheet.width) for y in range(sheet.height - 1))


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (200, 50)])
async def test_the_map_has_most_of_the_room(demo_store: Path, size: tuple[int, int]) -> None:
    async with open_app(demo_store, size) as (app, pilot):
        room = view(app).region.area
        assert room > 0.55 * size[0] * size[1]
        view(app).focus()
        await pilot.press("z")
        await pilot.pause()
        assert view(app).region.area > max(room, 0.9 * size[0] * size[1])


async def test_a_click_on_a_dot_chooses_that_user(demo_store: Path) -> None:
    async with open_app(demo_store) as (app, pilot):
        view(app).post_message(UserMapView.UserClicked(10))
        await pilot.pause()
        await settled(app, pilot)
        assert app.selected_user == "ida"
        view(app).post_message(UserMapView.UserClicked(999))
        await pilot.pause()
        await settled(app, pilot)
        assert app.selected_user == "ida"
        assert isinstance(app.screen, BankScreen)


async def test_somebody_without_a_profile_is_said_to_have_none(demo_store: Path) -> None:
    async with open_app(demo_store) as (app, pilot):
        app.select_user("kim")
        await settled(app, pilot)
        assert "kim has no profile" in screen_text(app)
        app.select_user("nobody of that name")
        await settled(app, pilot)
        assert "A…C anchors" in screen_text(app)


async def test_the_bank_of_the_selected_users_task_is_opened(demo_store: Path) -> None:
    with Registry.open(demo_store) as reg:
        making.bank(reg, [making.person(reg, "nora", "a mail", task="mails")], name="mails", key="m", task="mails")

    async with open_app(demo_store) as (app, pilot):
        for user, bank in (("nora", "mails"), ("ida", "lamp-2"), ("nora", "mails")):
            app.select_user(user)
            await settled(app, pilot)
            assert head(app).startswith(f"Bank {bank} v1")
        await pilot.press("b")
        await settled(app, pilot)
        app.screen.reload_if_current()  # type: ignore[attr-defined]
        await settled(app, pilot)
        assert head(app).startswith("Bank lamp-2 v1"), "another bank can be looked at for the same user"


def test_profiles_are_read_again_only_when_they_changed(demo_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mta_cli.pipeline.bank import user_map as pipeline

    drawn: list[int] = []
    plain = pipeline.compute_user_map
    monkeypatch.setattr(pipeline, "compute_user_map", lambda reg, bank: drawn.append(bank.id) or plain(reg, bank))

    async def drive() -> None:
        async with open_app(demo_store) as (app, pilot):
            app.select_user("jon")
            await settled(app, pilot)
            assert len(drawn) == 1
            with Registry.open(demo_store) as reg:
                kim, bank = reg.users.get("kim"), reg.banks.get("lamp-2")
                like = reg.profiles.get(1, "lamp-2", bank.embedder)
                assert like is not None
                reg.profiles.save_profile(replace(like, user_id=kim.id))
            app.select_user("kim")
            await settled(app, pilot)
            assert len(drawn) == 2
            assert "12 users" in screen_text(app) and "● kim" in screen_text(app)

    run(drive())


def test_older_banks_are_a_key_away(demo_store: Path) -> None:
    with Registry.open(demo_store) as reg:
        newer = making.bank(reg, [1, 2], name="other", task="lamp-2")

    async def drive() -> None:
        async with open_app(demo_store) as (app, pilot):
            assert head(app).startswith("Bank other v1 on sha256:bbbbbbbbbbbb (1 of 2) · ")
            await pilot.press("b")
            await settled(app, pilot)
            assert head(app).startswith("Bank lamp-2 v1 on tiny (2 of 2) · ")
            assert table(app).row_count == 3
            await pilot.press("b")
            await settled(app, pilot)
            assert head(app).startswith("Bank other v1")
            assert "No user has a profile yet." in screen_text(app)
            app.select_task("elsewhere")
            await settled(app, pilot)
            assert "There is no bank yet." in screen_text(app)
            app.select_task(None)
            await settled(app, pilot)
            assert head(app).startswith("Bank other v1")

    assert newer.task == "lamp-2"
    run(drive())


async def test_a_bank_that_is_being_built_shows_what_is_there(empty_store: Path) -> None:
    with Registry.open(empty_store, create=True) as reg:
        people = [making.person(reg, name, "words") for name in ("ann", "bo")]
        begun = reg.banks.get_or_create_bank("free", "k", "free", making.BASE, making.EMBEDDER, 0, {})
        reg.banks.plan_anchors(begun.id, [(people[0], 0, 2, 7)])

    async with open_app(empty_store) as (app, _):
        text = screen_text(app)
        assert "building · 1 anchors" in head(app)
        assert "not trained" in text and "In no recipe." in text


async def test_no_key_hurts_where_a_bank_has_no_anchor_yet(empty_store: Path) -> None:
    with Registry.open(empty_store, create=True) as reg:
        making.person(reg, "ann", "words")
        reg.banks.get_or_create_bank("free", "k", "free", making.BASE, making.EMBEDDER, 0, {})

    async with open_app(empty_store) as (app, pilot):
        table(app).focus()
        await pilot.press("up", "pagedown", "ctrl+end", "home", "enter")
        await settled(app, pilot)
        assert "building · 0 anchors" in head(app)


async def test_an_anchor_without_consent_is_stale_and_has_a_name(demo_store: Path) -> None:
    with Registry.open(demo_store) as reg:
        first = reg.banks.anchors(reg.banks.get("lamp-2").id)[0]
        assert first.user_id is not None
        reg.users.set_can_anchor(first.user_id, False)

    async with open_app(demo_store, (120, 50)) as (app, _):
        text = screen_text(app)
        assert f"{first.user} (stale)" in text and "forgotten" not in text
        assert "mta bank build --refresh." in text


async def test_a_forgotten_anchor_is_stale_and_cannot_be_chosen(demo_store: Path) -> None:
    with Registry.open(demo_store) as reg:
        first = reg.banks.anchors(reg.banks.get("lamp-2").id)[0]
        assert first.user_id is not None
        reg.users.forget(first.user_id)

    async with open_app(demo_store) as (app, pilot):
        text = screen_text(app)
        assert "stale (forgotten)" in text and "A (forgotten)" in text
        table(app).focus()
        await pilot.press("enter")
        await settled(app, pilot)
        assert app.selected_user is None


async def test_hostile_names_are_plain_text(empty_store: Path) -> None:
    name = "[red]x[/red] [@click=app.exit]"
    with Registry.open(empty_store, create=True) as reg:
        user = making.person(reg, name, "words")
        making.bank(reg, [user], name="[b]bank")
        reg.profiles.save_profile(Profile(user, "free", making.EMBEDDER, np.ones(4, "<f4").tobytes(), 1, 1))

    async with open_app(empty_store, (120, 30)) as (app, pilot):
        app.select_user(name)
        await settled(app, pilot)
        text = screen_text(app)
        assert "Bank [b]bank v1" in text
        assert text.count("[red]x[/red]") >= 2


async def test_profiles_that_cannot_be_read_are_a_dialog(empty_store: Path) -> None:
    with Registry.open(empty_store, create=True) as reg:
        users = [making.person(reg, name, "words") for name in ("ann", "bo")]
        making.bank(reg, users[:1])
        for user in users:
            reg.profiles.save_profile(Profile(user, "free", making.EMBEDDER, np.ones(3 + user, "<f4").tobytes(), 1, 1))

    async with open_app(empty_store) as (app, pilot):
        await settled(app, pilot)
        assert isinstance(app.screen, ErrorDialog)
        assert "differ in length" in screen_text(app)


def test_words_say_when_adapting_made_things_worse(demo_store: Path) -> None:
    from mta_cli.pipeline.bank.anchor_use import anchor_usage

    with Registry.open(demo_store) as reg:
        use = anchor_usage(reg, reg.banks.get("lamp-2"))[0]
    assert "fell by 0.250" in module._anchor_description(0, replace(use, heldout_gain=0.25, measured_users=4), 9).plain
    assert "rose by 0.250" in module._anchor_description(0, replace(use, heldout_gain=-0.25, measured_users=4), 9).plain
    assert "stayed as it was" in module._anchor_description(0, replace(use, heldout_gain=-1e-5), 9).plain
    assert module._anchor_description(0, replace(use, heldout_gain=None), None).plain.endswith("% of all weight.")
    alone = replace(use, anchor=replace(use.anchor, cluster_size=1), user_count=1)
    assert ": 1 user when it was chosen. In 1 recipe, with" in module._anchor_description(0, alone, None).plain
