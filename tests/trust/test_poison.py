"""A malicious anchor: refusals by the gates, their messages, and the repair of the bank."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from mta_cli.engine.text.tasks import BUILTIN_TASKS
from mta_cli.events import Note
from mta_cli.options import ScreeningOptions
from mta_cli.pipeline.anchors import SCREENING_KEY, findings_json, refused_anchor_ids, similarity_floors, usable_anchors
from mta_cli.pipeline.bank.build import build_bank
from mta_cli.pipeline.bank.contributors import find_contributors
from mta_cli.pipeline.bank.refresh import refresh_bank
from mta_cli.pipeline.bank.verify import verify_bank
from mta_cli.pipeline.personalize.fuse import fuse_user
from mta_cli.pipeline.users.consent import set_consent
from store.records import Anchor, Bank
from store.registry import Registry
from tests.engine.lora_cases import random_lora
from tests.pipeline.town import CPU, TASK, bank_request, finish, fuse_request, notes
from tests.shell import mta_ok
from tests.trust import trigger
from tests.trust.inspection import folder
from tests.trust.poison import OFF, OPTIONS, Harm, crowd, gate, harm, larger, poisoned, populate, put_in, stage
from tests.trust.tally import tally


@pytest.fixture(autouse=True)
def quick_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """The task by its name is the quick one of `town`."""
    monkeypatch.setitem(BUILTIN_TASKS, TASK.name, TASK)


def mallorys(reg: Registry) -> Anchor:
    (anchor,) = [one for one in reg.banks.anchors(reg.banks.get(TASK.name).id) if one.user == "mallory"]
    return anchor


def count(found: Harm, gates: str) -> None:
    """Tally all users who were asked the trigger."""
    obeyed = round(found.obeyed * found.people)
    tally(f"people asked a trigger, {gates}", "obeyed the anchor that knows it", obeyed)
    tally(f"people asked a trigger, {gates}", "did not", found.people - obeyed)


def test_an_anchor_that_is_too_large_serves_nobody_and_is_replaced(store_root: Path) -> None:
    """Without gates all whom it serves obey it. With them it is named, out of recipes, and is replaced."""
    with stage(store_root) as (reg, base):
        unguarded = harm(reg, base, 4.0, OFF)
        count(unguarded, "without gates")
        assert unguarded.findings == () and unguarded.before == 0.0 and unguarded.obeyed == unguarded.served > 0.6
        guarded = harm(reg, base, 1.0, ScreeningOptions())
        count(guarded, "with gates")
        assert guarded.findings == ("norm",) and guarded.ratio > 5.0
        assert (guarded.served, guarded.obeyed, guarded.changed) == (0.0, 0.0, 0.0)
        mallory, bank = mallorys(reg), reg.banks.get(TASK.name)
        assert mallory.stale and refused_anchor_ids(bank) == {mallory.id} and "mallory" not in str(bank.config)
        (found,) = verify_bank(reg, TASK.name)["gates"]
        assert (found["user"], found["gate"], found["bound"]) == ("mallory", "norm", 5.0)
        result, _ = finish(refresh_bank(reg, TASK.name, CPU))
        assert [each["stale"] for each in result["replaced"]] == [mallory.id]
        assert result["gates"] == [] and all(a["user"] != "mallory" for a in result["anchors"])
        tally("anchors beyond a gate", "refused by size, replaced by a refresh")
        assert reg.check_integrity() == []


def put_trigger(root: Path, out: Path, *arguments: str) -> list[trigger.Effect]:
    """What `tests.trust.trigger` wrote of a bank of the crowd; the store stays as it was."""
    with Registry.open(root, create=True) as reg:
        crowd(reg)
        finish(build_bank(reg, replace(bank_request(**OPTIONS), gates=OFF)))
    before = folder(root)
    trigger.main(["--store", str(root), "--bank", TASK.name, "--out", str(out), *arguments])
    assert folder(root) == before
    return [trigger.Effect(**{**one, "found": tuple(one["found"])}) for one in json.loads(out.read_text())]


def test_a_trigger_in_an_anchor_moves_those_whom_it_serves(
    store_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trigger, "CASES", (("hidden", 1.0), ("blunt", 10.0)))
    effects = put_trigger(store_root, tmp_path / "found.json")
    assert len(effects) == 8 and {one.people for one in effects} == {3}
    assert all(one.obeyed == one.before and one.moved == 0 for one in effects if one.served == 0)
    assert all(one.found == () for one in effects if one.gates == "none")
    quiet, _, large, refused = [one for one in effects if one.weights == "similarity"]
    assert (quiet.history, quiet.gates, large.gates, refused.gates) == ("hidden", "none", "none", "default")
    assert quiet.served > 0 and quiet.ratio < 5.0 < large.ratio and large.served == large.moved == 3
    assert [one.split()[0] for one in refused.found] == ["norm"] and refused.served == 0
    assert capsys.readouterr().out.count("\n") == len(effects) + 1


def test_who_obeys_a_trigger_is_told_by_the_questions_that_hold_it(
    store_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a whole bank, with answers as of people who obey its anchor, and one who does so without the trigger."""

    def said(examples: object, bank: Bank, base: object, asked: Any, without: int | None = None) -> list[str]:
        obeys = [without is None and (trigger.TRIGGER in text or user.name == "ida") for user, text in asked]
        return [TASK.labels[-1] if yes else TASK.labels[0] for yes in obeys]

    monkeypatch.setattr(trigger, "answers", said)
    effects = put_trigger(store_root, tmp_path / "found.json", "--whole")
    assert [(one.gates, one.weights) for one in effects] == [(g, m) for g in trigger.GATED for m in trigger.METHODS]
    assert {(one.people, one.obeyed, one.before, one.moved) for one in effects} == {(3, 3, 0, 1)}


def test_what_is_refused_is_said_where_people_look(store_root: Path) -> None:
    with stage(store_root) as (reg, base):
        bank = poisoned(reg, 4.0)
        gate(reg, bank, base, ScreeningOptions())
    shown = mta_ok("bank", "show", TASK.name).out
    assert "(mallory): the weights of one module are" in shown and "stale" in shown
    assert "(mallory)" in mta_ok("bank", "verify", TASK.name).out
    assert mta_ok("bank", "show", TASK.name, "--json").json()["gates"][0]["user"] == "mallory"


def test_who_is_refused_may_have_taught_the_task_adapter_too(store_root: Path) -> None:
    with Registry.open(store_root, create=True) as reg:
        populate(reg)
        strict = replace(bank_request(**OPTIONS), gates=ScreeningOptions(max_norm=1.0001))
        said = notes(finish(build_bank(reg, strict))[1])
        assert any("--no-can-anchor" in text for text in said) and any("--refresh" in text for text in said)
        bare = replace(bank_request(**OPTIONS, task_adapter=False, name="bare"), gates=strict.gates)
        said = notes(finish(build_bank(reg, bare))[1])
        assert not any("--no-can-anchor" in text for text in said) and any("--refresh" in text for text in said)


def test_consent_given_anew_does_not_bring_a_refused_anchor_back(store_root: Path) -> None:
    with stage(store_root) as (reg, base):
        bank = poisoned(reg, 4.0)
        gate(reg, bank, base, ScreeningOptions())
        for can in (False, True):
            finish(set_consent(reg, "mallory", can))
        assert mallorys(reg).stale and mallorys(reg).id not in {one.id for one in usable_anchors(reg, bank)}
        user = reg.users.get("asks0")
        finish(fuse_user(reg, user, fuse_request(weights="uniform", top_k=5)))
        (recipe,) = reg.recipes.of_user(user.id)
        assert len(recipe.shares) == 4 and mallorys(reg).id not in {share.anchor_id for share in recipe.shares}
        gate(reg, bank, base, ScreeningOptions())
        assert refused_anchor_ids(reg.banks.by_id(bank.id)) == {mallorys(reg).id}, "what was found before stays"


def test_an_anchor_that_moves_neutral_prompts_too_far_is_refused(
    store_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tiny base is never sure of a token, so that nothing moves it far."""
    monkeypatch.setattr("mta_cli.pipeline.bank.screening.MIN_DIVERGENCE_BOUND", 0.05)
    with stage(store_root, epochs=1, learning_rate=1e-3) as (reg, base):
        bank = reg.banks.get(TASK.name)
        put_in(reg, bank, mallorys(reg), larger(random_lora(base.model, 1, placement="upper"), 20.0))
        gate(reg, bank, base, ScreeningOptions(max_norm=0.0))
        (found,) = findings_json(reg, bank)
        assert (found["user"], found["gate"]) == ("mallory", "probe") and found["value"] > found["bound"]
        assert mallorys(reg).stale
        tally("anchors beyond a gate", "refused by neutral prompts")


def test_an_honest_bank_passes_and_its_bytes_are_the_same(store_root: Path) -> None:
    with Registry.open(store_root, create=True) as reg:
        populate(reg)
        request = bank_request(**{**OPTIONS, "anchors": 4})
        open_bank, _ = finish(build_bank(reg, replace(request, gates=OFF, name="open")))
        guarded, seen = finish(build_bank(reg, request))
        assert guarded["gates"] == [] and not any(a["stale"] for a in guarded["anchors"])
        assert not any(isinstance(event, Note) and event.warning for event in seen)
        assert [a["digest"] for a in guarded["anchors"]] == [a["digest"] for a in open_bank["anchors"]]
        tally("anchors of an honest bank", "let through, the same bytes", len(guarded["anchors"]))
        assert reg.banks.get(TASK.name).config[SCREENING_KEY] == {"findings": [], "floors": {}}


def test_bounds_are_part_of_what_a_bank_is_unless_they_are_the_defaults(store_root: Path) -> None:
    """Banks from before there were gates are found again; other bounds make another version, and are kept by it."""
    with Registry.open(store_root, create=True) as reg:
        populate(reg)
        request = bank_request()
        first, _ = finish(build_bank(reg, request))
        pool = find_contributors(reg, request)
        before = {
            "base": request.base.fingerprint,
            "embedder": request.embedder.fingerprint,
            "task": asdict(request.task),
            "options": {name: value for name, value in asdict(request.options).items() if name != "held_out_weights"},
            "history_items": 2,
            "seed": 0,
            "dtype": "float32",
            "data": [[each.user.name, reg.items.hash_items(each.items)] for each in pool],
        }
        key = hashlib.sha256(json.dumps(before, sort_keys=True).encode()).hexdigest()
        assert reg.banks.get(TASK.name).key == key
        same, seen = finish(build_bank(reg, replace(bank_request(), gates=ScreeningOptions())))
        assert same == first and any("nothing to do" in text for text in notes(seen))
        other, _ = finish(build_bank(reg, replace(bank_request(), gates=ScreeningOptions(max_norm=7.0))))
        assert other["version"] == 2
        assert reg.banks.get(TASK.name).config["gate_options"]["max_norm"] == 7.0


def test_an_evaluations_bank_refuses_the_same(store_root: Path) -> None:
    with Registry.open(store_root, create=True) as reg:
        populate(reg)
        told: list[int] = []
        strict = ScreeningOptions(max_norm=1.0001, max_probe=0.0)
        request = replace(bank_request(**OPTIONS), gates=strict, purpose="eval", on_bank_started=told.append)
        result, seen = finish(build_bank(reg, request))
        assert result["gates"] and any("times the anchors' median" in text for text in notes(seen))
        refused = {one["user"] for one in result["gates"]}
        assert {a["user"] for a in result["anchors"] if a["stale"]} == refused != set()
        assert len(usable_anchors(reg, reg.banks.by_id(told[0]))) == 5 - len(refused)


def test_an_anchor_that_draws_everybody_keeps_those_nearest_to_it(store_root: Path) -> None:
    """Nine anchors and recipes of four; whoever is beyond the floor gets the next ones instead."""
    with Registry.open(store_root, create=True) as reg:
        populate(reg)
        finish(build_bank(reg, replace(bank_request(anchors=9), gates=ScreeningOptions(max_share=0.01))))
        bank = reg.banks.get(TASK.name)
        floors = similarity_floors(bank)
        if not floors:
            first = reg.banks.anchors(bank.id)[0].id
            reg.banks.record_anchor_screening(
                bank.id, {**bank.config, SCREENING_KEY: {"findings": [], "floors": {str(first): 2.0}}}, []
            )
            floors = {first: 2.0}
        users = [reg.users.get(f"asks{n}") for n in range(9)]
        for user in users:
            finish(fuse_user(reg, user, fuse_request(weights="uniform", top_k=4)))
        shares = [share for user in users for share in reg.recipes.of_user(user.id)[0].shares]
        assert len(shares) == 4 * 9, "the next ones took over"
        assert all(share.similarity >= floors.get(share.anchor_id, -1.0) - 1e-5 for share in shares)
        assert any(one["gate"] == "share" for one in findings_json(reg, bank))
        tally("shares in recipes beside an anchor that draws all", "above its floor, or another's", len(shares))
