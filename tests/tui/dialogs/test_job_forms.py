"""What can be started: every option has a field, values are refused as on the command line, jobs do their work."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

import pytest

from mta_cli.configuration.settings import Settings
from mta_cli.engine.text.tasks import BUILTIN_TASKS
from mta_cli.errors import BadInput, NotFound, UsageError
from mta_cli.events import JobPlan, JobResult
from mta_cli.options import SITES, AdaptOptions, BankOptions, EvalOptions, ImportOptions
from mta_cli.pipeline.data.presets import PRESETS
from mta_cli.pipeline.quick.run import OPTION_CLASSES, QuickRequest
from mta_cli.tui.dialogs.form import FormValues
from mta_cli.tui.dialogs.job_forms import JOB_FORMS, dry_run_plans, guess_task, parse_user_names
from mta_cli.tui.dialogs.job_request import FormContext, JobRequest
from store.registry import Registry
from tests.pipeline.town import TASK, finish
from tests.repositories import BOB, Repository, needs_git
from tests.shell import mta_ok

BOOKS = Path(__file__).parents[2] / "pipeline/quick/books.csv"


def known(store: Path, **more: object) -> FormContext:
    return FormContext(Settings.load(store), store, tuple(BUILTIN_TASKS), **more)  # type: ignore[arg-type]


def order(kind: str, store: Path, **values: str) -> JobRequest:
    """The job of a form in which only these fields were filled."""
    now = known(store)
    filled: FormValues = {field.name: field.initial_value for field in JOB_FORMS[kind].make_fields(now)}
    assert set(values) <= set(filled)
    return JOB_FORMS[kind].make_request(now, {**filled, **values})


@pytest.fixture(autouse=True)
def quick_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """The task by its name is the quick one of the town."""
    monkeypatch.setitem(BUILTIN_TASKS, TASK.name, TASK)


@pytest.mark.parametrize(
    ("kind", "cls"), [("bank build", BankOptions), ("user adapt", AdaptOptions), ("eval run", EvalOptions)]
)
def test_every_option_of_a_job_has_its_field(kind: str, cls: type, empty_store: Path) -> None:
    names = [field.name for field in JOB_FORMS[kind].make_fields(known(empty_store))]
    assert {spec.name for spec in fields(cls)} <= set(names) and len(names) == len(set(names))
    assert {"seed", "device", "dtype", "base", "embedder", "history_items"} <= set(names)


def test_every_option_of_an_import_has_its_field(empty_store: Path) -> None:
    names = [field.name for field in JOB_FORMS["data import"].make_fields(known(empty_store))]
    assert {spec.name for spec in fields(ImportOptions)} < set(names) and len(names) == len(set(names))
    assert tuple(PRESETS) == SITES, "the choices are the exports that can be read"
    filled = {
        one.name: one.initial_value for one in JOB_FORMS["data import"].make_fields(known(empty_store, task="free"))
    }
    assert filled["task"] == "", "a file may bring its own task, as a repository does"


@needs_git
def test_a_repository_is_imported_by_its_own_options(empty_store: Path, tmp_path: Path) -> None:
    repo = Repository(tmp_path / "lighthouse")
    repo.commits(2)
    repo.commits(3, BOB)
    job = order("data import", empty_store, path=str(repo.folder), least="3", pseudonyms="yes", body="yes")
    with Registry.open(empty_store, create=True) as reg:
        finish(job.make_events(reg, False))
        (name,) = reg.users.names()
        assert name != BOB[0] and len(reg.items.recent_items(reg.users.get(name).id, "commit-body")) == 3
    with pytest.raises(UsageError, match="'soon' is not a date"):
        order("data import", empty_store, path=str(repo.folder), since="soon")
    with pytest.raises(UsageError, match="--paths applies to git repositories, not to csv"):
        order("data import", empty_store, path="a.csv", format="csv", paths="docs, src")


def test_keys_are_different_and_every_kind_says_what_it_is() -> None:
    assert len({start.key for start in JOB_FORMS.values()}) == len(JOB_FORMS)
    assert all(start.about and start.kind == kind for kind, start in JOB_FORMS.items())


def test_all_faults_of_all_options_are_listed_at_once(empty_store: Path) -> None:
    with pytest.raises(UsageError) as caught:
        order("bank build", empty_store, task="lamp-2", rank="0", history_items="99", dtype="float8")
    assert [text.partition(" =")[0] for text in caught.value.message.splitlines()[1:]] == [
        "bank.rank",
        "prompt.history_items",
        "machine.dtype",
    ]
    with pytest.raises(UsageError, match="is not a setting of a method"):
        order("eval run", empty_store, task="lamp-2", set="mta")
    with pytest.raises(UsageError, match="--outputs applies to"):
        order("data import", empty_store, format="jsonl", outputs="x")


@pytest.mark.parametrize(
    ("kind", "values", "line"),
    [
        (
            "bank build",
            {"task": "lamp-2", "anchors": "2", "min_items": "5"},
            ["bank", "build", "--task", "lamp-2", "--anchors", "2", "--min-items", "5"],
        ),
        ("user adapt", {"users": "kim", "rank": "1"}, ["user", "adapt", "kim", "--rank", "1"]),
        (
            "eval run",
            {"task": "lamp-2", "methods": "base", "folds": "2", "anchors": "2", "min_items": "5"},
            [
                "eval",
                "run",
                "--task",
                "lamp-2",
                "--methods",
                "base",
                "--folds",
                "2",
                "--anchors",
                "2",
                "--min-items",
                "5",
            ],
        ),
    ],
)
def test_the_plan_is_that_of_the_command_line(
    demo_store: Path, kind: str, values: dict[str, str], line: list[str]
) -> None:
    with Registry.open(demo_store) as reg:
        plans = dry_run_plans(order(kind, demo_store, **values), reg)
    document = mta_ok(*line, "--dry-run", "--json").json()
    measured = {"time"}  # differs from one moment to the next
    mine = [(each.name, each.value, each.origin) for each in plans[0].lines if each.name not in measured]
    theirs = [(e["name"], e["value"], e["origin"]) for e in document["plan"] if e["name"] not in measured]
    assert plans[0].job == document["job"] and mine == theirs


def test_a_bank_an_adaptation_and_an_evaluation_come_of_their_forms(demo_store: Path) -> None:
    bank = order(
        "bank build",
        demo_store,
        task="lamp-2",
        name="mine",
        anchors="2",
        rank="1",
        min_items="5",
        epochs="1",
        task_epochs="1",
    )
    assert (bank.kind, bank.title) == ("bank build", "mine")
    with Registry.open(demo_store) as reg:
        result, _ = finish(bank.make_events(reg, False))
        assert result["bank"] == "mine" and len(result["anchors"]) == 2 and reg.banks.get("mine").config["rank"] == 1
        results, _ = finish(order("user adapt", demo_store, users="kim, ida,kim", steps="2").make_events(reg, False))
        assert [(r["user"], r["steps"]) for r in results] == [("kim", 2), ("ida", 2)]
        tested = order(
            "eval run",
            demo_store,
            task="lamp-2",
            methods="majority",
            folds="2",
            anchors="2",
            min_items="5",
            set="majority.prior_strength=2",
        )
        with pytest.raises(UsageError, match="majority has no setting"):
            finish(tested.make_events(reg, False))


def test_nobody_named_means_everybody(demo_store: Path) -> None:
    with Registry.open(demo_store) as reg:
        everybody = order("user adapt", demo_store)
        assert everybody.title == "all users"
        done = list(everybody.make_events(reg, True))[-1]
        assert isinstance(done, JobResult) and len(done.result["users"]) == 9
        with pytest.raises(NotFound, match="no user"):
            dry_run_plans(order("user adapt", demo_store, users="nobody"), reg)


def test_commas_alone_name_nobody(demo_store: Path) -> None:
    with Registry.open(demo_store) as reg, pytest.raises(BadInput, match="names no user"):
        list(order("user adapt", demo_store, users=" , ").make_events(reg, True))


def test_names_stand_between_commas_and_the_chosen_one_may_hold_one() -> None:
    assert parse_user_names("ida, jon ,, ida") == ["ida", "jon"] and parse_user_names("") == []
    assert parse_user_names("ida", " ida") == [" ida"]
    assert parse_user_names("Doe, Jane", "Doe, Jane") == ["Doe, Jane"] and parse_user_names("Doe, Jane", "ida") == [
        "Doe",
        "Jane",
    ]


def test_a_file_is_imported_after_its_plan(empty_store: Path, tmp_path: Path) -> None:
    path = tmp_path / "notes"  # whose content says which format it is
    path.write_text('{"user": "nia", "input": "a", "output": "b"}\n', encoding="utf-8")
    job = order("data import", empty_store, path=str(path), can_anchor="no")
    with Registry.open(empty_store, create=True) as reg:
        (plan,) = dry_run_plans(job, reg)
        assert isinstance(plan, JobPlan) and reg.users.names() == []
        finish(job.make_events(reg, False))
        assert reg.users.names() == ["nia"] and not reg.users.get("nia").can_anchor
        path.write_text("no json", encoding="utf-8")
        with pytest.raises(BadInput):
            dry_run_plans(job, reg)


def test_a_file_that_is_not_named_yet_is_no_fault(empty_store: Path) -> None:
    order("data import", empty_store)


def test_a_path_that_cannot_be_is_refused(empty_store: Path) -> None:
    with pytest.raises(UsageError, match="NUL"):
        order("data import", empty_store, path="a\0b")


def test_remarks_of_a_dry_run_stand_with_its_plan(empty_store: Path, tmp_path: Path) -> None:
    path = tmp_path / "two.jsonl"
    people = ('{"user": "Nia", "input": "a", "output": "b"}', '{"user": "nia", "input": "a", "output": "b"}')
    path.write_text("\n".join(people), encoding="utf-8")
    with Registry.open(empty_store, create=True) as reg:
        plans = dry_run_plans(order("data import", empty_store, path=str(path)), reg)
    assert plans[-1].job == "notes" and "nia" in plans[-1].lines[0].value.lower()


@pytest.mark.parametrize(("empty", "ending"), [(True, ""), (False, "-demo")])
def test_the_demo_goes_into_an_empty_store_and_else_beside_it(demo_store: Path, empty: bool, ending: str) -> None:
    job = JOB_FORMS["demo"].make_request(
        now := known(demo_store, store_is_empty=empty), {one.name: "" for one in JOB_FORMS["demo"].make_fields(now)}
    )
    with Registry.open(demo_store) as reg:
        lines = {line.name: line.value for line in dry_run_plans(job, reg)[0].lines}
    assert lines["store"] == f"{demo_store}{ending}" and not Path(f"{demo_store}-demo").exists()


def test_the_task_that_is_meant_is_that_of_the_user_or_of_the_only_bank(demo_store: Path, empty_store: Path) -> None:
    with Registry.open(demo_store) as reg:
        assert guess_task(reg, "ida") == guess_task(reg, None) == "lamp-2"
        reg.users.add("new")
        assert guess_task(reg, "new") == guess_task(reg, "removed") == "lamp-2"
        reg.banks.get_or_create_bank("other", "k", "free", "b", "e", 0, {})
        assert guess_task(reg, None) is None


def suggested(kind: str, store: Path, **values: str) -> Mapping[str, str]:
    """What a form says of its empty fields when these are filled."""
    filled = {field.name: "" for field in JOB_FORMS[kind].make_fields(known(store))}
    suggest = JOB_FORMS[kind].suggest
    assert suggest is not None
    return suggest(known(store), {**filled, **values})


def test_the_columns_of_a_file_are_guessed_as_the_command_does(empty_store: Path) -> None:
    found = suggested("quick", empty_store, path=str(BOOKS))
    assert found["user"] == "reader (guessed)" and found["output"] == "stars (guessed)"
    assert suggested("quick", empty_store, path=str(BOOKS), user="about")["user"] == "about (given)"
    assert found["time"] == "read_on (guessed)"
    assert suggested("quick", empty_store, path=str(BOOKS), time="-")["time"] == "none (given)"
    assert suggested("quick", empty_store, path=str(BOOKS.parent)) == {}
    assert suggested("quick", empty_store, path="/dev/zero") == {}
    with pytest.raises(BadInput, match="has no column 'ink'"):
        suggested("quick", empty_store, path=str(BOOKS), input="ink")


def test_a_quick_run_is_asked_as_on_the_command_line(empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[QuickRequest, bool | None]] = []

    def take(reg: Registry, request: QuickRequest, *, can_anchor: bool | None = None, **rest: object) -> object:
        asked.append((request, can_anchor))
        return iter([JobResult({})])

    monkeypatch.setattr("mta_cli.pipeline.quick.run.run_quick", take)
    monkeypatch.setattr("mta_cli.commands.quick.render_verdict", lambda result, store: "")
    values = {"user": "reader", "output": "stars", "minutes": "1.5", "hold_out": "3", "task": "mine", "seed": "4"}
    job = order("quick", empty_store, path=str(BOOKS), can_anchor="no", **values)
    with Registry.open(empty_store, create=True) as reg:
        list(job.make_events(reg, False))
    flags = [word for name, value in values.items() for word in (f"--{name.replace('_', '-')}", value)]
    mta_ok("quick", str(BOOKS), *flags, "--no-can-anchor", "--yes")
    ((mine, mine_may), (theirs, they_may)) = asked
    assert (mine.source, mine.minutes, mine_may) == (theirs.source, theirs.minutes, they_may)
    assert [mine.options[cls] for cls in OPTION_CLASSES] == [theirs.options[cls] for cls in OPTION_CLASSES]
    assert mine_may is False and (job.kind, job.title) == ("quick", "books.csv")


@pytest.mark.parametrize(
    ("kind", "values", "words"),
    [
        ("quick", {"minutes": "soon"}, "quick.minutes = 'soon' (flag --minutes): a number is needed"),
        ("quick", {"minutes": "nan"}, "--minutes"),
        ("quick", {"hold_out": "0"}, "quick.hold_out = 0 (flag --hold-out): the least is 1"),
        ("quick", {"me": "Ada", "user": "who"}, "--me and --user contradict"),
        ("data import", {"hold_out": "-1"}, "--hold-out"),
        ("data import", {"round": "-1"}, "import.round = -1.0 (flag --round): the least is 0"),
        ("data import", {"hold_out": "9" * 30}, "--hold-out"),
        ("data import", {"format": "telegram"}, "does not name its user"),
        ("data import", {"preset": "letterboxd"}, "does not name its user"),
        ("data import", {"preset": "movielens", "me": "Ada"}, "names its users"),
        ("data import", {"format": "mbox", "me": "a@b.org, Ada"}, "is not an address"),
    ],
)
def test_what_a_file_cannot_be_read_with_is_refused(
    kind: str, values: dict[str, str], words: str, empty_store: Path
) -> None:
    with pytest.raises(UsageError, match=re.escape(words)):
        order(kind, empty_store, path="a.csv", **values)


def test_the_form_of_an_import_says_whether_it_needs_a_name(empty_store: Path, tmp_path: Path) -> None:
    mail = tmp_path / "letters.eml"
    mail.write_text("From: a@example.org\nTo: b@example.org\nSubject: lift\nMessage-ID: <1@x>\n\nIt is broken.\n")
    assert suggested("data import", empty_store, path=str(mail))["me"].startswith("required: a file in the format eml")
    found = suggested("data import", empty_store, path=str(BOOKS))
    assert found["user"] == "required; perhaps reader" and found["me"].startswith("required if no column")
    table = tmp_path / "t.csv"
    table.write_text("user,input,output\nnia,a,b\n")
    found = suggested("data import", empty_store, path=str(table))
    assert found["me"] == "not needed: a column names the users" and found["user"] == "the column with this name"
    assert suggested("data import", empty_store, path=str(table), preset="movielens") == {}


def test_an_import_takes_a_name_columns_and_held_out_items(empty_store: Path, tmp_path: Path) -> None:
    path = tmp_path / "notes.csv"
    path.write_text("question,answer\n" + "".join(f"q{n},a{n}\n" for n in range(6)), encoding="utf-8")
    job = order("data import", empty_store, path=str(path), me="nia", input="question", output="answer", hold_out="2")
    with Registry.open(empty_store, create=True) as reg:
        finish(job.make_events(reg, False))
        nia = reg.users.get("nia").id
        assert len(reg.items.queries(nia, "free")) == 2 and len(reg.items.recent_items(nia, "free", 9)) == 4


def test_an_import_rounds_and_skips_faulty_rows(empty_store: Path, tmp_path: Path) -> None:
    path = tmp_path / "stars.csv"
    path.write_text("user,input,output\nnia,a,3.4\nnia,,2\n", encoding="utf-8")
    with Registry.open(empty_store, create=True) as reg:
        job = order("data import", empty_store, path=str(path), skip_faulty="yes", round="0.5")
        finish(job.make_events(reg, False))
        assert [item.output for item in reg.items.recent_items(reg.users.get("nia").id, "free")] == ["3.5"]


def test_a_form_can_say_that_there_is_no_time(empty_store: Path, tmp_path: Path) -> None:
    path = tmp_path / "notes.csv"
    path.write_text("user,input,output,time,id\nnia,a,b,2026-01-01,7\n", encoding="utf-8")
    with Registry.open(empty_store, create=True) as reg:
        finish(order("data import", empty_store, path=str(path), time="-", id="-").make_events(reg, False))
        (item,) = reg.items.recent_items(reg.users.get("nia").id, "free")
        assert item.time is None and item.key != "7"
        (plan,) = (
            event
            for event in order("quick", empty_store, path=str(BOOKS), time="-").make_events(reg, True)
            if isinstance(event, JobPlan)
        )
    assert "time: none" in [f"{line.name}: {line.value}" for line in plan.lines]
    assert "drawn by seed 0" in next(line.value for line in plan.lines if line.name == "held out")


def test_a_preset_brings_its_task(empty_store: Path) -> None:
    exports = Path(__file__).parents[2] / "pipeline/data/exports"
    job = order("data import", empty_store, path=str(exports / "letterboxd"), preset="letterboxd", me="nia")
    with Registry.open(empty_store, create=True) as reg:
        finish(job.make_events(reg, False))
        assert reg.users.names() == ["nia"] and reg.tasks.get("letterboxd") is not None
