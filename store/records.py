"""The rows of the store's tables as frozen dataclasses. Contains no SQL."""

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
    """A history item or held-out query before it is stored. `key` is its id in the source, unique per user and task."""

    key: str
    task: str
    input: str
    output: str
    time: str | None = None


@dataclass(frozen=True)
class Item:
    """One history item of a user: what was asked and what they answered. Sorted by `time`, then `id`."""

    id: int
    user_id: int
    key: str
    task: str
    input: str
    output: str
    time: str | None


@dataclass(frozen=True)
class Query:
    """A held-out item of a user, used to measure models and never to train them; `gold` is the user's own answer."""

    id: int
    user_id: int
    key: str
    task: str
    input: str
    gold: str
    time: str | None


@dataclass(frozen=True)
class Profile:
    """A user's embedding for one task.

    `total` is the sum of the unit vectors of `items` items, as float32 bytes; `last_item` is the largest of their ids.
    """

    user_id: int
    task: str
    embedder: str
    total: bytes
    items: int
    last_item: int


@dataclass(frozen=True)
class ModelRecord:
    """A base or an embedder (`kind`) that the store has used, by the fingerprint of its files."""

    fingerprint: str
    name: str
    kind: str
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Adapter:
    """One file of LoRA weights: its digest, its shape, and how it was trained."""

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
    """A version of a bank: anchors of one task on one base. `key` hashes base, options and data.

    `status`: building or ready. `purpose`: "" for use by all users, `eval` for one evaluation. `basis`: the adapter
    whose factors all cores of the bank share, None before the first core. `kernel`: the weights of the label memory;
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
    """An item of a bank's label memory: output, embedding of the input (unit vector, float16), and time, if known."""

    item_id: int
    user_id: int
    output: str
    vector: bytes
    time: str | None = None


STALE_FOR_GOOD = 2
"""Value of an anchor's `stale` if it was refused or trained on a removed item: new consent does not change it back."""


REFUSED_USERS_KEY = "refused_users"
"""The key, in a bank's config, of the ids of users whose anchors were refused and replaced."""


@dataclass(frozen=True)
class Anchor:
    """A user who represents a cluster of users in a bank.

    `digest` is the digest of the anchor's adapter, None until it is trained. `user_id` and `user` become None when
    the user is removed; the anchor is then `stale`.
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
    """One anchor's weight in a recipe, and the cosine similarity of its profile to the profile of the recipe's user."""

    anchor_id: int
    similarity: float
    weight: float


@dataclass(frozen=True)
class Recipe:
    """A user's fusion: the anchors of a bank and their weights, 12 bytes each.

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


CoreBytes = bytes  # in the body of `Stack`, the name `bytes` means the field


@dataclass(frozen=True)
class Stack:
    """A user's own small adapter on top of a bank's fusion. `recipe`: the anchors that it was trained on, with weights.

    `digest` is the digest of its adapter file. A core is a stack whose adapter file is shared by the bank's users; its
    own part are the `numbers`, the matrices between the file's factors, stored with their SHA-256. `identity` hashes
    all inputs of the training. The held-out losses are None for a user without queries.
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
        """Whether a core's numbers match their SHA-256; True for other stacks, whose files are verified when read."""
        return self.numbers is None or is_core_intact(self.numbers, self.numbers_sha256)


def is_core_intact(numbers: object, stored_sha256: str | None) -> bool:
    """Whether the numbers of a core match the SHA-256 that was stored with them."""
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
    """One turn of a chat. `source` says which model answered: base, common, fused or adapted, with bank and anchors."""

    id: int
    chat_id: int
    role: str
    content: str
    source: dict[str, Any]
    created: str
