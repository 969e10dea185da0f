"""Pooled seeds: every user counts once with all answers; evaluations of different designs are refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mta_cli.errors import NotFound, UsageError
from mta_cli.lab.evaluation.evaluation_file import export_evaluation
from mta_cli.lab.evaluation.finished_evaluation import load_finished_evaluation
from mta_cli.lab.evaluation.run import run_evaluation
from mta_cli.lab.evaluation.seeds import evaluation_document, load_evaluations, report_documents
from mta_cli.pipeline.requests import EvalRequest
from store.records import NewItem
from store.registry import Registry
from tests.lab.evaluation.trial import Trial, eval_request
from tests.pipeline import town
from tests.pipeline.town import finish

METHODS = "majority,pooled-rag,pooled-rag+habit"


def seeded(request: EvalRequest, seed: int, **changes: Any) -> EvalRequest:
    """The same with another seed; `changes` are options of the evaluation."""
    options = replace(request.options, **{"methods": METHODS, **changes})
    return replace(request, options=options, machine=replace(request.machine, seed=seed), method_settings={})


@pytest.fixture(scope="module")
def reg(trial: Trial, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """Beside the trial's evaluation, number 1: seeds 1 and 2 (numbers 2 and 3), and seed 0 with two shots (4)."""
    root = shutil.copytree(trial.reg.root, tmp_path_factory.mktemp("seeds") / "store")
    with Registry.open(root) as registry:
        for request in (seeded(trial.request, 1), seeded(trial.request, 2), seeded(trial.request, 0, shots=2)):
            finish(run_evaluation(registry, request))
        yield registry


def values(document: dict[str, Any], method: str, metric: str) -> float:
    return float(document["methods"][method][metric]["value"])


def test_what_several_seeds_found_together(reg: Registry) -> None:
    seeds = [evaluation_document(load_evaluations([number], reg)) for number in (2, 3)]
    both = evaluation_document(load_evaluations([3, 2, 3], reg))
    assert (both["seeds"], both["evaluations"]) == ([2, 1], [3, 2]) and not {"seed", "evaluation"} & set(both)
    assert (both["users"], both["queries"]) == (seeds[0]["users"], seeds[0]["queries"]) == (12, 24)
    for method in METHODS.split(","):
        for metric in ("accuracy", "gold_loglik"):
            expected = np.mean([values(one, method, metric) for one in seeds])
            assert values(both, method, metric) == pytest.approx(expected)
    rows = [{(row["b"], row["metric"]): row for row in one["differences"]} for one in (*seeds, both)]
    for place, row in rows[2].items():
        if place[1] != "macro_f1":
            assert row["value"] == pytest.approx((rows[0][place]["value"] + rows[1][place]["value"]) / 2)
        assert row["low"] <= row["value"] <= row["high"] and 0 < row["p"] <= 1
    for what, value in both["costs"]["pooled-rag+habit"].items():
        assert value == pytest.approx(np.mean([one["costs"]["pooled-rag+habit"][what] for one in seeds]))


def test_intervals_are_over_people_and_the_same_answers_twice_prove_no_more(reg: Registry) -> None:
    """Seed 1 beside a copy of itself: not one interval may shrink."""
    from mta_cli.engine.evaluation.statistics import paired_difference
    from mta_cli.engine.evaluation.user_sums import add_user_sums
    from mta_cli.pipeline.data.tasks import find_task
    from mta_cli.pipeline.evaluation.scored_answers import rescore_method

    one, task = reg.evaluations.get(2), find_task(reg, "lamp-2")
    a, b = (rescore_method(reg, task, one, method).user_sums for method in ("pooled-rag+habit", "majority"))
    twice = paired_difference(add_user_sums([a, a]), add_user_sums([b, b]), seed=0)
    for metric, once in paired_difference(a, b, seed=0).items():
        assert twice[metric] == pytest.approx(once)


def test_another_reference_from_the_same_answers(reg: Registry) -> None:
    kept = evaluation_document(load_evaluations([1], reg))
    assert evaluation_document(load_evaluations([1], reg), kept["reference"]) == kept == reg.evaluations.get(1).result
    other = evaluation_document(load_evaluations([1], reg), "stack")
    assert {row["a"] for row in other["differences"]} == {other["reference"]} == {"stack"}
    assert "mta" in {row["b"] for row in other["differences"]} and other["methods"] == kept["methods"]
    assert reg.evaluations.get(1).result == kept
    assert evaluation_document(load_evaluations([1], reg), "stack+off") == other  # another name of the same method
    both = evaluation_document(load_evaluations([1, 2], reg), "pooled-rag+habit")
    assert list(both["methods"]) == METHODS.split(",") and both["reference"] == "pooled-rag+habit"


def test_a_report_has_the_seeds_and_after_them_what_they_found_together(reg: Registry) -> None:
    documents = report_documents(load_evaluations([2, 4, 3], reg))
    assert [document.get("evaluation") for document in documents] == [2, 4, 3, None]
    assert documents[3] == evaluation_document(load_evaluations([2, 3], reg))
    others = report_documents(load_evaluations([1, 2], reg), "pooled-rag+habit")
    assert [one["reference"] for one in others] == ["pooled-rag+habit"] * 3
    assert others == [
        evaluation_document(load_evaluations([1], reg), "pooled-rag+habit"),
        evaluation_document(load_evaluations([2], reg), "pooled-rag+habit"),
        evaluation_document(load_evaluations([1, 2], reg), "pooled-rag+habit"),
    ]
    assert report_documents(load_evaluations([2, 4], reg)) == [
        evaluation_document(load_evaluations([2], reg)),
        evaluation_document(load_evaluations([4], reg)),
    ]


def test_settings_that_were_given_must_have_had_one_value(reg: Registry, tmp_path: Path) -> None:
    """Those that a method's memory does not use may differ, and so may others, which may be tuned by seed."""
    files, name = [tmp_path / "two.json", tmp_path / "three.json"], "pooled-rag+habit"
    for number, file in zip((2, 3), files, strict=True):
        export_evaluation(load_finished_evaluation(reg, number), file)

    def read(settings: Sequence[Any], given: str = "prior_weight") -> dict[str, Any]:
        for file, own in zip(files, settings, strict=True):
            document = json.loads(file.read_text())
            document["result"]["settings"][name] = own
            document["result"]["given"] = {name: {given: "0.5"}} if file == files[0] else {}
            file.write_text(json.dumps(document))
        return evaluation_document(load_evaluations(list(map(str, files)), None))

    used, other = {"prior_weight": 0.5, "prior_strength": 8.0}, {"prior_weight": 0.25, "prior_strength": 8.0}
    assert read([used, used])["seeds"] == [1, 2]
    refused = {
        "0.5 and 0.25": [used, other],
        "0.5 and 0.3": [used, [used, {**used, "prior_weight": 0.3}]],
        "0.5 and not set": [used, {"prior_strength": 8.0}],
    }
    for values, settings in refused.items():
        with pytest.raises(UsageError, match=rf"the setting pooled-rag\+habit.prior_weight is {values}"):
            read(settings)
    assert read([used, other], given="prior_strength")["seeds"] == [1, 2]
    assert read([{**own, "neighbour_weight": 1.0} for own in (used, other)])["seeds"] == [1, 2]


def test_what_is_not_of_one_design_is_refused(reg: Registry, trial: Trial) -> None:
    with pytest.raises(UsageError, match=r"shots is 3 in evaluation 2 and 2 in evaluation 4"):
        evaluation_document(load_evaluations([2, 4], reg))
    longer = replace(seeded(trial.request, 1), bank=replace(trial.request.bank, task_epochs=2))
    other = int(finish(run_evaluation(reg, longer))[0]["evaluation"])
    with pytest.raises(UsageError, match=r"task_epochs is 2 in evaluation \d+ and 1 in evaluation"):
        evaluation_document(load_evaluations([other, 3], reg))
    with pytest.raises(UsageError, match="mtb is not among the methods"):
        evaluation_document(load_evaluations([2, 3], reg), "mtb")
    with pytest.raises(NotFound, match="no evaluation 9"):
        evaluation_document(load_evaluations([2, 9], reg))
    made = reg.evaluations.get(3)
    name = next(iter(made.result["methods"]))
    old = {**made.result, "settings": {**made.result["settings"], name: {"version": 99}}}
    reg.evaluations.finish_evaluation(3, old)
    with pytest.raises(UsageError, match=f"versions of mta computed {name} differently"):
        evaluation_document(load_evaluations([2, 3], reg))
    reg.evaluations.finish_evaluation(3, made.result)
    stored = reg.evaluations.add_evaluation("lamp-2", None, {}, {"task": "lamp-2", "costs": {}})
    with pytest.raises(UsageError, match=f"evaluation {stored} measured stored models"):
        evaluation_document(load_evaluations([2, stored], reg))
    begun = reg.evaluations.get_or_create_evaluation("other", "lamp-2", {}, [])
    with pytest.raises(NotFound, match="no result yet"):
        report_documents(load_evaluations([2, begun.id], reg))


def test_seeds_of_other_people_are_refused_together_and_reported_apart(store_root: Path) -> None:
    request = eval_request(folds=2)
    with Registry.open(store_root, create=True) as reg:
        town.people(reg, items=6)
        for seed in (0, 1):
            finish(run_evaluation(reg, seeded(request, seed, methods="majority")))
        assert evaluation_document(load_evaluations([1, 2], reg))["users"] == 12
        reg.users.forget(reg.users.get("ida").id)
        both = evaluation_document(load_evaluations([1, 2], reg))
        assert (both["users"], both["queries"]) == (11, 22), "who was forgotten is in neither any more"
        finish(run_evaluation(reg, seeded(request, 2, methods="majority")))
        newcomer = reg.users.add("newcomer").id
        for append in (reg.items.append_items, reg.items.append_queries):
            append(newcomer, [NewItem("i", "lamp-2", "a film", "comedy", "2020-01-01")])
        finish(run_evaluation(reg, seeded(request, 3, methods="majority")))
        with pytest.raises(UsageError, match="cannot be pooled: they have different users"):
            evaluation_document(load_evaluations([3, 4], reg))
        told: list[str] = []
        assert report_documents(load_evaluations([3, 4], reg), on_unpooled=told.append) == [
            evaluation_document(load_evaluations([3], reg)),
            evaluation_document(load_evaluations([4], reg)),
        ]
        assert len(told) == 1 and "they have different users" in told[0]


def test_seeds_over_other_histories_are_refused_in_the_store_and_in_files(store_root: Path, tmp_path: Path) -> None:
    request, file = eval_request(folds=2), tmp_path / "0.json"
    with Registry.open(store_root, create=True) as reg:
        town.people(reg, items=6)
        finish(run_evaluation(reg, seeded(request, 0, methods="majority")))
        export_evaluation(load_finished_evaluation(reg, 1), file)
        finish(run_evaluation(reg, seeded(request, 1, methods="majority")))
        item = NewItem("new", "lamp-2", "a film", "comedy", "2020-01-01")
        reg.items.append_items(reg.users.get("ida").id, [item])
        finish(run_evaluation(reg, seeded(request, 2, methods="majority")))
        assert evaluation_document(load_evaluations([str(file), 2], reg))["users"] == 12
        for place in (str(file), 1):
            with pytest.raises(UsageError, match="histories or consent changed"):
                evaluation_document(load_evaluations([place, 3], reg))
