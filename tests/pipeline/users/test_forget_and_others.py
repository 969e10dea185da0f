"""Forgetting one user changes no byte of another user's exported data, whatever their names."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from mta_cli.errors import BadInput
from mta_cli.pipeline.users.export_all_data import collect_user_data
from mta_cli.pipeline.users.exported_folders import EXPORT_RUN_KIND
from mta_cli.text.printable import to_json
from store.names import FORGOTTEN_NAME, check_name, quote_text
from store.records import NewItem, Profile, User
from store.registry import Registry
from store.tables.predictions import Prediction


@pytest.fixture(scope="module")
def reg(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with Registry.open(tmp_path_factory.mktemp("names") / "store", create=True) as registry:
        yield registry


def is_name(text: str) -> bool:
    try:
        return check_name(text) == text
    except BadInput:
        return False


NAMES = st.one_of(st.integers(0, 999).map(str), st.text(min_size=1, max_size=8)).filter(is_name)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[str, str]:
    """Two names, often one inside the other."""
    leaving, more = draw(NAMES), draw(NAMES)
    other = draw(st.sampled_from([more, leaving + more, more + leaving, f"{leaving} {more}", f"{more}-{leaving}"]))
    assume(other != leaving and is_name(other))
    return leaving, other


def forms(name: str) -> list[str]:
    """The name as messages write it."""
    return [name, repr(name)[1:-1], quote_text(name)[1:-1]]


def places(text: str, word: str) -> list[tuple[int, int]]:
    return [(at, at + len(word)) for at in range(len(text)) if text.startswith(word, at)]


def is_inside(text: str, leaving: str, other: str) -> bool:
    """Whether each place where `text` has the one name is in a place of the other name."""
    within = [place for form in forms(other) for place in places(text, form)]
    found = [place for form in forms(leaving) for place in places(text, form)]
    return all(any(start <= begin and end <= stop for start, stop in within) for begin, end in found)


def furnish(reg: Registry, user: User, other: str, error: str) -> None:
    """Texts, paths and records of a user that hold the names of both."""
    said = f"{other} met {user.name}, {other}{user.name} and {other}."
    reg.items.append_items(user.id, [NewItem(f"{other}", "free", said, said)])
    reg.items.append_queries(user.id, [NewItem(f"{other}", "free", said, said)])
    reg.profiles.save_profile(Profile(user.id, "free", other, struct.pack("<2f", 1.0, 0.5), 1, 1))
    chat = reg.chats.start_chat(user.id, said)
    reg.chats.add_message(chat.id, "user", said, {"mode": "fused", "task": other})
    export = {"asked": {"to": f"/data/{other}/{user.name}", "what": said}}
    reg.runs.finish_run(reg.runs.start_run(EXPORT_RUN_KIND, export, user_id=user.id).id, {"said": said})
    reg.runs.fail_run(reg.runs.start_run("user adapt", {"said": said}, user_id=user.id).id, error)
    evaluation = reg.evaluations.add_evaluation("free", None, {}, {})
    reg.evaluations.predictions.add_predictions(
        evaluation, [Prediction(user.id, 1, "base", said, said, said, -1.0, 3, 0.1)]
    )


@given(names=pairs())
@example(names=("Ann", "Ann Lee"))
@example(names=("Ann Lee", "Ann"))
@example(names=("Ann", "Ann-Marie"))
@example(names=("ann", "ann@work.org"))
@example(names=("8", "18"))
@example(names=("18", "8"))
@example(names=("8", "8 8"))
@example(names=("राम", "रामा"))
@example(names=("रामा", "राम"))
@example(names=("xa0", "a\u00a0"))
@example(names=("x", "\\x"))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_who_leaves_takes_nothing_of_others_along(reg: Registry, names: tuple[str, str]) -> None:
    leaving, staying = reg.users.add(names[0]), reg.users.add(names[1])
    error = f"no items ({staying.name}), {staying.name!r} and {quote_text(staying.name)}"
    if not is_inside(error, leaving.name, staying.name):
        error = f"[{staying.name}]" if is_inside(f"[{staying.name}]", leaving.name, staying.name) else ""
    furnish(reg, staying, leaving.name, error)
    furnish(reg, leaving, staying.name, "")
    before = to_json(collect_user_data(reg, staying))
    reg.users.forget(leaving.id)
    assert to_json(collect_user_data(reg, staying)) == before
    reg.users.forget(staying.id)


def test_the_name_of_who_left_goes_from_errors_of_others(reg: Registry, tmp_path: Path) -> None:
    """As a whole word, even where a number was meant."""
    leaving, staying = reg.users.add("8"), reg.users.add("18")
    run = reg.runs.start_run("user adapt", {"steps": 8}, user_id=staying.id)
    reg.runs.fail_run(run.id, "18 stopped at step 8 of 80")
    reg.users.forget(leaving.id)
    (told,) = collect_user_data(reg, staying)["runs"]["about"]
    assert (told["error"], told["config"]) == (f"18 stopped at step {FORGOTTEN_NAME} of 80", {"steps": 8})
