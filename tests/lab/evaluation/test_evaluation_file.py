"""Evaluations as files: they give the same results as in the store, contain no names, and invalid ones are refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mta_cli.errors import BadInput, NotFound, UsageError
from mta_cli.lab.evaluation.evaluation_file import export_evaluation, read_evaluation
from mta_cli.lab.evaluation.finished_evaluation import load_finished_evaluation, portable_user_id
from mta_cli.lab.evaluation.run import run_evaluation
from mta_cli.lab.evaluation.seeds import evaluation_document, load_evaluations, needs_store, report_documents
from mta_cli.lab.report.write_report import write_reports
from store.records import NewItem, Query
from store.registry import Registry
from tests.lab.evaluation.test_seeds import seeded
from tests.lab.evaluation.trial import Trial
from tests.pipeline.town import finish


@pytest.fixture(scope="module")
def reg(trial: Trial, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """Beside the trial's evaluation, number 1: seeds 1 and 2 (numbers 2 and 3), and seed 3 with two shots (4)."""
    root = shutil.copytree(trial.reg.root, tmp_path_factory.mktemp("files") / "store")
    with Registry.open(root) as registry:
        personal = "majority,pooled-rag,pooled-rag+habit,mta-recipe"
        first, second = (seeded(trial.request, seed, methods=personal) for seed in (1, 2))
        for request in (first, second, seeded(trial.request, 3, shots=2)):
            finish(run_evaluation(registry, request))
        yield registry


@pytest.fixture
def written(reg: Registry, tmp_path: Path) -> Path:
    """Evaluation 2 as a file."""
    export_evaluation(load_finished_evaluation(reg, 2), tmp_path / "two.json")
    return tmp_path / "two.json"


def figures(document: dict[str, Any]) -> dict[str, Any]:
    """What does not hang on the order in which people are drawn."""
    return {
        "methods": {name: {m: v["value"] for m, v in own.items()} for name, own in document["methods"].items()},
        "differences": {(row["b"], row["metric"]): row["value"] for row in document["differences"]},
        **{key: document[key] for key in ("users", "queries", "costs", "reference", "task", "shots")},
    }


def near(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(near(one[key], other[key]) for key in one)
    return bool(one == (pytest.approx(other, abs=1e-9) if isinstance(one, float) else other))


def test_a_file_says_what_the_evaluation_found(reg: Registry, written: Path) -> None:
    kept, told = (
        evaluation_document(load_evaluations([2], reg)),
        evaluation_document(load_evaluations([str(written)], reg)),
    )
    assert near(figures(told), figures(kept)) and told["seed"] == kept["seed"]
    assert (
        told["given"] == kept["given"]
        and told["settings"] == kept["settings"]
        and told["calibration"] == kept["calibration"]
    )
    assert told["evaluation"] != kept["evaluation"] and told == evaluation_document(
        load_evaluations([str(written), written.as_posix()], reg)
    )
    for metrics in told["methods"].values():
        assert all(own["low"] <= own["value"] <= own["high"] for own in metrics.values())


def test_files_and_stored_evaluations_count_together(reg: Registry, written: Path, tmp_path: Path) -> None:
    three = tmp_path / "three.json"
    export_evaluation(load_finished_evaluation(reg, 3), three)
    within = evaluation_document(load_evaluations([2, 3], reg))
    for places in ([str(written), "3"], ["2", str(three)], [str(written), str(three)]):
        mixed = evaluation_document(load_evaluations(places, reg))
        assert near(figures(mixed), figures(within)) and mixed["seeds"] == within["seeds"]
    documents = report_documents(load_evaluations(["3", str(written)], reg), "pooled-rag+habit")
    assert [one.get("seed") for one in documents] == [2, 1, None] and documents[2]["seeds"] == [1, 2]
    paths = write_reports(documents, tmp_path / "report")
    assert "seeds 1 and 2" in paths[0].read_text()


def test_whose_an_answer_is_adds_up_over_seeds_and_files(reg: Registry, written: Path) -> None:
    stored = [evaluation_document(load_evaluations([number], reg))["ladder"]["whose"] for number in (2, 3)]
    (told,) = evaluation_document(load_evaluations([str(written)], None))["ladder"]["whose"]
    assert [one["step"] for one in stored[0]] == [told["step"]] == ["fused"]
    exact = ("first", "questions", "chance", "share", "ahead", "users", "p", "difference")
    assert [told[key] for key in exact] == pytest.approx([stored[0][0][key] for key in exact])
    (both,) = evaluation_document(load_evaluations([str(written), "3"], reg))["ladder"]["whose"]
    for key in ("first", "questions", "chance"):
        assert both[key] == pytest.approx(stored[0][0][key] + stored[1][0][key])
    assert both["users"] == 12
    earlier = edited(written, lambda document: document.pop("whose"))
    assert evaluation_document(load_evaluations([earlier], None))["ladder"]["whose"] == []
    assert evaluation_document(load_evaluations([earlier, "3"], reg))["ladder"]["whose"] == [], "one seed does not say"


def test_files_stand_for_themselves(written: Path, reg: Registry) -> None:
    assert not needs_store([str(written)]) and needs_store([str(written), "2"]) and needs_store([2])
    assert evaluation_document(load_evaluations([str(written)], None)) == evaluation_document(
        load_evaluations([str(written)], reg)
    )


def test_nobody_and_nothing_that_was_said_is_in_a_file(reg: Registry, written: Path) -> None:
    said = written.read_text()
    names = [user.name for user, _ in reg.users.users_with_items("lamp-2")]
    assert len(names) == 12 and not [name for name in names if re.search(rf"\b{name}\b", said)]
    assert "film" not in said and "another" not in said and len(json.loads(said)["people"]) == 12


def test_people_are_told_apart_by_name_and_queries() -> None:
    one, two = (Query(n, 1, f"q{n}", "t", f"text {n}", "gold", None) for n in (1, 2))
    assert portable_user_id("ida", [one, two]) == portable_user_id("ida", [two, one])
    assert (
        len(
            {
                portable_user_id("ida", [one, two]),
                portable_user_id("jon", [one, two]),
                portable_user_id("ida", [one]),
                portable_user_id("ida", []),
            }
        )
        == 4
    )
    assert all(portable_user_id(str(n), []) < 2**60 for n in range(100))


def test_other_people_or_designs_are_refused(reg: Registry, written: Path, tmp_path: Path, trial: Trial) -> None:
    export_evaluation(load_finished_evaluation(reg, 4), tmp_path / "four.json")
    with pytest.raises(UsageError, match=r"shots is 3 in .* and 2 in"):
        evaluation_document(load_evaluations([str(written), str(tmp_path / "four.json")], reg))
    with pytest.raises(UsageError, match=r"evaluation 2 and .*have a seed in common"):
        evaluation_document(load_evaluations(["2", str(written)], reg))
    alone = tmp_path / "root"
    shutil.copytree(reg.root, alone)
    with Registry.open(alone) as other:
        user = other.users.get("ida").id
        other.items.append_queries(user, [NewItem("new", "lamp-2", "one more film", "comedy", "2022-01-01")])
        assert evaluation_document(load_evaluations(["3", str(written)], other))["queries"] == 24, "both without it"
        later = int(finish(run_evaluation(other, seeded(trial.request, 5, methods="majority")))[0]["evaluation"])
        export_evaluation(load_finished_evaluation(other, later), tmp_path / "later.json")
        with pytest.raises(UsageError, match="different users or queries"):
            evaluation_document(load_evaluations([str(tmp_path / "later.json"), str(written)], other))


def test_one_of_stored_models_is_not_exported(reg: Registry, tmp_path: Path) -> None:
    stored = reg.evaluations.add_evaluation("lamp-2", None, {}, {"task": "lamp-2", "costs": {}})
    with pytest.raises(UsageError, match=f"evaluation {stored} measured the stored models"):
        export_evaluation(load_finished_evaluation(reg, stored), tmp_path / "stored.json")
    assert not (tmp_path / "stored.json").exists()


def edited(path: Path, change: Callable[[dict[str, Any]], object]) -> str:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    return str(path)


WRONG: dict[str, Callable[[dict[str, Any]], object]] = {
    "another format": lambda d: d.update(format="other"),
    "a metric that is not there": lambda d: d.update(metric="beauty"),
    "fewer labels": lambda d: d.update(labels=d["labels"][1:]),
    "no people": lambda d: d.update(people=[]),
    "a name": lambda d: d["people"].__setitem__(0, "ida"),
    "people twice": lambda d: d["people"].__setitem__(1, d["people"][0]),
    "people out of order": lambda d: d["people"].reverse(),
    "a person less": lambda d: d["people"].pop(),
    "a method with a command": lambda d: d["sums"].update({"\x1b[2J": d["sums"]["majority"]}),
    "a sum that is none": lambda d: d["sums"]["majority"][0].__setitem__(1, "much"),
    "an infinite sum": lambda d: d["sums"]["majority"][0].__setitem__(1, float("inf")),
    "no queries": lambda d: d["sums"]["majority"][0].__setitem__(0, 0),
    "other queries": lambda d: d["sums"]["majority"][0].__setitem__(0, 7),
    "less than nothing": lambda d: d["sums"]["majority"][0].__setitem__(3, -1),
    "no sums": lambda d: d.update(sums={}),
    "a design of lists": lambda d: d["result"].update(shots=[5]),
    "shots of text": lambda d: d["result"].update(shots="many"),
    "no seed": lambda d: d["result"].pop("seed"),
    "a reference that is not there": lambda d: d["result"].update(reference="mtb"),
    "costs without a method": lambda d: d["result"]["costs"].pop("majority"),
    "a cost of text": lambda d: d["result"]["costs"]["majority"].update(bytes="few"),
    "settings without names": lambda d: d["result"]["settings"].update(majority=[1]),
    "a temperature of text": lambda d: d["result"]["calibration"].update({"pooled-rag": ["hot"]}),
    "a part with a temperature of text": lambda d: d["result"]["calibration"].update({"pooled-rag": [["hot"]]}),
    "a fold without temperatures": lambda d: d["result"]["calibration"].update({"pooled-rag": [[], []]}),
    "costs that are a list": lambda d: d["result"]["costs"].update(majority=[1]),
    "no weighing": lambda d: d["weighed"].pop("majority"),
    "whose of a method that is not there": lambda d: d["whose"].update(mtb=d["whose"]["mta-recipe"]),
    "whose of fewer people": lambda d: d["whose"]["mta-recipe"].pop(),
    "whose of nobody": lambda d: d["whose"].update({"mta-recipe": [[0, 0, 0, 0] for _ in d["people"]]}),
    "whose of more questions": lambda d: d["whose"]["mta-recipe"][0].__setitem__(0, 3),
    "half a question": lambda d: d["whose"]["mta-recipe"][0].__setitem__(0, 1.5),
    "first more often than asked": lambda d: d["whose"]["mta-recipe"][0].__setitem__(1, 2.1),
    "less chance than any": lambda d: d["whose"]["mta-recipe"][0].__setitem__(2, 0.1),
    "more chance than one of two": lambda d: d["whose"]["mta-recipe"][0].__setitem__(2, 1.1),
    "a difference that is none": lambda d: d["whose"]["mta-recipe"][0].__setitem__(3, float("nan")),
    "whose that is a list": lambda d: d.update(whose=[1]),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_no_evaluation_says_is_refused(reg: Registry, written: Path, what: str) -> None:
    with pytest.raises(BadInput, match=re.escape(str(written))) as refused:
        evaluation_document(load_evaluations([edited(written, WRONG[what])], reg))
    assert refused.value.hint and "\x1b" not in str(refused.value)


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe", b"[" * 100_000, b"[]", b'{"format": "mta-evaluation-1"}', b"NaN"]
)
def test_what_is_no_file_of_ours_is_refused(reg: Registry, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "odd.json"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=r"odd\.json"):
        evaluation_document(load_evaluations([str(path)], reg))


def test_what_is_not_there_or_too_large(reg: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in (tmp_path / "nothing", tmp_path, "-3", "²"):
        with pytest.raises(NotFound, match="neither the number of an evaluation nor a file"):
            evaluation_document(load_evaluations([str(place)], reg))
    (tmp_path / "large.json").write_bytes(b" " * 200)
    monkeypatch.setattr("mta_cli.lab.evaluation.evaluation_file.MAX_FILE_BYTES", 100)
    with pytest.raises(BadInput, match="200 bytes"):
        read_evaluation(tmp_path / "large.json")
