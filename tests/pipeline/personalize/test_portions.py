"""Who is weighed together: so many people, so many different anchors, everybody once and in order."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from mta_cli.pipeline.personalize import fuse
from mta_cli.pipeline.personalize.fuse import FuseTarget, _evidence_batches


def person(*anchors: int) -> FuseTarget:
    found: Any = [(SimpleNamespace(id=i), 0.5) for i in anchors]
    user: Any = SimpleNamespace(name=str(anchors))
    return FuseTarget(user, [], found)


@pytest.mark.parametrize(
    ("together", "anchors", "expected"),
    [
        (9, 99, [[[0, 1, 2], [0, 2, 3], [0], [0, 7, 8]]]),
        (2, 99, [[[0, 1, 2], [0, 2, 3]], [[0], [0, 7, 8]]]),
        (9, 4, [[[0, 1, 2], [0, 2, 3], [0]], [[0, 7, 8]]]),
        (9, 1, [[[0, 1, 2]], [[0, 2, 3]], [[0]], [[0, 7, 8]]]),
    ],
)
def test_portions(
    monkeypatch: pytest.MonkeyPatch, together: int, anchors: int, expected: list[list[list[int]]]
) -> None:
    monkeypatch.setattr(fuse, "MAX_USERS_PER_BATCH", together)
    monkeypatch.setattr(fuse, "MAX_ANCHORS_PER_BATCH", anchors)
    people = [person(1, 2), person(2, 3, 4), person(), person(7, 8)]
    portions = list(_evidence_batches(people, candidates=2))
    assert [one for portion in portions for one, _ in portion] == people
    assert [[ids for _, ids in portion] for portion in portions] == expected
