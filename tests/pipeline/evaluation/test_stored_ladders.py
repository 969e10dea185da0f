"""The ladder over the evaluations that this project keeps: the control is never found worth it, reviews always are."""

from __future__ import annotations

from pathlib import Path

import pytest

from mta_cli.engine.evaluation.ladder import ADAPTED, ANOTHERS, COMMON_MEMORY, PERSONAL_MODEL, judge_ladder
from mta_cli.engine.evaluation.metrics import MAIN_METRICS
from mta_cli.engine.evaluation.user_sums import UserSums
from mta_cli.lab.evaluation.evaluation_file import read_evaluation
from mta_cli.lab.methods.catalog import methods_by_step

RESULTS = Path(__file__).parents[3] / "docs" / "results"
FOLDERS = {
    "lamp-2-default-banks": 3,
    "lamp-3-default-banks": 1,
    "lamp-3-whole-history": 3,
    "movie-rating-default-banks": 1,
}
FILES = [RESULTS / f"eval-{name}" / f"seed{seed}.json" for name, seeds in FOLDERS.items() for seed in range(seeds)]
REVIEWS = [path for path in FILES if "lamp-3" in path.parent.name]


def steps(path: Path) -> tuple[dict[str, UserSums], int]:
    """The sums of each step in a file, and its seed."""
    found = read_evaluation(path)
    return {step: found.user_sums(name) for step, name in methods_by_step(found.result["methods"]).items()}, (
        found.result["seed"]
    )


def personal_verdict(sums: dict[str, UserSums], seed: int) -> tuple[str, str]:
    """The verdict on the personal model as a whole, and why where its own difference did not decide."""
    judged = judge_ladder(sums, MAIN_METRICS[next(iter(sums.values())).metric], unit="users", seed=seed)
    (row,) = [one for one in judged["comparisons"] if one["adds"] == PERSONAL_MODEL]
    assert (row["step"], row["below"]) == (ADAPTED, COMMON_MEMORY)
    return row["verdict"], row["why"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_another_users_model_in_place_of_ones_own_is_not_found_worth_it(path: Path) -> None:
    sums, seed = steps(path)
    verdict, _ = personal_verdict({**sums, ADAPTED: sums[ANOTHERS]}, seed)
    assert verdict == ("worse" if path == RESULTS / "eval-lamp-3-whole-history" / "seed0.json" else "not shown")


def test_without_the_control_another_users_model_would_once_pass_for_a_personal_one() -> None:
    """Why a personal step must also be ahead of another user's model: of these files, one has such a step."""
    told = {}
    for path in FILES:
        sums, seed = steps(path)
        alone = {name: own for name, own in sums.items() if name != ANOTHERS}
        told[path] = personal_verdict({**alone, ADAPTED: sums[ANOTHERS]}, seed)[0]
        if told[path] == "worth it":
            assert personal_verdict({**sums, ADAPTED: sums[ANOTHERS]}, seed) == ("not shown", ANOTHERS)
    assert [path for path in FILES if told[path] == "worth it"] == [
        RESULTS / "eval-lamp-2-default-banks" / "seed1.json"
    ]


@pytest.mark.parametrize("path", REVIEWS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_personal_model_of_reviews_is_found_worth_it(path: Path) -> None:
    assert personal_verdict(*steps(path)) == ("worth it", "")
