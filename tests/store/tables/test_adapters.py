"""Adapter rows: only for whole files, refused for another base, removed when nothing uses them."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mta_cli.errors import BadInput, IntegrityFault, NotFound
from store.files import AdapterFiles
from store.registry import Registry
from tests.store.making import BASE, adapted, adapter, bank, person


def test_an_adapter_comes_back_as_it_went_in(reg: Registry) -> None:
    below = adapter(reg, b"task", kind="task")
    digest = adapter(reg, b"meta", below=below)
    found = reg.adapters.get(digest)
    assert (found.kind, found.base, found.task_adapter, found.alpha, found.bytes) == ("meta", BASE, below, 4.0, 4)
    assert (found.config, found.versions) == ({"steps": 3}, {"torch": "2"})
    assert found.created.startswith("2")
    assert {each.digest for each in reg.adapters.all()} == {below, digest}
    reg.adapters.add_adapter(found)
    assert len(reg.adapters.all()) == 2
    with pytest.raises(NotFound):
        reg.adapters.get("a" * 64)


def test_no_row_without_its_whole_file(reg: Registry) -> None:
    known = reg.adapters.get(adapter(reg, b"meta"))
    with pytest.raises(IntegrityFault, match="is gone"):
        reg.adapters.add_adapter(replace(known, digest="a" * 64))
    digest, _ = reg.files.write(b"other")
    reg.files.path(digest).write_bytes(b"oth")
    with pytest.raises(IntegrityFault, match="damaged"):
        reg.adapters.add_adapter(replace(known, digest=digest))
    assert reg.adapters.all() == [known]


def test_a_path_is_of_a_verified_file(reg: Registry) -> None:
    digest = adapter(reg, b"meta")
    assert reg.adapters.verified_path(digest, base=BASE).read_bytes() == b"meta"
    reg.files.path(digest).write_bytes(b"mets")
    with pytest.raises(IntegrityFault, match=digest) as caught:
        reg.adapters.verified_path(digest)
    assert caught.value.hint


def test_another_base_is_refused_with_both_fingerprints(reg: Registry) -> None:
    digest, other = adapter(reg, b"meta"), "sha256:" + "0" * 64
    with pytest.raises(IntegrityFault) as caught:
        reg.adapters.verified_path(digest, base=other)
    assert BASE in caught.value.message
    assert other in caught.value.message
    assert caught.value.hint


def test_what_nothing_uses_is_removed_row_and_file(reg: Registry) -> None:
    alice, bob = person(reg, "alice", "a"), person(reg, "bob", "a")
    made = bank(reg, [alice])
    adapted(reg, bob, made)
    lone_task = adapter(reg, b"lone task", kind="task")
    lone = adapter(reg, b"lone", below=lone_task)
    assert set(reg.adapters.remove_unreferenced()) == {lone, lone_task}
    assert reg.adapters.remove_unreferenced() == []
    assert len(reg.adapters.all()) == 3
    assert reg.check_integrity() == []
    assert not reg.files.path(lone).exists()


def test_an_adapter_below_a_used_one_is_used(reg: Registry) -> None:
    alice, bob = person(reg, "alice", "a"), person(reg, "bob", "a")
    made = bank(reg, [alice])
    stack = adapted(reg, bob, made)
    other_task = adapter(reg, b"other task", kind="task")
    top = adapter(reg, b"top", kind="stack", below=other_task)
    reg.stacks.save_stack(replace(stack, digest=top))
    assert reg.adapters.remove_unreferenced() == []
    assert not reg.files.path(stack.digest).exists(), "the replaced stack's adapter went"


def test_one_adapter_is_used_by_what_uses_any(reg: Registry) -> None:
    alice, bob = person(reg, "alice", "a"), person(reg, "bob", "a")
    made = bank(reg, [alice])
    basis, below = adapter(reg, b"basis", kind="basis"), adapter(reg, b"below", kind="task")
    reg.banks._update_bank(made.id, basis=basis)
    stack = adapted(reg, bob, made)
    reg.stacks.save_stack(replace(stack, digest=adapter(reg, b"top", below=adapter(reg, b"between", below=below))))
    lone = adapter(reg, b"lone", below=below)
    used = {each.digest for each in reg.adapters.all()} - {lone}
    assert len(used) == 6
    for digest in (*used, lone, "a" * 64):
        reg.adapters.remove_if_unreferenced(digest)
    assert {each.digest for each in reg.adapters.all()} == used
    assert not reg.files.path(lone).exists() and reg.check_integrity() == []


def test_the_latest_adapters_of_a_kind_that_took_time(reg: Registry) -> None:
    known = reg.adapters.get(adapter(reg, b"known"))
    made = {}

    def add(name: str, day: int, **changes: object) -> None:
        digest, _ = reg.files.write(name.encode())
        values = {"seconds": 2.0, "config": {"compute": "float32"}, "created": f"2026-01-{day:02}", **changes}
        reg.adapters.add_adapter(replace(known, digest=digest, **values))  # type: ignore[arg-type]
        made[digest] = name

    for day in (3, 1, 2, 4):
        add(f"day {day}", day)
    add("layers", 5, placement="upper")
    add("no time", 9, seconds=0.0)
    add("other base", 9, base="sha256:" + "0" * 64)
    add("other format", 9, config={"compute": "bfloat16"})
    add("no format", 9, config={})
    add("other place", 9, placement="late")

    def latest(count: int, *placements: str) -> list[str]:
        return [made[each.digest] for each in reg.adapters.latest_trained(BASE, "float32", placements, count)]

    assert latest(3, "all") == ["day 4", "day 3", "day 2"]
    assert latest(2, "all", "upper") == ["layers", "day 4"]
    assert latest(9, "all") == ["day 4", "day 3", "day 2", "day 1"] and latest(9) == []
    assert reg.adapters.placements(BASE) == ["all", "late", "upper"] and reg.adapters.placements("x") == []


def test_a_rollback_keeps_rows_and_files(reg: Registry) -> None:
    digest = adapter(reg, b"lone")
    with pytest.raises(RuntimeError), reg.transaction():
        assert reg.adapters.remove_unreferenced() == [digest]
        assert reg.files.path(digest).exists(), "files go when rows are durably gone"
        raise RuntimeError("stop")
    assert reg.adapters.verified_path(digest).read_bytes() == b"lone"


def test_a_crash_between_row_and_file_is_made_good_when_opened(reg: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = adapter(reg, b"lone")

    def refuse(*_: object) -> None:
        raise BadInput("the disk refuses")

    with monkeypatch.context() as crash, pytest.raises(BadInput):
        crash.setattr(AdapterFiles, "delete", refuse)
        reg.adapters.remove_unreferenced()
    assert reg.files.path(digest).exists()
    assert reg.adapters.all() == []
    with Registry.open(reg.root) as again:
        assert not again.files.path(digest).exists()
        assert again.check_integrity() == []


def test_an_adapter_made_again_is_not_doomed(reg: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    row = reg.adapters.get(adapter(reg, b"lone"))
    with monkeypatch.context() as crash:
        crash.setattr(type(reg.adapters), "delete_scheduled_files", lambda _: None)
        reg.adapters.remove_unreferenced()
    reg.files.write(b"lone")
    reg.adapters.add_adapter(row)
    with Registry.open(reg.root) as again:
        assert again.adapters.verified_path(row.digest).read_bytes() == b"lone"


def as_of_the_dead(reg: Registry, digest: str) -> None:
    """The claim to a digest, as a process that was killed leaves it."""
    reg.files._claims[digest].close()


def test_a_file_that_was_never_added_goes_when_its_process_is_no_more(reg: Registry) -> None:
    digest, size = reg.adapters.write_file(b"lone")
    assert size == 4 and reg.files.path(digest).read_bytes() == b"lone"
    with Registry.open(reg.root) as again:
        assert again.check_integrity() == [] and again.files.path(digest).exists(), "its process may be about to add it"
    as_of_the_dead(reg, digest)
    with Registry.open(reg.root) as again:
        assert again.check_integrity() == []
    assert [path for path in reg.files.adapter_folder.rglob("*") if path.is_file()] == []


def test_a_file_that_was_added_stays_whatever_becomes_of_its_process(reg: Registry) -> None:
    known = reg.adapters.get(adapter(reg, b"meta"))
    digest, _ = reg.adapters.write_file(b"other")
    with pytest.raises(RuntimeError), reg.transaction():
        reg.adapters.add_adapter(replace(known, digest=digest))
        raise RuntimeError("stop")
    assert len(list(reg.files.adapter_folder.rglob("*.tmp"))) == 1, "nothing was added"
    reg.adapters.add_adapter(replace(known, digest=digest))
    assert list(reg.files.adapter_folder.rglob("*.tmp")) == []
    reg.files.claim_digest(digest)
    as_of_the_dead(reg, digest)
    with Registry.open(reg.root) as again:
        assert again.check_integrity() == [] and again.files.read(digest) == b"other"
    assert list(reg.files.adapter_folder.rglob("*.tmp")) == []


def test_opening_a_store_lists_its_files_once(reg: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    as_of_the_dead(reg, reg.adapters.write_file(b"lone")[0])
    glob, listed = Path.glob, []

    def counted(self: Path, pattern: str) -> Iterator[Path]:
        listed.append(pattern)
        return glob(self, pattern)

    monkeypatch.setattr(Path, "glob", counted)
    Registry.open(reg.root).close()
    assert len(listed) == len(set(listed)) and "adapters/??/.*.tmp" in listed
    assert not list(reg.files.adapter_folder.rglob("*.safetensors"))


def test_a_claim_that_cannot_be_given_up_does_no_harm(reg: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    known = reg.adapters.get(adapter(reg, b"meta"))
    digest, _ = reg.adapters.write_file(b"other")

    def refuse(_: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as broken:
        broken.setattr(Path, "unlink", refuse)
        reg.adapters.add_adapter(replace(known, digest=digest))
    assert reg.adapters.get(digest).digest == digest and reg.check_integrity() == []
