"""Screening of a bank's anchors before they serve other users; see `engine.retrieval.anchor_screening` for the checks.

The findings are stored with the bank, by anchor id. An anchor that is too large, or changes neutral prompts too much,
is refused: it is marked stale, no new recipe uses it, and `mta bank build --refresh` replaces it with another user's.
It is not scaled down, because a user should find out how it became so large, and another user can represent its
cluster. An anchor that is near too many users keeps the nearest of them. An evaluation's banks are screened as well, so
it measures what the product does.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from mta_cli.events import Event, Note
from mta_cli.options import FuseOptions, ScreeningOptions
from mta_cli.pipeline.user_weights import load_weights
from store.records import REFUSED_USERS_KEY, Anchor, Bank

if TYPE_CHECKING:
    from mta_cli.engine.lora.adapter import LoraWeights
    from mta_cli.engine.model.load import LoadedBase
    from mta_cli.engine.retrieval.anchor_screening import ScreeningFinding
    from mta_cli.pipeline.data.examples import PromptRowBuilder
    from store.registry import Registry

SCREENING_KEY = "gates"  # the key of the findings in a bank's config
UNSCREENED_KEY = "unscreened"  # beside the findings: ids of anchors of a refresh that is not finished
REFUSING_GATES = ("norm", "probe")
SHARE_TOP_K = FuseOptions().top_k  # a user counts for this many nearest anchors
MIN_DIVERGENCE_BOUND = 0.25  # nats: a change of neutral prompts up to this is always allowed
FINDING_TEXTS = {
    "norm": "one of its modules is {value:.1f} times as large as the median; the most is {bound:.1f}",
    "probe": "it moves the answers to neutral prompts by {value:.2f} nats; the most is {bound:.2f}",
}


def screen_anchors(
    reg: Registry,
    bank: Bank,
    base: LoadedBase,
    examples: PromptRowBuilder,
    user_ids: Sequence[int],
    options: ScreeningOptions,
    only: Collection[int] | None = None,
) -> Iterator[Event]:
    """Screen the anchors that may serve, store the findings with the bank beside the earlier ones, and warn of them.

    `base` holds the bank's task adapter. `user_ids` are the users of whom anchors are chosen. With `only`, size and
    neutral prompts are judged of the anchors with these ids alone, in comparison with all. Reach is always that of all.
    """
    anchors = [anchor for anchor in _unrefused_anchors(reg, bank) if anchor.digest is not None]
    judged = {anchor.id for anchor in anchors if only is None or anchor.id in only}
    if not judged:
        return
    weights = [load_weights(reg, str(anchor.digest), bank.base) for anchor in anchors]
    found = [one for one in _find_outliers(base, examples, weights, options) if anchors[one.anchor_index].id in judged]
    refused = {anchors[one.anchor_index].id for one in found}
    capped = _compute_similarity_floors(
        reg, bank, [anchor for anchor in anchors if anchor.id not in refused], user_ids, options
    )
    with reg.transaction():
        config = reg.banks.by_id(bank.id).config
        there = {anchor.id for anchor in reg.banks.anchors(bank.id)} - judged
        before = [one for one in config.get(SCREENING_KEY, {}).get("findings", ()) if one["anchor"] in there]
        findings = [*before, *({"anchor": anchors[one.anchor_index].id, **_finding_json(one)} for one in found)]
        reg.banks.record_anchor_screening(
            bank.id, {**config, SCREENING_KEY: {"findings": findings, "floors": capped}}, refused
        )
    yield from screening_notes(reg, reg.banks.by_id(bank.id))


def usable_anchors(reg: Registry, bank: Bank) -> list[Anchor]:
    """The anchors that new recipes may use: neither stale, nor refused, nor still to be screened."""
    unscreened = unscreened_anchor_ids(reg.banks.by_id(bank.id))
    return [anchor for anchor in _unrefused_anchors(reg, bank) if anchor.id not in unscreened]


def _unrefused_anchors(reg: Registry, bank: Bank) -> list[Anchor]:
    refused = refused_anchor_ids(reg.banks.by_id(bank.id))
    return [anchor for anchor in reg.banks.anchors(bank.id) if not anchor.stale and anchor.id not in refused]


def refused_anchor_ids(bank: Bank) -> set[int]:
    """The ids of the refused anchors."""
    return {
        one["anchor"] for one in bank.config.get(SCREENING_KEY, {}).get("findings", ()) if one["gate"] in REFUSING_GATES
    }


def refused_user_ids(reg: Registry, bank: Bank) -> set[int]:
    """The users whose anchors were refused, also where a refresh has replaced the anchor."""
    bank = reg.banks.by_id(bank.id)
    refused = refused_anchor_ids(bank)
    held = {anchor.user_id for anchor in reg.banks.anchors(bank.id) if anchor.id in refused}
    return {*bank.config.get(REFUSED_USERS_KEY, ()), *(user_id for user_id in held if user_id is not None)}


def unscreened_anchor_ids(bank: Bank) -> set[int]:
    """The ids of the anchors that a refresh has stored and not screened."""
    return set(bank.config.get(SCREENING_KEY, {}).get(UNSCREENED_KEY, ()))


def similarity_floors(bank: Bank) -> dict[int, float]:
    """By anchor id, the lowest cosine at which an anchor that is near too many users still serves."""
    return {int(number): float(value) for number, value in bank.config.get(SCREENING_KEY, {}).get("floors", {}).items()}


def screening_of_anchors(reg: Registry, bank: Bank, anchors: Collection[int]) -> dict[str, Any]:
    """The part of the bank's config that says what its screening found, when only these anchors stay.

    Records of removed anchors are dropped, because ids may be used again. Users who were refused are kept by user id.
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
    """Record that these anchors are still to be screened."""
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


def finding_line(one: dict[str, Any]) -> str:
    """One finding of `findings_json` as text."""
    who = f"anchor {one['anchor']} ({one['user'] or 'forgotten'})"
    if one["gate"] == "share":
        return f"{who} is near too many users: it serves only users with a cosine of at least {one['value']:.3f}"
    return f"{who}: {FINDING_TEXTS[one['gate']].format(**one)}"


def screening_notes(reg: Registry, bank: Bank) -> Iterator[Note]:
    """A warning for each finding, with what to do about it."""
    found = findings_json(reg, bank)
    for one in found:
        yield Note(finding_line(one), warning=True)
    if any(one["gate"] in REFUSING_GATES for one in found) and bank.purpose == "":
        yield Note(
            "Refused anchors serve no user. A strong voice, or nearly always the same answer, looks like poison here: "
            "read what their users wrote. "
            f"`mta bank build --task {shlex.quote(bank.task)} --refresh` puts others in their places.",
            warning=True,
        )
        if bank.task_adapter is not None:
            yield Note(
                "The task adapter was trained on their items too, and serves all users. Where these are not to be "
                "trusted, take them out of both: `mta user consent USER --no-can-anchor`, then a new build.",
                warning=True,
            )


def _find_outliers(
    base: LoadedBase, examples: PromptRowBuilder, weights: Sequence[LoraWeights], options: ScreeningOptions
) -> list[ScreeningFinding]:
    """The findings of the size check and the neutral-prompt check; an anchor has at most one."""
    from mta_cli.engine.retrieval.anchor_screening import (
        MIN_ANCHORS_TO_SCREEN,
        PROBE_PROMPTS,
        ScreeningFinding,
        find_outliers,
        mean_kl_divergences,
        module_norms,
        norm_ratios,
    )

    ratios = norm_ratios([module_norms(one) for one in weights])
    found = [
        ScreeningFinding(place, "norm", ratio, options.max_norm)
        for place, ratio in enumerate(ratios)
        if options.max_norm > 0.0 and not ratio <= options.max_norm
    ]
    if options.max_probe == 0.0 or len(weights) < MIN_ANCHORS_TO_SCREEN:
        return found
    prompts = [examples.prompter.prompt_ids(text, []) for text in PROBE_PROMPTS]
    values = mean_kl_divergences(base, prompts, [(one,) for one in weights])
    known = {one.anchor_index for one in found}
    moved = find_outliers(values, "probe", options.max_probe, floor=MIN_DIVERGENCE_BOUND)
    return sorted((*found, *(one for one in moved if one.anchor_index not in known)), key=lambda one: one.anchor_index)


def _compute_similarity_floors(
    reg: Registry, bank: Bank, anchors: Sequence[Anchor], user_ids: Sequence[int], options: ScreeningOptions
) -> dict[str, float]:
    from mta_cli.engine.retrieval.anchor_screening import min_cosine_by_anchor
    from mta_cli.pipeline.data.profiles import profile_matrix

    wanted = sorted({*user_ids, *(anchor.user_id for anchor in anchors if anchor.user_id is not None)})
    ids, matrix = profile_matrix(reg, bank.task, bank.embedder, wanted)
    row = {user_id: place for place, user_id in enumerate(ids)}
    there = [anchor for anchor in anchors if anchor.user_id in row]
    if not there:
        return {}
    cosines = matrix @ matrix[[row[anchor.user_id] for anchor in there if anchor.user_id is not None]].T
    return {
        str(there[place].id): value
        for place, value in min_cosine_by_anchor(cosines, SHARE_TOP_K, options.max_share).items()
    }


def _finding_json(one: ScreeningFinding) -> dict[str, Any]:
    return {"gate": one.gate, "value": float(one.value), "bound": float(one.bound)}
