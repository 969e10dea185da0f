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
from mta_cli.options import FuseOptions, GateOptions
from mta_cli.pipeline.personalize.weights import load_weights
from store.records import Anchor, Bank

if TYPE_CHECKING:
    from mta_cli.engine.lora.adapter import LoraWeights
    from mta_cli.engine.model.load import LoadedBase
    from mta_cli.engine.retrieval.anchor_screening import Finding
    from mta_cli.pipeline.data.examples import Examples
    from store.registry import Registry

GATES, ASKED_GATES = "gates", "gate_options"  # keys of a bank's config: what was found, and with which options
REFUSING = ("norm", "probe")
TOP = FuseOptions().top_k  # anchors of a recipe with which drawing is counted
LEAST_DIVERGENCE = 0.25  # nats that an anchor may always move neutral prompts
TOLD = {
    "norm": "one of its modules is {value:.1f} times as large as the median; the most is {bound:.1f}",
    "probe": "it moves the answers to neutral prompts by {value:.2f} nats; the most is {bound:.2f}",
}


def gate_anchors(
    reg: Registry, bank: Bank, base: LoadedBase, examples: Examples, people: Sequence[int], options: GateOptions
) -> Iterator[Event]:
    """Judge the anchors that serve, keep what is found with the bank beside what was found of others, and warn of it.

    `base` holds the bank's task adapter; `people` (ids) are those of whom anchors are chosen. Refuses in banks without
    a purpose only.
    """
    anchors = [anchor for anchor in serving(reg, bank) if anchor.digest is not None]
    if not anchors:
        return
    weights = [load_weights(reg, str(anchor.digest), bank.base) for anchor in anchors]
    found = _judged(base, examples, weights, options)
    refused = {anchors[one.place].id for one in found} if bank.purpose == "" else set()
    capped = _floors(reg, bank, [anchor for anchor in anchors if anchor.id not in refused], people, options)
    config, judged = reg.banks.by_id(bank.id).config, {anchor.id for anchor in anchors}
    there = {anchor.id for anchor in reg.banks.anchors(bank.id)} - judged
    before = [one for one in config.get(GATES, {}).get("findings", ()) if one["anchor"] in there]
    findings = [*before, *({"anchor": anchors[one.place].id, **_told(one)} for one in found)]
    reg.banks.set_gates(bank.id, {**config, GATES: {"findings": findings, "floors": capped}}, refused)
    yield from remarks(reg, reg.banks.by_id(bank.id))


def gate_config(options: GateOptions) -> dict[str, Any]:
    """What a bank's config says of how it was gated; see `gates_of`."""
    return {ASKED_GATES: asdict(options)}


def serving(reg: Registry, bank: Bank) -> list[Anchor]:
    """The anchors that new recipes may hold: neither stale nor refused, also where consent was given anew since."""
    refused = refused_of(reg.banks.by_id(bank.id))
    return [anchor for anchor in reg.banks.anchors(bank.id) if not anchor.stale and anchor.id not in refused]


def refused_of(bank: Bank) -> set[int]:
    """The numbers of the anchors that were refused."""
    if bank.purpose != "":
        return set()
    return {one["anchor"] for one in bank.config.get(GATES, {}).get("findings", ()) if one["gate"] in REFUSING}


def floors_of(bank: Bank) -> dict[int, float]:
    """The least cosine with which an anchor serves, by number, of those that draw too many."""
    return {int(number): float(value) for number, value in bank.config.get(GATES, {}).get("floors", {}).items()}


def gates_left(bank: Bank, anchors: Collection[int]) -> dict[str, Any]:
    """What the bank's config says of these anchors: one that left takes it along, for its number may come again."""
    found = bank.config.get(GATES)
    if found is None:
        return {}
    findings = [one for one in found.get("findings", ()) if one["anchor"] in anchors]
    floors = {number: value for number, value in found.get("floors", {}).items() if int(number) in anchors}
    return {GATES: {"findings": findings, "floors": floors}}


def findings_json(reg: Registry, bank: Bank) -> list[dict[str, Any]]:
    """What the gates found, for `mta bank show` and `verify`: the anchor, its person, the gate, value and bound."""
    anchors = {anchor.id: anchor for anchor in reg.banks.anchors(bank.id)}
    config = reg.banks.by_id(bank.id).config.get(GATES, {})
    found = [one for one in config.get("findings", ()) if one["anchor"] in anchors]
    capped = [
        {"anchor": number, "gate": "share", "value": value, "bound": None}
        for number, value in floors_of(reg.banks.by_id(bank.id)).items()
        if number in anchors
    ]
    return [{**one, "user": anchors[one["anchor"]].user} for one in (*found, *capped)]


def finding_line(one: dict[str, Any]) -> str:
    """One of `findings_json` in words."""
    who = f"anchor {one['anchor']} ({one['user'] or 'forgotten'})"
    if one["gate"] == "share":
        return f"{who} draws too many people: it serves those with a cosine of at least {one['value']:.3f} alone"
    return f"{who}: {TOLD[one['gate']].format(**one)}"


def remarks(reg: Registry, bank: Bank) -> Iterator[Note]:
    """A warning for each finding, and what helps."""
    found = findings_json(reg, bank)
    for one in found:
        yield Note(finding_line(one), warning=True)
    if any(one["gate"] in REFUSING for one in found) and bank.purpose == "":
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


def _judged(
    base: LoadedBase, examples: Examples, weights: Sequence[LoraWeights], options: GateOptions
) -> list[Finding]:
    """What the gates of size and of neutral prompts find; an anchor is found by the first of them alone."""
    from mta_cli.engine.retrieval.anchor_screening import (
        FEWEST,
        PROBES,
        Finding,
        beyond,
        divergences,
        module_norms,
        norm_ratios,
    )

    ratios = norm_ratios([module_norms(one) for one in weights])
    found = [
        Finding(place, "norm", ratio, options.max_norm)
        for place, ratio in enumerate(ratios)
        if options.max_norm > 0.0 and not ratio <= options.max_norm
    ]
    if options.max_probe == 0.0 or len(weights) < FEWEST:
        return found
    prompts = [examples.prompter.prompt_ids(text, []) for text in PROBES]
    values = divergences(base, prompts, [(one,) for one in weights])
    known = {one.place for one in found}
    moved = beyond(values, "probe", options.max_probe, floor=LEAST_DIVERGENCE)
    return sorted((*found, *(one for one in moved if one.place not in known)), key=lambda one: one.place)


def _floors(
    reg: Registry, bank: Bank, anchors: Sequence[Anchor], people: Sequence[int], options: GateOptions
) -> dict[str, float]:
    from mta_cli.engine.retrieval.anchor_screening import floors
    from mta_cli.pipeline.data.profiles import profile_matrix

    wanted = sorted({*people, *(anchor.user_id for anchor in anchors if anchor.user_id is not None)})
    ids, matrix = profile_matrix(reg, bank.task, bank.embedder, wanted)
    row = {user_id: place for place, user_id in enumerate(ids)}
    there = [anchor for anchor in anchors if anchor.user_id in row]
    if not there:
        return {}
    cosines = matrix @ matrix[[row[anchor.user_id] for anchor in there if anchor.user_id is not None]].T
    return {str(there[place].id): value for place, value in floors(cosines, TOP, options.max_share).items()}


def _told(one: Finding) -> dict[str, Any]:
    return {"gate": one.gate, "value": float(one.value), "bound": float(one.bound)}
