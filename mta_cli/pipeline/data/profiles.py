"""Computes users' profiles: for each task, the normalised mean embedding of a user's history items.

A profile is stored as the sum of its items' unit vectors, so only new items are embedded, at most the newest
`PROFILE_ITEMS` of a user at once.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mta_cli.errors import Command, IntegrityFault
from mta_cli.events import Event, JobProgress, JobResult, JobStarted, Note, forward_events
from store.records import Item, Profile, User

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from mta_cli.engine.retrieval.embed import Embedder
    from mta_cli.pipeline.models.manifest import ModelEntry
    from store.registry import Registry

EMBED_BATCH = 256  # items embedded and stored together; an interruption loses at most this work
PROFILE_ITEMS = 50  # a user's newest new items that are embedded: more hardly change the mean


@dataclass(frozen=True)
class _UserItems:
    """One user's items that are not in the profile yet, by id."""

    user: User
    items: Sequence[Item]


def refresh_profiles(
    reg: Registry, task: str, embedder: ModelEntry, users: Sequence[User] | None = None, device: str = "auto"
) -> Iterator[Event]:
    """Update the profiles of `users` (None: all users with items of the task).

    `JobResult.result` is `{task, users, items}`: the number of new items, and of the users who have them. The embedder
    is loaded only when there are items to embed.
    """
    chosen = [user for user, _ in reg.users.users_with_items(task)] if users is None else list(users)
    pieces = [piece for user in chosen for piece in _new_user_items(reg, user, task, embedder.fingerprint)]
    total = sum(len(piece.items) for piece in pieces)
    if total:
        from mta_cli.engine.retrieval.embed import Embedder
        from mta_cli.pipeline.models.verify import verify_in_background

        yield Note(f"Embedding {total:,} new history items with {embedder.name}.")
        with verify_in_background([embedder]):
            model = Embedder(embedder.path, device)
        yield JobStarted(f"profiles of {task}", total, "items")
        done = 0
        for batch in _batches(pieces):
            started = time.monotonic()
            _embed_batch(reg, model, task, embedder.fingerprint, batch)
            done += sum(len(piece.items) for piece in batch)
            yield JobProgress(chosen[0].name if len(chosen) == 1 else "", done, seconds=time.monotonic() - started)
    yield JobResult({"task": task, "users": len({piece.user.id for piece in pieces}), "items": total})


def current_profiles(
    reg: Registry, task: str, embedder: ModelEntry, users: Sequence[User], device: str
) -> Generator[Event, None, NDArray[np.float32]]:
    """Update the profiles of `users`, who must have items of the task; returns them as unit rows [users, width].

    The rows are in the order of `users`.
    """
    yield from forward_events(refresh_profiles(reg, task, embedder, users, device))
    ids, matrix = profile_matrix(reg, task, embedder.fingerprint, [user.id for user in users])
    row = {user_id: i for i, user_id in enumerate(ids)}
    rows: NDArray[np.float32] = matrix[[row[user.id] for user in users]]
    return rows


def profile_matrix(
    reg: Registry, task: str, embedder: str, users: Sequence[int] | None = None
) -> tuple[list[int], NDArray[np.float32]]:
    """User ids and their profiles as unit rows [users, width], in the order of the ids; `embedder` is a fingerprint.

    Covers all users with a profile, or those among `users` (ids). Raises IntegrityFault if profiles differ in length.
    """
    import numpy as np

    found = reg.profiles.profile_totals(task, embedder, users)
    if not found:
        return [], np.zeros((0, 0), dtype=np.float32)
    if len({len(total) for _, total in found}) != 1:
        raise IntegrityFault(f"The stored profiles of task {task} differ in length", hint=Command("restore", "FILE"))
    sums = np.frombuffer(b"".join(total for _, total in found), dtype="<f4").reshape(len(found), -1)
    return [user_id for user_id, _ in found], normalise_rows(sums)


def load_profiles(reg: Registry, task: str, embedder: str, users: Sequence[int]) -> dict[int, Tensor]:
    """The unit profiles [width], float32, by user id, of the `users` who have one."""
    from torch import from_numpy

    ids, matrix = profile_matrix(reg, task, embedder, users)
    return dict(zip(ids, from_numpy(matrix), strict=True))


def normalise_rows(sums: NDArray[np.float32]) -> NDArray[np.float32]:
    """`sums` [rows, width] with each row divided by its Euclidean norm; a row of zeros stays zero."""
    import numpy as np

    lengths = np.sqrt(np.einsum("ij,ij->i", sums, sums))  # [rows]; np.linalg.norm along an axis would copy the matrix
    return (sums / np.where(lengths > 0, lengths, 1)[:, None]).astype(np.float32, copy=False)


def _new_user_items(reg: Registry, user: User, task: str, embedder: str) -> list[_UserItems]:
    known = reg.profiles.get(user.id, task, embedder)
    items = reg.items.items_after(user.id, task, known.last_item if known else 0)[-PROFILE_ITEMS:]
    return [_UserItems(user, items)] if items else []


def _batches(pieces: Sequence[_UserItems]) -> Iterator[list[_UserItems]]:
    """Join users' pieces into batches of up to `EMBED_BATCH` items, so that users with few items share a batch."""
    batch: list[_UserItems] = []
    for piece in pieces:
        if batch and sum(len(other.items) for other in batch) + len(piece.items) > EMBED_BATCH:
            yield batch
            batch = []
        batch.append(piece)
    if batch:
        yield batch


def _embed_batch(reg: Registry, model: Embedder, task: str, embedder: str, batch: Sequence[_UserItems]) -> None:
    texts = [f"{item.input}\n{item.output}" for piece in batch for item in piece.items]
    rows = model.embed(texts)  # [items, width]
    start = 0
    with reg.transaction():
        for piece in batch:
            own = rows[start : start + len(piece.items)]
            start += len(piece.items)
            known = reg.profiles.get(piece.user.id, task, embedder)
            last = known.last_item if known else 0  # another process may have added items meanwhile
            new = [i for i, item in enumerate(piece.items) if item.id > last]
            if new:
                reg.profiles.save_profile(_updated_profile(known, piece, task, embedder, own[new]))


def _updated_profile(
    known: Profile | None, piece: _UserItems, task: str, embedder: str, rows: NDArray[np.float32]
) -> Profile:
    import numpy as np

    total = rows.astype(np.float64).sum(axis=0)
    if known is not None:
        total = total + np.frombuffer(known.total, dtype="<f4")
    return Profile(
        user_id=piece.user.id,
        task=task,
        embedder=embedder,
        total=total.astype("<f4").tobytes(),
        items=(known.items if known else 0) + len(rows),
        last_item=piece.items[-1].id,
    )
