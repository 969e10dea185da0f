"""Which task is meant where a user has items in several."""

from __future__ import annotations

from pathlib import Path

import pytest

from mta_cli.errors import NotFound, UsageError
from mta_cli.pipeline.chat.conversation import add_exchange_as_item
from mta_cli.pipeline.user_weights import default_task, resolve_user_task
from mta_cli.tui.dialogs.job_forms import guess_task
from store.records import Recipe
from store.registry import Registry
from tests.pipeline.world import World, items
from tests.store.making import bank, person


def test_a_kept_exchange_asks_nobody_for_a_task(world: World) -> None:
    reg, carol = world.reg, world.carol
    with pytest.raises(NotFound, match="no items yet"):
        resolve_user_task(reg, carol, None)
    reg.items.append_items(carol.id, items("lamp-2", 3, "film"))
    assert resolve_user_task(reg, carol, None) == "lamp-2"
    reg.items.append_items(carol.id, items("lamp-4", 1, "news"))
    with pytest.raises(UsageError, match="several tasks: lamp-2, lamp-4"):
        resolve_user_task(reg, carol, None)
    add_exchange_as_item(reg, carol, "free", "who?", "me")
    assert resolve_user_task(reg, carol, None) == "free", "the only one with a bank"
    assert resolve_user_task(reg, carol, "lamp-4") == "lamp-4"
    bank = reg.banks.get_or_create_bank("tags", "k", "lamp-2", world.entry.fingerprint, "e", 0, {})
    reg.banks.mark_bank_ready(bank.id, 1, 1.0)
    with pytest.raises(UsageError, match="several tasks"):
        resolve_user_task(reg, carol, None)


def test_a_removed_task_is_meant_only_by_name(world: World) -> None:
    reg, carol = world.reg, world.carol
    for name, count in (("letters", 4), ("lamp-2", 3)):
        reg.items.append_items(carol.id, items(name, count, "film"))
    reg.tasks.save_task("letters", 'name = "letters"')
    with pytest.raises(UsageError, match="several tasks: letters, lamp-2"):
        resolve_user_task(reg, carol, None)
    reg.tasks.remove("letters")
    assert resolve_user_task(reg, carol, None) == "lamp-2" and guess_task(reg, carol.name) == "lamp-2"
    assert resolve_user_task(reg, carol, "letters") == "letters"


def test_a_newer_model_on_another_base_decides_nothing(tmp_path: Path) -> None:
    with Registry.open(tmp_path / "store", create=True) as reg:
        ann = person(reg, "ann", "a")
        for task, base, when in (("lamp-2", "one", "2020"), ("lamp-3", "one", "2021"), ("lamp-2", "other", "2022")):
            made = bank(reg, [ann], name=f"{task} {base}", task=task, base=base)
            reg.recipes.save_recipe(Recipe(ann, task, made.id, "evidence", (), 0))
            reg._db.execute_write("UPDATE recipes SET created = ? WHERE bank_id = ?", (when, made.id))
        user = reg.users.get("ann")
        assert default_task(reg, user, None, "one") == "lamp-3" and default_task(reg, user, None, "other") == "lamp-2"
