"""Importing: what arrives in the store, what a second import changes, and that a fault leaves everything as it was."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mta_cli.errors import BadInput, Command, Flag, MtaError, NotFound, UsageError, UsersChanged, words_to_text
from mta_cli.events import JobPlan, JobProgress, JobStarted, Note
from mta_cli.pipeline.data.column_mapping import ColumnMapping
from mta_cli.pipeline.data.import_source import ImportSource
from mta_cli.pipeline.users.import_file import import_file, import_source
from mta_cli.pipeline.users.stored_data import describe_user
from store.registry import Registry
from tests.pipeline.histories import imported, person, rows, run, tagged, write


@pytest.fixture
def reg(tmp_path: Path) -> Iterator[Registry]:
    with Registry.open(tmp_path / "store", create=True) as registry:
        yield registry


def items_of(reg: Registry, name: str, task: str = "free") -> list[tuple[str, str]]:
    return [(item.input, item.output) for item in reg.items.recent_items(reg.users.get(name).id, task, None)]


def test_users_document(reg: Registry, tmp_path: Path) -> None:
    path = write(tmp_path / "users.json", [person("ann"), person("bob", 2, 0)])
    result = imported(reg, "users", path, task="lamp-2")
    expected = {"format": "users", "path": str(path), "task": "lamp-2", "users": 2, "items_added": 5}
    assert expected.items() <= result.items()
    assert (result["items_unchanged"], result["queries_added"], result["queries_unchanged"]) == (0, 1, 0)
    assert items_of(reg, "ann", "lamp-2")[0] == ("film 0 about a lighthouse", "comedy")
    (query,) = reg.items.queries(reg.users.get("ann").id, "lamp-2")
    assert (query.input, query.gold) == ("a plot 0", "action")


def test_a_second_import_changes_nothing(reg: Registry, tmp_path: Path) -> None:
    path = write(tmp_path / "users.json", [person("ann", 3, 2)])
    imported(reg, "users", path, task="lamp-2")
    again = imported(reg, "users", path, task="lamp-2")
    assert (again["items_added"], again["items_unchanged"]) == (0, 3)
    assert (again["queries_added"], again["queries_unchanged"]) == (0, 2)


def test_the_groups_of_a_file_are_kept_and_go_with_their_users(reg: Registry, tmp_path: Path) -> None:
    first = [person("ann") | {"group": "team a"}, person("bob", 5) | {"group": 7}, person("cleo", 4) | {"group": None}]
    imported(reg, "users", write(tmp_path / "users.json", first), task="lamp-2")
    ann, bob = (reg.users.get(name).id for name in ("ann", "bob"))
    assert reg.users.groups("lamp-2") == {ann: "team a", bob: "7"} and reg.users.groups("lamp-3") == {}
    imported(reg, "users", write(tmp_path / "again.json", [person("ann") | {"group": "team b"}]), task="lamp-2")
    imported(reg, "users", write(tmp_path / "without.json", [person("bob", 5)]), task="lamp-2")
    assert reg.users.groups("lamp-2") == {ann: "team b", bob: "7"}, "a known user's too; what a file leaves out stays"
    assert [one.group for one in reg.user_table.summaries()] == ["team b", "7", None]
    assert describe_user(reg, "ann")["group"] == {"lamp-2": "team b"}
    with pytest.raises(BadInput) as refused:
        imported(reg, "users", write(tmp_path / "bad.json", [person("dan") | {"group": ["x"]}]), task="lamp-2")
    assert "field group" in refused.value.faults[0]
    reg.users.forget(ann)
    assert reg.users.groups("lamp-2") == {bob: "7"}
    assert reg._db.fetch_value("SELECT count(*) FROM user_groups") == 1


def test_two_users_with_the_same_items_are_named(reg: Registry, tmp_path: Path) -> None:
    def notes(*users: dict[str, Any]) -> list[str]:
        path = write(tmp_path / "users.json", list(users))
        found = run(import_file(reg, "users", path, task="lamp-2"))[1]
        return [note for note in found if "the same" in note]

    def history(name: str, *numbers: int) -> dict[str, Any]:
        return {"user_id": name, "profile": [tagged(n) | {"id": f"{name}{k}"} for k, n in enumerate(numbers)]}

    ends = "items of lamp-2: if they are one person, evaluations count this person twice"
    assert notes(history("ann", 1, 2, 3), history("bob", 3, 1, 2), history("cleo", 1, 2, 4), history("dan", 1, 2)) == [
        f"'ann' and 'bob' have the same 3 {ends}"
    ]
    assert notes(history("ann", 1, 2, 3)) == [], "nothing new"
    assert notes(history("eve", 8, 9, 10)) == [], "the others are named only with a user of the file"
    assert notes(history("dan", 1, 2), history("fay", 1, 2)) == [], "two items are no sign"
    held = {"id": "q", "input": tagged(4)["description"], "gold": "comedy"}
    assert notes(history("gus", 2, 1, 1) | {"query": [held]}) == [f"'cleo' and 'gus' have the same 3 {ends}"], "as sets"
    twins = [history(f"{name}{n}", *range(20 * n + 20, 20 * n + 24)) for n in range(7) for name in "xy"]
    found = notes(*twins)
    assert found[0] == f"'x0' and 'y0' have the same 4 {ends}" and len(found) == 6
    assert found[5] == "further sets of users with the same items: 2"


def test_a_longer_history_is_appended(reg: Registry, tmp_path: Path) -> None:
    imported(reg, "jsonl", write(tmp_path / "a.jsonl", rows(count=3)))
    longer = imported(reg, "jsonl", write(tmp_path / "b.jsonl", rows(count=5)))
    assert (longer["items_added"], longer["items_unchanged"]) == (2, 3)
    assert len(items_of(reg, "ann")) == 5


def test_who_is_new_is_not_looked_up_in_a_list(reg: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Names(list[str]):
        def __contains__(self, name: object) -> bool:
            pytest.fail("a search through everybody's names, for everybody")

    monkeypatch.setattr(reg.users, "names", lambda: Names(["ann"]))
    reg.users.add("ann")
    path = write(tmp_path / "a.jsonl", rows(count=1) + rows("bob", 1))
    imported(reg, "jsonl", path, ask=lambda count: count == 1)
    assert reg.users.get("bob").can_anchor, "of one new person it was asked"


def test_the_same_item_twice_is_two_items_once(reg: Registry, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", rows(count=1) * 2)
    assert imported(reg, "jsonl", path)["items_added"] == 2
    assert imported(reg, "jsonl", path)["items_added"] == 0


def test_questions_with_outputs(reg: Registry, tmp_path: Path) -> None:
    instruction = "Which tag does this movie relate to among the following tags? tags: [a, b] description: a plot"
    asked = [{"id": f"q{n}", "user_id": "ann", "input": instruction, "profile": [tagged(1)]} for n in range(2)]
    outputs = {"task": "LaMP_2", "golds": [{"id": f"q{n}", "output": "action"} for n in range(2)]}
    path = write(tmp_path / "questions.json", asked)
    result = imported(reg, "lamp", path, outputs=write(tmp_path / "outputs.json", outputs))
    assert (result["task"], result["items_added"], result["queries_added"]) == ("lamp-2", 1, 2)
    assert reg.items.queries(reg.users.get("ann").id, "lamp-2")[0].input == "a plot"


def test_questions_without_outputs_bring_their_histories(reg: Registry, tmp_path: Path) -> None:
    path = write(tmp_path / "q.json", [{"id": "q1", "input": "a plot", "profile": [tagged(1)]}])
    result, notes = run(import_file(reg, "lamp", path, task="lamp-2"))
    assert (result["items_added"], result["queries_added"]) == (1, 0)
    assert any(
        note == "left out, queries without a gold answer: 1; their users' histories are imported" for note in notes
    )


def test_questions_need_a_task(reg: Registry, tmp_path: Path) -> None:
    path = write(tmp_path / "q.json", [{"id": "q1", "input": "a plot", "profile": [tagged(1)]}])
    with pytest.raises(UsageError, match="does not name the task of its records"):
        imported(reg, "lamp", path)


def test_outputs_of_another_task_are_mentioned(reg: Registry, tmp_path: Path) -> None:
    path = write(tmp_path / "q.json", [{"id": "q1", "input": "a plot", "profile": [tagged(1)]}])
    outputs = write(tmp_path / "o.json", {"task": "LaMP_3", "golds": [{"id": "q1", "output": "action"}]})
    _, notes = run(import_file(reg, "lamp", path, task="lamp-2", outputs=outputs))
    assert any("'LaMP_3'" in note and "lamp-2" in note for note in notes)


def test_rows_of_several_tasks(reg: Registry, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", rows(count=1) + rows(count=2, task="lamp-4"))
    result = imported(reg, "jsonl", path)
    assert (result["task"], result["tasks"]) == (None, ["free", "lamp-4"])
    assert len(items_of(reg, "ann", "lamp-4")) == 2


def test_csv(reg: Registry, tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "user,input,output,time\nann,later,o,2026-02-01\nann,first,o,2026-01-01\n")
    assert imported(reg, "csv", path)["items_added"] == 2
    assert [item[0] for item in items_of(reg, "ann")] == ["first", "later"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize(
    "content",
    [
        "user,input,output\nzo\u00eb,caf\u00e9,o\n",
        '{"user": "zo\u00eb", "input": "caf\u00e9", "output": "o"}\n',
        '[{"user": "zo\u00eb", "input": "caf\u00e9", "output": "o"}]',
    ],
    ids=["csv", "jsonl", "json"],
)
def test_files_with_a_byte_order_mark(reg: Registry, tmp_path: Path, content: str, encoding: str) -> None:
    path = tmp_path / "data"
    path.write_bytes(content.encode(encoding))
    assert run(import_file(reg, None, path))[0]["items_added"] == 1
    assert items_of(reg, "zo\u00eb") == [("caf\u00e9", "o")]


def test_utf16_that_is_cut_short_is_refused(reg: Registry, tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_bytes("user,input,output\n".encode("utf-16")[:-1])
    with pytest.raises(BadInput, match=r"data\.csv is not valid UTF-16"):
        run(import_file(reg, None, path))


def test_a_pipe_of_the_shell_is_read_like_a_file(reg: Registry) -> None:
    """As `<(…)` of bash is given to a program."""
    reading, writing = os.pipe()
    content = "\n".join(json.dumps(row) for row in rows(count=3_000)).encode()

    def write_all() -> None:
        with open(writing, "wb") as pipe:
            pipe.write(content)

    writer = threading.Thread(target=write_all)
    writer.start()
    assert run(import_file(reg, None, Path(f"/dev/fd/{reading}")))[0]["items_added"] == 3_000
    writer.join()
    os.close(reading)


def source(path: Path, **options: Any) -> ImportSource:
    return ImportSource(options.pop("format", None), path, **options)


FILMS = ColumnMapping(user="person", input="{film}. {review}", output="stars")


def test_columns_of_ones_own(reg: Registry, tmp_path: Path) -> None:
    path = write(tmp_path / "films.csv", "person,film,review,stars\nann,Salt,Fine,4\nann,Ferry,,2\n")
    result, notes = run(import_source(reg, source(path, columns=FILMS)))
    assert (result["format"], result["items_added"], notes) == ("csv", 2, [])
    assert items_of(reg, "ann") == [("Salt. Fine", "4"), ("Ferry", "2")]


def test_columns_that_are_missing_are_one_line_with_a_command_that_works(reg: Registry, tmp_path: Path) -> None:
    table = "person,film,review,stars\n" + "".join(
        f"{who},Film {n}{who},A long word about film {n} of {who},{n}\n" for who in ("ann", "bob") for n in range(1, 6)
    )
    path = write(tmp_path / "my films.csv", table)
    with pytest.raises(BadInput) as caught:
        run(import_file(reg, None, path))
    assert caught.value.message == (
        "my films.csv has no column user, input, output; its columns are 'person', 'film', 'review', 'stars'"
    )
    assert caught.value.faults == ()
    assert caught.value.hint == ("for example: ", Command("data import", str(path), **FILMS.flags()))


def test_a_column_that_is_not_there_is_named(reg: Registry, tmp_path: Path) -> None:
    path = write(tmp_path / "f.csv", "person,film,review,stars\nann,Salt,Fine,4\n")
    with pytest.raises(BadInput, match=r"f\.csv has no column 'flim'; its columns are 'person', 'film'"):
        run(import_source(reg, source(path, columns=ColumnMapping("person", "{flim}", "stars"))))


def test_times_in_another_form_say_how_to_do_without(reg: Registry, tmp_path: Path) -> None:
    path = write(tmp_path / "f.csv", "user,input,output,time\nann,i,o,20:15\n")
    with pytest.raises(BadInput) as caught:
        run(import_source(reg, source(path, columns=ColumnMapping(time="time"))))
    assert caught.value.hint == (
        "name another column with ",
        Flag("time"),
        ", or ignore times with ",
        Flag("time", ""),
    )
    assert run(import_source(reg, source(path, columns=ColumnMapping(time=""))))[0]["items_added"] == 1


def test_the_rows_of_one_user(reg: Registry, tmp_path: Path) -> None:
    path = write(tmp_path / "notes.csv", "input,output\na,b\n")
    with pytest.raises(BadInput) as caught:
        run(import_file(reg, None, path))
    example = Command("data import", str(path), me="NAME", input="input", output="output")
    assert caught.value.hint == ("for example: ", example)
    assert run(import_source(reg, source(path, user="ann")))[0]["items_added"] == 1
    assert items_of(reg, "ann") == [("a", "b")]


def test_a_folder_is_one_history(reg: Registry, tmp_path: Path) -> None:
    folder = tmp_path / "all"
    folder.mkdir()
    write(folder / "bob.csv", "input,output\nsecond,o\n")
    write(folder / "ann.jsonl", [{"input": "first", "output": "o"}])
    write(folder / "README.txt", "Hello, this is not a table\n")
    write(folder / ".hidden.csv", "input,output\nhidden,o\n")
    (folder / "inner").mkdir()
    result, notes = run(import_source(reg, source(folder, columns=ColumnMapping(user="{file}"))))
    assert (result["format"], result["users"], result["items_added"]) == ("jsonl, csv", 2, 2)
    assert notes == ["left out, files of an unknown format: 1"]
    assert items_of(reg, "ann") == [("first", "o")] and items_of(reg, "bob") == [("second", "o")]


def test_a_folder_with_nothing_to_read(reg: Registry, tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    with pytest.raises(BadInput, match="is a folder without files"):
        run(import_file(reg, None, folder))
    write(folder / "README.txt", "Hello\n")
    with pytest.raises(BadInput, match="empty contains no file in a known format"):
        run(import_file(reg, None, folder))


def test_faults_of_a_folder_name_their_file(reg: Registry, tmp_path: Path) -> None:
    for name, output in (("a", "o"), ("b", "")):
        write(tmp_path / f"{name}.csv", f"user,input,output\nann,i,{output}\n")
    with pytest.raises(BadInput) as caught:
        run(import_file(reg, None, tmp_path))
    assert caught.value.faults == ("b.csv: record 1 (line 2), field output: is empty",)


def queries_of(reg: Registry, name: str, task: str = "free") -> list[str]:
    return [query.input for query in reg.items.queries(reg.users.get(name).id, task)]


DAYS = [row | {"time": f"2026-01-0{day}"} for day, row in enumerate(rows(count=6), 1)]


def test_the_last_items_are_held_out_and_stay_so(reg: Registry, tmp_path: Path) -> None:
    first, longer = write(tmp_path / "a.jsonl", DAYS[:5]), write(tmp_path / "b.jsonl", DAYS)
    result, notes = run(import_source(reg, source(first, hold_out=2)))
    assert (result["items_added"], result["queries_added"], notes) == (3, 2, [])
    assert queries_of(reg, "ann") == ["note 3", "note 4"]
    for options in ({"hold_out": 2}, {}):
        again, _ = run(import_source(reg, source(first, **options)))
        assert (again["items_added"], again["queries_added"]) == (0, 0)
        assert (again["items_unchanged"], again["queries_unchanged"]) == (3, 2)
    longer_result, _ = run(import_source(reg, source(longer, hold_out=2)))
    assert (longer_result["items_added"], longer_result["queries_added"]) == (1, 0)
    assert queries_of(reg, "ann") == ["note 3", "note 4"], "what was trained on is no query, what was held out no item"


@pytest.mark.parametrize(("mine", "others", "clash"), [(2, 0, True), (0, 2, True), (3, 2, True), (2, 2, False)])
def test_of_two_imports_at_once_none_holds_out_what_is_history_of_the_other(
    reg: Registry, tmp_path: Path, mine: int, others: int, clash: bool
) -> None:
    path = write(tmp_path / "a.jsonl", DAYS)

    def meanwhile(_: int) -> bool:
        with Registry.open(reg.root) as other:
            run(import_source(other, source(path, hold_out=others)))
        return True

    try:
        result, _ = run(import_source(reg, source(path, hold_out=mine), ask=meanwhile))
        assert not clash and (result["items_unchanged"], result["queries_unchanged"]) == (4, 2)
    except UsersChanged as error:
        assert clash and error.hint == "run it again"
    for _ in range(2):
        assert len(items_of(reg, "ann")) == 6 - others and len(queries_of(reg, "ann")) == others
        run(import_source(reg, source(path, hold_out=mine)))


@pytest.mark.parametrize("wanted", [1, 4])
def test_another_number_of_held_out_items_says_that_stored_ones_stay(
    reg: Registry, tmp_path: Path, wanted: int
) -> None:
    people = [*DAYS[:5], *(row | {"user": "bob"} for row in DAYS)]
    path = write(tmp_path / "a.jsonl", people)
    run(import_source(reg, source(path, hold_out=2)))
    for dry_run in (True, False):
        result, notes = run(import_source(reg, source(path, hold_out=wanted), dry_run=dry_run))
        if wanted == 1:
            assert notes == [
                "users whose number of held-out queries is not 1, because stored items stay history or held out as "
                "they are: 'ann' has 2, 'bob' has 2; with another --task the file is stored as new data"
            ]
        else:
            short, fixed = notes
            assert short.endswith("because 3 items stay history: 'ann'") and "'bob' has 2; with another --task" in fixed
    assert (result["queries_added"], result["queries_unchanged"]) == (0, 4)


def test_a_row_whose_time_cannot_be_read_is_kept_unless_the_column_was_named(reg: Registry, tmp_path: Path) -> None:
    path = write(tmp_path / "f.csv", "user,input,output,time\nann,i,o,2026-01-01\nann,j,o,soon\n,k,o,later\n")
    result, notes = run(import_source(reg, source(path, skip_faulty=True)))
    assert result["items_added"] == 2
    assert (
        "records kept without their unreadable time: 1, such as f.csv: record 2 (line 3): 'soon' is not an ISO"
        in notes[1]
    )
    assert [item.time for item in reg.items.recent_items(reg.users.get("ann").id, "free")] == [None, "2026-01-01"]
    named = source(path, columns=ColumnMapping(time="time"))
    with pytest.raises(BadInput, match=r"f\.csv: 1 fault;") as caught:
        run(import_source(reg, named))
    assert any("field time: 'soon' is not an ISO 8601 date" in fault for fault in caught.value.faults)


def test_a_time_that_is_read_later_or_no_longer_makes_no_item_anew(reg: Registry, tmp_path: Path) -> None:
    lines = [f"ann,note {n},o,2026-01-0{n}" for n in range(1, 7)]
    broken = [*lines[:2], "ann,note 3,o,soon", *lines[3:5], "ann,note 6,o,later"]
    first, mended = (
        write(tmp_path / f"{n}.csv", "\n".join(["user,input,output,time", *each]) + "\n")
        for n, each in enumerate((broken, lines))
    )
    result, _ = run(import_source(reg, source(first, hold_out=2, seed=1)))
    assert (result["items_added"], result["queries_added"]) == (4, 2)
    asked = queries_of(reg, "ann")
    for path, options in ((mended, {}), (mended, {"columns": ColumnMapping(time="")}), (first, {})):
        again, notes = run(import_source(reg, source(path, hold_out=2, **options)))
        assert (again["items_added"], again["queries_added"]) == (0, 0)
        assert (again["items_unchanged"], again["queries_unchanged"]) == (4, 2)
        assert queries_of(reg, "ann") == asked
        assert ("items already stored without a time; their time in the file is not added: 2" in notes) == (
            path == mended and not options
        )
    twice = write(tmp_path / "twice.csv", mended.read_text() + "ann,note 3,o,2026-02-01\n")
    assert run(import_source(reg, source(twice)))[0]["items_added"] == 1, "once more, at another time"


@pytest.mark.parametrize("hold_out", [0, 2])
def test_times_that_are_more_exact_make_no_item_anew(reg: Registry, tmp_path: Path, hold_out: int) -> None:
    first = write(tmp_path / "a.jsonl", DAYS)
    finer = write(tmp_path / "b.jsonl", [row | {"time": f"{row['time']}T10:00:00"} for row in DAYS])
    run(import_source(reg, source(first, hold_out=2)))
    again, notes = run(import_source(reg, source(finer, hold_out=hold_out)))
    assert (again["items_added"], again["queries_added"], notes) == (0, 0, [])
    assert (again["items_unchanged"], again["queries_unchanged"]) == (4, 2)


def test_what_is_said_again_later_is_history_and_warned_about_where_it_is_held_out(
    reg: Registry, tmp_path: Path
) -> None:
    run(import_source(reg, source(write(tmp_path / "a.jsonl", DAYS), hold_out=2)))
    later = [row | {"time": f"2026-02-0{day}"} for day, row in enumerate(DAYS, 1)]
    result, notes = run(import_source(reg, source(write(tmp_path / "b.jsonl", later), hold_out=2)))
    assert (result["items_added"], result["queries_added"]) == (6, 0), "no query has the content of an item"
    assert "held-out queries that are also in their user's history, with the same answer: 2" in notes


def test_held_out_items_are_in_the_plan_and_users_with_too_few_are_named(reg: Registry, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [*DAYS, *rows("bob", 4), *rows("cy", 1)])
    events = list(import_source(reg, source(path, hold_out=2), dry_run=True))
    (plan,) = (event for event in events if isinstance(event, JobPlan))
    values = {line.name: line.value for line in plan.lines}
    assert values["held-out queries"] == "3, of which 0 are stored already"
    assert values["history items"] == "8, of which 0 are stored already"
    (note,) = (event.text for event in events if isinstance(event, Note))
    assert note == "users with fewer than 2 held-out queries, because 3 items stay history: 'bob', 'cy'"


def test_queries_of_a_users_document_count(reg: Registry, tmp_path: Path) -> None:
    path = write(tmp_path / "u.json", [person("ann", 6, 1)])
    for added in (1, 0):
        result, _ = run(import_source(reg, source(path, hold_out=2, task="lamp-2")))
        assert result["queries_added"] == 2 * added and result["items_added"] == 5 * added
    assert queries_of(reg, "ann", "lamp-2") == ["a plot 0", "film 5 about a lighthouse"]


def test_one_fault_and_nothing_is_written(reg: Registry, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [*rows(count=30), {"user": "bob", "input": 3, "output": "o"}])
    with pytest.raises(BadInput) as caught:
        imported(reg, "jsonl", path)
    assert caught.value.faults == ("a.jsonl: record 31, field input: is a number, not text",)
    assert "nothing was imported" in caught.value.message
    assert reg.users.names() == []


def test_twenty_faults_are_shown_and_all_are_counted(reg: Registry, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [*rows(count=1), *[{"user": "ann"}] * 40])
    with pytest.raises(BadInput, match=r"80 faults \(the first 20 are shown\)") as caught:
        imported(reg, "jsonl", path)
    assert len(caught.value.faults) == 20


def test_an_id_with_other_content_in_the_store_is_refused(reg: Registry, tmp_path: Path) -> None:
    imported(reg, "users", write(tmp_path / "a.json", [person("ann")]), task="lamp-2")
    other = person("ann", 4) | {"profile": [tagged(9), tagged(1, tag="action")]}
    path = write(tmp_path / "b.json", [person("bob"), other])
    for dry_run in (True, False):
        with pytest.raises(BadInput) as caught:
            imported(reg, "users", path, task="lamp-2", dry_run=dry_run)
        assert caught.value.faults == (
            "b.json: record 2, field id: '1' of 'ann' is stored already and says something else",
        )
    assert reg.users.names() == ["ann"]
    assert len(items_of(reg, "ann", "lamp-2")) == 3


def test_a_time_that_one_side_does_not_know_is_no_contradiction(reg: Registry, tmp_path: Path) -> None:
    timed, untimed, other = (
        write(tmp_path / f"{time}.jsonl", rows(id=1, count=1, time=time)) for time in ("2026-01-01", None, "2026-01-02")
    )
    imported(reg, "jsonl", timed)
    assert imported(reg, "jsonl", untimed)["items_unchanged"] == 1
    with pytest.raises(BadInput):
        imported(reg, "jsonl", other)
    imported(reg, "jsonl", write(tmp_path / "bob.jsonl", rows("bob", id=1, count=1)))
    _, notes = run(import_file(reg, "jsonl", write(tmp_path / "late.jsonl", rows("bob", id=1, count=1, time="2026"))))
    assert notes == ["items already stored without a time; their time in the file is not added: 1"]
    assert [
        item.time for name in ("ann", "bob") for item in reg.items.recent_items(reg.users.get(name).id, "free")
    ] == [
        "2026-01-01",
        None,
    ]


@pytest.mark.parametrize(
    ("form", "options", "error"),
    [
        ("xml", {}, UsageError),
        ("jsonl", {"outputs": Path("o.json")}, UsageError),
        ("jsonl", {"task": "lamp-22"}, NotFound),
        ("users", {"task": "../x"}, NotFound),
        ("users", {"user": "ann"}, UsageError),
    ],
)
def test_wrong_requests(
    reg: Registry, tmp_path: Path, form: str, options: dict[str, Any], error: type[MtaError]
) -> None:
    with pytest.raises(error):
        imported(reg, form, write(tmp_path / "a.jsonl", rows()), **options)


def test_an_unknown_task_in_a_record_is_a_fault(reg: Registry, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", rows(count=2) + rows(count=3, task="lamp-44"))
    with pytest.raises(BadInput) as caught:
        imported(reg, "jsonl", path)
    (fault,) = caught.value.faults
    assert fault.startswith("a.jsonl: record 3, field task: ")
    assert "lamp-44" in fault


@pytest.mark.parametrize(
    ("form", "content"),
    [(form, content) for form in ("lamp", "users", "jsonl", "csv") for content in ("", "\n", "\ufeff")]
    + [("lamp", "[]"), ("users", "[]"), ("users", '[{"user_id": "a"'), ("csv", "user,input,output\n")],
)
def test_files_with_nothing_in_them(reg: Registry, tmp_path: Path, form: str, content: str) -> None:
    with pytest.raises(BadInput):
        imported(reg, form, write(tmp_path / "f.json", content), task="lamp-2")
    assert reg.users.names() == []


@pytest.mark.parametrize("form", ["lamp", "users", "jsonl", "csv"])
def test_a_missing_file(reg: Registry, tmp_path: Path, form: str) -> None:
    with pytest.raises(NotFound, match="There is no file"):
        imported(reg, form, tmp_path / "none", task="free")


@pytest.mark.parametrize(
    ("form", "content"),
    [
        ("lamp", '[{"id": "1", "profile": [], "input": "caf\u00e9"}]'),
        ("users", '[{"user_id": "caf\u00e9", "profile": []}]'),
        ("jsonl", '{"user": "ann", "input": "i", "output": "o"}\n{"user": "ann", "input": "caf\u00e9"}'),
        ("json", '[{"user": "ann", "input": "caf\u00e9"}]'),
        ("csv", 'user,input,output\nann,"caf\u00e9",o\n'),
    ],
)
def test_a_file_that_is_not_utf8(reg: Registry, tmp_path: Path, form: str, content: str) -> None:
    path = tmp_path / "latin"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(BadInput) as caught:
        imported(reg, form, path, task="free")
    assert "UTF-8" in caught.value.message + " ".join(caught.value.faults)


@pytest.mark.parametrize("form", ["lamp", "users", "jsonl", "csv"])
def test_two_hundred_megabytes(reg: Registry, tmp_path: Path, form: str) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as stream:
        stream.truncate(200 * 2**20)
    with pytest.raises(BadInput):
        imported(reg, form, path, task="free")


def test_names_that_look_alike_stay_apart_and_are_reported(reg: Registry, tmp_path: Path) -> None:
    imported(reg, "jsonl", write(tmp_path / "a.jsonl", rows("Ann")))
    _, notes = run(import_file(reg, "jsonl", write(tmp_path / "b.jsonl", rows("ann") + rows("bob"))))
    assert [note for note in notes if "differ only in case" in note] == [
        "'Ann' and 'ann' differ only in case, Unicode form or white space; they are imported as different users"
    ]
    assert sorted(reg.users.names()) == ["Ann", "ann", "bob"]


def test_a_name_in_two_unicode_forms_is_one_user(reg: Registry, tmp_path: Path) -> None:
    content = rows("Zo\u00eb", 1) + rows("Zoe\u0308", 1)
    imported(reg, "jsonl", write(tmp_path / "a.jsonl", content))
    assert reg.users.names() == ["Zo\u00eb"]


def test_what_is_worth_saying_is_said(reg: Registry, tmp_path: Path) -> None:
    leaking = person("ann") | {"query": [{"id": "x", "input": "film 1 about a lighthouse", "gold": "comedy"}]}
    strange = person("bob") | {"profile": [tagged(1, tag="funny"), tagged(2, tag=""), tagged(3)]}
    _, notes = run(import_file(reg, "users", write(tmp_path / "u.json", [leaking, strange]), task="lamp-2"))
    text = "\n".join(notes)
    assert "held-out queries that are also in their user's history, with the same answer: 1" in text
    assert "answers that are not labels of lamp-2: 1, such as 'funny'" in text
    assert "left out, history items without tag: 1" in text


def test_another_spelling_of_a_score_is_a_label(reg: Registry, tmp_path: Path) -> None:
    records = [
        {"user": "ann", "id": str(n), "input": "a lamp", "output": out} for n, out in enumerate(("05", "4.0", "9"))
    ]
    _, notes = run(import_file(reg, "jsonl", write(tmp_path / "a.jsonl", records), task="lamp-3"))
    assert any("answers that are not labels of lamp-3: 1, such as '9'" in note for note in notes)


def test_texts_are_no_answers_of_a_task_of_labels(reg: Registry, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", rows(count=4) + rows("bob", 1, output="comedy"))
    with pytest.raises(
        BadInput, match=r"4 of 5 answers in a\.jsonl are not labels of lamp-2, such as 'answer 0'"
    ) as caught:
        imported(reg, "jsonl", path, task="lamp-2")
    assert words_to_text(caught.value.hint or "") == (
        "import them with --task free, which accepts any text; mta task show lamp-2 lists the labels"
    )
    assert reg.users.names() == []
    assert imported(reg, "jsonl", path, task="free")["items_added"] == 5


def test_numbers_off_a_scale_can_be_rounded(reg: Registry, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [row | {"output": "3.4"} for row in rows()])
    with pytest.raises(BadInput, match="3 of 3 answers") as caught:
        imported(reg, "jsonl", path, task="lamp-3")
    assert words_to_text(caught.value.hint or "").startswith("round them to its scale with --round N, or ")
    words = write(tmp_path / "b.jsonl", rows())
    with pytest.raises(BadInput) as refused:
        imported(reg, "jsonl", words, task="lamp-3")
    assert words_to_text(refused.value.hint or "").startswith("import them with --task free, ")
    run(import_source(reg, ImportSource("jsonl", path, "lamp-3", round_to=1.0)))
    assert reg.users.names() == ["ann"]


def test_half_of_the_answers_may_be_none_of_the_labels(reg: Registry, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", rows(count=2) + rows("bob", 2, output="comedy"))
    _, notes = run(import_file(reg, "jsonl", path, task="lamp-2"))
    assert any("answers that are not labels of lamp-2: 2" in note for note in notes)


def test_history_that_asks_something_else_needs_no_label(reg: Registry, tmp_path: Path) -> None:
    _, notes = run(import_file(reg, "jsonl", write(tmp_path / "a.jsonl", rows()), task="lamp-1"))
    assert not any("not labels" in note for note in notes)


def test_fields_that_mean_nothing_are_named(reg: Registry, tmp_path: Path) -> None:
    _, notes = run(import_file(reg, "jsonl", write(tmp_path / "a.jsonl", rows(tiem="2020"))))
    assert notes == ["fields that were not read: 'tiem'"]


def test_somebody_without_a_history_is_a_user_too(reg: Registry, tmp_path: Path) -> None:
    imported(
        reg,
        "users",
        write(tmp_path / "u.json", [person("ann", 0, 1), person("bob", 0, 0), person("cy")]),
        task="lamp-2",
    )
    assert sorted(reg.users.names()) == ["ann", "bob", "cy"]


def test_consent(reg: Registry, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", rows())
    imported(reg, "jsonl", path, can_anchor=False)
    assert not reg.users.get("ann").can_anchor
    imported(reg, "jsonl", path)
    assert not reg.users.get("ann").can_anchor
    imported(reg, "jsonl", path, can_anchor=True)
    assert reg.users.get("ann").can_anchor


def test_a_dry_run_checks_and_writes_nothing(reg: Registry, tmp_path: Path) -> None:
    path = write(tmp_path / "u.json", [person("ann")])
    events = list(import_file(reg, "users", path, task="lamp-2", dry_run=True))
    (plan,) = (event for event in events if isinstance(event, JobPlan))
    values = {line.name: line.value for line in plan.lines}
    assert (values["history items"], values["held-out queries"], values["task"]) == (
        "3, of which 0 are stored already",
        "1, of which 0 are stored already",
        "lamp-2",
    )
    assert values["users"] == "1, of whom 0 are known already"
    assert reg.users.names() == []
    with pytest.raises(BadInput):
        list(import_file(reg, "users", write(tmp_path / "v.json", [{}]), dry_run=True))


def test_an_import_that_is_stopped_leaves_nothing(reg: Registry, tmp_path: Path) -> None:
    events = import_file(reg, "jsonl", write(tmp_path / "a.jsonl", rows(count=50)))
    for event in events:
        if isinstance(event, JobProgress):
            break
    events.close()  # type: ignore[attr-defined]
    assert reg.users.names() == []


def test_a_hundred_thousand_items(reg: Registry, tmp_path: Path) -> None:
    path = tmp_path / "many.jsonl"
    with path.open("w", encoding="utf-8") as stream:
        for number in range(100_000):
            record = {
                "user": f"user {number % 500}",
                "input": f"a note about subject {number}",
                "output": "short answer",
            }
            stream.write(json.dumps(record | {"id": number}) + "\n")
    began = time.perf_counter()
    events = list(import_file(reg, "jsonl", path))
    seconds = time.perf_counter() - began
    result, _ = run(iter(events))
    assert result["items_added"] == 100_000
    assert seconds < 60, f"took {seconds:.1f} s"
    totals = [event.total for event in events if isinstance(event, JobStarted)]
    assert totals == [None, 100_000]
    assert sum(isinstance(event, JobProgress) for event in events) > 20
    assert imported(reg, "jsonl", path)["items_unchanged"] == 100_000
