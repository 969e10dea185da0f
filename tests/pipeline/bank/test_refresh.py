"""Refreshing a bank: only stale anchors are replaced, by similar users, and the users who depended on them are
named.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mta_cli.engine.retrieval.anchor_screening import ScreeningFinding
from mta_cli.engine.text.tasks import BUILTIN_TASKS
from mta_cli.errors import BadInput, Command, NotFound, StoreBusy, UsageError
from mta_cli.events import ArtifactSaved, Event, JobPlan, JobProgress, JobStarted
from mta_cli.options import MachineOptions
from mta_cli.pipeline.anchors import SCREENING_KEY, UNSCREENED_KEY
from mta_cli.pipeline.bank import screening
from mta_cli.pipeline.bank.build import build_bank
from mta_cli.pipeline.bank.ladder import LADDER_KEY
from mta_cli.pipeline.bank.refresh import refresh_bank
from mta_cli.pipeline.bank.verify import verify_bank
from mta_cli.pipeline.maintenance.resume import list_unfinished_jobs
from mta_cli.pipeline.memory.knn import FIT_IS_DUE, FITTED_ITEMS_KEY, LABEL_RATES_KEY, MIXTURE_WEIGHTS_KEY
from mta_cli.pipeline.personalize.adapt import adapt_users
from mta_cli.pipeline.personalize.fuse import fuse_user
from mta_cli.pipeline.requests import AdaptRequest
from mta_cli.pipeline.users.consent import set_consent
from store.records import REFUSED_USERS_KEY, Anchor, NewItem
from store.registry import Registry
from tests.pipeline.town import (
    CPU,
    QUICK,
    SHORT,
    TAGS,
    TASK,
    bank_request,
    built,
    finish,
    fuse_request,
    give_core,
    make_store,
    notes,
)

HERE = MachineOptions(device="cpu", dtype="bfloat16", seed=7)  # all but the device must come from the bank


@pytest.fixture(autouse=True)
def quick_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """The task by its name is the quick one of `town`."""
    monkeypatch.setitem(BUILTIN_TASKS, TASK.name, TASK)


def add_own_items(reg: Registry) -> None:
    """Something of their own for each of `town`, so that no two meta-LoRAs are the same."""
    for number in range(9):
        own = NewItem("own", "lamp-2", f"{'abcdefghi'[number] * 5} alone", TAGS[number % 3], "2020-01-01")
        reg.items.append_items(reg.users.get(f"user{number}").id, [own])


@pytest.fixture
def peopled(peopled: Registry) -> Registry:
    add_own_items(peopled)
    return peopled


@pytest.fixture(scope="module")
def banked_store(tmp_path_factory: pytest.TempPathFactory, tiny_base_path: Path, tiny_embedder_path: Path) -> Path:
    root = tmp_path_factory.mktemp("refresh")
    return make_store(root, tiny_base_path, tiny_embedder_path, add_own_items, built)


def refreshed(reg: Registry, **options: Any) -> tuple[dict[str, Any], list[Event]]:
    return finish(refresh_bank(reg, "lamp-2", HERE, **options))


def anchors(reg: Registry) -> list[Anchor]:
    return reg.banks.anchors(reg.banks.get("lamp-2").id)


def forget(reg: Registry, *places: int) -> list[str]:
    """Forget the people of some anchors; returns their names."""
    names = [str(anchor.user) for place, anchor in enumerate(anchors(reg)) if place in places]
    for name in names:
        reg.users.forget(reg.users.get(name).id)
    return names


def stopped(events: Iterator[Event], steps: int) -> None:
    """Close a job's generator after so many steps of training."""
    taken = 0
    for event in events:
        taken += isinstance(event, JobProgress) and event.loss is not None
        if taken == steps:
            break
    events.close()  # type: ignore[attr-defined]


def digests(reg: Registry) -> list[str | None]:
    return sorted(str(anchor.digest) for anchor in anchors(reg))


def test_only_the_stale_anchor_is_trained_and_the_rest_is_untouched(peopled: Registry) -> None:
    before = built(peopled)
    old = anchors(peopled)
    key = peopled.banks.get("lamp-2").key
    (gone,) = forget(peopled, 1)
    result, seen = refreshed(peopled)
    assert [event.kind for event in seen if isinstance(event, ArtifactSaved)] == ["anchor", "bank"]
    now = anchors(peopled)
    assert [a for a in now if a.id in {old[0].id, old[2].id}] == [old[0], old[2]]
    (new,) = [anchor for anchor in now if anchor.id not in {a.id for a in old}]
    assert new.cluster == old[1].cluster and new.user not in (gone, old[0].user, old[2].user) and not new.stale
    assert new.digest != old[1].digest and not peopled.files.path(str(old[1].digest)).exists()
    bank = peopled.banks.get("lamp-2")
    assert (bank.version, bank.task_adapter, bank.seed) == (1, before["task_adapter"], 0) and bank.key != key
    row = peopled.adapters.get(str(new.digest))
    assert (row.task_adapter, row.seed, row.config["compute"]) == (before["task_adapter"], 0, "float32")
    assert bank.tokens == sum(peopled.adapters.get(d).tokens for d in [bank.task_adapter, *digests(peopled)] if d)
    made = [peopled.adapters.get(d) for d in [bank.task_adapter, *digests(peopled)] if d]
    assert bank.seconds == pytest.approx(sum(adapter.seconds for adapter in made))
    assert result["replaced"] == [{"stale": old[1].id, "user": new.user, "digest": new.digest}]
    assert [a["stale"] for a in result["anchors"]] == [False] * 3 and result["people"] == []
    assert verify_bank(peopled, "lamp-2")["stale_anchors"] == [] and peopled.check_integrity() == []


def test_the_new_anchor_is_of_the_cluster_that_lost_its_own(banked: Registry) -> None:
    """The people of `town` have three tastes: after one of each kind went, each kind has an anchor again."""
    films = {"ship": 0, "horse": 1, "robot": 2}

    def tastes() -> list[int]:
        users = [anchor.user_id for anchor in anchors(banked) if anchor.user_id is not None]
        return sorted(films[banked.items.recent_items(user, "lamp-2", 1)[0].input.split()[-1]] for user in users)

    assert tastes() == [0, 1, 2]
    for place in range(3):
        forget(banked, place)
        assert len(tastes()) == 2
        refreshed(banked)
        assert tastes() == [0, 1, 2]


def test_whoever_rested_on_it_is_named_and_the_others_keep_what_they_have(banked: Registry) -> None:
    first, second, third = anchors(banked)
    for name in SHORT:
        finish(fuse_user(banked, banked.users.get(name), fuse_request(weights="uniform", top_k=1)))
        finish(adapt_users(banked, AdaptRequest([banked.users.get(name)], QUICK, fuse_request())))
    on = {name: banked.recipes.of_user(banked.users.get(name).id)[0].shares[0].anchor_id for name in SHORT}
    assert set(on.values()) == {first.id, second.id, third.id}
    forget(banked, 0)
    result, seen = refreshed(banked)
    resting = [name for name, anchor in on.items() if anchor == first.id]
    assert result["people"] == resting and any(resting[0] in text and "make new ones" in text for text in notes(seen))
    for name in SHORT:
        user = banked.users.get(name).id
        left = len(banked.recipes.of_user(user)), len(banked.stacks.of_user(user))
        assert left == ((0, 0) if name in resting else (1, 1)), name
    assert banked.check_integrity() == []


def test_a_core_rests_on_every_anchor(banked: Registry) -> None:
    finish(fuse_user(banked, banked.users.get("ida"), fuse_request(weights="uniform", top_k=1)))
    give_core(banked, "ida")
    user = banked.users.get("ida").id
    mine = banked.recipes.of_user(user)[0].shares[0].anchor_id
    basis = banked.banks.get("lamp-2").basis
    forget(banked, next(place for place, anchor in enumerate(anchors(banked)) if anchor.id != mine))
    result, _ = refreshed(banked)
    assert result["people"] == ["ida"] and banked.stacks.of_user(user) == []
    assert len(banked.recipes.of_user(user)) == 1 and not banked.files.path(str(basis)).exists()
    assert (
        finish(adapt_users(banked, AdaptRequest([banked.users.get("ida")], QUICK, fuse_request())))[0][0]["steps"] == 6
    )


def test_the_task_adapter_is_said_to_stay_and_a_new_build_is_without_them(peopled: Registry) -> None:
    first = built(peopled)
    forget(peopled, 0)
    _, seen = refreshed(peopled)
    assert any("task adapter" in text and "mta bank build --task lamp-2" in text for text in notes(seen))
    again = built(peopled)
    assert again["version"] == 2 and again["task_adapter"] != first["task_adapter"]


def test_the_new_anchor_is_trained_on_the_task_adapter(peopled: Registry) -> None:
    """Everybody is an anchor of two other banks, one of which has the same task adapter and the other none."""
    losses = {}
    for name, pooled in (("with", True), ("without", False)):
        document = built(peopled, name=name, anchors=9, task_adapter=pooled)
        losses[name] = {anchor["user"]: anchor["loss_first"] for anchor in document["anchors"]}
    built(peopled)
    finish(set_consent(peopled, str(anchors(peopled)[0].user), False))
    (new,) = refreshed(peopled)[0]["replaced"]
    first = peopled.adapters.get(new["digest"]).loss_first
    assert first == pytest.approx(losses["with"][new["user"]], rel=1e-4)
    assert first != pytest.approx(losses["without"][new["user"]], rel=1e-2)


def test_without_a_task_adapter_nothing_is_said_of_one(peopled: Registry) -> None:
    built(peopled, task_adapter=False)
    forget(peopled, 0)
    result, seen = refreshed(peopled)
    assert len(result["replaced"]) == 1 and not any("task adapter" in text for text in notes(seen))
    assert peopled.adapters.get(result["replaced"][0]["digest"]).task_adapter is None


def test_older_banks_with_stale_anchors_are_named(banked: Registry) -> None:
    built(banked, rank=1)
    banked.users.forget(anchors(banked)[0].user_id or 0)
    result, seen = refreshed(banked)
    assert result["version"] == 2
    assert any("lamp-2 v1" in text and "mta bank rm lamp-2 --bank-version 1" in text for text in notes(seen))


def test_nothing_stale_is_nothing_to_do(peopled: Registry) -> None:
    before = built(peopled)
    counts = peopled.count_rows()
    result, seen = refreshed(peopled)
    assert any("nothing to do" in text for text in notes(seen)) and peopled.count_rows() == counts
    assert result == {**before, "replaced": [], "removed": 0, "people": []}


def test_a_dry_run_says_what_would_go_and_changes_nothing(banked: Registry) -> None:
    finish(adapt_users(banked, AdaptRequest([banked.users.get("ida")], QUICK, fuse_request())))
    forget(banked, 0)
    before = banked.count_rows()
    result, seen = refreshed(banked, dry_run=True)
    lines = {line.name: line.value for event in seen if isinstance(event, JobPlan) for line in event.lines}
    assert lines["stale anchors"] == "1 of 3" and lines["users who lose recipes and stacks"] == "ida"
    assert lines["candidates"].startswith("6 users") and {"tokens", "memory", "time"} <= set(lines)
    assert (result["dry_run"], result["stale"], result["people"]) == (True, 1, ["ida"])
    assert banked.count_rows() == before and anchors(banked)[0].stale


@pytest.mark.parametrize("after", [1, 2, 3])
def test_stopped_and_run_again_gives_the_same_bytes(peopled: Registry, after: int, tmp_path: Path) -> None:
    built(peopled, batch_size=4)
    forget(peopled, 0, 2)
    whole = tmp_path / "whole"
    shutil.copytree(peopled.root, whole)
    with Registry.open(whole) as other:
        refreshed(other)
        expected = digests(other)
    old = anchors(peopled)
    stopped(refresh_bank(peopled, "lamp-2", HERE), after)
    assert anchors(peopled) == old and peopled.banks.get("lamp-2").status == "ready", "whole until it is replaced"
    assert peopled.runs.all()[0].status == "interrupted" and list_unfinished_jobs(peopled) == []
    _, seen = refreshed(peopled)
    assert digests(peopled) == expected and any("goes on from step" in text for text in notes(seen))
    assert peopled.check_integrity() == [] and verify_bank(peopled, "lamp-2")["ok"]


def test_a_group_that_is_done_is_not_done_again(
    peopled: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mta_cli.pipeline.training.groups.MAX_USERS_PER_GROUP", 1)
    built(peopled)
    forget(peopled, 0, 1, 2)
    whole = tmp_path / "whole"
    shutil.copytree(peopled.root, whole)
    with Registry.open(whole) as other:
        result, _ = refreshed(other)
        assert len(result["replaced"]) == 3
        expected = digests(other)
    job = refresh_bank(peopled, "lamp-2", HERE)
    next(event for event in job if isinstance(event, ArtifactSaved))
    job.close()  # type: ignore[attr-defined]
    assert [anchor.stale for anchor in anchors(peopled)].count(True) == 2
    assert peopled.check_integrity() == []
    result, seen = refreshed(peopled)
    started = next(event for event in seen if isinstance(event, JobStarted) and event.job == "bank refresh")
    assert len(result["replaced"]) == 2 and started.total == 4
    assert digests(peopled) == expected and len({anchor.cluster for anchor in anchors(peopled)}) == 3


def test_no_new_anchor_leaves_while_it_is_trained(banked: Registry) -> None:
    forget(banked, 0)
    job = refresh_bank(banked, "lamp-2", HERE)
    with Registry.open(banked.root) as other:
        for event in job:
            if isinstance(event, JobProgress) and event.loss is not None and event.done == 1:
                chosen = event.label.rpartition(": ")[2]
                with pytest.raises(StoreBusy, match=f"is using {chosen}'s items"):
                    other.users.set_can_anchor(other.users.get(chosen).id, False)
                break
        result, _ = finish(job)
        assert [each["user"] for each in result["replaced"]] == [chosen]
        other.users.set_can_anchor(other.users.get(chosen).id, False)
    assert sum(anchor.stale for anchor in anchors(banked)) == 1 and banked.check_integrity() == []


def test_an_anchor_that_nobody_can_replace_is_taken_out(peopled: Registry) -> None:
    built(peopled, anchors=9)
    give_core(peopled, "ida")  # it rests on all anchors
    forget(peopled, 4)
    key = peopled.banks.get("lamp-2").key
    result, seen = refreshed(peopled)
    assert (result["removed"], result["replaced"], result["people"]) == (1, [], ["ida"])
    assert len(anchors(peopled)) == 8 and any("removed: 1" in text for text in notes(seen))
    assert peopled.banks.get("lamp-2").key != key and peopled.check_integrity() == []


def test_a_bank_without_anybody_is_refused_and_stays(banked: Registry) -> None:
    for number in range(9):
        user = banked.users.get(f"user{number}")
        banked.users.set_can_anchor(user.id, False)
    assert all(anchor.stale for anchor in anchors(banked))
    with pytest.raises(BadInput, match="No user can replace the stale anchors") as refused:
        refreshed(banked)
    assert isinstance(refused.value.hint, tuple)
    assert {Command("user consent"), Command("bank rm", "lamp-2", bank_version=1)} <= set(refused.value.hint)
    assert len(anchors(banked)) == 3 and banked.check_integrity() == []


def test_which_bank_is_meant(peopled: Registry) -> None:
    with pytest.raises(NotFound, match="no bank for task"):
        refreshed(peopled)
    built(peopled)
    built(peopled, name="mine", rank=1)
    with pytest.raises(UsageError, match="of task lamp-2"):
        finish(refresh_bank(peopled, "lamp-3", HERE, name="mine"))
    peopled.users.forget(anchors(peopled)[0].user_id or 0)
    assert refreshed(peopled, name="lamp-2")[0]["bank"] == "lamp-2"
    assert refreshed(peopled)[0]["bank"] == "mine"


def neighbours(reg: Registry, name: str) -> tuple[Any, ...]:
    """A bank's neighbours and their kernel."""
    bank = reg.banks.get(name)
    return [(one.item_id, one.vector) for one in reg.neighbours.consenting_neighbours(bank.id)], bank.kernel


@pytest.mark.parametrize("stale", [True, False])
def test_neighbours_are_those_of_a_new_bank(peopled: Registry, stale: bool) -> None:
    """Somebody's consent came back, somebody is new, and somebody has one item more than count."""
    built(peopled, max_items=11)
    names = [str(anchor.user) for anchor in anchors(peopled)]
    back = next(f"user{n}" for n in range(9) if f"user{n}" not in names)
    finish(set_consent(peopled, back, False))
    finish(set_consent(peopled, back, True))
    late = peopled.users.add("late")
    peopled.items.append_items(late.id, [NewItem(f"l{n}", "lamp-2", f"a late film {n}", TAGS[n % 3]) for n in range(6)])
    peopled.items.append_items(
        peopled.users.get(names[2]).id, [NewItem("more", "lamp-2", "one more", TAGS[0], "2030-01-01")]
    )
    if stale:
        forget(peopled, 0)
    before = neighbours(peopled, "lamp-2")
    _, seen = refreshed(peopled, dry_run=True)
    lines = {line.name: line.value for event in seen if isinstance(event, JobPlan) for line in event.lines}
    assert lines["neighbours"] == "18 items added, 1 removed" and neighbours(peopled, "lamp-2") == before
    result, seen = refreshed(peopled)
    assert len(result["replaced"]) == int(stale)
    assert any("the inputs of 18 history items" in text for text in notes(seen))
    built(peopled, name="new", max_items=11)
    assert neighbours(peopled, "lamp-2") == neighbours(peopled, "new") != before
    counts = peopled.count_rows()
    _, seen = refreshed(peopled)
    assert any("nothing to do" in text for text in notes(seen)) and peopled.count_rows() == counts


def test_neighbours_that_were_stopped_are_gone_on_with(banked: Registry) -> None:
    whole, before = neighbours(banked, "lamp-2"), banked.banks.get("lamp-2")
    finish(set_consent(banked, "user4", False))
    finish(set_consent(banked, "user4", True))
    job = refresh_bank(banked, "lamp-2", HERE)
    next(event for event in job if isinstance(event, JobProgress) and event.label == "lamp-2")
    job.close()  # type: ignore[attr-defined]
    assert neighbours(banked, "lamp-2") == whole, "the memory serves meanwhile as it was fitted"
    assert banked.banks.get("lamp-2").config[FITTED_ITEMS_KEY] == FIT_IS_DUE
    banked.banks.set_kernel(before.id, dict.fromkeys(whole[1] or {}, 1.0))
    refreshed(banked)
    assert neighbours(banked, "lamp-2") == whole, "it is fitted again"
    assert banked.banks.get("lamp-2").config == before.config


@pytest.mark.parametrize("anchor", [False, True])
def test_the_memory_is_fitted_again_without_who_left(banked: Registry, anchor: bool) -> None:
    bank = banked.banks.get("lamp-2")
    names = {str(one.user) for one in anchors(banked)}
    left = next(name for name in (f"user{n}" for n in range(9)) if (name in names) is anchor)
    finish(set_consent(banked, left, False))
    _, seen = refreshed(banked, dry_run=True)
    lines = {line.name: line.value for event in seen if isinstance(event, JobPlan) for line in event.lines}
    assert lines["neighbours"] == "unchanged; the label memory is fitted again"
    refreshed(banked)
    built(banked, name="new")
    assert neighbours(banked, "lamp-2") == neighbours(banked, "new") and neighbours(banked, "new")[1] != bank.kernel
    after, new = banked.banks.get("lamp-2").config, banked.banks.get("new").config
    assert {key: after[key] for key in (LABEL_RATES_KEY, FITTED_ITEMS_KEY)} == {
        key: new[key] for key in (LABEL_RATES_KEY, FITTED_ITEMS_KEY)
    }
    assert after[MIXTURE_WEIGHTS_KEY] == bank.config[MIXTURE_WEIGHTS_KEY], "only a new build weighs model and memory"
    assert any("nothing to do" in text for text in notes(refreshed(banked, name="lamp-2")[1]))


def test_label_rates_are_those_of_who_is_left(banked: Registry) -> None:
    before = banked.banks.get("lamp-2").config
    forget(banked, 0)
    refreshed(banked)
    after = banked.banks.get("lamp-2").config
    with_all = finish(build_bank(banked, replace(bank_request(name="new"), machine=CPU)))[0]
    assert with_all["bank"] == "new" and after["label_rates"] != before["label_rates"]
    stay = {MIXTURE_WEIGHTS_KEY: before[MIXTURE_WEIGHTS_KEY], LADDER_KEY: before[LADDER_KEY]}
    assert after == {**banked.banks.get("new").config, **stay}


def test_what_was_found_of_an_anchor_leaves_with_it(peopled: Registry) -> None:
    """Its number may come again: then nothing is said of who has it."""
    built(peopled, anchors=9)
    bank, (first, *_, last) = peopled.banks.get("lamp-2"), anchors(peopled)
    said = [{"anchor": one.id, "gate": "norm", "value": 9.0, "bound": 5.0} for one in (first, last)]
    gates = {"findings": said, "floors": {str(first.id): 0.5, str(last.id): 0.5}}
    peopled.banks.record_anchor_screening(bank.id, {**bank.config, SCREENING_KEY: gates}, {last.id})
    assert refreshed(peopled)[0]["removed"] == 1
    left = {"findings": said[:1], "floors": {str(first.id): 0.5}}
    config = peopled.banks.get("lamp-2").config
    assert config[SCREENING_KEY] == left and last.user_id in config[REFUSED_USERS_KEY]


def refuse(reg: Registry, *places: int) -> list[Anchor]:
    """Refuse some anchors of the bank, as a screening does; returns them."""
    bank, found = reg.banks.get("lamp-2"), [anchors(reg)[place] for place in places]
    said = [{"anchor": one.id, "gate": "norm", "value": 9.0, "bound": 5.0} for one in found]
    gates = {"findings": said, "floors": {}}
    reg.banks.record_anchor_screening(bank.id, {**bank.config, SCREENING_KEY: gates}, {one.id for one in found})
    return found


def test_a_refused_user_is_not_chosen_again_by_a_later_refresh(banked: Registry) -> None:
    """Three users have each taste, so the refused one's is without an anchor only after two more have left."""
    (refused,) = refuse(banked, 0)
    bank, gone = banked.banks.get("lamp-2"), []
    for _ in range(2):
        (new,) = refreshed(banked)[0]["replaced"]
        assert new["user"] not in (refused.user, *gone)
        gone.append(new["user"])
        banked.users.forget(banked.users.get(new["user"]).id)
    assert banked.banks.by_id(bank.id).config[REFUSED_USERS_KEY] == [refused.user_id]
    result, _ = refreshed(banked)
    assert refused.user not in [anchor["user"] for anchor in result["anchors"]]
    banked.users.forget(refused.user_id or 0)
    assert banked.banks.by_id(bank.id).config[REFUSED_USERS_KEY] == []


def test_a_refused_replacement_stays_for_the_next_refresh_and_old_anchors_are_not_judged(
    banked: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The screening would refuse the first anchor, which has served since the build, and the new one."""
    forget(banked, 1)
    first, _, third = anchors(banked)
    found = [ScreeningFinding(place, "norm", 9.0, 5.0) for place in (0, 2)]
    with monkeypatch.context() as patch:
        patch.setattr(screening, "_find_outlier_anchors", lambda *given: found)
        result, seen = refreshed(banked)
    refused = anchors(banked)[-1]
    assert (result["removed"], anchors(banked)[:2], refused.stale) == (0, [first, third], True)
    assert [one["user"] for one in result["gates"]] == [refused.user]
    assert any("--refresh` replaces them" in text for text in notes(seen))
    result, _ = refreshed(banked)
    assert [one["stale"] for one in result["replaced"]] == [refused.id] and result["gates"] == []
    assert len(anchors(banked)) == 3 and refused.user not in [anchor.user for anchor in anchors(banked)]
    assert any("nothing to do" in text for text in notes(refreshed(banked)[1]))


def test_a_refresh_that_was_stopped_before_the_screening_screens(
    banked: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget(banked, 0)
    job = refresh_bank(banked, "lamp-2", HERE)
    next(event for event in job if isinstance(event, ArtifactSaved))
    job.close()  # type: ignore[attr-defined]
    new = anchors(banked)[-1]
    assert banked.banks.get("lamp-2").config[SCREENING_KEY][UNSCREENED_KEY] == [new.id] and not new.stale
    finish(fuse_user(banked, banked.users.get("ida"), fuse_request(weights="uniform")))
    (recipe,) = banked.recipes.of_user(banked.users.get("ida").id)
    assert {share.anchor_id for share in recipe.shares} == {one.id for one in anchors(banked)} - {new.id}
    monkeypatch.setattr(screening, "_find_outlier_anchors", lambda *given: [ScreeningFinding(2, "norm", 9.0, 5.0)])
    result, _ = refreshed(banked)
    assert [one["anchor"] for one in result["gates"]] == [new.id] and result["replaced"] == []
    assert UNSCREENED_KEY not in banked.banks.get("lamp-2").config[SCREENING_KEY]
