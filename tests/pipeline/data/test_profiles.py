"""Profiles: unit means of item embeddings, of which only new ones are computed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mta_cli.engine.retrieval.embed import Embedder
from mta_cli.errors import IntegrityFault
from mta_cli.events import JobProgress, JobResult
from mta_cli.pipeline.data import profiles
from mta_cli.pipeline.data.profiles import normalise_rows, profile_matrix, refresh_profiles
from mta_cli.pipeline.models.installed import resolve_model
from store.records import NewItem, Profile
from store.registry import Registry


@pytest.fixture
def registry(store_root: Path) -> Iterator[Registry]:
    with Registry.open(store_root, create=True) as opened:
        yield opened


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many texts each call of the embedder was given."""
    calls: list[int] = []
    plain = Embedder.embed

    def embed(self: Embedder, texts: Any) -> Any:
        calls.append(len(texts))
        return plain(self, texts)

    monkeypatch.setattr(Embedder, "embed", embed)
    return calls


def add(registry: Registry, name: str, *texts: str, task: str = "free") -> None:
    user, _ = registry.users.get_or_create_user(name)
    start = len(registry.items.recent_items(user.id, task))
    items = [NewItem(f"{start + number}", task, f"in {text}", f"out {text}") for number, text in enumerate(texts)]
    registry.items.append_items(user.id, items)


def refresh(registry: Registry, **named: Any) -> dict[str, Any]:
    events = list(refresh_profiles(registry, "free", resolve_model("tiny-embedder", "embedder"), device="cpu", **named))
    assert isinstance(events[-1], JobResult)
    return events[-1].result  # type: ignore[no-any-return]


def matrix(registry: Registry) -> tuple[list[int], Any]:
    return profile_matrix(registry, "free", resolve_model("tiny-embedder").fingerprint)


def test_a_profile_is_the_unit_mean_of_its_items(registry: Registry, tiny_embedder_path: Path) -> None:
    add(registry, "ada", "tax", "law")
    add(registry, "bo", "film")
    assert refresh(registry) == {"task": "free", "users": 2, "items": 3}
    ids, rows = matrix(registry)
    assert ids == [registry.users.get("ada").id, registry.users.get("bo").id]
    plain = Embedder(tiny_embedder_path, "cpu").embed(["in tax\nout tax", "in law\nout law", "in film\nout film"])
    assert np.allclose(rows, normalise_rows(np.stack([plain[:2].sum(axis=0), plain[2]])), atol=1e-5)
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)


def test_only_what_is_new_is_embedded(registry: Registry, counted: list[int]) -> None:
    add(registry, "ada", "tax", "law")
    add(registry, "bo", "film")
    refresh(registry)
    refresh(registry)
    assert counted == [3]
    add(registry, "ada", "opera")
    assert refresh(registry)["items"] == 1
    assert counted == [3, 1]


def test_growing_gives_what_one_pass_gives(registry: Registry) -> None:
    add(registry, "ada", "tax", "law")
    refresh(registry)
    add(registry, "ada", "opera", "boats")
    refresh(registry)
    add(registry, "same", "tax", "law", "opera", "boats")
    refresh(registry)
    _, rows = matrix(registry)
    assert np.allclose(rows[0], rows[1], atol=1e-5)


def test_only_the_chosen_users_and_the_task_asked_for(registry: Registry) -> None:
    add(registry, "ada", "tax")
    add(registry, "bo", "film")
    add(registry, "cy", "sea", task="lamp-2")
    assert refresh(registry, users=[registry.users.get("bo")])["users"] == 1
    assert matrix(registry)[0] == [registry.users.get("bo").id]


def test_profiles_of_some_users_alone(registry: Registry) -> None:
    for name in ("ada", "bo", "cy"):
        add(registry, name, f"{name} tax")
    refresh(registry)
    ids, rows = matrix(registry)
    embedder = resolve_model("tiny-embedder").fingerprint
    found, some = profile_matrix(registry, "free", embedder, [ids[2], ids[0], 999])
    assert found == [ids[0], ids[2]] and np.array_equal(some, rows[[0, 2]])
    assert profile_matrix(registry, "free", embedder, [])[0] == []


def test_profiles_that_differ_in_length_are_refused(registry: Registry) -> None:
    for name, size in (("ada", 8), ("bo", 12)):
        add(registry, name, "tax")
        registry.profiles.save_profile(Profile(registry.users.get(name).id, "free", "e", bytes(size), 1, 1))
    with pytest.raises(IntegrityFault, match="differ in length"):
        profile_matrix(registry, "free", "e")


def test_an_interruption_keeps_the_users_that_are_done(
    registry: Registry, counted: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profiles, "EMBED_BATCH", 2)
    for name in ("ada", "bo", "cy"):
        add(registry, name, "x", "y")
    events = refresh_profiles(registry, "free", resolve_model("tiny-embedder"), device="cpu")
    next(event for event in events if isinstance(event, JobProgress))
    events.close()  # type: ignore[attr-defined]
    assert refresh(registry)["items"] == 4
    assert counted == [2, 2, 2]


def test_of_a_long_history_the_newest_items_are_embedded(registry: Registry, counted: list[int]) -> None:
    texts = [f"story {number}" for number in range(profiles.PROFILE_ITEMS + 7)]
    add(registry, "ada", *texts)
    add(registry, "bo", *texts[7:])
    refresh(registry)
    assert sum(counted) == 2 * profiles.PROFILE_ITEMS
    _, rows = matrix(registry)
    assert np.allclose(rows[0], rows[1], atol=1e-5)
    add(registry, "ada", "one more")
    assert refresh(registry)["items"] == 1


def test_many_small_histories_share_a_batch(registry: Registry, counted: list[int]) -> None:
    for number in range(12):
        add(registry, f"user {number}", "x", "y")
    refresh(registry)
    assert counted == [24]


def test_nobody_has_items(registry: Registry, counted: list[int]) -> None:
    assert refresh(registry)["items"] == 0
    assert counted == []
    ids, rows = matrix(registry)
    assert (ids, len(rows)) == ([], 0)


def test_a_row_of_zeros_stays_zero() -> None:
    assert normalise_rows(np.array([[0.0, 0.0], [3.0, 4.0]], dtype=np.float32)).tolist() == [
        [0, 0],
        pytest.approx([0.6, 0.8]),
    ]


def test_two_who_embed_the_same_items_at_once_count_them_once(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(registry, "ada", "tax", "law")
    embed, sizes = Embedder.embed, list[int]()

    def meanwhile(self: Embedder, texts: Any) -> Any:
        sizes.append(len(texts))
        if len(sizes) == 1:  # another begins and ends while this one computes, and finds one item more
            add(registry, "ada", "opera")
            refresh(registry)
        return embed(self, texts)

    monkeypatch.setattr(Embedder, "embed", meanwhile)
    refresh(registry)
    add(registry, "same", "tax", "law", "opera")
    refresh(registry)
    assert sizes == [2, 3, 3]
    ids, rows = matrix(registry)
    assert np.allclose(rows[0], rows[1], atol=1e-5)
    embedder = resolve_model("tiny-embedder").fingerprint
    assert [registry.profiles.get(user, "free", embedder).items for user in ids] == [3, 3]  # type: ignore[union-attr]


def test_progress_names_a_user_only_where_one_is_embedded(registry: Registry) -> None:
    for name in ("ada", "bo"):
        add(registry, name, "x")
    told = []
    for users in (["ada"], ["ada", "bo"]):
        chosen = [registry.users.get(name) for name in users]
        add(registry, "ada", f"more for {len(users)}")
        events = refresh_profiles(registry, "free", resolve_model("tiny-embedder"), chosen, device="cpu")
        told += [event.label for event in events if isinstance(event, JobProgress)]
    assert told == ["ada", ""]
