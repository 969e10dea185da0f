"""Results: evaluations that were stored, in all their views."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from textual.widgets import DataTable, Static, TabbedContent

from mta_cli.lab.report import wording
from mta_cli.pipeline.evaluation import ladder_text
from mta_cli.tui.app import MtaApp
from mta_cli.tui.dialogs.form import FormDialog
from mta_cli.tui.screens.base import SCREEN_TITLES, BaseScreen
from mta_cli.tui.screens.results import ResultsScreen
from store.registry import Registry
from tests.pipeline.documents import FEW, HOSTILE, document, hostile, with_ladder
from tests.tui.driving import open_app, screen_text, settled, until


@pytest.fixture(autouse=True)
def this_screen_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other screens are empty ones."""
    others = {name: type(f"{title}Stub", (BaseScreen,), {"SCREEN_NAME": name}) for name, title in SCREEN_TITLES.items()}
    monkeypatch.setattr(MtaApp, "MODES", {**others, "results": ResultsScreen})
    monkeypatch.setattr(MtaApp, "DEFAULT_MODE", "results")


def store(root: Path, *documents: dict[str, Any]) -> Path:
    """A store in which these documents are evaluations, in this order."""
    with Registry.open(root, create=True) as reg:
        for one in documents:
            reg.evaluations.add_evaluation(one["task"], None, {"shots": one.get("shots")}, one)
    return root


def rows(app: MtaApp, *words: str) -> list[str]:
    """The rows of the screen that hold all these words."""
    return [row for row in screen_text(app).splitlines() if all(word in row for word in words)]


async def press(app: MtaApp, pilot: Any, *keys: str) -> None:
    await pilot.press(*keys)
    await settled(app, pilot)


async def test_an_empty_store_says_what_to_type(empty_store: Path) -> None:
    async with open_app(empty_store) as (app, pilot):
        assert "There are no evaluations yet." in screen_text(app)
        assert "mta eval run --task TASK" in screen_text(app)
        await pilot.press("e")
        await until(pilot, lambda: isinstance(app.screen, FormDialog))
        assert "eval run" in screen_text(app)


async def test_the_ladder_is_the_first_view_with_the_figures_of_the_document(empty_store: Path) -> None:
    made, bare = with_ladder(), document()

    async with open_app(store(empty_store, bare, made), (120, 50)) as (app, pilot):
        assert app.screen.query_one(TabbedContent).active == "ladder"
        assert rows(app, *ladder_text.table_columns(made["ladder"]))
        for cells in ladder_text.table_rows(made["ladder"]):
            assert rows(app, *cells)
        title, rule, *steps = str(app.screen.query_one("#step-table", Static).content).splitlines()
        place = title.index("verdict")
        assert len(rule) >= place and {line[place - 1] for line in steps if len(line) > place} == {" "}
        verdicts = app.screen.query_one("#verdicts", Static)
        assert str(verdicts.content) == "\n".join(ladder_text.verdict_lines(made["ladder"], wording.MORE_EVIDENCE))
        assert verdicts.ALLOW_SELECT and app.screen.query_one("#step-table").ALLOW_SELECT
        await press(app, pilot, "down")
        assert rows(app, "Fewer than two steps of the ladder were measured")
        assert not rows(app, "common+memory")


@pytest.mark.parametrize("size", [(80, 24), (200, 50)])
async def test_methods_have_bars_from_the_best_to_the_worst(empty_store: Path, size: tuple[int, int]) -> None:
    async with open_app(store(empty_store, document()), size) as (app, pilot):
        await press(app, pilot, "i")
        bars = rows(app, "├", "┤")
        assert [row.split()[0] for row in bars] == ["oppu", "mta", "stack", "base"]
        assert bars[0].rstrip(" ▁▂▃▄▅▆▇█").endswith("0.520 [0.470, 0.570]")
        at = bars[1].index("●")
        assert bars[3][at] == "┊"
        assert rows(app, "138 users with 333 held-out queries")
        assert rows(app, *wording.describe_design(document()).split()[-2:]), "the whole design is seen"


async def test_the_list_names_each_evaluations_best_method(empty_store: Path) -> None:
    made = [document(), document({"mta": 0.4, "base": 0.9}, metric="mae", task="lamp-3")]

    async with open_app(store(empty_store, *made)) as (app, _):
        second, first = rows(app, "2  lamp-3")[0], rows(app, "1  lamp-2")[0]
        assert "mta" in second and "MAE 0.400" in second and "77 kB" in second
        assert "oppu" in first and "accuracy 0.520" in first and "1.6 MB" in first


async def test_differences_have_verdicts_in_words(empty_store: Path) -> None:
    async with open_app(store(empty_store, document())) as (app, pilot):
        await press(app, pilot, "v")
        assert rows(app, "base", "+0.300", "better")
        assert rows(app, "stack", "+0.030", "not shown")
        assert rows(app, "mta minus each method")
        await press(app, pilot, "m", "m")
        assert rows(app, "gold log-likelihood (nats)")


async def test_where_less_is_better_a_lower_reference_is_better(empty_store: Path) -> None:
    made = document({"mta": 0.4, "base": 0.9}, metric="mae", task="lamp-3")

    async with open_app(store(empty_store, made)) as (app, pilot):
        await press(app, pilot, "v")
        assert rows(app, "base", "-0.500", "better")


async def test_numbers_hold_every_metric_and_cost(empty_store: Path) -> None:
    async with open_app(store(empty_store, document())) as (app, pilot):
        await press(app, pilot, "n")
        assert rows(app, "method", "accuracy", "macro-F1", "bytes", "sec.", "tok/s")
        assert rows(app, "mta", "0.500", "0.440", "-1.500", "77 kB", "0.00", "900")


async def test_a_likelihood_that_is_the_main_metric_is_shown_once(empty_store: Path) -> None:
    made = {**document(), "metric": "gold_loglik"}  # as `mta quick` measures texts
    async with open_app(store(empty_store, made), (120, 30)) as (app, pilot):
        await press(app, pilot, "n")
        (heads,) = rows(app, "method", "bytes", "sec.")
        assert heads.count("gold log-likelihood") == 1


async def test_memory_has_each_method_with_each_label_memory(empty_store: Path) -> None:
    values = {"mta": 0.5, "mta+off": 0.41, "stack": 0.42, "stack+habit": 0.43, "base": 0.1}
    memory = {"mta": "neighbours", "mta+off": "off", "stack": "off", "stack+habit": "habit", "base": "off"}
    made = [document(values), document(values, memory=memory)]

    async with open_app(store(empty_store, *made), (110, 30)) as (app, pilot):
        await press(app, pilot, "y")
        assert rows(app, "method", "memory off", "memory habit", "memory neighbours")
        assert rows(app, "mta", "0.410 [", "–", "0.500 [") and rows(app, "stack", "0.420 [", "0.430 [", "–")
        assert not rows(app, "base", "0.100 [")
        await press(app, pilot, "v")
        assert rows(app, "mta or mta+off minus each method") and rows(app, "stack", "(mta+off)")
        await press(app, pilot, "y", "m", "m")
        assert rows(app, "mta", "-1.590 [", "–", "-1.500 [")
        await press(app, pilot, "m")
        await press(app, pilot, "down")
        assert rows(app, "mta eval run --memory all") and not rows(app, "memory habit")


async def test_tasks_stand_beside_each_other_with_their_newest_evaluations(empty_store: Path) -> None:
    made = [
        document({"mta": 0.11, "base": 0.1}),
        document(),
        document({"mta": 0.4, "only-here": 0.9}, metric="mae", task="lamp-3"),
    ]

    async with open_app(store(empty_store, *made), (110, 30)) as (app, pilot):
        await press(app, pilot, "t")
        assert rows(app, "method", "lamp-3 MAE", "lamp-2 accuracy")
        assert rows(app, "mta", "0.400", "0.500") and not rows(app, "0.110 [")
        assert "–" in rows(app, "only-here", "0.900")[0]
        assert "–" in rows(app, "oppu", "0.520 [")[0]


async def test_brackets_turn_the_views(empty_store: Path) -> None:
    async with open_app(store(empty_store, document())) as (app, pilot):
        views, seen = app.screen.query_one(TabbedContent), []
        for _ in range(6):
            await press(app, pilot, "right_square_bracket")
            seen.append(views.active)
        assert seen == ["methods", "memory", "differences", "numbers", "tasks", "ladder"]
        await press(app, pilot, "left_square_bracket")
        assert views.active == "tasks"


async def test_another_evaluation_is_shown_when_the_cursor_is_on_it(empty_store: Path) -> None:
    made = [document({"mta": 0.5, "older": 0.4}), document({"mta": 0.5, "newer": 0.4})]

    async with open_app(store(empty_store, *made)) as (app, pilot):
        await press(app, pilot, "i")
        assert rows(app, "newer", "├") and not rows(app, "older", "├")
        app.screen.query_one("#evaluations", DataTable).focus()
        await press(app, pilot, "down")
        assert rows(app, "older", "├") and not rows(app, "newer", "├")
        store(empty_store, document({"mta": 0.5, "newest": 0.4}))
        app.select_task(None)
        await settled(app, pilot)
        assert rows(app, "older", "├"), "the selected one stays selected"
        app.select_task("lamp-9")
        await settled(app, pilot)
        assert "There are no evaluations yet." in screen_text(app)


async def test_the_metric_that_was_asked_for_stays_where_it_is_known(empty_store: Path) -> None:
    made = [document(), document({"mta": 0.4, "base": 0.9}, metric="mae", task="lamp-3")]

    async with open_app(store(empty_store, *made)) as (app, pilot):
        assert rows(app, "MAE (lower is better).")
        await press(app, pilot, "m")
        assert rows(app, "RMSE (lower is better).")
        app.screen.query_one("#evaluations", DataTable).focus()
        await press(app, pilot, "down")
        assert rows(app, "accuracy. 138 users")


async def test_an_unfinished_evaluation_says_how_to_go_on(empty_store: Path) -> None:
    with Registry.open(empty_store, create=True) as reg:
        reg.evaluations.get_or_create_evaluation("k", "lamp-2", {"shots": 5}, [])

    async with open_app(empty_store) as (app, pilot):
        assert rows(app, "lamp-2", "interrupted")
        assert "This evaluation has no result" in screen_text(app)
        await press(app, pilot, "m", "v", "n", "t")
        assert "This evaluation has no result" in screen_text(app)


async def test_a_finished_one_is_shown_before_those_that_run(empty_store: Path) -> None:
    store(empty_store, document())
    with Registry.open(empty_store) as reg:
        reg.evaluations.get_or_create_evaluation("k", "lamp-2", {"shots": 5}, [])

    async with open_app(empty_store) as (app, pilot):
        await press(app, pilot, "i")
        assert rows(app, "oppu", "├")
        app.screen.query_one("#evaluations", DataTable).focus()
        await press(app, pilot, "up")
        assert not rows(app, "├")
        await press(app, pilot, "down")
        assert rows(app, "oppu", "├")


async def test_what_a_document_lacks_is_a_dash(empty_store: Path) -> None:
    made = document(FEW)
    made["methods"]["base"] = {}
    made["costs"] = {"mta": {"bytes": None}}
    made["differences"] = []
    del made["power"]

    async with open_app(store(empty_store, made)) as (app, pilot):
        for key in "livnt":
            await press(app, pilot, key)
            assert isinstance(app.screen, ResultsScreen)
        await press(app, pilot, "v")
        assert "No differences were computed in this metric." in screen_text(app)


async def test_hostile_documents_are_plain_text(empty_store: Path) -> None:
    async with open_app(store(empty_store, hostile()), (160, 40)) as (app, pilot):
        for key in "ivnt":
            await press(app, pilot, key)
            assert isinstance(app.screen, ResultsScreen)
            assert "\x1b" not in screen_text(app)
        await press(app, pilot, "n")
        assert HOSTILE[0] in screen_text(app) and HOSTILE[1] in screen_text(app)
