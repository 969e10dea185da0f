"""What the page of results says in words is what the exported evaluations say."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

from mta_cli.lab.evaluation.seeds import evaluation_document, load_evaluations
from mta_cli.pipeline.evaluation.ladder_text import personal_row

DOCS = Path(__file__).parent.parent / "docs"
PAGE = runpy.run_path(str(DOCS / "results.py"))
TASKS = {one.name: one for one in PAGE["TASKS"]}


def personal(name: str) -> Any:
    return personal_row(TASKS[name].ladder)


def test_a_personal_model_is_worth_it_on_reviews_and_not_shown_on_headlines() -> None:
    reviews, control = personal("reviews"), TASKS["reviews"].ladder["control"]
    assert reviews["verdict"] == "worth it" and control["verdict"] == "worth it" and control["value"] > 0
    assert personal("headlines")["verdict"] == "not shown"


def test_film_scores_need_no_model() -> None:
    ladder = TASKS["film scores"].ladder
    assert ladder["no_model"]["verdict"] == "not shown"
    errors = {row["step"]: row["metric"] for row in ladder["steps"]}
    assert min(errors, key=errors.__getitem__) == "no-model"


def test_on_tags_label_memory_does_most_and_the_control_is_beaten_in_one_seed_alone() -> None:
    (memory,) = [row for row in TASKS["movie tags"].ladder["comparisons"] if row["step"] == "common+memory"]
    assert memory["verdict"] == "worth it" and memory["value"] > 10 * personal("movie tags")["value"]
    alone = []
    for seed in (0, 1, 2):
        file = DOCS / "results" / "eval-lamp-2-default-banks" / f"seed{seed}.json"
        ladder = evaluation_document(load_evaluations([str(file)], None))["ladder"]
        alone.append(ladder["control"]["verdict"])
    assert alone.count("worth it") == 1 and TASKS["movie tags"].ladder["control"]["verdict"] == "worth it"


@pytest.mark.parametrize("name", ["reviews", "movie tags", "film scores", "headlines", "commits"])
def test_answers_are_not_shown_to_be_better_than_the_common_models(name: str) -> None:
    document = TASKS[name].document
    common = next(row["method"] for row in reversed(document["ladder"]["steps"]) if row["step"].startswith("common"))
    rows = [row for row in document["differences"] if row["b"] == common and row["metric"] == document["metric"]]
    assert rows and all(row["a"] == "mta" and row["p_holm"] >= 0.05 for row in rows)


def test_on_commits_a_personal_model_is_worth_it_and_has_some_of_the_style() -> None:
    assert personal("commits")["verdict"] == "worth it" and TASKS["commits"].ladder["control"]["verdict"] == "worth it"
    found = {one["step"]: one for one in TASKS["commits"].ladder["whose"]}
    chance = found["adapted"]["chance"] / found["adapted"]["questions"]
    assert found["naive-bayes"]["low"] > 0.4 and found["naive-bayes"]["share"] == pytest.approx(0.5, abs=0.05)
    assert found["fused"]["low"] < chance < found["fused"]["high"]
    assert 2 * chance < found["adapted"]["low"] and found["adapted"]["share"] < found["naive-bayes"]["share"]


def test_a_place_for_a_table_that_is_missing_is_an_error() -> None:
    with pytest.raises(ValueError, match="1 tables for 0"):
        PAGE["fill"]("no place", ["a table"])
