"""Banks of folds: from those who are not tested in them, known from their beginning, and shared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import pytest

from mta_cli.engine.model.load import read_base_info
from mta_cli.errors import BadInput, NotFound
from mta_cli.events import ArtifactSaved, JobProgress
from mta_cli.lab.evaluation.banks import FoldBanks, build_fold_banks, cost_of_banks
from mta_cli.lab.evaluation.design import make_design
from mta_cli.options import PERMUTED_ANSWERS, ScreeningOptions
from mta_cli.pipeline.bank.anchor_training import permute_answers
from mta_cli.pipeline.data.examples import PromptRowBuilder
from mta_cli.pipeline.models.load import load_on_device
from mta_cli.pipeline.requests import SCREENING_OPTIONS_KEY, EvalRequest
from store.records import Item, NewItem
from store.registry import Registry
from tests.lab.evaluation.trial import eval_request
from tests.pipeline.town import CPU, TASK, notes


def begun(reg: Registry, request: EvalRequest) -> int:
    plan = make_design(reg, request)
    return reg.evaluations.get_or_create_evaluation(plan.key, request.task.name, {}, plan.role_assignments).id


def made(reg: Registry, request: EvalRequest, presets: Sequence[str] = ("",)) -> FoldBanks:
    job = build_fold_banks(reg, request, make_design(reg, request), begun(reg, request), presets)
    while True:
        try:
            next(job)
        except StopIteration as end:
            banks: FoldBanks = end.value
            return banks


def test_nobody_who_is_tested_is_in_the_bank_of_their_fold(peopled: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither as an anchor nor with a row of the task adapter."""
    learnt: list[set[int]] = []
    honest = PromptRowBuilder.training_rows

    def watched(examples: PromptRowBuilder, items: Sequence[Item], **more: Any) -> Any:
        learnt.append({item.user_id for item in items})
        return honest(examples, items, **more)

    monkeypatch.setattr(PromptRowBuilder, "training_rows", watched)
    request, folds = eval_request(), make_design(peopled, eval_request()).folds
    banks = made(peopled, request)
    each = len(learnt) // 3  # the task adapter's rows, then each anchor's
    for number, (bank, fold) in enumerate(zip(banks.values(), folds, strict=True)):
        anchors = {anchor.user_id for anchor in peopled.banks.anchors(bank.id)}
        assert anchors <= set(fold.bank) and len(anchors) == 2
        rows = learnt[number * each : (number + 1) * each]
        assert set.union(*rows) <= set(fold.bank) and set.union(*rows).isdisjoint(fold.test) and len(rows[0]) > 2
        pooled = [item for user in sorted(rows[0]) for item in peopled.items.recent_items(user, "lamp-2")]
        assert bank.task_adapter is not None
        assert peopled.adapters.get(bank.task_adapter).data_hash == peopled.items.hash_items(pooled)
    assert len({bank.id for bank in banks.values()}) == len({bank.task_adapter for bank in banks.values()}) == 3


def add_late_items(reg: Registry) -> set[int]:
    """Gives every user an item later than all queries, and one without a time; returns the former's ids."""
    late = set()
    for user, _ in reg.users.users_with_items("lamp-2"):
        new = [NewItem("late", "lamp-2", "film 9 about a ship", "classic", "2022-01-01")]
        reg.items.append_items(user.id, [*new, NewItem("undated", "lamp-2", "film of a ship", "comedy")])
        late |= {item.id for item in reg.items.items_with_keys(user.id, ["late"])}
    return late


def test_a_bank_may_learn_only_what_is_not_later_than_the_first_query(
    peopled: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = make_of_earlier(peopled)
    assert usual == made(peopled, eval_request()), "where nothing is later it is the same bank"
    late, learnt, shown = add_late_items(peopled), set[int](), set[str]()
    rows, retrieve = PromptRowBuilder.training_rows, PromptRowBuilder.retrieve_history

    def watched(examples: PromptRowBuilder, items: Sequence[Item], **more: Any) -> Any:
        learnt.update(item.id for item in items)
        return rows(examples, items, **more)

    def retrieved(examples: PromptRowBuilder, *given: Any, **more: Any) -> Any:
        found = retrieve(examples, *given, **more)
        if examples.until:  # the others estimate the tokens of a plan
            shown.update(one.input for one in found)
        return found

    monkeypatch.setattr(PromptRowBuilder, "training_rows", watched)
    monkeypatch.setattr(PromptRowBuilder, "retrieve_history", retrieved)
    banks = make_of_earlier(peopled)
    assert not learnt & late and "film 9 about a ship" not in shown
    assert "film of a ship" in shown, "what has no time stays"
    assert not any(late & peopled.neighbours.item_ids(bank.id) for bank in banks.values())
    whole = made(peopled, eval_request())
    assert learnt & late and all(late & peopled.neighbours.item_ids(bank.id) for bank in whole.values())
    assert not {bank.id for bank in whole.values()} & {bank.id for bank in banks.values()}


def make_of_earlier(reg: Registry) -> FoldBanks:
    return made(reg, eval_request(only_earlier=True))


def test_a_fold_without_earlier_items_is_named_with_the_date(peopled: Registry) -> None:
    request = eval_request(only_earlier=True)
    asked = make_design(peopled, request).folds[1].test[0]
    peopled.items.append_queries(asked, [NewItem("first", "lamp-2", "a first film", "comedy", "2019-12-31")])
    for job in (cost_of_banks, made):
        with pytest.raises(
            BadInput, match=r"Fold 2, items until 2019-12-31: 2 anchors were asked for, but only 0 users"
        ):
            job(peopled, request, make_design(peopled, request)) if job is cost_of_banks else job(peopled, request)


def test_queries_without_a_time_have_no_earlier_items(peopled: Registry) -> None:
    users = [user.id for user, _ in peopled.users.users_with_items("lamp-2")]
    plan = make_design(peopled, eval_request(only_earlier=True))
    timeless = {user: [replace(one, time=None) for one in plan.queries[user]] for user in users}
    with pytest.raises(BadInput, match="Fold 1: no query of its tested users has a time"):
        cost_of_banks(peopled, eval_request(only_earlier=True), replace(plan, queries=timeless))


def test_they_are_for_evaluations_alone_and_act_where_personal_parts_do(peopled: Registry) -> None:
    banks = made(peopled, eval_request(folds=2, placement="upper"))
    assert [(bank.name, bank.purpose, bank.status) for bank in banks.values()] == [("eval lamp-2", "eval", "ready")] * 2
    assert peopled.banks.all() == [] and peopled.banks.latest_ready_bank("lamp-2") is None
    assert {line.status for line in peopled.user_table.summaries()} == {"new"}
    digests = [anchor.digest for bank in banks.values() for anchor in peopled.banks.anchors(bank.id) if anchor.digest]
    assert {peopled.adapters.get(digest).placement for digest in digests} == {"1-1/all"}


def test_a_bank_of_the_same_people_serves_every_evaluation(peopled: Registry) -> None:
    first = made(peopled, eval_request(folds=2))
    job = build_fold_banks(
        peopled,
        eval_request(folds=2, shots=2),
        make_design(peopled, eval_request(folds=2)),
        begun(peopled, eval_request(folds=2, shots=2)),
    )
    seen = list(job)
    assert not any(isinstance(event, JobProgress) and event.loss is not None for event in seen)
    assert any("nothing to do" in text for text in notes(seen))
    assert made(peopled, eval_request(folds=2, shots=2)) == first


def test_banks_that_are_known_are_not_looked_for_again(peopled: Registry) -> None:
    request = eval_request(folds=2)
    first = made(peopled, request)
    plan, number = make_design(peopled, request), begun(peopled, request)
    assert list(build_fold_banks(peopled, request, plan, number)) == []
    assert peopled.evaluations.fold_banks(number) == {(0, ""): first[0, ""].id, (1, ""): first[1, ""].id}


def stop_while_building(reg: Registry, request: EvalRequest) -> int:
    """Stop in the training of the first fold's anchors; returns the bank's number."""
    job = build_fold_banks(reg, request, make_design(reg, request), begun(reg, request))
    assert any(isinstance(event, ArtifactSaved) and event.kind == "task adapter" for event in job)
    job.close()
    return int(reg._db.fetch_value("SELECT max(id) FROM banks"))


def test_a_bank_is_its_evaluations_from_the_beginning(peopled: Registry) -> None:
    """Else nobody would know whose it is when a person in it is forgotten, or an evaluation is removed."""
    request = eval_request(folds=2)
    half = stop_while_building(peopled, request)
    number = begun(peopled, request)
    assert peopled.banks.by_id(half).status == "building" and peopled.evaluations.fold_banks(number) == {(0, ""): half}
    other = begun(peopled, eval_request(folds=2, shots=2))
    assert peopled.evaluations.remove(other)["banks"] == 0
    whole = made(peopled, request)
    assert whole[0, ""].id == half and whole[0, ""].status == "ready"


def test_who_is_forgotten_while_a_bank_is_built_leaves_nothing_in_it(peopled: Registry) -> None:
    request = eval_request(folds=2)
    half = stop_while_building(peopled, request)
    assert peopled.banks.by_id(half).task_adapter is not None
    peopled.users.forget(make_design(peopled, request).folds[0].bank[0])
    with pytest.raises(NotFound):
        peopled.banks.by_id(half)
    assert peopled.adapters.all() == [] and peopled.check_integrity() == []


def test_too_few_anchors_are_named_with_their_fold(peopled: Registry) -> None:
    request = eval_request()
    with pytest.raises(BadInput, match=r"^Fold 1: 9 anchors were asked for, but only \d users can be anchors"):
        made(peopled, replace(request, bank=replace(request.bank, anchors=9)))


def test_the_plan_counts_the_banks_that_are_not_there_yet(peopled: Registry) -> None:
    request = eval_request()
    plan = make_design(peopled, request)
    before = {line.name: line.value for line in cost_of_banks(peopled, request, plan)}
    assert before["banks"].startswith("3 to build") and {"tokens", "memory", "time"} <= set(before)
    given = [item for fold in plan.folds for user in fold.bank for item in peopled.items.recent_items(user, "lamp-2")]
    counted = 2 * len(given) + 3 * 2 * 10  # the memory's weights take as much again; two anchors of ten items a fold
    info = read_base_info(request.base.path, name="tiny", fingerprint="f")
    builders = [PromptRowBuilder(peopled, info, request.task, shown) for shown in (0, 2)]
    lengths = [len(row.input_ids) for builder in builders for row in builder.training_rows(given)]
    tokens = int(before["tokens"].removeprefix("about ").replace(",", ""))
    assert counted * min(lengths) < tokens < counted * max(lengths)
    made(peopled, request)
    assert [(line.name, line.value) for line in cost_of_banks(peopled, request, plan)] == [("banks", "all there")]


def test_a_fold_with_too_few_candidates_is_refused_by_the_plan(peopled: Registry) -> None:
    request = replace(eval_request(), bank=replace(eval_request().bank, anchors=9))
    with pytest.raises(BadInput, match="Fold 1: 9 anchors were asked for"):
        cost_of_banks(peopled, request, make_design(peopled, request))


def test_the_anchors_of_a_control_learn_the_same_answers_in_another_order(
    peopled: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Above the same task adapter, with the same users, items and neighbours. Prompts show the permuted answers."""
    for user, _ in peopled.users.users_with_items(TASK.name):
        new = [NewItem(f"m{n}", TASK.name, f"a film about {n}", TASK.labels[n], "2020-02-01") for n in range(6)]
        peopled.items.append_items(user.id, new)
    shown: list[dict[int, str]] = []
    monkeypatch.setattr(PromptRowBuilder, "with_shown_answers", lambda self, own: shown.append(own) or self)
    request = eval_request(methods="mta-recipe,permuted-anchors", folds=2)
    banks = made(peopled, request, ("", PERMUTED_ANSWERS))
    for fold in range(2):
        own, control = banks[fold, ""], banks[fold, PERMUTED_ANSWERS]
        assert own.id != control.id and own.task_adapter == control.task_adapter is not None
        assert own.kernel == control.kernel
        anchors, shuffled = peopled.banks.anchors(own.id), peopled.banks.anchors(control.id)
        assert [(one.user, one.items) for one in anchors] == [(one.user, one.items) for one in shuffled]
        assert {one.digest for one in anchors}.isdisjoint(one.digest for one in shuffled)
    assert len(shown) == 4 and all(len(own) > 6 for own in shown)


def test_prompts_show_the_answers_that_are_given(peopled: Registry) -> None:
    """Of items that are not named, the stored ones."""
    base = load_on_device(eval_request().base, CPU)
    user = peopled.users.get("user0")
    builder = PromptRowBuilder(peopled, base, TASK, 3)
    first, *others = builder.retrieve_history(user.id, "film 3 about a ship", 3)
    (item,) = (one for one in peopled.items.recent_items(user.id, TASK.name) if one.input == first.input)
    changed = builder.with_shown_answers({item.id: "another"})
    assert [one.output for one in changed.retrieve_history(user.id, "film 3 about a ship", 3)] == [
        "another",
        *(one.output for one in others),
    ]
    assert builder.retrieve_history(user.id, "film 3 about a ship", 3)[0] == first


def test_permuted_answers_are_the_users_own(peopled: Registry) -> None:
    user = peopled.users.get("user0")
    peopled.items.append_items(user.id, [NewItem(f"x{n}", "free", f"text {n}", f"answer {n}") for n in range(9)])
    items = peopled.items.recent_items(user.id, "free")
    permuted = permute_answers(items, "0 1")
    assert [one.input for one in permuted] == [one.input for one in items]
    assert sorted(one.output for one in permuted) == [one.output for one in items]
    assert [one.output for one in permuted] != [one.output for one in items]
    assert permuted == permute_answers(items, "0 1") != permute_answers(items, "0 2")


def test_anchors_are_screened_by_the_settings_of_a_bank_for_use(peopled: Registry) -> None:
    strict = ScreeningOptions(max_norm=1.02, max_share=0.3)
    for bank in made(peopled, replace(eval_request(folds=2), gates=strict)).values():
        assert bank.config[SCREENING_OPTIONS_KEY] == asdict(strict)
