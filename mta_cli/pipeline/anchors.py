"""A bank's stored anchors: which anchors may be used, and the findings of their screening.

`bank.screening` screens the anchors and stores its findings in the bank's config, by anchor id.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from mta_cli.pipeline.user_weights import load_weights
from store.records import REFUSED_USERS_KEY, Anchor, Bank

if TYPE_CHECKING:
    from mta_cli.engine.lora.adapter import LoraWeights
    from store.registry import Registry

SCREENING_KEY = "gates"  # the key of the findings in a bank's config
UNSCREENED_KEY = "unscreened"  # the key of the ids of anchors that an unfinished refresh has not screened
REFUSING_GATES = ("norm", "probe")  # an anchor with a finding of these checks is refused
FINDING_TEXTS = {
    "norm": "the weights of one module are {value:.1f} times the anchors' median; at most {bound:.1f} is allowed",
    "probe": "it changes the answers to neutral prompts by {value:.2f} nats; at most {bound:.2f} is allowed",
}


class StoredAnchors(Sequence["LoraWeights"]):
    """The weights of `anchors`, by index in this list. Each file is read and verified when it is first used."""

    def __init__(self, reg: Registry, bank: Bank, anchors: Sequence[Anchor]) -> None:
        self._reg, self._base = reg, bank.base
        self._digests = [anchor.digest for anchor in anchors]
        self._loaded: dict[int, LoraWeights] = {}

    def __len__(self) -> int:
        return len(self._digests)

    def __getitem__(self, number: Any) -> Any:
        if number not in self._loaded:
            self._loaded[number] = load_weights(self._reg, str(self._digests[number]), self._base)
        return self._loaded[number]


def usable_anchors(reg: Registry, bank: Bank) -> list[Anchor]:
    """The anchors that new recipes may use: not stale, screened, and not refused."""
    unscreened = unscreened_anchor_ids(reg.banks.by_id(bank.id))
    return [anchor for anchor in unrefused_anchors(reg, bank) if anchor.id not in unscreened]


def unrefused_anchors(reg: Registry, bank: Bank) -> list[Anchor]:
    """The anchors that are neither stale nor refused, screened or not."""
    refused = refused_anchor_ids(reg.banks.by_id(bank.id))
    return [anchor for anchor in reg.banks.anchors(bank.id) if not anchor.stale and anchor.id not in refused]


def refused_anchor_ids(bank: Bank) -> set[int]:
    """The ids of the anchors that the screening refused."""
    return {
        one["anchor"] for one in bank.config.get(SCREENING_KEY, {}).get("findings", ()) if one["gate"] in REFUSING_GATES
    }


def refused_user_ids(reg: Registry, bank: Bank) -> set[int]:
    """The users whose anchors were refused, including anchors that a refresh has replaced."""
    bank = reg.banks.by_id(bank.id)
    refused = refused_anchor_ids(bank)
    held = {anchor.user_id for anchor in reg.banks.anchors(bank.id) if anchor.id in refused}
    return {*bank.config.get(REFUSED_USERS_KEY, ()), *(user_id for user_id in held if user_id is not None)}


def unscreened_anchor_ids(bank: Bank) -> set[int]:
    """The ids of the anchors that a refresh has stored but not screened yet."""
    return set(bank.config.get(SCREENING_KEY, {}).get(UNSCREENED_KEY, ()))


def similarity_floors(bank: Bank) -> dict[int, float]:
    """For each anchor that is near too many users, by anchor id: the cosine similarity that a user needs to use it."""
    return {int(number): float(value) for number, value in bank.config.get(SCREENING_KEY, {}).get("floors", {}).items()}


def screening_of_kept_anchors(reg: Registry, bank: Bank, anchors: Collection[int]) -> dict[str, Any]:
    """The screening entries of the bank's config, reduced to the anchors with the ids `anchors`.

    Other anchors' findings are left out, because their ids may be used again. Refused users are kept by user id.
    """
    refused = sorted(refused_user_ids(reg, bank))
    kept: dict[str, Any] = {REFUSED_USERS_KEY: refused} if refused else {}
    found = bank.config.get(SCREENING_KEY)
    if found is None:
        return kept
    findings = [one for one in found.get("findings", ()) if one["anchor"] in anchors]
    floors = {number: value for number, value in found.get("floors", {}).items() if int(number) in anchors}
    unscreened = sorted(unscreened_anchor_ids(bank).intersection(anchors))
    left = {UNSCREENED_KEY: unscreened} if unscreened else {}
    return {**kept, SCREENING_KEY: {"findings": findings, "floors": floors, **left}}


def mark_unscreened(reg: Registry, bank: Bank, anchors: Collection[int]) -> None:
    """Record in the bank's config that the anchors with these ids have not been screened yet."""
    bank = reg.banks.by_id(bank.id)
    if numbers := sorted(unscreened_anchor_ids(bank).union(anchors)):
        found = {**bank.config.get(SCREENING_KEY, {}), UNSCREENED_KEY: numbers}
        reg.banks.set_bank_config(bank.id, {**bank.config, SCREENING_KEY: found})


def findings_json(reg: Registry, bank: Bank) -> list[dict[str, Any]]:
    """The findings for `mta bank show` and `verify`: the anchor, its user, the check, the value and the bound."""
    anchors = {anchor.id: anchor for anchor in reg.banks.anchors(bank.id)}
    config = reg.banks.by_id(bank.id).config.get(SCREENING_KEY, {})
    found = [one for one in config.get("findings", ()) if one["anchor"] in anchors]
    capped = [
        {"anchor": number, "gate": "share", "value": value, "bound": None}
        for number, value in similarity_floors(reg.banks.by_id(bank.id)).items()
        if number in anchors
    ]
    return [{**one, "user": anchors[one["anchor"]].user} for one in (*found, *capped)]


def format_finding(one: dict[str, Any]) -> str:
    """One finding of `findings_json` as text."""
    who = f"anchor {one['anchor']} ({one['user'] or 'forgotten'})"
    if one["gate"] == "share":
        return f"{who} is near too many users: only users with a cosine of at least {one['value']:.3f} use it"
    return f"{who}: {FINDING_TEXTS[one['gate']].format(**one)}"
