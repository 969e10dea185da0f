"""From a file to a verdict on tiny models: everything it makes is ordinary, and a stopped run goes on."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mta_cli.engine.text.task_files import task_to_toml
from mta_cli.errors import BadInput, Flag, MtaError, NotFound, UsageError, Words
from mta_cli.events import JobPlan
from mta_cli.lab.evaluation.finished_evaluation import load_finished_evaluation
from mta_cli.lab.evaluation.seeds import evaluation_document
from mta_cli.options import AdaptOptions, FuseOptions, MachineOptions, MemoryOptions, ModelOptions, OptionSet
from mta_cli.pipeline.data.column_mapping import ColumnMapping
from mta_cli.pipeline.data.import_source import ImportSource
from mta_cli.pipeline.data.tasks import add_task, find_task, remove_task, store_task
from mta_cli.pipeline.evaluation.ladder_text import short_verdict, verdict_lines
from mta_cli.pipeline.quick import run as quick
from mta_cli.pipeline.quick.draft_task import FileSummary
from mta_cli.pipeline.quick.run import OPTION_CLASSES, QuickRequest, draw_users, measurable_users, run_quick
from mta_cli.pipeline.users import import_file
from mta_cli.pipeline.users.removal import remove_user
from store.records import NewItem, Query
from store.registry import Registry
from tests.pipeline.town import CPU, finish, notes

BOOKS = Path(__file__).parent / "books.csv"
MODELS = ModelOptions("tiny", "tiny-embedder")


def request(path: Path, minutes: float = 3.0, **source: Any) -> QuickRequest:
    """A request on the tiny models, with stacks of a few steps."""
    rest = [cls() for cls in OPTION_CLASSES if cls not in (ModelOptions, MachineOptions, AdaptOptions)]
    few = AdaptOptions(steps=6)
    source = {"hold_out": 2} | source
    return QuickRequest(ImportSource(None, path, **source), OptionSet(*rest, few, MODELS, CPU), minutes)


@pytest.fixture
def reg(store_root: Path) -> Iterator[Registry]:
    with Registry.open(store_root, create=True) as registry:
        yield registry


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with time for little: one pass, whatever this one is busy with."""
    monkeypatch.setattr(quick, "measure_row_rate", lambda *_: 5.0)


def summary_of(outputs: list[str]) -> FileSummary:
    """A file with these outputs."""
    return FileSummary({}, tuple(outputs), 100, {})


def letters(path: Path, users: int = 6) -> Path:
    """A file of texts."""
    rows = [
        f"u{n},what happened on day {day},{'dear all' if n % 2 else 'well'} it rained {day} times and then u{n} left"
        for n in range(users)
        for day in range(7)
    ]
    path.write_text("\n".join(["who,question,answer", *rows]) + "\n", encoding="utf-8")
    return path


def test_a_file_of_scores_becomes_a_task_a_bank_models_and_a_verdict(reg: Registry, fast: None) -> None:
    reg.banks.get_or_create_bank("elsewhere", "k", "free", "another base", "e", 0, {})
    result, seen = finish(run_quick(reg, request(BOOKS)))
    assert (result["task"], result["kind"], result["users"]) == ("books", "score", 12)
    meant = [" --base " in command for command in result["next"]]
    assert meant == [not command.startswith("mta eval show") for command in result["next"]]
    assert (result["items"], result["queries"], result["anchors"]) == (144, 24, 4)
    task, bank = find_task(reg, "books"), reg.banks.get("books")
    assert task.labels == ("1", "2", "3", "4", "5") and bank.config["anchors"] == 4
    anchors = {anchor.user for anchor in reg.banks.anchors(bank.id)}
    measured = [user for user in reg.users.names() if reg.recipes.get(reg.users.get(user).id, "books", bank.id)]
    assert len(measured) == result["measured_users"] == 8 and not anchors & set(measured)
    assert result["measured_queries"] == 16 and not result["measured_on_anchors"]
    assert len(result["prompts"]) == 3 and "My stars from 1 to 5:" in result["prompts"][0]["prompt"]
    assert all(reg.stacks.get(reg.users.get(user).id, "books", bank.id) for user in measured)
    assert {row["user"] for row in result["examples"]} <= set(measured) and len(result["examples"]) == 3
    assert result["shots"] is None, "whole histories"
    (plan,) = [event for event in seen if isinstance(event, JobPlan)]
    origins = {line.name: line.origin for line in plan.lines}
    assert origins["user"] == "guessed" and origins["anchors"] == "by the data" and "fits" in origins["passes"]
    assert any(text.startswith("2 of 4") for text in notes(seen))
    (run,) = reg.runs.of_kind("quick")
    assert run.result is not None and run.result["verdict"] == short_verdict(result["ladder"])
    assert not any(name in json.dumps(run.result) for name in reg.users.names()), "it outlives its users"


def test_the_task_alone_keeps_labels_of_a_removed_user(reg: Registry, fast: None, tmp_path: Path) -> None:
    path, own = tmp_path / "moods.csv", "zanzibarish"
    rows = [f"u{n},what happened on day {k},{own if n == 0 and k % 2 else 'go'}" for n in range(8) for k in range(10)]
    path.write_text("\n".join(["who,question,answer", *rows]) + "\n", encoding="utf-8")
    finish(run_quick(reg, request(path, columns=ColumnMapping("who", "question", "answer"))))
    _, seen = finish(remove_user(reg, "u0"))
    assert any(f"task moods that only this user gave stay in the task: '{own}'" in text for text in notes(seen))
    remove_task(reg, "moods")
    reg.close()
    assert not [file for file in reg.root.rglob("*") if file.is_file() and own.encode() in file.read_bytes()]


def test_each_step_adds_one_thing_and_the_memory_is_on_both_sides(reg: Registry, fast: None) -> None:
    asked = request(BOOKS)
    asked = replace(asked, options=asked.options.with_instance(FuseOptions(scale=0.0)))  # anchors of no weight
    result, _ = finish(run_quick(reg, asked))
    found: dict[str, dict[int, float | None]] = {}
    for one in reg.evaluations.predictions.load_predictions(result["evaluation"]):
        found.setdefault(one.method, {})[one.query_id] = one.gold_loglik
    assert list(found) == [step["step"] for step in result["ladder"]["steps"]]
    assert found["fused"] == pytest.approx(found["common+memory"]), "the fusion adds nothing else"
    assert found["common"] != pytest.approx(found["common+memory"])
    assert found["another's"] != pytest.approx(found["adapted"])
    pairs = [(row["step"], row["below"]) for row in result["ladder"]["comparisons"]]
    assert ("fused", "common+memory") in pairs and ("adapted", "common+memory") in pairs
    assert result["ladder"]["control"]["below"] == "another's"


def test_without_memory_no_step_has_it(reg: Registry, fast: None) -> None:
    asked = request(BOOKS)
    asked = replace(asked, options=asked.options.with_instance(MemoryOptions(memory="off")))
    result, _ = finish(run_quick(reg, asked))
    assert "common+memory" not in [step["step"] for step in result["ladder"]["steps"]] and result["memory"] == "off"


def test_the_verdict_is_that_of_the_evaluation_that_is_stored(reg: Registry, fast: None) -> None:
    result, _ = finish(run_quick(reg, request(BOOKS)))
    stored = evaluation_document([load_finished_evaluation(reg, result["evaluation"])])
    assert result["ladder"] == stored["ladder"]
    assert result["verdict"][:-1] == verdict_lines(stored["ladder"])[:-1]
    assert result["verdict"][-1].startswith("Measured on 16 questions of 8 users")
    assert "More: --hold-out N with another --task" in result["verdict"][-1], "nor more minutes: all were measured"
    for example in result["examples"]:
        answers = [
            one
            for one in reg.evaluations.predictions.load_predictions(result["evaluation"])
            if one.gold == example["gold"] and one.gold_loglik == example["gold_logliks"][one.method]
        ]
        assert {one.method for one in answers} == set(example["answers"])


def test_a_finished_run_is_read_and_nothing_is_computed(
    reg: Registry, fast: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = finish(run_quick(reg, request(BOOKS)))
    made = (len(reg.evaluations.all()), len(reg.runs.all()))
    for name in ("_load", "measure_row_rate", "_make_and_measure"):
        monkeypatch.setattr(quick, name, None)
    again, _ = finish(run_quick(reg, request(BOOKS)))
    lines = [line for line in first["plan"] if line["name"] != "held out"]  # it is stored now
    assert again | {"plan": lines} == first | {"plan": lines}
    assert made == (len(reg.evaluations.all()), len(reg.runs.all()))


def is_close(one: Any, other: Any) -> bool:
    """Whether two documents are equal but for last bits: a stack that is trained alone may round differently."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(is_close(value, other[key]) for key, value in one.items())
    if isinstance(one, list):
        return len(one) == len(other) and all(map(is_close, one, other))
    return bool(one == (pytest.approx(other, abs=1e-5) if isinstance(other, float) else other))


def test_a_change_since_is_measured_with_the_same_plan_and_more_time_makes_another_bank(
    reg: Registry, fast: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = finish(run_quick(reg, request(BOOKS)))
    monkeypatch.setattr(quick, "measure_row_rate", lambda *_: 1e9)  # another plan, were it made anew
    user = reg.users.get(first["examples"][0]["user"])
    bank = reg.banks.get("books")
    reg.stacks.remove(user.id, "books", bank.id)
    again, seen = finish(run_quick(reg, request(BOOKS)))
    assert "adapted already" in "\n".join(notes(seen)), "what is there is used"
    assert again["evaluation"] > first["evaluation"] and is_close(again["ladder"], first["ladder"])
    plans = [[line for line in found["plan"] if line["name"] != "held out"] for found in (first, again)]
    assert plans[0] == plans[1] and held_out(seen)[0] == "2 items of each user, as they are stored"
    reg.items.append_items(user.id, [NewItem("late", "books", "a late book", "3", "2026-12-31")])
    later, _ = finish(run_quick(reg, request(BOOKS)))
    assert later["evaluation"] > again["evaluation"], "a user's items changed"
    longer, _ = finish(run_quick(reg, request(BOOKS, minutes=9)))
    assert longer["version"] > first["version"], "more time makes a better bank"


def parts(error: MtaError) -> tuple[Words, ...]:
    """The parts of a hint."""
    assert isinstance(error.hint, tuple)
    return error.hint


def held_out(seen: list[Any]) -> tuple[str, str]:
    """The plan's line on what is held out."""
    (plan,) = [event for event in seen if isinstance(event, JobPlan)]
    return next((line.value, line.origin) for line in plan.lines if line.name == "held out")


def test_another_hold_out_of_a_stored_file_is_refused_and_another_task_takes_it(reg: Registry, fast: None) -> None:
    finish(run_quick(reg, request(BOOKS, hold_out=0)))
    asked = {user: reg.items.queries(reg.users.get(user).id, "books") for user in reg.users.names()}
    for wanted in (1, 4):
        for dry_run in (True, False):
            with pytest.raises(BadInput, match=f"task books already, with 2 held-out .* and not {wanted}") as refused:
                finish(run_quick(reg, request(BOOKS, hold_out=wanted), dry_run=dry_run))
            assert Flag("task", f"books-{wanted}") in parts(refused.value)
    assert asked == {user: reg.items.queries(reg.users.get(user).id, "books") for user in reg.users.names()}
    for wanted, origin in ((0, "by the store"), (2, "flag --hold-out")):
        _, seen = finish(run_quick(reg, request(BOOKS, hold_out=wanted), dry_run=True))
        assert held_out(seen) == ("2 items of each user, as they are stored", origin)
    apart, seen = finish(run_quick(reg, request(BOOKS, hold_out=4, task="books-4")))
    assert apart["queries"] == 48 and held_out(seen) == ("each user's last 4 items", "flag --hold-out")
    again, seen = finish(run_quick(reg, request(BOOKS, hold_out=0, task="books-4")))
    assert again["queries"] == 48 and held_out(seen)[0].startswith("4 items"), "what is stored, not the default"


def test_items_that_are_stored_as_history_are_never_held_out(reg: Registry, fast: None) -> None:
    columns = ColumnMapping("reader", "{book}. {about}", "stars", "read_on")
    task = quick.draft_task("books", ImportSource(None, BOOKS, columns=columns), summary_of(["1", "3", "5"] * 9))[0]
    finish(quick.import_source(reg, ImportSource(None, BOOKS, "books", columns=columns), task=task))
    with pytest.raises(BadInput, match="with 0 held-out items") as refused:
        finish(run_quick(reg, request(BOOKS, hold_out=0, task="books")))
    assert Flag("task", "books-2") in parts(refused.value)


def test_a_longer_file_keeps_its_hold_out(reg: Registry, fast: None, tmp_path: Path) -> None:
    lines = BOOKS.read_text().splitlines()
    users = {line.split(",")[0] for line in lines[1:]}
    path = tmp_path / "books.csv"
    path.write_text("\n".join(lines) + "\n")
    finish(run_quick(reg, request(path)))
    path.write_text("\n".join([*lines, *(f"{user},Late,A late one,3,2026-12-01" for user in users)]) + "\n")
    result, _ = finish(run_quick(reg, request(path)))
    assert (result["items"], result["queries"]) == (156, 24)


def test_scores_written_with_decimals_are_the_same_again(reg: Registry, fast: None, tmp_path: Path) -> None:
    """Else the second run would store all of them anew, held-out ones as history."""
    lines = [f"{line},film {n}" for n, line in enumerate(BOOKS.read_text().splitlines()[1:])]
    rows = [line.split(",") for line in lines]
    path, table = tmp_path / "films.csv", [f"{row[0]},{row[-1]},{float(row[-3]):.1f}" for row in rows]
    path.write_text("\n".join(["user,input,output", *table, f"{rows[0][0]},film x,n/a"]) + "\n")
    asked = request(path, task="films")
    first, seen = finish(run_quick(reg, asked))
    assert any("output is not a number: 1" in note for note in notes(seen))
    users = [reg.users.get(name).id for name in reg.users.names()]
    held = {user: reg.items.queries(user, "films") for user in users}
    again, _ = finish(run_quick(reg, asked))
    assert (again["items"], again["queries"]) == (first["items"], first["queries"]) == (len(rows) - 24, 24)
    assert held == {user: reg.items.queries(user, "films") for user in users}


def test_what_is_held_out_is_said_as_it_is_chosen(reg: Registry, fast: None, tmp_path: Path) -> None:
    lines = BOOKS.read_text().splitlines()
    path = tmp_path / "books.csv"

    def said(lines: list[str], **source: Any) -> tuple[str, list[str]]:
        path.write_text("\n".join(lines) + "\n")
        _, seen = finish(run_quick(reg, request(path, **source), dry_run=True))
        return held_out(seen)[0], notes(seen)

    drawn = "drawn by seed 0, because not all times are known"
    assert said(lines)[0] == "each user's last 2 items"
    untimed = [line.rpartition(",")[0] for line in lines]
    assert said(untimed, hold_out=1)[0] == f"1 item of each user, {drawn}"
    assert said(lines, columns=ColumnMapping(time=""))[0] == f"2 items of each user, {drawn}"
    broken = [*lines[:-1], untimed[-1] + ",soon"]
    held, found = said(broken)
    assert held == f"each user's last 2 items; of 1 user {drawn}"
    assert any("kept without their unreadable time: 1" in text and "'soon'" in text for text in found)
    assert not any("left out" in text for text in found), "the row stays"
    held, found = said(broken, columns=ColumnMapping(time="read_on"))
    assert held == "each user's last 2 items", "of the rows that are read"
    assert any("left out, records with a fault: 1" in text for text in found), "the column was named"


def test_shots_and_steps_of_the_settings_are_in_the_plan(reg: Registry, fast: None, tmp_path: Path) -> None:
    path = letters(tmp_path / "letters.csv")
    source = request(path, columns=ColumnMapping("who", "question", "answer"))
    options = source.options.with_instance(AdaptOptions(shots=3, steps=40))
    plans = []
    for each in (source, replace(source, options=options)):
        _, seen = finish(run_quick(reg, each, dry_run=True))
        (plan,) = [event for event in seen if isinstance(event, JobPlan)]
        plans.append({line.name: line.value for line in plan.lines})
    assert plans[0]["users' models"] == "fusions from at most 5 items, stacks from the same in 6 steps"
    assert plans[1]["users' models"] == "fusions from at most 3 items, stacks from the same in 40 steps"
    assert plans[0]["time"] != plans[1]["time"]


def test_a_stopped_run_goes_on_to_the_same_bank(reg: Registry, fast: None, tmp_path: Path) -> None:
    job = run_quick(reg, request(BOOKS))
    for event in job:
        if getattr(event, "kind", "") == "task adapter":
            break
    job.close()  # type: ignore[attr-defined]
    (bank,) = reg.banks.all()
    assert bank.status == "building" and bank.task_adapter is not None
    finish(run_quick(reg, request(BOOKS)))
    (whole,) = reg.banks.all()
    assert whole.status == "ready" and whole.task_adapter == bank.task_adapter


def test_whole_answers_to_texts_and_a_whole_question_are_shown(reg: Registry, fast: None, tmp_path: Path) -> None:
    source = request(letters(tmp_path / "letters.csv"), columns=ColumnMapping("who", "question", "answer"))
    result, _ = finish(run_quick(reg, source))
    assert (result["kind"], result["ladder"]["metric"], result["memory"]) == ("text", "gold_loglik", "off")
    bank = reg.banks.get("letters")
    for row in result["examples"]:
        assert reg.stacks.get(reg.users.get(row["user"]).id, "letters", bank.id)
        assert row["gold"].endswith("left") and all(row["answers"].values()), "generated at every step"
    assert result["ladder"]["unit"] == "questions" and result["ladder"]["units"] == 8, "of four users"
    user, question = (shlex.split(result["next"][0])[place] for place in (3, -1))
    assert question in [query.input for query in queries_of(reg, user, "letters")], "it is whole"


def test_a_question_that_is_too_long_for_a_line_is_not_cut(reg: Registry, fast: None, tmp_path: Path) -> None:
    path = tmp_path / "long.csv"
    rows = [f"u{n},{'word ' * (40 + 9 - k)}{n},{'go' if k % 2 else 'skip'}" for n in range(6) for k in range(9)]
    path.write_text("\n".join(["who,question,answer", *rows]) + "\n", encoding="utf-8")
    result, _ = finish(run_quick(reg, request(path, columns=ColumnMapping("who", "question", "answer"))))
    (question,) = [word for word in shlex.split(result["next"][0]) if word.startswith("word ")]
    shortest = min(len(query.input) for user in reg.users.names() for query in queries_of(reg, user, "long"))
    assert len(question) == shortest > 120 and question.split()[-1].isdigit()


def queries_of(reg: Registry, user: str, task: str) -> list[Query]:
    """The held-out queries of a user."""
    return reg.items.queries(reg.users.get(user).id, task)


def test_a_task_that_is_there_is_taken_by_its_name_and_never_changed(reg: Registry, fast: None, tmp_path: Path) -> None:
    finish(run_quick(reg, request(BOOKS, task="mine"), dry_run=True))
    assert reg.users.names() == [] and reg.tasks.all() == {}, "a dry run changes nothing"
    source = letters(tmp_path / "books.csv")
    other = replace(find_task(reg, "lamp-3"), name="books", prompt="{input}?")
    store_task(reg, other, task_to_toml(other))
    for dry_run in (True, False):
        with pytest.raises(BadInput, match="already another task") as refused:
            finish(run_quick(reg, request(source, columns=ColumnMapping("who", "question", "answer")), dry_run=dry_run))
        assert parts(refused.value)[:2] == (Flag("task", "books"), " takes it as it is; ") and reg.users.names() == []


def test_outputs_are_rounded_only_to_a_scale_of_equal_steps(reg: Registry, fast: None, tmp_path: Path) -> None:
    path = tmp_path / "odd.csv"
    lines = [f"u{n % 6},film {n},{(1, 3, 5)[n % 3]}" for n in range(60)]
    path.write_text("\n".join(["user,film,rating", "u0,film x,n/a", "u1,film y,2.4", *lines]) + "\n")
    stars = find_task(reg, "lamp-3")
    for labels, steps in ((("1", "3", "5"), ""), (("5", "4", "3", "2", "1"), "steps of 1 from 1 to 5")):
        other = replace(stars, name=f"scale-{len(labels)}", labels=labels)
        store_task(reg, other, task_to_toml(other))
        _, seen = finish(run_quick(reg, request(path, task=other.name), dry_run=True))
        assert [note for note in notes(seen) if "rounded" in note] == (
            [f"outputs are rounded to {steps}"] if steps else []
        )


def test_a_question_that_is_not_answered_leaves_no_task_in_the_way(reg: Registry, fast: None, tmp_path: Path) -> None:
    def decline(_: int) -> bool:
        raise MtaError("nothing was changed")

    path = letters(tmp_path / "letters.csv")
    with pytest.raises(MtaError, match="nothing was changed"):
        finish(run_quick(reg, request(path, columns=ColumnMapping("who", "answer", "question")), ask=decline))
    assert reg.tasks.all() == {}
    finish(run_quick(reg, request(path, columns=ColumnMapping("who", "question", "answer"))))
    assert list(reg.tasks.all()) == ["letters"]


def test_one_user_alone_is_measured_by_questions(reg: Registry, fast: None, tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    rows = "".join(f"a film about {n},{'go' if n % 2 else 'skip'}\n" for n in range(60))
    path.write_text("film,verdict\n" + rows, encoding="utf-8")
    result, seen = finish(run_quick(reg, request(path, hold_out=0, user="ann")))
    assert (result["measured_users"], result["queries"], result["ladder"]["unit"]) == (1, 12, "questions")
    steps = [step["step"] for step in result["ladder"]["steps"]]
    assert steps[:2] == ["no-model", "base"] and steps[-2:] == ["fused", "adapted"], "there is no other user"
    assert "too few" not in result["verdict"][-1]
    assert not any("is an anchor" in text for text in notes(seen))
    assert not any("eval run" in command for command in result["next"]), "which compares users"
    assert len({row["question"] for row in result["examples"]}) == 3, "questions, where users are one"
    for dry_run in (True, False):
        with pytest.raises(BadInput, match="task own has items of 1 other user") as refused:
            finish(run_quick(reg, request(path, user="bo"), dry_run=dry_run))
        assert Flag("task", "OTHER") in parts(refused.value) and reg.users.names() == ["ann"]
    few, _ = finish(run_quick(reg, request(path, task="few", hold_out=3, user="bo")))
    assert "3 questions: too few for a verdict" in few["verdict"][-1]


def test_an_import_that_was_stopped_goes_on_to_the_same_held_out_items(
    reg: Registry, fast: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "own.csv"
    rows = "".join(f"a film about {n},{'go' if n % 2 else 'skip'}\n" for n in range(60))
    path.write_text("film,verdict\n" + rows, encoding="utf-8")
    monkeypatch.setattr(import_file, "MAX_WHOLE_RECORDS", 0)
    monkeypatch.setattr(import_file, "BATCH_RECORDS", 20)
    monkeypatch.setattr(import_file, "TURN_SECONDS", 0.0)
    real, calls = reg.items.bulk_append, list[int]()

    def full_disk(items: Any, queries: Any = ()) -> Any:
        calls.append(1)
        if len(calls) > 1:
            raise MtaError("the disk is full")
        return real(items, queries)

    with monkeypatch.context() as patched:
        patched.setattr(reg.items, "bulk_append", full_disk)
        with pytest.raises(MtaError, match="full"):
            finish(run_quick(reg, request(path, hold_out=0, user="ann")))
    ann = reg.users.get("ann").id
    assert 0 < len(reg.items.queries(ann, "own")) < 12
    result, _ = finish(run_quick(reg, request(path, hold_out=0, user="ann")))
    assert result["queries"] == len(reg.items.queries(ann, "own")) == 12


def test_chats_and_mail_are_texts_of_one_user_who_says_so(reg: Registry, fast: None, tmp_path: Path) -> None:
    turns = [
        {"role": "user" if n % 2 else "assistant", "content": f"{'I ask for' if n % 2 else 'Here is'} number {n}"}
        for n in range(24)
    ]
    nodes: dict[str, Any] = {"root": {"id": "root", "message": None, "parent": None}}
    for n, turn in enumerate(turns):
        message = {"author": {"role": turn["role"]}, "content": {"content_type": "text", "parts": [turn["content"]]}}
        nodes[str(n)] = {"id": str(n), "message": message, "parent": str(n - 1) if n else "root"}
    path = tmp_path / "conversations.json"
    path.write_text(json.dumps([{"title": "", "mapping": nodes, "current_node": "23"}]))
    with pytest.raises(UsageError, match="does not name its user"):
        finish(run_quick(reg, request(path)))
    with pytest.raises(UsageError, match="are the words of an assistant, so no bank is built") as refused:
        finish(run_quick(reg, request(path, user="ann")))
    assert Flag("can_anchor") in parts(refused.value) and reg.users.names() == []
    result, _ = finish(run_quick(reg, request(path, user="ann", hold_out=0), can_anchor=True))
    assert (result["task"], result["kind"], result["queries"]) == ("conversations", "text", 9)
    assert "My message:" in result["prompts"][0]["prompt"] and result["ladder"]["control"] is None


def test_dirty_tables_are_read_and_what_is_left_out_is_counted(reg: Registry, fast: None, tmp_path: Path) -> None:
    path = tmp_path / "drams.csv"
    lines = [f"u{n % 6},- dram {n},{40 + n % 60}" for n in range(60)]
    path.write_text("\n".join(["reviewer,dram,rating", "u0,x,n/a", "u1,y,999", *lines, "-dash-,dram 1,50"]) + "\n")
    result, seen = finish(run_quick(reg, request(path, hold_out=3)))
    said = "\n".join(notes(seen))
    assert "left out, rows whose output is outside the scale 40 to 100: 1" in said
    assert "outputs are rounded to steps of 5 from 40 to 100" in said
    assert "left out, rows whose output is not a number: 1" in said and "left out, records with a fault: 1" in said
    assert "'-dash-'" in said and result["users"] == 6 and result["items"] + result["queries"] == 60
    assert " -- '- dram" in result["next"][0], "a question that is no option"
    labels = find_task(reg, "drams").labels
    assert labels[0] == "40" and labels[-1] == "100" and len(labels) <= 21
    assert all(query.gold in labels for query in reg.items.queries(reg.users.get("u1").id, "drams"))
    again, _ = finish(run_quick(reg, request(path, task="drams", hold_out=3)))
    assert (again["items"], again["queries"]) == (result["items"], result["queries"]), "the same items, not new ones"
    _, seen = finish(run_quick(reg, request(path, hold_out=0), dry_run=True))
    assert held_out(seen) == ("3 items of each user, as they are stored", "by the store")
    prompts = "\n".join(note for note in notes(seen) if note.startswith("A complete prompt"))
    assert "u0, who answered '80'" in prompts and "n/a" not in prompts, "not 82, as the file says"


def test_users_without_enough_items_are_refused_before_anything_is_stored(reg: Registry, tmp_path: Path) -> None:
    path = tmp_path / "short.csv"
    path.write_text("user,input,output\n" + "ann,a,go\nann,b,skip\nbob,c,go\n", encoding="utf-8")
    with pytest.raises(BadInput, match="has more than 3 items"):
        finish(run_quick(reg, request(path)))
    assert reg.users.names() == [] and reg.tasks.all() == {}


def test_more_users_than_fit_are_drawn_by_the_seed(peopled: Registry) -> None:
    from mta_cli.pipeline.bank.build import build_bank
    from tests.pipeline.town import bank_request

    finish(build_bank(peopled, bank_request()))
    bank, names = peopled.banks.all()[0], peopled.users.names()
    assert measurable_users(peopled, bank, {"ida"}) == ([peopled.users.get("ida")], False)
    users, are_anchors = measurable_users(peopled, bank, names)
    assert len(users) == 9 and not are_anchors
    drawn = [[user.id for user in draw_users(users, 4, seed)] for seed in (1, 1, 2, 3, 4)]
    assert drawn[0] == drawn[1] == sorted(drawn[0]) and len(drawn[0]) == 4 and len(set(map(tuple, drawn))) > 1
    assert draw_users(users, 99, seed=1) == users


@pytest.mark.parametrize(
    ("counts", "hold_out"),
    [((14,) * 12, 2), ((20,) * 12, 4), ((4, 20, 300), 4), ((300,) * 3, 12), ((5,) * 9, 2), ((60,), 12), ((12,), 9)],
)
def test_a_fifth_of_the_items_is_held_out(counts: tuple[int, ...], hold_out: int) -> None:
    users = {f"u{n}": count for n, count in enumerate(counts)}
    assert quick.choose_hold_out(FileSummary(users, ("go",), 100, {})) == hold_out


def test_a_document_needs_a_task_that_is_there(reg: Registry, fast: None) -> None:
    sample = Path(quick.__file__).parents[2] / "sample" / "taste.users.json"
    with pytest.raises(BadInput, match="is in the format users, for which no task can be made"):
        finish(run_quick(reg, request(sample)))
    with pytest.raises(NotFound, match="There is no task 'taste'"):
        finish(run_quick(reg, request(sample, task="taste")))
    add_task(reg, sample.with_name("taste.toml"))
    result, _ = finish(run_quick(reg, request(sample, task="taste"), dry_run=True))
    assert (result["task"], result["kind"]) == ("taste", "label") and result["users"] >= 24


def test_a_plan_that_takes_longer_is_asked_about_before_anything_is_trained(
    reg: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quick, "measure_row_rate", lambda *_: 0.1)
    asked = list[float]()

    def decline(seconds: float) -> None:
        asked.append(seconds)
        raise UsageError("too long")

    with pytest.raises(UsageError, match="too long"):
        finish(run_quick(reg, request(BOOKS, minutes=1), ask_time=decline))
    assert asked and asked[0] > 60 and reg.banks.all() == [] and reg.runs.of_kind("quick") == []
    job, said = run_quick(reg, request(BOOKS, minutes=1), ask_time=asked.append), list[str]()
    while not any("2 of 4" in text for text in said):
        said.append(getattr(next(job), "text", ""))
    job.close()  # type: ignore[attr-defined]
    assert len(asked) == 2 and any("more than the 1 min of --minutes" in text for text in said)
    finish(run_quick(reg, request(BOOKS, minutes=1), ask_time=decline))
    assert len(asked) == 2, "it was agreed to when it was begun"
