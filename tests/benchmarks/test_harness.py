"""What the figures of the docs rest on: turns, medians and invented people."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import harness
from benchmarks.harness import Timed
from mta_cli.engine.model.load import load_base


def test_sides_take_turns_after_a_round_that_is_not_counted() -> None:
    calls: list[str] = []

    def side(name: str) -> int:
        calls.append(name)
        return calls.count(name)

    runs = harness.interleave({"a": lambda: side("a"), "b": lambda: side("b")}, repeats=3)
    assert "".join(calls) == "abababab"
    assert [run.value for run in runs["a"]] == [run.value for run in runs["b"]] == [2, 3, 4]
    assert all(run.seconds >= 0 for run in runs["a"])


def test_the_median_is_no_mean() -> None:
    assert harness.median_seconds([Timed(1.0, None), Timed(2.0, None), Timed(90.0, None)]) == 2.0


def test_invented_people_are_the_same_every_time_and_differ_from_each_other() -> None:
    people = harness.people(40, 16, seed=3)
    assert people == harness.people(40, 16, seed=3) != harness.people(40, 16, seed=4)
    assert len({person.items for person in people}) == 40
    assert all(len(person.items) == 16 and len(person.queries) >= 3 for person in people)
    assert people[:5] == harness.people(5, 16, seed=3), "a person does not change with how many there are"
    with pytest.raises(ValueError, match="items of voice"):
        harness.people(1, 10_000)


def test_rows_show_other_items_and_queries_share_the_beginning_of_their_prompts(tiny_base_path: Path) -> None:
    base = load_base(tiny_base_path, name="tiny", fingerprint="sha256:tiny", device="cpu", dtype="float32")
    prompts, person = harness.prompter(base), harness.people(1, 5)[0]
    rows = harness.rows_of(prompts, person, shown=2)
    shown = base.tokenizer.decode(rows[0].input_ids[: rows[0].answer_start])
    begins = [item.output[:10] for item in person.items]
    assert begins[3] in shown and begins[4] in shown and begins[0] not in shown
    assert begins[0] in base.tokenizer.decode(rows[0].input_ids[rows[0].answer_start :])
    first, second = harness.query_rows(prompts, person)[:2]
    alike = sum(a == b for a, b in zip(first.input_ids[:200], second.input_ids[:200], strict=False))
    assert alike > 60
