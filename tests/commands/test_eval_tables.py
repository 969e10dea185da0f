"""How evaluations look in a terminal: 80 columns, the document's numbers, the best in bold, hostile names inert."""

from __future__ import annotations

from typing import Any

import pytest
from rich.console import RenderableType
from rich.segment import Segment

from mta_cli.commands.eval_tables import render_evaluation_list, render_result, render_tuning
from mta_cli.engine.evaluation.ladder import STEP_NAMES
from mta_cli.lab.report import wording
from mta_cli.pipeline.evaluation.ladder_text import verdict_lines
from mta_cli.terminal.progress import CleanConsole
from mta_cli.text.printable import clean_line, clean_text
from tests.pipeline.documents import FEW, HOSTILE, by_memory, document, hostile, with_ladder

LONG = {"mta": 0.50, "base": 0.20, "mta-evidence-stk": 0.51, "fusion-evidence": 0.3}


def segments(shown: RenderableType, width: int = 80) -> list[Segment]:
    console = CleanConsole(width=width, markup=False, emoji=False, highlight=False)
    return list(console.render(shown, console.options))


def lines(shown: RenderableType, width: int = 80) -> list[str]:
    return [line.rstrip() for line in "".join(part.text for part in segments(shown, width)).splitlines()]


def bold(shown: RenderableType) -> list[str]:
    return [part.text.strip() for part in segments(shown) if part.style is not None and part.style.bold]


def row(shown: RenderableType, name: str) -> list[str]:
    """The first line that begins with `name`, split where columns are."""
    return next([cell for cell in line.split("  ") if cell] for line in lines(shown) if line.startswith(f"{name} "))


def test_a_summary_says_how_it_was_measured() -> None:
    found = lines(render_result(document()))
    assert found[0] == "lamp-2: 138 users, 333 queries, 5 shots, 2 folds, seed 0"
    said = " ".join(found)
    assert "smallest difference in accuracy that this design can detect is 0.040" in said
    assert "Paired differences, accuracy" in said and "Paired differences, gold log-likelihood (nats)" in said


def test_the_numbers_are_the_documents() -> None:
    cells = [cell.strip() for cell in row(render_result(document()), "oppu")]
    assert cells == ["oppu", "0.520 [0.470, 0.570]", "0.460", "-1.480", "1.6 MB", "0.75"]
    assert [cell.strip() for cell in row(render_result(document()), "mta")][-2:] == ["77 kB", "0.00"]


@pytest.mark.parametrize(
    ("metric", "best", "order"),
    [("accuracy", "oppu", ["oppu", "mta", "stack", "base"]), ("mae", "base", ["base", "stack", "mta", "oppu"])],
)
def test_the_best_is_first_and_its_value_alone_is_bold(metric: str, best: str, order: list[str]) -> None:
    shown = render_result(document(metric=metric))
    names = [line.split(" ")[0] for line in lines(shown) if line.split(" ")[0] in FEW]
    assert names[:4] == order
    value = FEW[best]
    assert [text for text in bold(shown) if "[0." in text] == [f"{value:.3f} [{value - 0.05:.3f}, {value + 0.05:.3f}]"]


def test_the_ladder_comes_first_with_its_verdicts() -> None:
    made = with_ladder()
    found = lines(render_result(made))
    head = "\n".join(found[1:3]).split()
    assert {"step", "accuracy", "nats", "p", "verdict"} <= set(head) and max(map(len, found)) <= 80
    above = found[: found.index("")]
    steps = [words[0] for line in above if (words := line.split()) and words[0] in STEP_NAMES]
    assert steps == [one["step"] for one in made["ladder"]["steps"]] == list(STEP_NAMES)
    said = " ".join(" ".join(found).split())
    for line in verdict_lines(made["ladder"], wording.MORE_EVIDENCE):
        assert line in said
    assert "Label memory: worth it" in said and "A personal model on top: not shown" in said
    assert "Whose is it? adapted: own model first in" in said and "a larger --shots" in said
    starts = [said.index(words) for words in ("common+memory", "Measured on", "method accuracy", "Paired differences")]
    assert starts == sorted(starts)


def test_what_holds_before_holms_correction_alone_has_a_note() -> None:
    made = document()
    assert wording.EXPLORATORY_NOTE not in lines(render_result(made))
    for one in made["differences"]:
        one["p_holm"] = 0.07
    assert row(render_result(made), "oppu")[0] == "oppu" and wording.EXPLORATORY_NOTE in lines(render_result(made))


def test_methods_stand_beside_each_other_by_label_memory() -> None:
    found = lines(render_result(by_memory()))
    assert found[1] == "accuracy by label memory" and max(map(len, found)) <= 80
    start = next(i for i, line in enumerate(found) if line.startswith("method"))
    assert found[start].split() == ["method", "memory", "off", "memory", "habit", "memory", "neighbours"]
    (mta, pooled, after) = found[start + 2 : start + 5]
    assert [cell.strip() for cell in mta.split("  ") if cell] == [
        "mta",
        "0.470 [0.420, 0.520]",
        "–",
        "0.580 [0.530, 0.630]",
    ]
    assert pooled.split()[:2] == ["pooled-rag", "0.450"] and after == "", "majority has one memory only"
    assert "by label memory" not in " ".join(lines(render_result(document())))


@pytest.mark.parametrize(("metric", "said"), [("accuracy", "better"), ("mae", "worse"), ("rouge_1", "better")])
def test_differences_are_judged_the_right_way_round(metric: str, said: str) -> None:
    found = lines(render_result(document(metric=metric)))
    table = found[next(i for i, line in enumerate(found) if line.startswith("mta minus")) :]
    base = next(line for line in table if line.startswith("base "))
    assert "+0.300 [+0.260, +0.340]" in base and "< 0.001" in base and base.endswith(f"  {said}")
    stack = next(line for line in table if line.startswith("stack "))
    assert "0.210" in stack and stack.endswith("not shown")


def test_each_label_memory_of_the_reference_has_its_own_differences() -> None:
    found = lines(render_result(by_memory()))
    own, other = (
        next(i for i, line in enumerate(found) if line.startswith(f"{one} minus ")) for one in ("mta", "mta+off")
    )
    assert [line.split()[0] for line in found[own + 2 : other - 1]] == ["pooled-rag+habit", "mta+off", "majority"]
    pooled = found[other + 2]
    assert pooled.startswith("pooled-rag ") and pooled.endswith("not shown") and "+0.020 [-0.020" in pooled
    assert found[other].rstrip().endswith("mta+off is")


@pytest.mark.parametrize(
    "made", [document(LONG), by_memory(), document(LONG, metric="mae"), document({f"m{n}": n / 20 for n in range(16)})]
)
def test_every_row_is_one_line_of_80_columns(made: dict[str, Any]) -> None:
    found = lines(render_result(made))
    assert max(map(len, found)) <= 80
    for method in made["methods"]:
        assert any(line.startswith(f"{method} ") and ("B" in line.split()) + ("kB" in line.split()) for line in found)


def test_a_document_without_costs_power_and_differences_is_shown() -> None:
    bare = document(costs={}, power=None, differences=[])
    bare["methods"]["base"].pop("gold_loglik")
    assert [cell.strip() for cell in row(render_result(bare), "base")][-3:] == ["–", "–", "–"]
    assert "Paired" not in " ".join(lines(render_result(bare)))


def test_the_list_has_a_line_for_each_evaluation() -> None:
    rows = [
        {
            "evaluation": 3,
            "task": "lamp-2",
            "shots": 5,
            "folds": 3,
            "seed": 0,
            "methods": list(LONG),
            "status": "done",
            "created": "2026-01-02T10:11:12Z",
        },
        {
            "evaluation": 4,
            "task": "free",
            "shots": None,
            "folds": None,
            "seed": None,
            "methods": [],
            "status": "running",
            "created": None,
        },
    ]
    found = lines(render_evaluation_list(rows, lambda moment: moment and moment[:10]))
    assert len(found) == 4 and max(map(len, found)) <= 80
    assert found[2].split() == ["3", "lamp-2", "5", "3", "0", "mta,", "base", "+2", "done", "2026-01-02"]
    assert found[3].split() == ["4", "free", "–", "–", "–", "–", "running", "–"]


def test_tuned_settings_are_listed_by_method_and_fold() -> None:
    chosen = [{"method": "mta", "fold": n, "settings": {"steps": 10 * n}, "gold_loglik": -1.5} for n in range(2)]
    shown = render_tuning({"evaluation": 3, "task": "lamp-2", "tuned": chosen})
    assert "evaluation 3 of task lamp-2" in lines(shown)[0]
    assert lines(shown)[-1].split() == ["mta", "2", "steps", "10", "-1.500"]


def test_hostile_names_are_shown_as_they_are_spelt() -> None:
    bad = hostile()
    text = "\n".join(lines(render_result(bad), width=200))
    assert clean_text(text) == text
    for name in HOSTILE:
        assert clean_line(name) in text
    entry = {
        "evaluation": 1,
        "task": HOSTILE[1],
        "shots": 5,
        "folds": 1,
        "seed": 0,
        "methods": list(HOSTILE),
        "status": "done",
        "created": HOSTILE[2],
    }
    text = "\n".join(lines(render_evaluation_list([entry], lambda moment: moment), width=200))
    assert clean_text(text) == text and HOSTILE[1] in text
