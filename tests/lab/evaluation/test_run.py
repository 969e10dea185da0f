"""`mta eval run` and `tune` as jobs: everything answered once, stopped and gone on, chosen on others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mta_cli.engine.model.load import number_format
from mta_cli.engine.text.tasks import BUILTIN_TASKS
from mta_cli.errors import BadInput, StoreBusy, UsageError
from mta_cli.events import JobPlan, JobProgress, JobResult, JobStarted, Note
from mta_cli.lab.evaluation.method_settings import resolve_settings, trials
from mta_cli.lab.evaluation.run import run_evaluation, tune_evaluation
from mta_cli.lab.methods.catalog import PRESETS_BY_NAME
from mta_cli.pipeline.requests import EvalRequest, eval_request_json
from mta_cli.pipeline.runs import REQUEST_KEY
from mta_cli.pipeline.users.removal import remove_items
from store.records import NewItem
from store.registry import Registry
from tests.lab.evaluation.trial import ALL, eval_request, timeless
from tests.metrics_by_hand import score
from tests.pipeline.town import finish, notes


def test_every_method_answers_everybody_once(peopled: Registry) -> None:
    result, seen = finish(run_evaluation(peopled, eval_request()))
    assert result["users"] == 12 and result["queries"] == 24
    assert list(result["methods"]) == ALL and result["reference"] == "mta"
    for method, metrics in result["methods"].items():
        assert set(metrics) == {"accuracy", "macro_f1", "gold_loglik"}, method
        assert all(m["low"] <= m["value"] <= m["high"] for m in metrics.values())
        assert len(peopled.evaluations.predictions.load_predictions(result["evaluation"])) == 24 * len(ALL)
    assert {(row["a"], row["b"]) for row in result["differences"]} == {("mta", m) for m in ALL if m != "mta"}
    assert result["costs"]["base"]["bytes"] == 0 < result["costs"]["mta"]["bytes"] < result["costs"]["oppu"]["bytes"]
    assert len([event for event in seen if isinstance(event, JobProgress) and "mta" in event.label]) > 0


def test_the_document_says_which_number_format_auto_was(peopled: Registry) -> None:
    request = eval_request(methods="majority")
    result, _ = finish(run_evaluation(peopled, replace(request, machine=replace(request.machine, dtype="auto"))))
    assert result["dtype"] == number_format("auto", "cpu") in ("float32", "bfloat16")


def planned(reg: Registry, request: EvalRequest) -> dict[str, str]:
    plan = next(event for event in run_evaluation(reg, request, dry_run=True) if isinstance(event, JobPlan))
    return {line.name: line.value for line in plan.lines}


def test_the_plan_says_how_long_answers_take(peopled: Registry) -> None:
    request = eval_request(methods="majority,pooled-rag")
    assert planned(peopled, request)["answers"].startswith("time unknown")
    result, _ = finish(run_evaluation(peopled, request))
    assert planned(peopled, request)["answers"] == "all there" == planned(peopled, request)["banks"]
    costs = {
        "majority": {"seconds": 0.0, "seconds_per_query": 1.0},
        "pooled-rag": {"seconds": 5.0, "seconds_per_query": 1.0},
    }
    peopled.evaluations.finish_evaluation(result["evaluation"], {**result, "costs": costs})
    other = replace(request, machine=replace(request.machine, seed=1))  # 24 queries of 12 people, twice
    assert planned(peopled, other)["answers"] == "about 108 s on top"
    more = replace(other, options=replace(other.options, methods="majority,pooled-rag,stack,base"))
    assert planned(peopled, more)["answers"] == "about 108 s on top, without base, stack"
    begun = replace(request, options=replace(request.options, methods="majority,base"))
    assert planned(peopled, begun)["answers"].startswith("time unknown")


def test_stopped_anywhere_it_goes_on_to_the_same_end(peopled: Registry, tmp_path: Any) -> None:
    whole, _ = finish(run_evaluation(peopled, eval_request(methods="pooled-rag,stack,mta")))
    peopled.evaluations.remove(whole["evaluation"])
    for stop in (3, 9, 14):
        job = run_evaluation(peopled, eval_request(methods="pooled-rag,stack,mta"))
        for i, _ in enumerate(job):
            if i == stop:
                break
        job.close()
    again, _ = finish(run_evaluation(peopled, eval_request(methods="pooled-rag,stack,mta")))
    assert timeless(again) == timeless(whole)


def test_two_designs_go_on_at_once_and_one_design_does_not(peopled: Registry) -> None:
    few = eval_request(methods="pooled-rag,mta", folds=2)
    requests, together = [few, replace(few, machine=replace(few.machine, seed=1))], dict[int, Any]()
    with Registry.open(peopled.root) as other:
        jobs = [run_evaluation(reg, one) for reg, one in zip((peopled, other), requests, strict=True)]
        while len(together) < len(jobs):
            for n, job in enumerate(jobs):
                if isinstance(event := next(job, None), JobResult):
                    together[n] = event.result
        begun = tune_evaluation(peopled, few)
        assert any(isinstance(event, JobStarted) for event in begun)
        with pytest.raises(StoreBusy, match="eval lamp-2"):
            finish(run_evaluation(other, few))
        begun.close()  # type: ignore[attr-defined]
    for n, request in enumerate(requests):
        peopled.evaluations.remove(together[n]["evaluation"])
        assert timeless(finish(run_evaluation(peopled, request))[0]) == timeless(together[n])


def test_what_is_answered_is_never_answered_again(peopled: Registry) -> None:
    first, _ = finish(run_evaluation(peopled, eval_request(methods="pooled-rag,stack")))
    second, seen = finish(run_evaluation(peopled, eval_request(methods="pooled-rag,stack")))
    assert second == first and any("nothing to compute" in text for text in notes(seen))
    third, seen = finish(run_evaluation(peopled, eval_request(methods="pooled-rag,stack,majority")))
    steps = [event.label for event in seen if isinstance(event, JobProgress) and event.label.startswith("fold")]
    assert steps and all(label.endswith("majority") for label in steps)
    assert third["methods"]["stack"] == first["methods"]["stack"]


def test_settings_are_chosen_for_each_fold_on_the_others(peopled: Registry) -> None:
    tuned, _ = finish(tune_evaluation(peopled, eval_request(methods="stack")))
    assert {entry["fold"] for entry in tuned["tuned"]} == {0, 1, 2}
    for entry in tuned["tuned"]:
        best = max(entry["trials"], key=lambda trial: trial["gold_loglik"])
        assert entry["settings"] == best["settings"] and len(entry["trials"]) > 1
    result, seen = finish(run_evaluation(peopled, eval_request(methods="stack,pooled-rag")))
    chosen = [entry["settings"] for entry in tuned["tuned"]]
    assert result["settings"]["stack"] in (chosen, chosen[0])
    assert not [event for event in seen if isinstance(event, JobProgress) and event.label.endswith("stack")]


def test_given_settings_stand_over_all_others(peopled: Registry) -> None:
    result, _ = finish(run_evaluation(peopled, eval_request(methods="stack", given={"stack": {"steps": "3"}})))
    assert result["settings"]["stack"]["steps"] == 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"methods": "mta,mtb"}, "no method 'mtb'"),
        ({"methods": " , "}, "no method was named"),
        ({"methods": "mta", "given": {"mta": {"stepz": "3"}}}, "no setting stepz"),
        ({"methods": "mta", "given": {"mta": {"steps": "many"}}}, "whole number"),
        ({"methods": "mta", "given": {"stack": {"steps": "3"}}}, "not among the methods"),
        ({"methods": "mta", "reference": "mat"}, "no method 'mat'"),
        ({"methods": "stack", "given": {"stack": {"placement": "nowhere"}}}, "choose one of all, upper, late"),
        ({"methods": "mta", "given": {"mta": {"rank": "0"}}}, r"mta.rank = '0': this must be a number above 0"),
        ({"methods": "mta", "given": {"mta": {"learning_rate": "nan"}}}, "above 0"),
        ({"methods": "stack", "given": {"stack": {"alpha": "inf"}}}, "above 0"),
        ({"methods": "mta", "given": {"mta": {"prior_weight": "-1"}}}, "of at least 0"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_done(
    peopled: Registry, changes: dict[str, Any], words: str
) -> None:
    before = peopled.count_rows()
    for dry_run in (True, False):
        with pytest.raises(UsageError, match=words):
            finish(run_evaluation(peopled, eval_request(**changes), dry_run=dry_run))
    assert peopled.count_rows() == before


def test_the_least_that_a_setting_can_be_is_allowed(peopled: Registry) -> None:
    least = {"prior_weight": "0", "sharpness": "0", "steps": "1", "rank": "1", "top_k": "1"}
    result, _ = finish(run_evaluation(peopled, eval_request(methods="mta", folds=1, given={"mta": least})))
    own = {name: result["settings"]["mta"][name] for name in least}
    assert own == {"prior_weight": 0.0, "sharpness": 0.0, "steps": 1, "rank": 1, "top_k": 1}


def test_personal_parts_act_where_the_evaluation_says(peopled: Registry) -> None:
    chosen = eval_request(methods="stack,oppu", placement="upper")
    assert resolve_settings(PRESETS_BY_NAME["stack"], chosen, {})["placement"] == "upper"
    assert resolve_settings(PRESETS_BY_NAME["stack"], chosen, {"placement": "late", "steps": 3})["placement"] == "upper"
    assert resolve_settings(PRESETS_BY_NAME["oppu"], chosen, {})["placement"] == "all"
    given = replace(chosen, method_settings={"stack": {"placement": "late"}})
    assert resolve_settings(PRESETS_BY_NAME["stack"], given, {"steps": 3}) == {
        **PRESETS_BY_NAME["stack"].default_settings,
        **PRESETS_BY_NAME["stack"].version_settings,
        "steps": 3,
        "placement": "late",
    }


def test_passes_over_the_shots_are_a_setting_of_every_method_with_a_stack(peopled: Registry) -> None:
    given = eval_request(methods="mta,mta-recipe", given={"mta": {"epochs": "2"}})
    assert resolve_settings(PRESETS_BY_NAME["mta"], given, {})["epochs"] == 2
    assert "epochs" not in resolve_settings(PRESETS_BY_NAME["mta"], eval_request(methods="mta"), {})
    wrong = eval_request(methods="mta-recipe", given={"mta-recipe": {"epochs": "2"}})
    with pytest.raises(UsageError, match="mta-recipe has no setting epochs"):
        resolve_settings(PRESETS_BY_NAME["mta-recipe"], wrong, {})
    one, many = (
        finish(
            run_evaluation(peopled, eval_request(methods="stack", given={"stack": {"epochs": n, "batch_size": "1"}}))
        )
        for n in ("1", "4")
    )
    assert one[0]["methods"]["stack"]["gold_loglik"] != many[0]["methods"]["stack"]["gold_loglik"]


def test_given_steps_count_where_the_method_or_a_tuning_has_epochs(peopled: Registry) -> None:
    for shots in (8, 9):
        given = eval_request(methods="oppu", shots=shots, given={"oppu": {"steps": "50"}})
        found = resolve_settings(PRESETS_BY_NAME["oppu"], given, {"epochs": 4})
        assert found["steps"] == 50 and "epochs" not in found
    both = replace(given, method_settings={"oppu": {"steps": "50", "epochs": "3"}})
    assert resolve_settings(PRESETS_BY_NAME["oppu"], both, {})["epochs"] == 3


def test_the_number_of_shots_decides_the_steps(peopled: Registry) -> None:
    few, many = eval_request(methods="stack", shots=8), eval_request(methods="stack", shots=9)
    stack, oppu = PRESETS_BY_NAME["stack"], PRESETS_BY_NAME["oppu"]
    assert not {"steps", "epochs"} & set(resolve_settings(stack, few, {}))
    given = replace(many, method_settings={"stack": {"steps": "10"}})
    assert resolve_settings(stack, given, {})["steps"] == resolve_settings(stack, many, {"steps": 10})["steps"] == 10
    assert resolve_settings(oppu, many, {}) == resolve_settings(oppu, few, {})
    runs = [eval_request(methods="stack", shots=9, given=given) for given in ({}, {"stack": {"steps": "1"}})]
    passes, step = (finish(run_evaluation(peopled, request))[0]["methods"]["stack"] for request in runs)
    assert passes["gold_loglik"] != step["gold_loglik"]


def test_what_is_tried_is_tried_once_the_defaults_first(peopled: Registry) -> None:
    request = eval_request(methods="oppu", given={"oppu": {"rank": "2"}})
    tried = trials(PRESETS_BY_NAME["oppu"], request)
    oppu = PRESETS_BY_NAME["oppu"]
    assert tried[0] == {**oppu.default_settings, **oppu.version_settings, "rank": 2} and all(
        own["rank"] == 2 for own in tried
    )
    assert len(tried) == len(PRESETS_BY_NAME["oppu"].grid) and len(trials(PRESETS_BY_NAME["base"], request)) == 1
    texts = replace(request, task=BUILTIN_TASKS["lamp-4"])
    assert [len(trials(PRESETS_BY_NAME["mta"], one)) for one in (request, texts)] == [6, 2], "texts have no memory"
    everywhere = trials(PRESETS_BY_NAME["oppu"], replace(request, options=replace(request.options, placement="all")))
    assert len(everywhere) == 3, "late is where the evaluation says, so half of the grid is the other half"


def test_a_task_of_texts_from_end_to_end(store_root: Path) -> None:
    with Registry.open(store_root, create=True) as reg:
        writers(reg, "lamp-4", [f"a {word} in town" for word in ("fox", "ship", "robot")])
        request = eval_request(methods="ladder", folds=2)
        task = replace(BUILTIN_TASKS["lamp-4"], query_tokens=40, item_tokens=40, answer_tokens=12)
        result, _ = finish(run_evaluation(reg, replace(request, task=task)))
        names = ["majority", "base", "rag", "pooled-rag", "mta-recipe", "mta", "permuted-mta"]
        assert list(result["methods"]) == [one["method"] for one in result["ladder"]["steps"]] == names
        *models, style = result["ladder"]["whose"]
        assert [one["step"] for one in models] == ["fused", "adapted"] and style["step"] == "naive-bayes"
        assert all((one["questions"], one["chance"]) == (8, pytest.approx(2)) for one in (*models, style))
        assert style["first"] > 3 * style["chance"] / 2, "of four users, two write alike"
        assert result["metric"] == "rouge_1" and result["calibration"] == dict.fromkeys(result["methods"])
        assert set(result["methods"]["mta"]) == {"rouge_1", "rouge_l", "gold_loglik"}
        assert set(result["methods"]["majority"]) == {"rouge_1", "rouge_l"}
        found = reg.evaluations.predictions.load_predictions(result["evaluation"])
        for method, own in ((m, [p for p in found if p.method == m]) for m in result["methods"]):
            plain = score("rouge", [p.answer for p in own], [p.gold for p in own])
            assert result["methods"][method]["rouge_1"]["value"] == pytest.approx(plain["rouge_1"])
            assert all(p.scores is None for p in own) and len(own) == 8
            if method == "majority":
                assert plain["rouge_1"] > 0.5 and all(p.gold_tokens is None for p in own)
                continue
            perplexed = [p.gold_loglik / p.gold_tokens for p in own if p.gold_loglik and p.gold_tokens]
            assert len(perplexed) == 8 and all(p.gold_tokens == 12 for p in own)
            assert result["methods"][method]["gold_loglik"]["value"] == pytest.approx(sum(perplexed) / 8)
        assert {row["metric"] for row in result["differences"]} == {"rouge_1", "rouge_l", "gold_loglik"}


def test_a_task_of_scores_from_end_to_end(store_root: Path) -> None:
    with Registry.open(store_root, create=True) as reg:
        writers(reg, "lamp-3", ["1", "4", "5"])
        task = replace(BUILTIN_TASKS["lamp-3"], query_tokens=40, item_tokens=40)
        odd = [NewItem(f"odd{n}", "lamp-3", "a text", gold, "2021-01-02") for n, gold in enumerate(("great", "nan"))]
        reg.items.append_queries(reg.users.get("writer0").id, odd)
        methods, given = "majority,pooled-rag,pooled-rag+habit,mta", {"pooled-rag+habit": {"prior_weight": "0.5"}}
        request = replace(eval_request(methods=methods, folds=2, given=given), task=task)
        result, seen = finish(run_evaluation(reg, request))
        assert result["queries"] == 8 and "Held-out queries whose answer is not a number are left out: 2." in notes(
            seen
        )
        assert result["metric"] == "mae" and set(result["methods"]["mta"]) == {"mae", "rmse", "gold_loglik"}
        assert result["methods"]["majority"]["mae"]["value"] == 0.0, "everybody here has one score"
        said = {method: values["gold_loglik"]["value"] for method, values in result["methods"].items()}
        assert (
            said["pooled-rag"]
            < said["pooled-rag+habit"]
            < 0
            < result["methods"]["pooled-rag+habit"]["mae"]["value"]
            <= 4
        )
        assert all(len(own) == 2 and min(map(min, own)) > 0 for own in result["calibration"].values())
        assert finish(run_evaluation(reg, request))[0] == result


def writers(reg: Registry, task: str, answers: list[str]) -> None:
    """Eight people with five items and a query each, who always answer with one of `answers`."""
    for n in range(8):
        user, own = reg.users.add(f"writer{n}").id, answers[n % len(answers)]
        reg.items.append_items(
            user, [NewItem(f"i{k}", task, f"text {k} about {own}", own, f"2020-01-0{k + 1}") for k in range(5)]
        )
        reg.items.append_queries(user, [NewItem("q", task, f"another text about {own}", own, "2021-01-01")])


def test_too_many_folds_for_the_people(peopled: Registry) -> None:
    with pytest.raises(BadInput, match="folds"):
        finish(run_evaluation(peopled, eval_request(folds=40)))


def test_a_plain_split_tunes_and_tests_on_different_people(peopled: Registry) -> None:
    result, seen = finish(run_evaluation(peopled, eval_request(methods="pooled-rag,majority", folds=1)))
    roles = peopled.evaluations.fold_members(result["evaluation"])
    by_role = {role: {user for _, user, own in roles if own == role} for role in ("bank", "tuning", "test")}
    assert all(by_role.values()) and sum(map(len, by_role.values())) == 12
    assert result["users"] == len(by_role["test"])
    assert any(isinstance(event, Note) for event in seen)


def test_methods_added_later_stand_beside_the_earlier_ones(peopled: Registry) -> None:
    first, seen = finish(run_evaluation(peopled, eval_request(methods="pooled-rag,majority")))
    assert "mta is not among the methods: all are compared with majority." in notes(seen)
    second, _ = finish(run_evaluation(peopled, eval_request(methods="pooled", given={})))
    assert list(second["methods"]) == ["pooled", "pooled-rag", "majority"]
    assert second["methods"]["majority"] == first["methods"]["majority"]
    assert list(peopled.evaluations.get(second["evaluation"]).result["methods"]) == list(second["methods"])


def test_an_earlier_method_that_lacks_answers_is_left_out_and_named(peopled: Registry) -> None:
    """A removed item takes the answers of a few with it, and an import of the same file brings it back."""
    finish(run_evaluation(peopled, eval_request(methods="neighbours,majority")))
    user = peopled.users.get("ida").id
    item = peopled.items.recent_items(user, "lamp-2", 1)[0]
    finish(remove_items(peopled, "ida", [item.key], task="lamp-2"))
    peopled.items.append_items(user, [NewItem(item.key, item.task, item.input, item.output, item.time)])
    result, seen = finish(run_evaluation(peopled, eval_request(methods="majority")))
    assert list(result["methods"]) == ["majority"]
    assert any("missing: neighbours. Name them in --methods" in note for note in notes(seen))
    again, _ = finish(run_evaluation(peopled, eval_request(methods="neighbours")))
    assert set(again["methods"]) == {"neighbours", "majority"}


def test_settings_and_reference_follow_the_memory_of_all_methods(peopled: Registry) -> None:
    request = eval_request(
        methods="rag,pooled-rag", memory="habit", reference="rag", given={"rag": {"prior_strength": "4"}}
    )
    result, seen = finish(run_evaluation(peopled, request))
    assert list(result["methods"]) == ["rag+habit", "pooled-rag+habit"]
    assert result["reference"] == "rag+habit" and "not among the methods" not in notes(seen)
    assert result["settings"]["rag+habit"]["prior_strength"] == 4.0
    assert result["settings"]["pooled-rag+habit"]["prior_strength"] != 4.0


def test_answers_of_an_older_version_of_a_method_are_not_taken_for_its_own(
    peopled: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(run_evaluation(peopled, eval_request(methods="pooled-rag")))
    monkeypatch.setitem(PRESETS_BY_NAME, "pooled-rag", replace(PRESETS_BY_NAME["pooled-rag"], version=2))
    result, seen = finish(run_evaluation(peopled, eval_request(methods="pooled-rag")))
    assert result["settings"]["pooled-rag"] == {"version": 2}
    assert [event for event in seen if isinstance(event, JobProgress) and event.label.endswith("pooled-rag")]


def test_what_was_given_for_a_method_is_told_when_others_are_added(
    peopled: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its seed would be pooled with one of other settings. An older version among them is named."""
    given = {"rag": {"prior_strength": "4"}}
    finish(run_evaluation(peopled, eval_request(methods="rag", memory="habit", given=given)))
    monkeypatch.setitem(PRESETS_BY_NAME, "rag", replace(PRESETS_BY_NAME["rag"], version=9))
    result, seen = finish(run_evaluation(peopled, eval_request(methods="majority")))
    assert result["given"] == {"rag+habit": {"prior_strength": "4"}} and "majority" in result["methods"]
    assert any("an earlier version of mta: rag+habit." in note for note in notes(seen))
    again, seen = finish(run_evaluation(peopled, eval_request(methods="rag", memory="habit")))
    assert again["given"] == {} and not any("earlier version" in note for note in notes(seen))


def test_a_control_is_trained_as_its_method(peopled: Registry) -> None:
    """With what was tuned and given for the method, and nothing tuned for itself."""
    names = "task:none:lora,permuted-task:none:lora"
    with pytest.raises(UsageError, match="no settings to try for permuted-mta"):
        finish(tune_evaluation(peopled, eval_request(methods="permuted-mta")))
    tuned, _ = finish(tune_evaluation(peopled, eval_request(methods="task:none:lora+habit", given={})))
    best = tuned["tuned"][0]["settings"]
    control = finish(run_evaluation(peopled, eval_request(methods="permuted-task:none:lora+habit")))[0]
    assert control["settings"]["permuted-task:none:lora+habit"] == best
    given = {"task:none:lora": {"steps": "2"}, "permuted-task:none:lora": {"rank": "1"}}
    result, _ = finish(run_evaluation(peopled, eval_request(methods=names, given=given)))
    own, other = result["settings"]["task:none:lora"], result["settings"]["permuted-task:none:lora"]
    assert (own["steps"], other["steps"], other["rank"]) == (2, 2, 1) and own["rank"] != 1


def test_a_control_in_a_later_run_has_what_was_given_for_its_method(peopled: Registry) -> None:
    alone, control = "task:none:lora", "permuted-task:none:lora"
    finish(run_evaluation(peopled, eval_request(methods=alone, given={alone: {"steps": "2"}})))
    result, seen = finish(run_evaluation(peopled, eval_request(methods=control)))
    assert result["settings"][control]["steps"] == 2 and not any("other settings" in note for note in notes(seen))
    result, seen = finish(run_evaluation(peopled, eval_request(methods=control, given={alone: {"steps": "3"}})))
    assert result["settings"][control]["steps"] == 3 and result["given"][alone] == {"steps": "2"}
    assert any(f"{control} has other settings than {alone}. Name both in --methods" in note for note in notes(seen))


def test_the_record_of_a_run_has_the_settings_as_they_were_given(peopled: Registry) -> None:
    """A job that is resumed resolves them again."""
    asked = eval_request(methods="pooled-rag", memory="all", given={"pooled-rag+habit": {"prior_strength": "4"}})
    result, _ = finish(run_evaluation(peopled, asked))
    (run,) = peopled.runs.of_evaluation(result["evaluation"])
    assert run.config[REQUEST_KEY] == eval_request_json(asked)
    assert run.config[REQUEST_KEY]["given"] == {"pooled-rag+habit": {"prior_strength": "4"}}


def test_with_two_folds_settings_are_chosen_after_calibration(peopled: Registry) -> None:
    """Only one fold is left to choose on, and a likelihood without a temperature would punish sure methods."""
    tuned, _ = finish(tune_evaluation(peopled, eval_request(methods="pooled-rag+habit", folds=2)))
    plain, _ = finish(tune_evaluation(peopled, eval_request(methods="pooled-rag+habit", folds=2, calibrate=False)))
    for entry, other in zip(tuned["tuned"], plain["tuned"], strict=True):
        for trial, uncalibrated in zip(entry["trials"], other["trials"], strict=True):
            assert trial["settings"] == uncalibrated["settings"]
            assert trial["gold_loglik"] != uncalibrated["gold_loglik"]
