"""Which task is meant where a user has items in several."""

from __future__ import annotations

import pytest

from mta_cli.errors import NotFound, UsageError
from mta_cli.pipeline.chat.conversation import add_exchange_as_item
from mta_cli.pipeline.user_weights import resolve_user_task
from tests.pipeline.world import World, items


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
