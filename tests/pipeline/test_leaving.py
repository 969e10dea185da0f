"""People who leave while a job works with their words: nothing of them is kept, the job says so, the others' is whole.

Whoever leaves does so through another connection, between two events of the job.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mta_cli.engine.text.tasks import BUILTIN_TASKS
from mta_cli.errors import NotFound, StoreBusy
from mta_cli.events import Event, JobPlan, JobProgress, JobStarted, Note, UnitFailed
from mta_cli.options import AdaptOptions
from mta_cli.pipeline.bank.build import build_bank
from mta_cli.pipeline.bank.refresh import refresh_bank
from mta_cli.pipeline.bank.verify import remove_bank, verify_bank
from mta_cli.pipeline.personalize.adapt import adapt_users
from mta_cli.pipeline.personalize.fuse import fuse_user
from mta_cli.pipeline.runs import ADAPT_RUN_KIND, REQUEST_KEY
from store.records import NewItem
from store.registry import Registry
from tests.pipeline.town import CPU, LORA, QUICK, SHORT, TAGS, TASK, bank_request, built, finish, fuse_request, notes

Leave = Callable[[Registry, str], object]
When = Callable[[Event], bool]


def forget(reg: Registry, name: str) -> None:
    reg.users.forget(reg.users.get(name).id)


def withdraw(reg: Registry, name: str) -> None:
    reg.users.set_can_anchor(reg.users.get(name).id, False)


either_way = pytest.mark.parametrize("leave", [forget, withdraw])


@pytest.fixture(autouse=True)
def quick_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """The task by its name is the quick one of `town`."""
    monkeypatch.setitem(BUILTIN_TASKS, TASK.name, TASK)


@pytest.fixture
def peopled(peopled: Registry) -> Registry:
    """The people of `town`, each of whom said something that nobody else did."""
    for number in range(9):
        own = NewItem("own", "lamp-2", sentence(f"user{number}"), TAGS[number % 3], "2020-01-01")
        peopled.items.append_items(peopled.users.get(f"user{number}").id, [own])
    return peopled


def sentence(name: str) -> str:
    return f"{name} saw the heron alone"


def embedding(event: Event) -> bool:
    return isinstance(event, Note) and event.text.startswith("Embedding what")


def pooling(event: Event) -> bool:
    return isinstance(event, JobProgress) and event.label == "task adapter"


def interrupted(job: Iterator[Event], reg: Registry, when: When, leave: Leave, name: str) -> tuple[Any, list[Event]]:
    """Run a job to its end; at the first event that is meant somebody leaves."""
    seen = []
    for event in job:
        seen.append(event)
        if when(event):
            break
    else:
        pytest.fail("the moment never came")
    with Registry.open(reg.root) as other:
        leave(other, name)
    result, rest = finish(job)
    return result, [*seen, *rest]


def served(reg: Registry) -> tuple[Any, ...]:
    """What of the newest bank serves people."""
    bank = reg.banks.get("lamp-2")
    anchors = [(anchor.user, anchor.digest, anchor.stale) for anchor in reg.banks.anchors(bank.id)]
    neighbours = [(one.item_id, one.vector) for one in reg.neighbours.consenting_neighbours(bank.id)]
    return bank.version, bank.key, bank.task_adapter, bank.config, bank.kernel, anchors, neighbours


def holding(root: Path, *words: str) -> list[Path]:
    """Files that hold one of the words."""
    files = [path for path in root.rglob("*") if path.is_file()]
    return [path for path in files if any(word.encode() in path.read_bytes() for word in words)]


@either_way
@pytest.mark.parametrize(("when", "pooled"), [(embedding, True), (embedding, False), (pooling, True)])
def test_who_leaves_before_the_task_adapter_is_stored_is_in_no_part_of_the_bank(
    peopled: Registry, leave: Leave, when: When, pooled: bool, tmp_path: Path
) -> None:
    shutil.copytree(peopled.root, tmp_path / "without")
    with Registry.open(tmp_path / "without") as other:
        leave(other, "user4")
        built(other, task_adapter=pooled)
        expected = served(other)
    _, seen = interrupted(build_bank(peopled, bank_request(task_adapter=pooled)), peopled, when, leave, "user4")
    assert served(peopled) == expected and expected[-1]
    assert sum("user4 left while bank lamp-2 v1 was made" in text for text in notes(seen)) == 1
    assert list(peopled.files.checkpoint_folder.glob("*")) == [] and peopled.check_integrity() == []
    errors = [run.error for run in peopled.runs.all() if run.error]
    assert errors == ["People left while the bank was made of their words."], "nobody is named"
    assert leave is withdraw or holding(peopled.root, sentence("user4"), "user4") == []


def anchor_left(reg: Registry, leave: Leave) -> tuple[str, Any, list[Event]]:
    """Build a bank of which the second anchor's person leaves when anchors have taken a step: who, and what came."""
    job, seen = build_bank(reg, bank_request(batch_size=4)), []
    for event in job:
        seen.append(event)
        if isinstance(event, JobProgress) and event.label.startswith("anchor"):
            break
    name = str(reg.banks.anchors(reg.banks.all()[0].id)[1].user)
    with Registry.open(reg.root) as other:
        leave(other, name)
    result, rest = finish(job)
    return name, result, [*seen, *rest]


@either_way
def test_an_anchor_whose_person_leaves_while_it_is_trained_is_not_stored(
    peopled: Registry, leave: Leave, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mta_cli.pipeline.training.session.MIN_CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr("mta_cli.pipeline.training.session.MIN_CHECKPOINT_COST_RATIO", 0)
    numbers = {user.name: user.id for user, _ in peopled.users.users_with_items("lamp-2")}
    name, result, seen = anchor_left(peopled, leave)
    first, second, third = result["anchors"]
    assert (second["digest"], second["stale"], second["user"]) == (None, True, None if leave is forget else name)
    assert first["digest"] and third["digest"] and not first["stale"] and not third["stale"]
    assert sum(f"{name} left while being an anchor" in text and "--refresh" in text for text in notes(seen)) == 1
    assert len([adapter for adapter in peopled.adapters.all() if adapter.kind == "meta"]) == 2
    assert list(peopled.files.checkpoint_folder.glob("*")) == [] and peopled.check_integrity() == []
    assert verify_bank(peopled, "lamp-2")["stale_anchors"] == [peopled.banks.anchors(1)[1].id]
    assert numbers[name] not in {one.user_id for one in peopled.neighbours.consenting_neighbours(1)}
    if leave is withdraw:
        peopled.users.set_can_anchor(peopled.users.get(name).id, True)
        assert peopled.banks.anchors(1)[1].stale, "nothing of it was trained"
        withdraw(peopled, name)
    result, _ = finish(refresh_bank(peopled, "lamp-2", CPU))
    (new,) = result["replaced"]
    assert new["user"] != name and all(anchor["digest"] and not anchor["stale"] for anchor in result["anchors"])
    assert leave is withdraw or holding(peopled.root, sentence(name), name) == []


def test_what_a_stopped_training_keeps_is_without_who_left(peopled: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ida's part of the checkpoint is zeros from the moment on when she is gone; the others' is there."""
    from safetensors.torch import load

    built(peopled)
    job = adapt_users(peopled, [peopled.users.get(name) for name in SHORT], fuse_request(), LORA)
    for event in job:
        if isinstance(event, JobProgress) and event.loss is not None and event.done > 6:
            break
    with Registry.open(peopled.root) as other:
        forget(other, "ida")
    job.close()  # type: ignore[attr-defined]
    (file,) = peopled.files.checkpoint_folder.glob("*")
    tensors = [tensor for key, tensor in load(file.read_bytes()).items()]
    assert all(not tensor[0].any() for tensor in tensors) and any(bool(tensor[1].any()) for tensor in tensors)
    assert peopled.check_integrity() == []


def test_the_last_one_of_a_group_leaves_no_checkpoint(peopled: Registry) -> None:
    built(peopled)
    job = adapt_users(peopled, [peopled.users.get("ida")], fuse_request(), QUICK)
    next(event for event in job if isinstance(event, JobProgress) and event.loss is not None)
    with Registry.open(peopled.root) as other:
        forget(other, "ida")
    job.close()  # type: ignore[attr-defined]
    assert list(peopled.files.checkpoint_folder.glob("*")) == [] and peopled.runs.of_subject("ida") == []


def adapting(reg: Registry, options: AdaptOptions = QUICK) -> Iterator[Event]:
    return adapt_users(reg, [reg.users.get(name) for name in SHORT], fuse_request(), options)


MOMENTS: dict[str, When] = {
    "before the recipes": lambda event: isinstance(event, JobStarted) and event.job == "evidence",
    "before the training": lambda event: isinstance(event, JobStarted) and event.job == "user adapt",
    "at a step": lambda event: isinstance(event, JobProgress) and event.loss is not None,
}


@pytest.mark.parametrize("options", [QUICK, LORA], ids=lambda options: options.kind)
@pytest.mark.parametrize("moment", MOMENTS)
def test_who_is_removed_while_being_adapted_is_skipped(peopled: Registry, moment: str, options: AdaptOptions) -> None:
    """Kim came last, so that whoever comes next gets her number: nothing of hers is theirs."""
    built(peopled)
    number = peopled.users.get("kim").id

    def replaced(reg: Registry, name: str) -> None:
        forget(reg, name)
        assert reg.users.add("zoe").id == number

    results, seen = interrupted(adapting(peopled, options), peopled, MOMENTS[moment], replaced, "kim")
    assert [result["user"] for result in results] == ["ida", "jon"]
    failed = [(event.label, event.message) for event in seen if isinstance(event, UnitFailed)]
    assert failed == [("kim", "removed while being adapted; nothing was kept")]
    assert peopled.stacks.of_user(number) == peopled.recipes.of_user(number) == []
    assert peopled.runs.of_subject("kim") == [] and {run.status for run in peopled.runs.all()} == {"done"}
    assert peopled.check_integrity() == []


def test_who_is_removed_before_their_group_begins_is_skipped(
    peopled: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mta_cli.pipeline.training.groups.MAX_USERS_PER_GROUP", 1)
    built(peopled)
    results, seen = interrupted(adapting(peopled), peopled, MOMENTS["at a step"], forget, "kim")
    assert [result["user"] for result in results] == ["ida", "jon"]
    assert [event.label for event in seen if isinstance(event, UnitFailed)] == ["kim"]
    assert peopled.runs.of_subject("kim") == [] and peopled.check_integrity() == []


def test_who_is_removed_after_the_last_step_is_not_stored(peopled: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file of her stack is written when she leaves, and goes again."""
    built(peopled)
    plain = peopled.adapters.write_file

    def write(content: bytes) -> tuple[str, int]:
        found = plain(content)
        with Registry.open(peopled.root) as other:
            if "ida" in other.users.names():
                forget(other, "ida")
        return found

    monkeypatch.setattr(peopled.adapters, "write", write)
    results, seen = finish(adapting(peopled, LORA))
    assert [result["user"] for result in results] == ["jon", "kim"]
    assert [event.label for event in seen if isinstance(event, UnitFailed)] == ["ida"]
    assert len([adapter for adapter in peopled.adapters.all() if adapter.kind == "stack"]) == 2
    files = {path.stem for path in peopled.files.adapter_folder.rglob("*.safetensors")}
    assert files == {adapter.digest for adapter in peopled.adapters.all()} and peopled.check_integrity() == [], (
        "her file stayed"
    )


def test_everybody_was_removed(peopled: Registry) -> None:
    built(peopled)
    steps = []

    def watched() -> Iterator[Event]:
        for event in adapt_users(peopled, [peopled.users.get("ida")], fuse_request(), QUICK):
            steps.extend([event] if MOMENTS["at a step"](event) else [])
            yield event

    with pytest.raises(NotFound, match="ida") as caught:
        interrupted(watched(), peopled, MOMENTS["at a step"], forget, "ida")
    assert len(steps) == 2 < QUICK.steps, "it goes on no longer than until that is noticed"
    assert caught.value.hint == "mta user list shows who there is"
    assert holding(peopled.root, "removed meanwhile") == [], "an error that names her is not written down"


def test_who_is_removed_while_being_fused(peopled: Registry) -> None:
    built(peopled)
    job = fuse_user(peopled, peopled.users.get("ida"), fuse_request())
    with pytest.raises(NotFound, match="ida was removed while being fused"):
        interrupted(job, peopled, MOMENTS["before the recipes"], forget, "ida")
    assert peopled.check_integrity() == []


def test_a_profile_of_who_was_removed_is_not_stored(peopled: Registry) -> None:
    def profiling(event: Event) -> bool:
        return isinstance(event, JobStarted) and event.job == "profiles of lamp-2"

    _, seen = interrupted(build_bank(peopled, bank_request()), peopled, profiling, forget, "user4")
    assert any("user4 left while" in text for text in notes(seen))
    assert len(peopled.profiles.profile_totals("lamp-2", bank_request().embedder.fingerprint)) == 8
    assert len(served(peopled)[-2]) == 3 and peopled.check_integrity() == []


def test_who_is_removed_before_the_run_is_written_down_is_not_named_in_it(peopled: Registry) -> None:
    built(peopled)

    def planned(event: Event) -> bool:
        return isinstance(event, JobPlan)

    results, _ = interrupted(adapting(peopled), peopled, planned, forget, "kim")
    assert [result["user"] for result in results] == ["ida", "jon"]
    (run,) = (run for run in peopled.runs.all() if run.kind == ADAPT_RUN_KIND)
    assert run.config[REQUEST_KEY]["users"] == ["ida", "jon"]


@pytest.mark.parametrize("label", ["", "ida"], ids=["while profiles are made", "when it is weighed"])
def test_no_recipe_names_an_anchor_that_left_while_it_was_made(peopled: Registry, label: str) -> None:
    bank = built(peopled)["bank"]

    def taken_out(reg: Registry, name: str) -> None:
        reg.users.set_can_anchor(reg.banks.anchors(reg.banks.get(name).id)[0].user_id or 0, False)
        reg.banks.remove_stale_anchors(reg.banks.get(name).id)

    job = fuse_user(peopled, peopled.users.get("ida"), fuse_request(top_k=3))
    with pytest.raises(StoreBusy, match="were replaced while it was fused"):
        interrupted(
            job,
            peopled,
            lambda event: isinstance(event, JobProgress) and event.label.startswith(label),
            taken_out,
            bank,
        )
    assert peopled.recipes.of_user(peopled.users.get("ida").id) == [] and peopled.check_integrity() == []


def test_no_bank_is_removed_while_somebody_is_adapted_on_it(peopled: Registry) -> None:
    bank = built(peopled)["bank"]
    with Registry.open(peopled.root) as other, other.job_lock("adapt lamp-2"), pytest.raises(StoreBusy, match="adapt"):
        remove_bank(peopled, peopled.banks.get(bank))
    assert peopled.banks.get(bank).status == "ready"
