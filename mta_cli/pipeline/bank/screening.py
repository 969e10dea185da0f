"""The gates that a bank's anchors pass before they serve others; see `engine.gates` for what each looks at.

What is found is kept with the bank, by anchors' numbers. An anchor that is too large, or moves neutral prompts too far,
is refused: it is marked stale, so that no new recipe holds it and `mta bank build --refresh` puts somebody else in its
place. It is not scaled down instead: how it came to that size is for a person to find out, and somebody else can stand
for its cluster. An anchor that draws too many people keeps those nearest to it. Banks of evaluations are told what is
found and refuse nobody. Renders nothing.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mta_cli.events import Event, Note
from mta_cli.options import FuseOptions, ScreeningOptions
from mta_cli.pipeline.personalize.weights import load_weights
from store.records import Anchor, Bank

if TYPE_CHECKING:
    from mta_cli.engine.lora.adapter import LoraWeights
    from mta_cli.engine.model.load import LoadedBase
    from mta_cli.engine.retrieval.anchor_screening import ScreeningFinding
    from mta_cli.pipeline.data.examples import PromptRowBuilder
    from store.registry import Registry

SCREENING_KEY, SCREENING_OPTIONS_KEY = (
    "gates",
    "gate_options",
)  # keys of a bank's config: what was found, and with which options
REFUSING_GATES = ("norm", "probe")
SHARE_TOP_K = FuseOptions().top_k  # anchors of a recipe with which drawing is counted
MIN_DIVERGENCE_BOUND = 0.25  # nats that an anchor may always move neutral prompts
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
) -> Iterator[Event]:
    """Judge the anchors that serve, keep what is found with the bank beside what was found of others, and warn of it.

    `base` holds the bank's task adapter; `user_ids` (ids) are those of whom anchors are chosen. Refuses in banks without
    a purpose only.
    """
    anchors = [anchor for anchor in usable_anchors(reg, bank) if anchor.digest is not None]
    if not anchors:
        return
    weights = [load_weights(reg, str(anchor.digest), bank.base) for anchor in anchors]
    found = _find_outliers(base, examples, weights, options)
    refused = {anchors[one.anchor_index].id for one in found} if bank.purpose == "" else set()
    capped = _compute_similarity_floors(
        reg, bank, [anchor for anchor in anchors if anchor.id not in refused], user_ids, options
    )
    config, judged = reg.banks.by_id(bank.id).config, {anchor.id for anchor in anchors}
    there = {anchor.id for anchor in reg.banks.anchors(bank.id)} - judged
    before = [one for one in config.get(SCREENING_KEY, {}).get("findings", ()) if one["anchor"] in there]
    findings = [*before, *({"anchor": anchors[one.anchor_index].id, **_finding_json(one)} for one in found)]
    reg.banks.record_anchor_screening(
        bank.id, {**config, SCREENING_KEY: {"findings": findings, "floors": capped}}, refused
    )
    yield from screening_notes(reg, reg.banks.by_id(bank.id))


def screening_config(options: ScreeningOptions) -> dict[str, Any]:
    """What a bank's config says of how it was gated; see `gates_of`."""
    return {SCREENING_OPTIONS_KEY: asdict(options)}


def usable_anchors(reg: Registry, bank: Bank) -> list[Anchor]:
    """The anchors that new recipes may hold: neither stale nor refused, also where consent was given anew since."""
    refused = refused_anchor_ids(reg.banks.by_id(bank.id))
    return [anchor for anchor in reg.banks.anchors(bank.id) if not anchor.stale and anchor.id not in refused]


def refused_anchor_ids(bank: Bank) -> set[int]:
    """The numbers of the anchors that were refused."""
    if bank.purpose != "":
        return set()
    return {
        one["anchor"] for one in bank.config.get(SCREENING_KEY, {}).get("findings", ()) if one["gate"] in REFUSING_GATES
    }


def similarity_floors(bank: Bank) -> dict[int, float]:
    """The least cosine with which an anchor serves, by number, of those that draw too many."""
    return {int(number): float(value) for number, value in bank.config.get(SCREENING_KEY, {}).get("floors", {}).items()}


def screening_of_anchors(bank: Bank, anchors: Collection[int]) -> dict[str, Any]:
    """What the bank's config says of these anchors: one that left takes it along, for its number may come again."""
    found = bank.config.get(SCREENING_KEY)
    if found is None:
        return {}
    findings = [one for one in found.get("findings", ()) if one["anchor"] in anchors]
    floors = {number: value for number, value in found.get("floors", {}).items() if int(number) in anchors}
    return {SCREENING_KEY: {"findings": findings, "floors": floors}}


def findings_json(reg: Registry, bank: Bank) -> list[dict[str, Any]]:
    """What the gates found, for `mta bank show` and `verify`: the anchor, its person, the gate, value and bound."""
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
    """One of `findings_json` in words."""
    who = f"anchor {one['anchor']} ({one['user'] or 'forgotten'})"
    if one["gate"] == "share":
        return f"{who} draws too many people: it serves those with a cosine of at least {one['value']:.3f} alone"
    return f"{who}: {FINDING_TEXTS[one['gate']].format(**one)}"


def screening_notes(reg: Registry, bank: Bank) -> Iterator[Note]:
    """A warning for each finding, and what helps."""
    found = findings_json(reg, bank)
    for one in found:
        yield Note(finding_line(one), warning=True)
    if any(one["gate"] in REFUSING_GATES for one in found) and bank.purpose == "":
        yield Note(
            "Refused anchors serve nobody. Look at what their people wrote; then "
            f"`mta bank build --task {shlex.quote(bank.task)} --refresh` puts others in their places.",
            warning=True,
        )
        if bank.task_adapter is not None:
            yield Note(
                "The task adapter was trained on their items too, and serves everybody. Where these are not to be "
                "trusted, take them out of both: `mta user consent USER --no-can-anchor`, then a new build.",
                warning=True,
            )


def _find_outliers(
    base: LoadedBase, examples: PromptRowBuilder, weights: Sequence[LoraWeights], options: ScreeningOptions
) -> list[ScreeningFinding]:
    """What the gates of size and of neutral prompts find; an anchor is found by the first of them alone."""
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
