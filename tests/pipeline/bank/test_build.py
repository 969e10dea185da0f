"""Building banks: what is stored, resumption at anchor and step, the same bytes whatever happened in between."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mta_cli.engine.retrieval import anchor_screening
from mta_cli.engine.scoring.prefix_cache_scoring import TokenLogLikelihoods
from mta_cli.engine.scoring.tree_scorers import FactorPairs
from mta_cli.engine.training import session
from mta_cli.errors import BadInput, Command, StoreBusy
from mta_cli.events import ArtifactSaved, JobPlan, JobProgress, JobStarted
from mta_cli.options import PromptOptions
from mta_cli.pipeline.bank.build import build_bank
from mta_cli.pipeline.bank.verify import remove_bank, verify_bank
from mta_cli.pipeline.users.consent import set_consent_of_all
from store.registry import Registry
from tests.pipeline.town import CPU, bank_request, built, finish, notes


def digests(document: dict) -> list[str]:  # type: ignore[type-arg]
    return [document["task_adapter"], *(anchor["digest"] for anchor in document["anchors"])]


def test_a_bank_holds_a_task_adapter_and_its_anchors(peopled: Registry) -> None:
    result, seen = finish(build_bank(peopled, bank_request()))
    assert result["bank"] == "lamp-2" and result["version"] == 1 and result["status"] == "ready"
    assert len(result["anchors"]) == 3 and len(set(digests(result))) == 4
    for anchor in result["anchors"]:
        assert anchor["user"].startswith("user") and anchor["items"] == 10
        assert anchor["loss_first"] > 0 and anchor["loss_last"] > 0
        row = peopled.adapters.get(anchor["digest"])
        assert row.kind == "meta" and row.task_adapter == result["task_adapter"] and row.placement == "1-1/all"
        assert row.versions["torch"] and row.tokens > 0
    assert sum(anchor["cluster_size"] for anchor in result["anchors"]) == 9
    assert result["tokens"] > 0 and result["tokens_per_second"] > 0
    started = next(event for event in seen if isinstance(event, JobStarted) and event.job == "bank build")
    steps = [event for event in seen if isinstance(event, JobProgress) and event.loss is not None]
    own = [event.done for event in steps if not event.label.startswith("task adapter of half")]
    assert own[-1] == started.total and len(own) < len(steps)
    assert [event.kind for event in seen if isinstance(event, ArtifactSaved)].count("anchor") == 3
    assert verify_bank(peopled, "lamp-2")["adapters"] == 4
    assert peopled.check_integrity() == []


def test_building_again_changes_nothing(peopled: Registry) -> None:
    first = built(peopled)
    again, seen = finish(build_bank(peopled, bank_request()))
    assert again == first and any("nothing to do" in text for text in notes(seen))
    assert len(peopled.banks.all()) == 1


def test_a_bank_that_is_not_the_newest_says_which_one_answers(peopled: Registry) -> None:
    """Also one that was stopped, and is ready only after a newer bank."""
    built(peopled)
    job = build_bank(peopled, bank_request(rank=1))
    next(event for event in job if isinstance(event, ArtifactSaved))
    job.close()  # type: ignore[attr-defined]
    newest, seen = finish(build_bank(peopled, bank_request(rank=3, name="other")))
    assert not any("Answers come from" in text for text in notes(seen)), "it answers itself"
    for request, removals in ((bank_request(rank=1), 1), (bank_request(), 2)):
        _, seen = finish(build_bank(peopled, request))
        (told,) = [text for text in notes(seen) if "Answers come from bank other v1" in text]
        assert "`mta bank rm other --bank-version 1`" in told and told.count("mta bank rm") == removals
    assert "`, then `mta bank rm lamp-2 --bank-version 2`" in told
    evaluated = replace(bank_request(), purpose="eval")
    assert not any("Answers come from" in text for text in notes(finish(build_bank(peopled, evaluated))[1]))
    for name, version in (("other", 1), ("lamp-2", 2)):
        peopled.banks.remove(peopled.banks.get(name, version).id)
    current = peopled.banks.latest_ready_bank("lamp-2", newest["base"])
    assert current is not None and (current.name, current.version) == ("lamp-2", 1)


def test_other_settings_or_data_make_a_new_version(peopled: Registry) -> None:
    assert built(peopled)["version"] == 1
    assert built(peopled, rank=1)["version"] == 2
    assert built(peopled, name="other")["version"] == 1


def test_banks_of_the_same_items_share_their_task_adapter(peopled: Registry) -> None:
    """Its file is trained once, serves whatever anchors stand on it, and goes with the last bank that has it."""
    whole, (planned, there) = built(peopled), _planned(peopled, anchors=2)
    fewer, seen = finish(build_bank(peopled, bank_request(anchors=2)))
    assert fewer["version"] == 2 and fewer["task_adapter"] == whole["task_adapter"]
    assert any("The task adapter of another bank is used" in text for text in notes(seen))
    assert not any(isinstance(event, JobProgress) and event.label == "task adapter" for event in seen)
    assert {peopled.adapters.get(a["digest"]).task_adapter for a in fewer["anchors"]} == {whole["task_adapter"]}
    remove_bank(peopled, peopled.banks.get("lamp-2", 1))
    assert verify_bank(peopled, "lamp-2")["ok"] and peopled.check_integrity() == []
    remove_bank(peopled, peopled.banks.get("lamp-2", 2))
    alone, nothing = _planned(peopled, anchors=2)
    assert peopled.adapters.all() == [] and there and not nothing and planned < alone


@pytest.mark.parametrize(
    "other",
    [
        {"batch_size": 4},
        {"task_rank": 4},
        {"task_epochs": 2},
        {"task_learning_rate": 2e-3},
        {"targets": "q_proj"},
        {"prompt": PromptOptions(1)},
        {"machine": replace(CPU, seed=1)},
        {"task_min_items": 1},
    ],
)
def test_a_task_adapter_made_otherwise_is_not_shared(peopled: Registry, other: dict[str, Any]) -> None:
    built(peopled)
    seen = finish(build_bank(peopled, bank_request(**other)))[1]
    assert any(isinstance(event, ArtifactSaved) and event.kind == "task adapter" for event in seen)


def _planned(reg: Registry, **changes: Any) -> tuple[int, bool]:
    """Tokens of a build, and whether its task adapter is there."""
    seen = finish(build_bank(reg, bank_request(**changes), plan=(), dry_run=True))[1]
    lines = {line.name: line.value for event in seen if isinstance(event, JobPlan) for line in event.lines}
    return int(re.sub(r"\D", "", lines["tokens"])), "task adapter" in lines


def test_a_dry_run_shows_the_plan_and_changes_nothing(peopled: Registry) -> None:
    before = peopled.count_rows()
    result, seen = finish(build_bank(peopled, bank_request(), plan=(), dry_run=True))
    lines = {line.name: line.value for event in seen if isinstance(event, JobPlan) for line in event.lines}
    assert {"candidates", "tokens", "memory", "time"} <= set(lines)
    assert (lines["task"], lines["bank"], lines["base"]) == ("lamp-2", "lamp-2", "tiny")
    assert result["dry_run"] and peopled.count_rows() == before


@pytest.mark.parametrize("after", [0, 1, 6, 9, 11])
def test_stopped_anywhere_and_run_again_gives_the_same_bytes(peopled: Registry, after: int, tmp_path: Path) -> None:
    """Closing the generator is what Ctrl-C between two steps does."""
    whole = tmp_path / "whole"
    shutil.copytree(peopled.root, whole)
    with Registry.open(whole) as other:
        expected = digests(built(other))
    job, taken = build_bank(peopled, bank_request()), 0
    for event in job:
        taken += isinstance(event, JobProgress) and event.loss is not None
        if taken > after:
            break
    job.close()  # type: ignore[attr-defined]
    assert peopled.runs.all()[0].status == "interrupted"
    result, seen = finish(build_bank(peopled, bank_request()))
    assert digests(result) == expected
    assert any("goes on from step" in text for text in notes(seen))
    assert peopled.check_integrity() == [] and verify_bank(peopled, "lamp-2")["ok"]


def test_killed_between_checkpoints_gives_the_same_bytes(
    peopled: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed process saves nothing more: only what the last checkpoint holds is there."""
    monkeypatch.setattr(session, "MIN_CHECKPOINT_SECONDS", 0.0)
    job, taken = build_bank(peopled, bank_request()), 0
    for event in job:
        taken += isinstance(event, JobProgress) and event.loss is not None
        if taken == 4:
            shutil.copytree(peopled.root, tmp_path / "killed")  # what the disk holds at this moment
            break
    expected = digests(finish(job)[0])
    with Registry.open(tmp_path / "killed") as survivor:
        result, seen = finish(build_bank(survivor, bank_request()))
        assert digests(result) == expected
        assert any("goes on from step" in text for text in notes(seen))
        assert survivor.check_integrity() == []


def test_stopped_after_the_screening_screens_no_more(peopled: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those who were not refused have a smaller median: judged once more, another might be too large for it."""
    judged, screen = list[list[float]](), anchor_screening.norm_ratios

    def norm_ratios(norms: Sequence[Mapping[str, float]]) -> list[float]:
        judged.append(screen(norms))
        return judged[-1]

    monkeypatch.setattr(anchor_screening, "norm_ratios", norm_ratios)
    job = build_bank(peopled, bank_request())
    for event in job:
        if isinstance(event, JobProgress) and event.label.startswith("task adapter of half"):
            break
    job.close()  # type: ignore[attr-defined]
    finish(build_bank(peopled, bank_request()))
    assert [len(ratios) for ratios in judged] == [3]


def test_more_anchors_than_candidates_is_refused_with_the_number(peopled: Registry) -> None:
    with pytest.raises(BadInput, match="12 anchors were asked for, but only 9 users"):
        finish(build_bank(peopled, bank_request(anchors=12)))
    assert peopled.banks.all() == []


def test_where_nobody_has_consented_the_way_to_consent_is_named(peopled: Registry) -> None:
    for user, _ in peopled.users.users_with_items("lamp-2"):
        peopled.users.set_can_anchor(user.id, False)
    with pytest.raises(BadInput, match="No user of task lamp-2 has consented to be an anchor; 9 users") as refused:
        finish(build_bank(peopled, bank_request()))
    consent = Command("user consent", all=True, can_anchor=True, task="lamp-2")
    assert refused.value.hint == ("if they all consent: ", consent)
    finish(set_consent_of_all(peopled, True, task="lamp-2"))
    assert built(peopled)["version"] == 1


def test_people_without_consent_are_never_anchors(peopled: Registry) -> None:
    for name in ("user0", "user1", "user2", "user3"):
        peopled.users.set_can_anchor(peopled.users.get(name).id, False)
    result = built(peopled)
    assert {a["user"] for a in result["anchors"]} <= {f"user{n}" for n in range(4, 9)}
    with pytest.raises(BadInput, match="only 5 users can be anchors"):
        built(peopled, anchors=6)


def test_without_a_task_adapter(peopled: Registry) -> None:
    result = built(peopled, task_adapter=False)
    assert result["task_adapter"] is None
    assert all(peopled.adapters.get(a["digest"]).task_adapter is None for a in result["anchors"])


def test_an_exploding_loss_leaves_no_adapter(peopled: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    from mta_cli.engine.scoring.tree_scorers import LlamaTreeScorer

    honest, calls = LlamaTreeScorer.score_rows, []

    def exploding(lens: LlamaTreeScorer, chosen: Sequence[int], factors: FactorPairs) -> TokenLogLikelihoods:
        calls.append(chosen)
        scores = honest(lens, chosen, factors)
        return replace(scores, log_likelihoods=scores.log_likelihoods * (float("inf") if len(calls) > 3 else 1.0))

    monkeypatch.setattr(LlamaTreeScorer, "score_rows", exploding)
    with pytest.raises(BadInput, match=r"task adapter: loss inf .* in step 3"):
        built(peopled)
    assert peopled.runs.all()[0].status == "failed" and peopled.banks.latest_ready_bank("lamp-2") is None
    assert peopled.adapters.all() == [] and peopled.check_integrity() == []


def test_the_same_bank_is_built_by_one_process_at_a_time(peopled: Registry) -> None:
    with Registry.open(peopled.root) as other, other.job_lock("bank lamp-2"), pytest.raises(StoreBusy):
        built(peopled)


def test_no_history_in_prompts_is_possible(peopled: Registry) -> None:
    assert built(peopled, prompt=PromptOptions(0))["status"] == "ready"


def test_a_removed_bank_takes_its_files_along(peopled: Registry) -> None:
    built(peopled)
    removed = remove_bank(peopled, peopled.banks.get("lamp-2"))
    assert removed["adapters"] == 4
    assert peopled.banks.all() == [] and peopled.adapters.all() == [] and peopled.check_integrity() == []


def test_only_from_the_people_who_are_named(peopled: Registry) -> None:
    allowed = frozenset(peopled.users.get(f"user{n}").id for n in range(4))
    result, _ = finish(build_bank(peopled, replace(bank_request(), user_ids=allowed)))
    assert {anchor["user"] for anchor in result["anchors"]} <= {f"user{n}" for n in range(4)}
    assert sum(anchor["cluster_size"] for anchor in result["anchors"]) == 4
    items = [item for user in sorted(allowed) for item in peopled.items.recent_items(user, "lamp-2")]
    assert peopled.adapters.get(result["task_adapter"]).data_hash == peopled.items.hash_items(items)
    with pytest.raises(BadInput, match="3 anchors were asked for, but only 2 users"):
        finish(build_bank(peopled, replace(bank_request(), user_ids=frozenset(sorted(allowed)[:2]))))
    assert built(peopled)["version"] == 2


def test_a_bank_with_a_purpose_is_told_before_it_is_trained_and_serves_nobody_else(peopled: Registry) -> None:
    told: list[str] = []
    request = replace(
        bank_request(), purpose="eval", on_bank_started=lambda number: told.append(peopled.banks.by_id(number).status)
    )
    first, _ = finish(build_bank(peopled, request))
    again, seen = finish(build_bank(peopled, request))
    assert told == ["building", "ready"] and again == first and any("nothing to do" in text for text in notes(seen))
    assert peopled.banks.all() == [] and peopled.banks.latest_ready_bank("lamp-2") is None
    own = built(peopled)
    assert own["version"] == 2 and own["task_adapter"] == first["task_adapter"]
    assert peopled.banks.latest_ready_bank("lamp-2") == peopled.banks.get("lamp-2")
