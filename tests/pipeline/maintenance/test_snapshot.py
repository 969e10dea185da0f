"""A pulled store answers as the store does without items in prompts, label memory included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mta_cli.events import JobPlan, JobProgress, JobStarted
from mta_cli.pipeline.chat.answer import answer_question
from mta_cli.pipeline.maintenance.snapshot import publish_snapshot, pull_snapshot
from mta_cli.pipeline.models.installed import resolve_model
from mta_cli.pipeline.personalize.fuse import fuse_user
from mta_cli.pipeline.users.removal import remove_user
from mta_cli.pipeline.users.serve_keys import FILE_NAME, KeyFile
from store.registry import Registry
from tests.pipeline.town import TASK, finish, fuse_request
from tests.pipeline.world import World, asking


def published(reg: Registry, fleet: Path, *tasks: str) -> Any:
    return finish(publish_snapshot(reg, str(fleet), tasks, None, hash_names=False, dry_run=False))


def pulled(node: Path, fleet: Path) -> Any:
    return finish(pull_snapshot(node, str(fleet), None, 1.0, dry_run=False))


def answer(reg: Registry, user: str, task: str | None, history_items: int) -> dict[str, Any]:
    """An answer, without the time that it took."""
    chat = asking(history_items, task=task)
    result, _ = finish(answer_question(reg, resolve_model("tiny", "base"), user, "another film about a ship", chat))
    return {name: value for name, value in result.items() if name not in ("seconds", "loading_seconds")}


def test_labels_are_answered_with_the_same_numbers(banked: Registry, tmp_path: Path) -> None:
    finish(fuse_user(banked, banked.users.get("ida"), fuse_request()))
    bank = banked.banks.get("lamp-2")
    assert bank.kernel is not None and banked.neighbours.count_neighbours(bank.id) > 0
    published(banked, tmp_path / "fleet")
    pulled(tmp_path / "node", tmp_path / "fleet")
    expected = answer(banked, "ida", TASK.name, 0)
    assert expected["source"]["mode"] == "fused" and expected["labels"]
    with Registry.open(tmp_path / "node") as copy:
        for shown in (0, 2):  # a copy has no item to show
            assert answer(copy, "ida", TASK.name, shown) == expected
        assert answer(copy, "user0", TASK.name, 0) == answer(banked, "user0", TASK.name, 0)


def test_texts_are_answered_with_the_same_words(world: World, tmp_path: Path) -> None:
    published(world.reg, tmp_path / "fleet")
    pulled(tmp_path / "node", tmp_path / "fleet")
    with Registry.open(tmp_path / "node") as copy:
        for user in ("alice", "bob", "carol"):
            assert answer(copy, user, None, 2) == answer(world.reg, user, None, 0)
        assert answer(copy, "alice", None, 2)["source"]["mode"] == "adapted"


def test_a_dry_run_is_a_plan_and_a_job_tells_its_progress(world: World, tmp_path: Path) -> None:
    fleet = tmp_path / "fleet"
    _, seen = finish(publish_snapshot(world.reg, str(fleet), (), None, hash_names=False, dry_run=True))
    assert [type(event) for event in seen[:-1]] == [JobPlan] and not fleet.exists()
    for _, seen in (published(world.reg, fleet), pulled(tmp_path / "node", fleet)):
        (started,) = [event for event in seen if isinstance(event, JobStarted)]
        assert [event.done for event in seen if isinstance(event, JobProgress)] == list(
            range(1, (started.total or 0) + 1)
        )
        assert started.total == 5


def test_a_key_on_a_node_does_not_open_a_later_user_of_the_same_name(world: World, tmp_path: Path) -> None:
    """Also where both the removal and the new user come with one pull."""
    fleet, node, reg = tmp_path / "fleet", tmp_path / "node", world.reg
    published(reg, fleet)
    pulled(node, fleet)
    keys = KeyFile.read(node / FILE_NAME)
    keys.add("phone", ["alice", "bob", "carol"])
    keys.write(node / FILE_NAME)

    def opened() -> list[str]:
        found = KeyFile.read(node / FILE_NAME)
        return [name for name in ("alice", "bob", "carol") if found.allows(found.keys[0], name)]

    finish(remove_user(reg, "bob"))
    reg.users.add("bob")
    finish(remove_user(reg, "carol"))
    published(reg, fleet)
    pulled(node, fleet)
    assert opened() == ["alice"]
    reg.users.add("carol")
    published(reg, fleet)
    pulled(node, fleet)
    assert opened() == ["alice"]
