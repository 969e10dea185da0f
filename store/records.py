"""The rows of the registry as frozen records. Knows no SQL."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from store.files import sha256


@dataclass(frozen=True)
class User:
    """A user with a history. `can_anchor` is their consent to serve others in any way, not only as an anchor."""

    id: int
    name: str
    can_anchor: bool
    created: str


@dataclass(frozen=True)
class NewItem:
    """A history item or query before it is stored. `key` is its id in the source, unique per user and task."""

    key: str
    task: str
    input: str
    output: str
    time: str | None = None


@dataclass(frozen=True)
class Item:
    """One action of the user: `input` → `output`. Items are ordered by `time`, then by arrival (`id`)."""

    id: int
    user_id: int
    key: str
    task: str
    input: str
    output: str
    time: str | None


@dataclass(frozen=True)
class Query:
    """A held-out item, used to measure and never to train."""

    id: int
    user_id: int
    key: str
    task: str
    input: str
    gold: str
    time: str | None


@dataclass(frozen=True)
class Profile:
    """A user's embedding for one task. `total` is the float32 sum of `items` unit vectors, up to item `last_item`."""

    user_id: int
    task: str
    embedder: str
    total: bytes
    items: int
    last_item: int


@dataclass(frozen=True)
class ModelRecord:
    """A frozen language model or embedder that the registry knows."""

    fingerprint: str
    name: str
    kind: str
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Adapter:
    """One file of LoRA weights and its origin."""

    digest: str
    kind: str
    base: str
    task_adapter: str | None
    rank: int
    alpha: float
    targets: str
    placement: str
    dtype: str
    seed: int
    data_hash: str
    bytes: int
    config: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    tokens: int = 0
    seconds: float = 0.0
    loss_first: float | None = None
    loss_last: float | None = None
    created: str = ""


@dataclass(frozen=True)
class Bank:
    """A versioned set of anchors. `key` hashes base, options and data: the same key is the same bank.

    `status`: building, ready. `purpose`: "" for use by all users, `eval` for one evaluation. `basis`: the adapter of
    its anchors' main directions, None before the first core. `kernel`: the weights of its users' items as neighbours;
    None for a bank without neighbours.
    """

    id: int
    name: str
    version: int
    key: str
    task: str
    base: str
    embedder: str
    task_adapter: str | None
    status: str
    seed: int
    config: dict[str, Any]
    tokens: int
    seconds: float
    created: str
    purpose: str = ""
    basis: str | None = None
    kernel: dict[str, float] | None = None


@dataclass(frozen=True)
class Neighbour:
    """An item of a bank's user: its output, the embedding of its input (unit, float16), and its time, if known."""

    item_id: int
    user_id: int
    output: str
    vector: bytes
    time: str | None = None


STALE_FOR_GOOD = 2
"""The stored `stale` of an anchor that was refused or trained on a removed item. New consent does not make it usable
again.
"""


REFUSED_USERS_KEY = "refused_users"
"""The key, in a bank's config, of the ids of users whose anchors were refused and replaced."""


@dataclass(frozen=True)
class Anchor:
    """A user who represents a cluster in a bank. `digest` is None until the meta-LoRA is trained.

    `user_id` and `user` become None when the user is forgotten; the anchor is then `stale`.
    """

    id: int
    bank_id: int
    user_id: int | None
    user: str | None
    cluster: int
    cluster_size: int
    items: int
    digest: str | None
    loss_first: float | None
    loss_last: float | None
    stale: bool


@dataclass(frozen=True)
class AnchorWeight:
    """One anchor's weight in a recipe."""

    anchor_id: int
    similarity: float
    weight: float


@dataclass(frozen=True)
class Recipe:
    """A user's fusion: the anchors of a bank and their weights. `bytes`: 12 an anchor.

    `items_hash` is `Items.hash_items` of the items from whose likelihood the weights were computed; empty if the
    weights need no items.
    """

    user_id: int
    task: str
    bank_id: int
    method: str
    shares: tuple[AnchorWeight, ...]
    bytes: int
    created: str = ""
    items_hash: str = ""


CoreBytes = bytes  # for `Stack`, in whose body `bytes` is a field


@dataclass(frozen=True)
class Stack:
    """A user's own residual on top of a bank's fusion. `recipe` are the anchors that it was trained on.

    `digest` is its adapter. For a core, `numbers` are the user's own matrices between the factors of an adapter that
    users share, and `numbers_sha256` is their SHA-256, computed when they are stored. `identity` hashes all inputs of
    the training. The held-out losses are None for a user without queries.
    """

    user_id: int
    task: str
    bank_id: int
    digest: str
    shots: int
    steps: int
    loss_before: float
    loss_after: float
    recipe: tuple[AnchorWeight, ...]
    bytes: int
    created: str = ""
    identity: str = ""
    numbers: CoreBytes | None = None
    heldout_before: float | None = None
    heldout_after: float | None = None
    numbers_sha256: str | None = field(default=None, compare=False)

    @property
    def is_intact(self) -> bool:
        """Whether the numbers are unchanged since they were stored. Adapter files are verified when they are read."""
        return self.numbers is None or is_core_intact(self.numbers, self.numbers_sha256)


def is_core_intact(numbers: object, stored_sha256: str | None) -> bool:
    """Whether a core's numbers have the SHA-256 that was stored with them."""
    return isinstance(numbers, bytes) and sha256(numbers) == stored_sha256


@dataclass(frozen=True)
class Run:
    """One execution of a job. `subject` is a user, a bank (`NAME vN`) or an evaluation.

    `status`: running, done, failed or interrupted.
    """

    id: int
    kind: str
    subject: str
    status: str
    config: dict[str, Any]
    result: dict[str, Any] | None
    error: str | None
    started: str
    ended: str | None


@dataclass(frozen=True)
class Chat:
    """A conversation with one user's model."""

    id: int
    user_id: int
    title: str
    created: str


@dataclass(frozen=True)
class Message:
    """One turn of a chat. `source` names the model that answered: base, fused or adapted, with bank and anchors."""

    id: int
    chat_id: int
    role: str
    content: str
    source: dict[str, Any]
    created: str
