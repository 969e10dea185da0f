"""An existing bank, measured on users whose data it does not contain."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mta_cli.errors import BadInput, NotFound, StoreBusy, UsageError
from mta_cli.events import JobStarted
from mta_cli.lab.evaluation.context import EvalContext
from mta_cli.lab.evaluation.design import make_design
from mta_cli.lab.evaluation.measured_bank import measured_bank_request, read_user_names
from mta_cli.lab.evaluation.result_document import CALIBRATION_PARTS
from mta_cli.lab.evaluation.run import run_evaluation
from mta_cli.options import EvalOptions
from mta_cli.pipeline.bank.build import build_bank
from mta_cli.pipeline.requests import EvalRequest, eval_request_json, restore_eval_request
from store.records import NewItem
from store.registry import Registry
from tests.pipeline.town import CPU, TASK, bank_request, finish

TESTED = ("ida", "jon", "user8")
METHODS = "majority,neighbours,pooled-rag,mta"


@pytest.fixture
def banked(peopled: Registry) -> Registry:
    """A store with a bank of all users but three."""
    tested = {peopled.users.get(name).id for name in TESTED}
    others = frozenset(user.id for user, _ in peopled.users.users_with_items(TASK.name) if user.id not in tested)
    finish(build_bank(peopled, replace(bank_request(), user_ids=others)))
    return peopled


def request(
    reg: Registry, names: list[str] | None = None, task: str = TASK.name, methods: str = METHODS
) -> EvalRequest:
    options = EvalOptions(methods=methods, shots=3)
    return measured_bank_request(reg, reg.banks.get(TASK.name), task, names, options, CPU, {})


def test_it_is_measured_on_the_named_users_with_its_own_anchors_and_neighbours(
    banked: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank, seen = banked.banks.get(TASK.name), []
    load = EvalContext.workbench

    def watched(context: EvalContext, fold: int, preset: str = "") -> object:
        seen.append(load(context, fold, preset).bank.id)
        return load(context, fold, preset)

    monkeypatch.setattr(EvalContext, "workbench", watched)
    result, _ = finish(run_evaluation(banked, request(banked, ["jon", "ida"])))
    assert (result["users"], result["queries"], result["folds"]) == (2, 4, 1) and set(seen) == {bank.id}
    members = banked.evaluations.fold_members(result["evaluation"])
    tested = {banked.users.get(name).id for name in ("ida", "jon")}
    assert {user for _, user, role in members if role == "test"} == tested
    assert {user for _, user, role in members if role == "bank"} == banked.banks.source_users(bank.id)
    assert len(banked.banks.source_users(bank.id)) == 8 and f"bank {bank.name} v1" in result["options"]
    assert all(one.purpose == "" for one in banked.banks.all()) and len(banked.banks.all()) == 1, "none was built"


def test_without_names_all_are_tested_who_are_not_in_it(banked: Registry) -> None:
    design = make_design(banked, request(banked))
    assert {banked.users.by_id(user).name for user in design.test_users} == {*TESTED, "kim"}, (
        "kim has too few items for it"
    )


def test_who_made_the_bank_is_refused_by_name(banked: Registry) -> None:
    with pytest.raises(BadInput, match="contains data of 'user0', 'user3', so it"):
        request(banked, ["ida", "user0", "user3"])
    with pytest.raises(NotFound, match="nobody"):
        request(banked, ["nobody"])
    quiet = banked.users.add("quiet")
    banked.items.append_items(quiet.id, [NewItem("a", TASK.name, "a film", "comedy")])
    with pytest.raises(BadInput, match="held-out queries of task lamp-2: 'quiet'"):
        request(banked, ["quiet"])
    with pytest.raises(UsageError, match="is of task lamp-2, not lamp-3"):
        request(banked, task="lamp-3")


def test_an_anchor_whose_profile_went_with_an_item_has_one_again(banked: Registry) -> None:
    anchor = banked.banks.anchors(banked.banks.get(TASK.name).id)[0]
    banked._db.execute_write("DELETE FROM profiles WHERE user_id = ?", (anchor.user_id,))
    result, _ = finish(run_evaluation(banked, request(banked, ["ida"], methods="mta")))
    assert result["users"] == 1


def test_methods_with_banks_of_their_own_are_refused(banked: Registry) -> None:
    with pytest.raises(UsageError, match="mta-published needs a bank of its own"):
        finish(run_evaluation(banked, request(banked, methods="mta,mta-published")))


def test_it_goes_on_with_the_same_bank_and_users(banked: Registry) -> None:
    asked = request(banked, ["ida", "jon"], methods="majority")
    result, _ = finish(run_evaluation(banked, asked))
    begun = banked.evaluations.get(result["evaluation"])
    restored = restore_eval_request(banked, begun, eval_request_json(asked), CPU)
    assert restored.measured == asked.measured
    assert make_design(banked, restored).key == begun.key
    banked.users.add("later")
    banked.items.append_items(banked.users.get("later").id, [NewItem("a", TASK.name, "a film", "comedy")])
    assert make_design(banked, asked).key == begun.key, "others do not matter"


def test_a_bank_that_has_changed_is_another_design(banked: Registry) -> None:
    """Answers of one evaluation are all of one bank: anchors, neighbours and fitted numbers."""
    asked, bank = request(banked, ["ida", "jon"]), banked.banks.get(TASK.name)
    first = make_design(banked, asked).key
    banked.banks.set_bank_config(bank.id, {**bank.config, "memory_weights": {"model": 0.5, "memory": 0.125}})
    second = make_design(banked, request(banked, ["ida", "jon"])).key
    neighbour = banked.neighbours.consenting_neighbours(bank.id)[0]
    banked.neighbours.remove_neighbours(bank.id, [neighbour.item_id])
    third = make_design(banked, request(banked, ["ida", "jon"])).key
    assert len({first, second, third}) == 3


def test_a_stopped_one_does_not_go_on_with_users_who_came_into_the_bank(banked: Registry) -> None:
    asked = request(banked, ["ida", "jon"], methods="majority")
    result, _ = finish(run_evaluation(banked, asked))
    begun, ida = banked.evaluations.get(result["evaluation"]), banked.users.get("ida")
    (item, *_) = banked.items.recent_items(ida.id, TASK.name)
    banked.neighbours.add_neighbours(banked.banks.get(TASK.name).id, [(item.id, b"\0" * 8)])
    with pytest.raises(BadInput, match="now contains data of 'ida'"):
        make_design(banked, restore_eval_request(banked, begun, eval_request_json(asked), CPU))


def test_nobody_refreshes_the_bank_meanwhile(banked: Registry) -> None:
    job = run_evaluation(banked, request(banked, ["ida", "jon"], methods="pooled-rag"))
    assert any(isinstance(event, JobStarted) for event in job)
    with pytest.raises(StoreBusy), banked.job_lock(f"bank {TASK.name}"):
        pass
    job.close()


def test_a_temperature_is_never_fitted_on_the_users_own_answers(banked: Registry) -> None:
    """A user alone has none; of two, each has the other's."""
    part = banked.users.get("ida").id % CALIBRATION_PARTS[0]
    result, _ = finish(run_evaluation(banked, request(banked, ["ida"], methods="pooled-rag")))
    assert result["calibration"]["pooled-rag"][0][part] == 1.0
    result, _ = finish(run_evaluation(banked, request(banked, ["ida", "jon"], methods="pooled-rag")))
    assert result["bank"] == "lamp-2 v1" and result["calibration"]["pooled-rag"][0][part] != 1.0


def test_the_bank_outlives_the_evaluation_and_the_removal_of_its_users(banked: Registry) -> None:
    result, _ = finish(run_evaluation(banked, request(banked, ["ida", "jon"], methods="majority,pooled-rag")))
    anchor = banked.banks.anchors(banked.banks.get(TASK.name).id)[0].user
    assert anchor is not None
    banked.users.forget(banked.users.get(anchor).id)
    assert banked.banks.get(TASK.name).status == "ready"
    banked.evaluations.remove(result["evaluation"])
    assert banked.banks.get(TASK.name).status == "ready"


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (b"ida\njon\n", ["ida", "jon"]),
        (b"\xef\xbb\xbfida\r\n\r\n  jon ", ["ida", "jon"]),
        ("Zoë Ann".encode(), ["Zoë Ann"]),
    ],
)
def test_names_are_one_a_line(tmp_path: Path, content: bytes, names: list[str]) -> None:
    (tmp_path / "names").write_bytes(content)
    assert read_user_names(tmp_path / "names") == names


@pytest.mark.parametrize(("content", "told"), [(b"\n \n", "names no user"), (b"\xff\xfe", "is not UTF-8 text")])
def test_what_is_no_list_of_names(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "names").write_bytes(content)
    with pytest.raises(BadInput, match=told):
        read_user_names(tmp_path / "names")
    with pytest.raises(NotFound, match="There is no file"):
        read_user_names(tmp_path / "elsewhere")
