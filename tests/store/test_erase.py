"""Forgetting: no byte of the user's texts is left in the store's directory, and the parts trained on them are named."""

from __future__ import annotations

import errno
import json
import os
import random
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from mta_cli.errors import BadInput, IntegrityFault, NotFound, StoreBusy
from mta_cli.pipeline.users.dependents import StaleParts
from store.erase import name_pattern
from store.names import FORGOTTEN_NAME, quote_text
from store.records import REFUSED_USERS_KEY, AnchorWeight, Profile
from store.registry import Registry
from store.tables.evaluations import TunedSettings
from store.tables.predictions import EvalCell, Prediction
from tests.store.making import BASE, EMBEDDER, adapted, adapter, bank, item, person
from tests.trust.tally import tally

VECTOR, NUMBERS, NEIGHBOUR = (random.Random(seed).randbytes(1536) for seed in range(3))  # as a profile, core, embedding

NAME = "Quetzalina Xóchitl"
SECRET = "zyxwvutsrq my unmistakable sentence about plumfrotz"
TRACES = (NAME, "Quetzalina", "Xóchitl", "quetzalina", SECRET, "unmistakable", "plumfrotz", "zyxwvutsrq")


def traces(root: Path) -> list[tuple[str, str]]:
    """Where in the directory, names of files included, which of the traces are found."""
    found = []
    for path in root.rglob("*"):
        content = str(path.relative_to(root)).encode() + (path.read_bytes() if path.is_file() else b"")
        found += [
            (path.name, trace) for trace in TRACES if trace.encode() in content or trace.encode("utf-16-le") in content
        ]
    return found


def require_gone(root: Path) -> None:
    """None of the traces is in any file or name of the directory."""
    assert traces(root) == []
    files = sum(path.is_file() for path in root.rglob("*"))
    tally("files searched for names and sentences in 2 spellings", "none found", files)


def furnish(reg: Registry) -> tuple[int, int]:
    """A store in which a user has left every kind of trace; returns the numbers of this and of another user."""
    other = person(reg, "bob", *(f"plain words {i}" for i in range(200)))
    me = reg.users.add(NAME).id
    reg.items.append_items(me, [item(f"{i} plumfrotz", f"{SECRET} {i}", SECRET, time="2024") for i in range(50)])
    reg.items.append_queries(me, [item("q", SECRET, SECRET)])
    reg.profiles.save_profile(Profile(me, "free", "e", SECRET.encode(), 50, 250))
    made = bank(reg, [me, other])
    adapted(reg, me, made, SECRET.encode())
    adapted(reg, other, made, b"the stack of bob")
    run = reg.runs.start_run("user adapt", {"user": NAME}, user_id=me, bank_id=made.id)
    reg.runs.record_step(run.id, NAME, 1, 2.0, 10, 0.1)
    build = reg.runs.start_run("bank build", {"rank": 2}, bank_id=made.id)
    reg.runs.record_step(build.id, "anchor 1", 1, 2.0, 10, 0.1)
    reg.runs.fail_run(build.id, f"anchor 1/2: {NAME}: the loss is not a number")
    asked = reg.runs.start_run("adaptation", {"everybody": False}, bank_id=made.id, asked_users=[other, me])
    reg.runs.finish_run(asked.id, {})
    evaluation = reg.evaluations.add_evaluation("free", made.id, {"shots": 5}, {"users": 2})
    reg.evaluations.predictions.add_predictions(
        evaluation, [Prediction(me, 1, "base", SECRET, SECRET, SECRET, -1.0, 3, 0.1)]
    )
    reg.evaluations.predictions.add_predictions(evaluation, [Prediction(other, 2, "base", "p", "a", "g", -1.0, 3, 0.1)])
    reg.chats.add_message(reg.chats.start_chat(me, SECRET).id, "user", SECRET, {})
    reg.chats.add_message(
        reg.chats.start_chat(other, "films").id, "assistant", "hi", {"mode": "fused", "anchors": [NAME]}
    )
    reg.files.write_checkpoint(f"stack of {NAME}", SECRET.encode())
    return me, other


def test_no_trace_is_left_and_others_keep_what_is_theirs(root: Path, reg: Registry) -> None:
    me, other = furnish(reg)
    assert {trace for _, trace in traces(root)} >= {NAME, SECRET, "plumfrotz"}
    gone = reg.users.forget(me)
    require_gone(root)
    assert len(gone.adapters_removed) == 1
    assert reg.check_integrity() == []
    counts = reg.count_rows()
    assert (counts["users"], counts["items"], counts["queries"], counts["profiles"]) == (1, 200, 0, 0)
    assert (counts["recipes"], counts["stacks"], counts["predictions"], counts["chats"]) == (1, 1, 1, 1)
    assert [found.key for found in reg.items.search_items(other, "free", "words 42", limit=1)] == ["42"]
    assert reg.adapters.verified_path(reg.stacks.of_user(other)[0].digest).exists()
    with pytest.raises(NotFound):
        reg.users.get(NAME)
    reg.close()
    require_gone(root)


def test_their_name_is_taken_out_of_what_is_about_others(reg: Registry) -> None:
    me, other = furnish(reg)
    reg.users.forget(me)
    adapting, build = reg.runs.all()
    assert build.error == f"anchor 1/2: {FORGOTTEN_NAME}: the loss is not a number"
    assert [user.name for user in reg.runs.asked_users(adapting.id)] == ["bob"]
    assert [step.unit for step in reg.runs.steps(build.id)] == ["anchor 1"]
    chat = reg.chats.of_user(other)[0]
    assert reg.chats.messages(chat.id)[0].source == {"mode": "fused", "anchors": [FORGOTTEN_NAME]}


def test_anchors_trained_on_them_are_named_and_stale(reg: Registry) -> None:
    me, other = furnish(reg)
    second = bank(reg, [me], key="2")
    first = reg.banks.get("free", 1)
    mine, others = reg.banks.anchors(first.id)
    again = reg.banks.anchors(second.id)[0]
    gone = reg.users.forget(me)
    assert gone.stale_anchors == [("free", 1, mine.id), ("free", 2, again.id)]
    assert {stale[:2] for stale in gone.stale_anchors} == {("free", 1), ("free", 2)}
    after = reg.banks.anchors(first.id)
    assert [(a.user_id, a.user, a.stale, a.digest) for a in after] == [
        (None, None, True, mine.digest),
        (other, "bob", False, others.digest),
    ]
    assert mine.digest is not None
    assert reg.adapters.verified_path(mine.digest).exists(), "others' recipes still use it"


def test_no_bank_remembers_that_it_refused_them(reg: Registry) -> None:
    me, other = furnish(reg)
    made = reg.banks.get("free")
    reg.banks.set_bank_config(made.id, {**made.config, REFUSED_USERS_KEY: [me, other]})
    reg.users.forget(me)
    assert reg.banks.get("free").config == {**made.config, REFUSED_USERS_KEY: [other]}


def test_a_tombstone_says_that_not_who(reg: Registry) -> None:
    me, _ = furnish(reg)
    uuids = dict(reg._db.fetch_tuples("SELECT id, uuid FROM users"))
    reg.users.forget(me)
    reg.users.forget(reg.users.add("nobody in particular").id)
    rows = reg._db.fetch_dicts("SELECT * FROM tombstones")
    assert [(row["items"], row["had_anchor"], row["erased"]) for row in rows] == [(50, 1, 1), (0, 0, 1)]
    assert set(rows[0]) == {"id", "forgotten_at", "items", "had_anchor", "erased", "user_uuid"}
    assert rows[0]["user_uuid"] == uuids[me] and len(set(uuids.values())) == len(uuids)


def test_a_short_name_leaves_other_words_alone(reg: Registry) -> None:
    user = reg.users.add("a").id
    run = reg.runs.start_run("bank build", {})
    reg.runs.fail_run(run.id, "banana a, an a.")
    reg.users.forget(user)
    assert reg.runs.get(run.id).error == f"banana {FORGOTTEN_NAME}, an {FORGOTTEN_NAME}."
    assert name_pattern("!x!").sub("-", "a!x!b") == "a-b"
    assert name_pattern("a.b").sub("-", "a.b axb") == "- axb"


@pytest.mark.parametrize("other", ["Ann Lee", "Ann-Marie", "ann@Ann.org", "Ann\u0301", "Lee Ann", 'Ann\'s "own"'])
def test_a_name_inside_a_longer_one_leaves_it_alone(reg: Registry, other: str) -> None:
    user = reg.users.add("Ann").id
    other = reg.users.add(other).name
    said = f"{other} has no items; {other!r} and {quote_text(other)} neither"
    about_both, about_other = (reg.runs.start_run("bank build", {}).id for _ in range(2))
    reg.runs.fail_run(about_both, f"Ann: {said}")
    reg.runs.fail_run(about_other, said)
    reg.users.forget(user)
    assert reg.runs.get(about_other).error == said
    assert reg.runs.get(about_both).error == f"{FORGOTTEN_NAME}: {said}"


@pytest.mark.parametrize("name", ["back\\slash", 'it\'s "both"', "a name of more than sixty characters " * 3])
def test_a_name_that_an_error_quotes_is_taken_out(reg: Registry, name: str) -> None:
    user = reg.users.add(name.strip())
    run = reg.runs.start_run("bank build", {})
    reg.runs.fail_run(run.id, f"item 'k' of user {quote_text(user.name)} already exists; {user.name!r} has none")
    reg.users.forget(user.id)
    error = reg.runs.get(run.id).error or ""
    assert error.count(FORGOTTEN_NAME) == 2
    assert not [form for form in (user.name, repr(user.name)[1:-1], quote_text(user.name)[1:-1]) if form in error]


def test_an_orphan_file_may_be_theirs_and_goes(root: Path, reg: Registry) -> None:
    me, _ = furnish(reg)
    digest, _ = reg.files.write(f"lost {SECRET}".encode())
    os.utime(reg.files.path(digest), (0, 0))
    reg.users.forget(me)
    require_gone(root)


def test_while_somebody_reads_the_rest_is_owed_and_done_later(root: Path) -> None:
    with Registry.open(root, create=True, timeout=0.2) as reg:
        me, _ = furnish(reg)
        reader = sqlite3.connect(root / "registry.db", isolation_level=None)
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM users").fetchone()
        with pytest.raises(StoreBusy, match=r"The change is done, .* Another process is reading") as caught:
            reg.users.forget(me)
        assert "any mta command" in str(caught.value.hint)
        assert reg.users.names() == ["bob"]
        with Registry.open(root) as still_in_the_way:
            assert still_in_the_way.users.names() == ["bob"]
        reader.close()
    with Registry.open(root) as reg:
        require_gone(root)
        assert reg.check_integrity() == []


def test_a_crash_before_the_bytes_are_gone_is_made_good(
    root: Path, reg: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    me, _ = furnish(reg)

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
        killed.setattr(type(reg._db), "vacuum", crash)
        reg.users.forget(me)
    reg.close()
    Registry.open(root).close()
    require_gone(root)


def test_who_is_removed_while_others_are_overwritten_is_overwritten_later(
    root: Path, reg: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    me, bob = furnish(reg)
    overwrite = reg._db.vacuum
    with Registry.open(root) as other:

        def remove_another() -> None:
            other.users.forget(me)
            overwrite()

        monkeypatch.setattr(other._eraser, "purge_deleted_bytes", lambda: None)  # its process ends before
        monkeypatch.setattr(reg._db, "vacuum", remove_another)
        reg.users.forget(bob)
    reg.close()
    assert traces(root) != []
    Registry.open(root).close()
    require_gone(root)


def test_a_forgetting_that_fails_forgets_nothing(reg: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    me, _ = furnish(reg)
    before = reg.count_rows()

    def fail(*_: object) -> None:
        raise IntegrityFault("cannot")

    monkeypatch.setattr(type(reg.adapters), "remove_unreferenced", fail)
    with pytest.raises(IntegrityFault):
        reg.users.forget(me)
    assert reg.count_rows() == before
    assert reg.users.get(NAME).id == me
    assert reg.check_integrity() == []


def test_forgetting_two_in_one_transaction(root: Path, reg: Registry) -> None:
    me, other = furnish(reg)
    with reg.transaction():
        first = reg.users.forget(me)
        second = reg.users.forget(other)
    assert first.stale_anchors and second.stale_anchors
    assert reg.users.names() == []
    require_gone(root)


def test_nobody_to_forget(reg: Registry) -> None:
    adapter(reg, b"meta")
    with pytest.raises(NotFound):
        reg.users.forget(99)
    assert reg.count_rows()["tombstones"] == 0
    assert len(reg.adapters.all()) == 1


def evaluated(reg: Registry, key: str, *, bank: tuple[int, ...], test: tuple[int, ...], made: int | None) -> int:
    """An evaluation of one fold with an answer of each of `test`, on the bank number `made`."""
    places = [*((0, user, "bank") for user in bank), *((0, user, "test") for user in test)]
    found = reg.evaluations.get_or_create_evaluation(key, "free", {"shots": 3}, places)
    if made is not None:
        reg.evaluations.set_fold_bank(found.id, 0, made)
    for user in test:
        words = (SECRET, SECRET, SECRET) if reg.users.by_id(user).name == NAME else ("p", "a", "g")
        answer = Prediction(user, 1, "stack", *words, -1.0, 3, 0.1, 2, b"1234")
        reg.evaluations.predictions.save_cells(found.id, [(EvalCell(0, "stack", {"steps": 1}, user, 9, 0.5), [answer])])
    reg.evaluations.save_tuning(
        found.id, TunedSettings(0, "stack", {"steps": 1}, [{"settings": {}, "gold_loglik": -1.0}])
    )
    return found.id


def test_evaluations_lose_their_answers_and_the_banks_that_were_made_from_them(root: Path, reg: Registry) -> None:
    me, other = furnish(reg)
    third = person(reg, "carol", "a")
    mine = bank(reg, [other], name="eval free", key="with me", purpose="eval")
    theirs = bank(reg, [other], name="eval free", key="without me", purpose="eval")
    first = evaluated(reg, "1", bank=(me, other), test=(third,), made=mine.id)
    second = evaluated(reg, "2", bank=(other,), test=(me, third), made=theirs.id)
    files = [anchor.digest for anchor in reg.banks.anchors(mine.id)] + [mine.task_adapter]
    gone = reg.users.forget(me)
    require_gone(root)
    assert reg.check_integrity() == []
    with pytest.raises(NotFound):
        reg.banks.by_id(mine.id)
    assert not any(reg.files.path(digest).exists() for digest in files if digest)
    assert set(files) <= set(gone.adapters_removed) and "eval free" not in [stale[0] for stale in gone.stale_anchors]
    assert reg.banks.by_id(theirs.id) == theirs and reg.evaluations.fold_banks(second) == {(0, ""): theirs.id}
    assert reg.evaluations.fold_banks(first) == {} and reg.evaluations.fold_members(first) == [
        (0, other, "bank"),
        (0, third, "test"),
    ]
    assert set(reg.evaluations.predictions.finished_cells(second, 0, "stack", {"steps": 1})) == {third}
    assert [p.user_id for p in reg.evaluations.predictions.load_predictions(second)] == [third]
    assert reg.count_rows()["cells"] == 2 and reg.count_rows()["tunings"] == 2


def test_a_bank_that_an_evaluation_has_only_begun_goes_too(root: Path, reg: Registry) -> None:
    me, other = furnish(reg)
    begun = reg.banks.get_or_create_bank("eval free", "half", "free", BASE, EMBEDDER, 0, {}, "eval")
    evaluated(reg, "1", bank=(me, other), test=(), made=begun.id)
    reg.banks.set_task_adapter(begun.id, adapter(reg, SECRET.encode(), kind="task"))
    reg.users.forget(me)
    require_gone(root)
    assert reg.check_integrity() == []


def everything(reg: Registry) -> tuple[int, int]:
    """`furnish`, and all that a person has only by now: a core, neighbours, evaluations of both kinds, exports."""
    me, other = furnish(reg)
    reg.profiles.save_profile(Profile(me, "free", "e", VECTOR, 50, 250))
    cores = bank(reg, [me, other], key="cores")
    stack = adapted(reg, me, cores, b"the basis of all")
    reg.stacks.save_stack(replace(stack, numbers=NUMBERS, bytes=len(NUMBERS)))
    reg.neighbours.add_neighbours(cores.id, [(reg.items.recent_items(me, "free", 1)[0].id, NEIGHBOUR)])
    measured = bank(reg, [other], name="eval free", key="eval", purpose="eval")
    evaluated(reg, "both kinds", bank=(other,), test=(me,), made=measured.id)
    document = {"asked": {"to": f"/somewhere/{NAME}", "what": "adapter"}}
    run = reg.runs.start_run("user export", document, user_id=me)
    reg.runs.finish_run(run.id, {})
    reg.files.write_checkpoint("cores", NUMBERS)
    return me, other


def pieces(content: bytes, size: int = 16) -> list[bytes]:
    """Every piece of that many bytes: a page may hold any part of a long value."""
    return [content[start : start + size] for start in range(0, len(content) - size, size)]


def spellings(text: str) -> list[bytes]:
    """The text as a file may hold it: UTF-8 and UTF-16 of both orders, escaped as in JSON, in hexadecimal."""
    raw = text.encode()
    escaped = json.dumps(text)[1:-1].encode()
    return [raw, text.encode("utf-16-le"), text.encode("utf-16-be"), escaped, raw.hex().encode()]


def left_of_them(root: Path) -> list[str]:
    """Which files of the directory hold any of it, in their names or contents."""
    wanted = [spelling for trace in TRACES for spelling in spellings(trace)]
    wanted += [piece for value in (VECTOR, NUMBERS, NEIGHBOUR) for piece in pieces(value)]
    files = [path for path in root.rglob("*") if path.is_file()]
    held = [(path.name, str(path.relative_to(root)).encode() + path.read_bytes()) for path in files]
    return sorted({name for name, content in held if any(one in content for one in wanted)})


def test_of_a_person_with_everything_no_byte_is_left_in_any_file(root: Path, reg: Registry) -> None:
    me, other = everything(reg)
    reg._db.fetch_dicts("PRAGMA wal_checkpoint")  # so that both the database and its log hold something
    reg.chats.add_message(reg.chats.start_chat(me, SECRET).id, "assistant", SECRET, {"anchors": [NAME]})
    before = left_of_them(root)
    assert {"registry.db", "registry.db-wal"} <= set(before) and len(before) >= 5, "database, log, stack, checkpoints"
    gone = reg.users.forget(me)
    assert left_of_them(root) == [] and reg.check_integrity() == []
    tally(
        "files that held traces of a person", "without any, in 5 spellings and every 16 bytes of vectors", len(before)
    )
    assert reg._db.fetch_value("PRAGMA freelist_count") == 0
    assert StaleParts.find(reg, gone.stale_anchors, []).dependents == [("bob", "free", 1)]
    assert [row for row in reg._db.fetch_dicts("SELECT * FROM tombstones") if row["items"] != 50] == []
    assert (
        len(reg.stacks.of_user(other)) == 1 and reg.adapters.verified_path(reg.stacks.of_user(other)[0].digest).exists()
    )
    reg.close()
    assert left_of_them(root) == []


def test_whoever_rests_on_their_anchors_is_named_once_a_bank(reg: Registry) -> None:
    me, other = furnish(reg)
    third, fourth = person(reg, "carol", "a"), person(reg, "dave", "a")
    mine, theirs = bank(reg, [me], key="2"), bank(reg, [other], key="3")
    for user, on in ((third, mine), (fourth, theirs), (me, mine)):
        adapted(reg, user, on, f"stack of {user}".encode())
    reg.stacks.remove(third, "free", mine.id)
    assert StaleParts.find(reg, reg.users.forget(me).stale_anchors, []).dependents == [
        ("bob", "free", 1),
        ("carol", "free", 2),
    ]


def test_a_core_rests_on_every_anchor_of_its_bank(reg: Registry) -> None:
    me, other = furnish(reg)
    made = bank(reg, [me, other], key="2")
    carol = person(reg, "carol", "a")
    stack = adapted(reg, carol, made, b"basis")
    second = reg.banks.anchors(made.id)[1]
    shares = (AnchorWeight(second.id, 1.0, 1.0),)
    reg.stacks.save_stack(replace(stack, recipe=shares))
    reg.recipes.remove(carol, "free", made.id)
    assert ("carol", "free", 2) not in dry_resting(reg, me)
    reg.stacks.save_stack(replace(stack, recipe=shares, numbers=b"1234", bytes=4))
    assert ("carol", "free", 2) in StaleParts.find(reg, reg.users.forget(me).stale_anchors, []).dependents


def dry_resting(reg: Registry, user_id: int) -> list[tuple[str, str, int]]:
    """The users who depend on a user's anchors, without forgetting anyone."""
    banks = [made for made in reg.banks.all() if any(a.user_id == user_id for a in reg.banks.anchors(made.id))]
    return [
        (name, made.name, made.version)
        for made in banks
        for name in reg.banks.dependent_users(
            made.id, [a.id for a in reg.banks.anchors(made.id) if a.user_id == user_id]
        )
    ]


def test_a_name_that_is_a_word_of_the_program_takes_nothing_along(reg: Registry) -> None:
    """LaMP calls users by numbers, and nothing keeps a user from being called as a method or a bank is."""
    people = [reg.users.add(name).id for name in ("13", "lora", "accuracy", "free v1", "evaluation 1")]
    made = bank(reg, [person(reg, "alice", "a")])
    build = reg.runs.start_run("bank build", {"targets": "lora"}, bank_id=made.id)
    reg.runs.record_step(build.id, "anchor 13", 1, 2.0, 10, 0.1)
    found = {"metric": "accuracy", "differences": [{"a": "mta", "b": "lora", "metric": "accuracy"}]}
    number = reg.evaluations.add_evaluation("free", made.id, {"base": "lora"}, found)
    asked = reg.runs.start_run("eval run", {"asked": {"methods": "lora,mta"}}, evaluation_id=number)
    evaluation = reg.evaluations.get(number)
    for user in people:
        reg.users.forget(user)
    assert [step.unit for step in reg.runs.steps(build.id)] == ["anchor 13"]
    assert reg.runs.all() == [asked, build] and build.subject == "free v1"
    assert reg.evaluations.all() == [evaluation]


class Full:
    """A connection to a database that may not be written anew: on a full disk, or in too little memory."""

    def __init__(self, conn: sqlite3.Connection, error: Exception) -> None:
        self._conn, self._error = conn, error

    def __getattr__(self, name: str) -> object:
        return getattr(self._conn, name)

    def execute(self, sql: str, *values: object) -> sqlite3.Cursor:
        if sql == "VACUUM":
            assert self._conn.execute("PRAGMA temp_store").fetchone() == (1,), "its copy of the database is a file"
            raise self._error
        return self._conn.execute(sql, *values)  # type: ignore[arg-type]


def disk_full() -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorname = "SQLITE_FULL"
    return error


@pytest.mark.parametrize(("error", "reason"), [(disk_full(), "The disk is full"), (MemoryError(), "too little memory")])
def test_a_full_disk_says_what_is_done_and_what_is_owed(
    root: Path, reg: Registry, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    me, _ = furnish(reg)
    whole = reg._db._conn
    monkeypatch.setattr(reg._db, "_conn", Full(whole, error))
    with pytest.raises(BadInput, match=rf"The change is done, but bytes of removed data .* {reason}") as caught:
        reg.users.forget(me)
    assert reg._db.fetch_value("PRAGMA temp_store") == 2, "other texts are in no file"
    assert "any mta command" in str(caught.value.hint)
    with pytest.raises(NotFound):
        reg.users.get(NAME)
    (owed,) = reg.check_integrity()
    assert owed.startswith("bytes of 1 removed users or items are still on the disk: free space")
    monkeypatch.setattr(reg._db, "_conn", whole)
    with Registry.open(root) as again:
        assert again.check_integrity() == []
    reg.close()
    require_gone(root)


def test_a_file_that_cannot_be_removed_keeps_no_byte_of_rows(
    root: Path, reg: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is owed is done as far as it can be, and told."""
    me, other = furnish(reg)
    plain = Path.unlink

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if path.suffix == ".safetensors" and path.parent.parent.name == "adapters":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        plain(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(BadInput, match=r"The change is done.*cannot be removed: Read-only file system"):
        reg.users.forget(me)
    assert reg._db.fetch_tuples("SELECT erased FROM tombstones") == [(1,)], "the rows' bytes are gone all the same"
    assert any("1 files of removed adapters are still on the disk" in line for line in reg.check_integrity())
    monkeypatch.undo()
    reg.close()
    with Registry.open(root) as again:
        assert again.check_integrity() == [] and again.users.by_id(other).name == "bob"
    require_gone(root)
