"""Screening of a bank's anchors before they serve other users; see `engine.retrieval.anchor_screening` for the checks.

The findings are stored with the bank, by anchor id. An anchor that is too large, or changes neutral prompts too much,
is refused: it is marked stale, no new recipe uses it, and `mta bank build --refresh` replaces it with another user's.
It is not scaled down, because the cause should be found, and another user can represent its cluster. An anchor that is
near too many users serves only the nearest of them. Banks of evaluations are screened too, so that evaluations measure
the same models that users get.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING

from mta_cli.events import Event, Note
from mta_cli.options import FuseOptions, ScreeningOptions
from mta_cli.pipeline.anchors import (
    REFUSING_GATES,
    SCREENING_KEY,
    findings_json,
    format_finding,
    unrefused_anchors,
)
from mta_cli.pipeline.user_weights import load_weights
from store.records import Anchor, Bank

if TYPE_CHECKING:
    from mta_cli.engine.lora.adapter import LoraWeights
    from mta_cli.engine.retrieval.anchor_screening import ScreeningFinding
    from mta_cli.pipeline.requests import BankRequest
    from mta_cli.pipeline.workbench import Workbench
    from store.registry import Registry

SHARE_TOP_K = FuseOptions().top_k  # the nearest anchors of each user that are counted
MIN_DIVERGENCE_BOUND = 0.25  # nats: a change of neutral prompts up to this is always allowed


def screen_anchors(
    bench: Workbench[BankRequest], user_ids: Sequence[int], only: Collection[int] | None = None
) -> Iterator[Event]:
    """Screen the usable anchors, add the findings to the bank, and yield a warning for each.

    The task adapter must be merged into the base. `user_ids` are the candidates for anchors. With `only`, size and
    neutral prompts are checked for these anchor ids only, in comparison with all anchors. Whether an anchor is near too
    many users is always checked for all anchors.
    """
    reg, bank, options = bench.reg, bench.bank, bench.spec.gates
    anchors = [anchor for anchor in unrefused_anchors(reg, bank) if anchor.digest is not None]
    judged = {anchor.id for anchor in anchors if only is None or anchor.id in only}
    if not judged:
        return
    weights = [load_weights(reg, str(anchor.digest), bank.base) for anchor in anchors]
    found = [one for one in _find_outlier_anchors(bench, weights) if anchors[one.anchor_index].id in judged]
    refused = {anchors[one.anchor_index].id for one in found}
    capped = _compute_similarity_floors(
        reg, bank, [anchor for anchor in anchors if anchor.id not in refused], user_ids, options
    )
    with reg.transaction():
        config = reg.banks.by_id(bank.id).config
        there = {anchor.id for anchor in reg.banks.anchors(bank.id)} - judged
        before = [one for one in config.get(SCREENING_KEY, {}).get("findings", ()) if one["anchor"] in there]
        new = [
            {
                "anchor": anchors[one.anchor_index].id,
                "gate": one.gate,
                "value": float(one.value),
                "bound": float(one.bound),
            }
            for one in found
        ]
        reg.banks.record_anchor_screening(
            bank.id, {**config, SCREENING_KEY: {"findings": [*before, *new], "floors": capped}}, refused
        )
    yield from screening_notes(reg, reg.banks.by_id(bank.id))


def screening_notes(reg: Registry, bank: Bank) -> Iterator[Note]:
    """A warning for each finding, with what to do about it."""
    found = findings_json(reg, bank)
    for one in found:
        yield Note(format_finding(one), warning=True)
    if any(one["gate"] in REFUSING_GATES for one in found) and bank.purpose == "":
        yield Note(
            "No user's model uses a refused anchor. A strong style or one constant answer can look like poisoned data: "
            "read what their users wrote. "
            f"`mta bank build --task {shlex.quote(bank.task)} --refresh` replaces them.",
            warning=True,
        )
        if bank.task_adapter is not None:
            yield Note(
                "The task adapter, which all users share, was trained on their items too. If you do not trust these "
                "items, run `mta user consent USER --no-can-anchor` and build a new bank.",
                warning=True,
            )


def _find_outlier_anchors(bench: Workbench[BankRequest], weights: Sequence[LoraWeights]) -> list[ScreeningFinding]:
    """The findings of the size check and the neutral-prompt check, at most one for each anchor."""
    from mta_cli.engine.retrieval.anchor_screening import (
        MIN_ANCHORS_TO_SCREEN,
        PROBE_PROMPTS,
        ScreeningFinding,
        find_outliers,
        mean_kl_divergences,
        module_norms,
        norm_ratios,
    )

    options = bench.spec.gates
    ratios = norm_ratios([module_norms(one) for one in weights])
    found = [
        ScreeningFinding(place, "norm", ratio, options.max_norm)
        for place, ratio in enumerate(ratios)
        if options.max_norm > 0.0 and not ratio <= options.max_norm
    ]
    if options.max_probe == 0.0 or len(weights) < MIN_ANCHORS_TO_SCREEN:
        return found
    prompts = [bench.rows.prompter.prompt_ids(text, []) for text in PROBE_PROMPTS]
    values = mean_kl_divergences(bench.base, prompts, [(one,) for one in weights])
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
