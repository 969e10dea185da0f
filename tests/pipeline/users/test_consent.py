"""Consent: a user without it leaves no trace in anything that serves others, and a withdrawal marks everything that
did.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mta_cli.engine.text.tasks import BUILTIN_TASKS
from mta_cli.pipeline.bank.build import bank_key, build_bank
from mta_cli.pipeline.bank.contributors import find_contributors
from mta_cli.pipeline.bank.refresh import refresh_bank
from mta_cli.pipeline.personalize.adapt import adapt_users
from mta_cli.pipeline.personalize.fuse import fuse_user
from mta_cli.pipeline.requests import AdaptRequest
from mta_cli.pipeline.users.add import add_user
from mta_cli.pipeline.users.consent import set_consent
from mta_cli.pipeline.users.dependents import banks_pooling_user
from mta_cli.pipeline.users.import_file import import_file
from mta_cli.pipeline.users.removal import remove_items, remove_user
from store.records import NewItem
from store.registry import Registry
from tests.pipeline import town
from tests.pipeline.histories import imported, rows, run, write
from tests.pipeline.town import CPU, QUICK, SHORT, TASK, bank_request, built, finish, fuse_request, notes
from tests.trust.tally import tally


@pytest.fixture(autouse=True)
def quick_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """The task by its name is the quick one of `town`."""
    monkeypatch.setitem(BUILTIN_TASKS, TASK.name, TASK)


def shy(reg: Registry) -> int:
    """A user with a long history who does not consent; returns their number."""
    user = reg.users.add("shy", can_anchor=False)
    words = [NewItem(f"s{n}", "lamp-2", f"film {n} about a secret heron", "dark comedy") for n in range(40)]
    reg.items.append_items(user.id, words)
    return user.id


def served(reg: Registry) -> tuple[Any, ...]:
    """Everything of the bank that serves others: adapters, label rates, neighbours and their kernel."""
    bank = reg.banks.get("lamp-2")
    digests = [bank.task_adapter, *(anchor.digest for anchor in reg.banks.anchors(bank.id))]
    neighbours = [(one.output, one.vector) for one in reg.neighbours.consenting_neighbours(bank.id)]
    return bank.key, digests, bank.config, bank.kernel, neighbours


def test_whoever_withholds_it_changes_nothing_that_serves_others(peopled: Registry, tmp_path: Path) -> None:
    """Task adapter, anchors, label rates and neighbours: the same bytes whether that person is there or not."""
    with Registry.open(tmp_path / "without", create=True) as other:
        town.people(other)
        built(other)
        expected = served(other)
    number = shy(peopled)
    built(peopled)
    assert served(peopled) == expected and expected[4]
    tally(
        "adapters, rates and neighbours of a bank beside one who withholds it",
        "same bytes",
        len(expected[1]) + len(expected[4]) + 3,
    )
    assert "shy" not in {c.user.name for c in find_contributors(peopled, bank_request())}
    peopled.users.set_can_anchor(number, True)
    pool = find_contributors(peopled, bank_request())
    assert "shy" in {c.user.name for c in pool} and bank_key(peopled, bank_request(), pool) != expected[0]


def test_taking_it_back_marks_the_anchor_and_names_banks_and_people(banked: Registry) -> None:
    first, *others = banked.banks.anchors(banked.banks.get("lamp-2").id)
    for name in SHORT:
        finish(fuse_user(banked, banked.users.get(name), fuse_request(weights="uniform", top_k=1)))
        finish(adapt_users(banked, AdaptRequest([banked.users.get(name)], QUICK, fuse_request())))
    resting = [n for n in SHORT if banked.recipes.of_user(banked.users.get(n).id)[0].shares[0].anchor_id == first.id]
    result, seen = finish(set_consent(banked, str(first.user), False))
    assert result == {
        "user": first.user,
        "can_anchor": False,
        "changed": True,
        "stale_anchors": [{"bank": "lamp-2", "version": 1, "anchor": first.id}],
        "resting": [{"user": name, "bank": "lamp-2", "version": 1} for name in resting],
        "task_adapters": [{"bank": "lamp-2", "version": 1}],
    }
    said = "\n".join(notes(seen))
    assert "the anchor of lamp-2 v1 that was trained on" in said and resting[0] in said
    assert "mta bank build --task lamp-2 --refresh" in said and "task adapters" in said
    now = banked.banks.anchors(first.bank_id)
    assert [anchor.stale for anchor in now] == [True, False, False] and now[0].user == first.user and now[1:] == others


def test_a_refresh_replaces_them(banked: Registry) -> None:
    first = banked.banks.anchors(banked.banks.get("lamp-2").id)[0]
    finish(set_consent(banked, str(first.user), False))
    result, _ = finish(refresh_bank(banked, "lamp-2", CPU))
    assert len(result["replaced"]) == 1 and first.user not in {anchor["user"] for anchor in result["anchors"]}
    assert banked.users.get(str(first.user)) and banked.check_integrity() == []
    tally("consent taken back", "replaced by a refresh")


def test_until_then_nobody_new_rests_on_them(banked: Registry) -> None:
    first = banked.banks.anchors(banked.banks.get("lamp-2").id)[0]
    finish(set_consent(banked, str(first.user), False))
    recipe, _ = finish(fuse_user(banked, banked.users.get("ida"), fuse_request(weights="uniform", top_k=3)))
    assert len(recipe["anchors"]) == 2 and first.user not in {anchor["user"] for anchor in recipe["anchors"]}
    banked.recipes.remove(banked.users.get("ida").id, "lamp-2", first.bank_id)
    finish(adapt_users(banked, AdaptRequest([banked.users.get("ida")], QUICK, fuse_request())))
    shares = banked.recipes.of_user(banked.users.get("ida").id)[0].shares
    assert first.id not in {share.anchor_id for share in shares}
    tally("consent taken back", "in no new recipe", 2)


def test_their_items_are_no_neighbours_from_then_on(banked: Registry) -> None:
    bank, user = banked.banks.get("lamp-2"), banked.users.get("user0")
    assert user.id in {one.user_id for one in banked.neighbours.consenting_neighbours(bank.id)}
    before = banked.neighbours.count_neighbours(bank.id)
    finish(set_consent(banked, "user0", False))
    assert user.id not in {one.user_id for one in banked.neighbours.consenting_neighbours(bank.id)}
    assert banked.neighbours.count_neighbours(bank.id) == before - 10
    tally("neighbours whose person took it back", "out at once", before - banked.neighbours.count_neighbours(bank.id))


def test_a_removal_names_the_task_adapter_also_after_consent_was_taken_back(banked: Registry) -> None:
    """What it was trained on is kept by key: neither consent nor a clock that was set back hides it."""
    user = banked.users.get("user0")
    banked._db.execute_write("UPDATE banks SET created = '1999-01-01T00:00:00+00:00'")
    finish(set_consent(banked, user.name, False))
    late = banked.users.add("late")
    assert [bank.name for bank in banks_pooling_user(banked, banked.users.get("user0"))] == ["lamp-2"]
    assert banks_pooling_user(banked, late) == []
    result, _ = finish(remove_user(banked, "user0"))
    assert result["task_adapters"] == [{"bank": "lamp-2", "version": 1}]
    assert banked._db.fetch_value("SELECT count(*) FROM task_adapter_users WHERE user_id = ?", (user.id,)) == 0


def test_given_again_nothing_of_theirs_is_stale(banked: Registry) -> None:
    name = str(banked.banks.anchors(banked.banks.get("lamp-2").id)[0].user)
    finish(set_consent(banked, name, False))
    result, seen = finish(set_consent(banked, name, True))
    assert result["changed"] and result["stale_anchors"] == result["task_adapters"] == []
    assert not any(anchor.stale for anchor in banked.banks.anchors(banked.banks.get("lamp-2").id))
    assert notes(seen) == [f"{name} may be an anchor."]
    assert finish(set_consent(banked, name, True))[0]["changed"] is False


def test_given_again_an_anchor_of_a_removed_item_stays_stale(banked: Registry) -> None:
    bank = banked.banks.get("lamp-2")
    anchor = banked.banks.anchors(bank.id)[0]
    name, user = str(anchor.user), banked.users.get(str(anchor.user))
    last = banked.items.recent_items(user.id, "lamp-2")[-1]
    finish(remove_items(banked, name, [last.key], task="lamp-2"))
    for can_anchor in (True, False, True):
        finish(set_consent(banked, name, can_anchor))
        assert [one.id for one in banked.banks.anchors(bank.id) if one.stale] == [anchor.id]
    finish(refresh_bank(banked, "lamp-2", CPU))
    assert anchor.id not in [one.id for one in banked.banks.anchors(bank.id)]


def test_a_bank_of_an_evaluation_serves_nobody_and_stays(peopled: Registry) -> None:
    numbers: list[int] = []
    finish(build_bank(peopled, replace(bank_request(), purpose="eval", on_bank_started=numbers.append)))
    name = str(peopled.banks.anchors(numbers[0])[0].user)
    assert finish(set_consent(peopled, name, False))[0]["stale_anchors"] == []
    assert not any(anchor.stale for anchor in peopled.banks.anchors(numbers[0]))


def test_whoever_has_too_few_items_or_came_later_is_in_no_task_adapter(
    banked: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert finish(set_consent(banked, "ida", False))[0]["task_adapters"] == []
    monkeypatch.setattr("store.tables.users.utc_now", lambda: "2999-01-01T00:00:00+00:00")
    late = banked.users.add("late")
    banked.items.append_items(late.id, [NewItem(f"l{n}", "lamp-2", f"film {n}", "action") for n in range(10)])
    assert finish(set_consent(banked, "late", False))[0]["task_adapters"] == []
    assert finish(set_consent(banked, "user4", False))[0]["task_adapters"] != []


def test_an_import_that_takes_it_back_says_what_is_stale(banked: Registry, tmp_path: Path) -> None:
    name = str(banked.banks.anchors(banked.banks.get("lamp-2").id)[0].user)
    path = write(tmp_path / "a.jsonl", rows(name, 1, id="new"))
    _, seen = finish(import_file(banked, "jsonl", path, can_anchor=False))
    assert any("is stale" in text for text in notes(seen)) and any("--refresh" in text for text in notes(seen))
    assert not banked.users.get(name).can_anchor
    _, seen = finish(import_file(banked, "jsonl", path, can_anchor=False))
    assert not any("stale" in text for text in notes(seen)), "nothing changed"


def asking(answer: bool) -> tuple[list[int], Callable[[int], bool]]:
    """A question that is always answered so, and of how many people it was asked."""
    asked: list[int] = []

    def ask(people: int) -> bool:
        asked.append(people)
        return answer

    return asked, ask


@pytest.mark.parametrize("answer", [True, False])
def test_an_import_asks_once_and_only_about_new_people(tmp_path: Path, answer: bool) -> None:
    with Registry.open(tmp_path / "store", create=True) as reg:
        imported(reg, "jsonl", write(tmp_path / "a.jsonl", rows("ann")))
        asked, ask = asking(answer)
        imported(reg, "jsonl", write(tmp_path / "b.jsonl", rows("ann") + rows("bob") + rows("cy")), ask=ask)
        assert asked == [2]
        assert [reg.users.get(name).can_anchor for name in ("ann", "bob", "cy")] == [True, answer, answer]
        tally("new people at an import", "as was answered", 2)
        imported(reg, "jsonl", tmp_path / "b.jsonl", ask=ask)
        imported(reg, "jsonl", write(tmp_path / "c.jsonl", rows("dee")), ask=ask, can_anchor=False)
        imported(reg, "jsonl", write(tmp_path / "d.jsonl", rows("eve")), ask=ask, dry_run=True)
        assert asked == [2] and not reg.users.get("dee").can_anchor


@pytest.mark.parametrize("answer", [True, False])
def test_adding_somebody_asks_about_them(tmp_path: Path, answer: bool) -> None:
    with Registry.open(tmp_path / "store", create=True) as reg:
        asked, ask = asking(answer)
        run(add_user(reg, "ann", ask=ask))
        run(add_user(reg, "bob", history=write(tmp_path / "b.jsonl", rows(None)), ask=ask))
        run(add_user(reg, "bob", history=tmp_path / "b.jsonl", ask=ask))
        run(add_user(reg, "cy", ask=ask, can_anchor=True))
        assert asked == [1, 1]
        assert [reg.users.get(name).can_anchor for name in ("ann", "bob", "cy")] == [answer, answer, True]


def test_a_question_that_is_not_answered_leaves_nothing(tmp_path: Path) -> None:
    def nobody(people: int) -> bool:
        raise KeyboardInterrupt

    with Registry.open(tmp_path / "store", create=True) as reg:
        with pytest.raises(KeyboardInterrupt):
            imported(reg, "jsonl", write(tmp_path / "a.jsonl", rows("ann")), ask=nobody)
        assert reg.users.names() == [] and reg.count_rows()["items"] == 0
