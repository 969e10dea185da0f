"""Training on several devices, which here are the CPU twice: the same result as on one, stopping, errors, resuming."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mta_cli.engine.lora.adapter import LoraWeights
from mta_cli.engine.model import load as bases
from mta_cli.engine.scoring.backends import FactorPairs, LlamaBackend
from mta_cli.engine.scoring.prefix_cache_scoring import TokenLogLikelihoods
from mta_cli.errors import BadInput, UsageError
from mta_cli.events import ArtifactSaved, Event, JobProgress, JobStarted, UnitFailed
from mta_cli.options import MachineOptions
from mta_cli.pipeline.bank.build import build_bank
from mta_cli.pipeline.personalize.adapt import adapt_users
from mta_cli.pipeline.personalize.fuse import fuse_user
from mta_cli.pipeline.personalize.weights import load_weights
from mta_cli.pipeline.requests import FuseRequest
from mta_cli.pipeline.training import session
from store.registry import Registry
from tests.pipeline.town import QUICK, SHORT, bank_request, built, finish, fuse_request, notes

TWO = MachineOptions(device="cpu,cpu", dtype="float32")
Honest = Callable[[LlamaBackend, Sequence[int], FactorPairs], TokenLogLikelihoods]


@pytest.fixture(autouse=True)
def tidy() -> Iterator[None]:
    """Each device computes with one core, and no test leaves a thread at work."""
    cores = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(cores)
    assert workers() == []


def workers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("work ")]


def on_two(**changes: object) -> FuseRequest:
    return replace(fuse_request(**changes), machine=TWO)


def digests(document: dict) -> list[str]:  # type: ignore[type-arg]
    return [document["task_adapter"], *(anchor["digest"] for anchor in document["anchors"])]


def training(event: Event) -> bool:
    """Whether an event is a step of anchors or stacks."""
    return isinstance(event, JobProgress) and event.loss is not None and not event.label.startswith("task")


def watched(monkeypatch: pytest.MonkeyPatch, before: Callable[[str], None]) -> None:
    """Call `before` with the thread's name before every training pass."""
    honest: Honest = LlamaBackend.score_rows

    def scores(lens: LlamaBackend, chosen: Sequence[int], factors: FactorPairs) -> TokenLogLikelihoods:
        before(threading.current_thread().name)
        return honest(lens, chosen, factors)

    monkeypatch.setattr(LlamaBackend, "score_rows", scores)


def spoilt(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    """Multiply the log-likelihoods of every training pass of the second device by `factor`."""
    honest: Honest = LlamaBackend.score_rows

    def scores(lens: LlamaBackend, chosen: Sequence[int], factors: FactorPairs) -> TokenLogLikelihoods:
        found = honest(lens, chosen, factors)
        second = threading.current_thread().name == "work 1"
        return replace(found, log_likelihoods=found.log_likelihoods * (factor if second else 1.0))

    monkeypatch.setattr(LlamaBackend, "score_rows", scores)


def apart(reg: Registry, one: str, two: str) -> float:
    """The largest relative difference of ΔW in any module of two adapters."""
    a, b = (LoraWeights.from_file(reg.adapters.verified_path(digest)) for digest in (one, two))
    return max(
        float((a.delta_weight(path) - b.delta_weight(path)).norm() / a.delta_weight(path).norm()) for path in a.factors
    )


def test_two_devices_build_the_bank_that_one_builds(peopled: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = LoraWeights.cast_for_storage
    monkeypatch.setattr(LoraWeights, "cast_for_storage", lambda weights: exact(weights, torch.float32))
    names: set[str] = set()
    watched(monkeypatch, names.add)
    alone = built(peopled, epochs=2)
    assert names == {"MainThread"}
    together, seen = finish(build_bank(peopled, bank_request(epochs=2, name="two", machine=TWO)))
    assert names == {"MainThread", "work 0", "work 1"}
    assert [anchor["user"] for anchor in together["anchors"]] == [anchor["user"] for anchor in alone["anchors"]]
    assert max(apart(peopled, *pair) for pair in zip(digests(alone), digests(together), strict=True)) < 1e-5
    for one, two in zip(alone["anchors"], together["anchors"], strict=True):
        assert two["loss_first"] == pytest.approx(one["loss_first"], rel=1e-5)
        assert two["loss_last"] == pytest.approx(one["loss_last"], rel=1e-5)
    started = next(event for event in seen if isinstance(event, JobStarted) and event.job == "bank build")
    done = [event.done for event in seen if isinstance(event, JobProgress) and event.loss is not None]
    assert done == sorted(done) and done[-1] == started.total
    assert [event.kind for event in seen if isinstance(event, ArtifactSaved)].count("anchor") == 3
    assert peopled.check_integrity() == []


@pytest.mark.parametrize("after", [0, 1, 5])
def test_stopped_and_run_again_gives_the_same_bytes(peopled: Registry, after: int, tmp_path: Path) -> None:
    request = bank_request(epochs=4, machine=TWO)
    shutil.copytree(peopled.root, tmp_path / "whole")
    with Registry.open(tmp_path / "whole") as other:
        expected = digests(finish(build_bank(other, request))[0])
    job, taken = build_bank(peopled, request), 0
    for event in job:
        taken += training(event)
        if taken > after:
            break
    job.close()  # type: ignore[attr-defined]
    assert workers() == [] and peopled.runs.all()[0].status == "interrupted"
    assert len(list(peopled.files.checkpoint_folder.iterdir())) == 2
    result, seen = finish(build_bank(peopled, request))
    assert digests(result) == expected
    assert any("goes on from step" in text for text in notes(seen))
    assert list(peopled.files.checkpoint_folder.iterdir()) == [] and peopled.check_integrity() == []


def test_killed_between_checkpoints_gives_the_same_bytes(
    peopled: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "MIN_CHECKPOINT_SECONDS", 0.0)
    request = bank_request(epochs=4, machine=TWO)
    job, taken = build_bank(peopled, request), 0
    for event in job:
        taken += training(event)
        if taken == 4:
            shutil.copytree(peopled.root, tmp_path / "killed")
            break
    expected = digests(finish(job)[0])
    with Registry.open(tmp_path / "killed") as survivor:
        result, seen = finish(build_bank(survivor, request))
        assert digests(result) == expected and survivor.check_integrity() == []
        assert any("goes on from step" in text for text in notes(seen))


def test_a_bank_begun_on_two_devices_is_finished_on_one(peopled: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """The anchors of a finished group stay; the others train anew in another company."""
    gate = threading.Event()
    watched(monkeypatch, lambda name: name == "work 0" and gate.wait(60) is None)
    job = build_bank(peopled, bank_request(machine=TWO))
    for event in job:
        if isinstance(event, ArtifactSaved) and event.kind == "anchor":
            gate.set()
            break
    job.close()  # type: ignore[attr-defined]
    bank = peopled.banks.all()[0]
    stored = {anchor.id: anchor.digest for anchor in peopled.banks.anchors(bank.id) if anchor.digest}
    assert len(stored) == 1
    result, _ = finish(build_bank(peopled, bank_request()))
    assert result["status"] == "ready" and set(stored.values()) < set(digests(result))


def test_an_error_on_one_device_stops_the_other_with_a_checkpoint(
    peopled: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, broken, calls = threading.Event(), threading.Event(), []

    def before(name: str) -> None:
        calls.append(name)
        if name == "work 0" and calls.count(name) == 2:
            started.set()
            broken.wait(60)
        if name == "work 1" and calls.count(name) == 2:
            started.wait(60)
            broken.set()
            raise RuntimeError("the second device is broken")

    with monkeypatch.context() as patch:
        watched(patch, before)
        with pytest.raises(RuntimeError, match="the second device is broken"):
            finish(build_bank(peopled, bank_request(epochs=10, machine=TWO)))
    assert workers() == [] and len(list(peopled.files.checkpoint_folder.iterdir())) == 1
    run = peopled.runs.all()[0]
    assert run.status == "failed"
    result, seen = finish(build_bank(peopled, bank_request(epochs=10, machine=TWO)))
    assert result["status"] == "ready" and peopled.check_integrity() == []
    assert len([text for text in notes(seen) if "goes on from step" in text]) == 1


def test_an_anchor_whose_loss_explodes_ends_the_build(peopled: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    spoilt(monkeypatch, float("inf"))
    with pytest.raises(BadInput, match=r"anchor 3/3: .* loss inf"):
        finish(build_bank(peopled, bank_request(machine=TWO)))
    assert peopled.runs.all()[0].status == "failed" and peopled.check_integrity() == []


def test_two_devices_adapt_as_one_does(peopled: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    built(peopled)
    names: set[str] = set()
    watched(monkeypatch, names.add)
    users = [peopled.users.get(name) for name in SHORT]
    alone, _ = finish(adapt_users(peopled, users, fuse_request(), QUICK))
    bank = peopled.banks.get("lamp-2")
    before = [load_weights(peopled, peopled.stacks.get(user.id, "lamp-2", bank.id).digest, bank.base) for user in users]  # type: ignore[union-attr]
    deltas = [{path: part.delta_weight(path) for path in part.factors} for part in before]
    for user in users:
        peopled.stacks.remove(user.id, "lamp-2", bank.id)
    together, seen = finish(adapt_users(peopled, users, on_two(), QUICK))
    assert names == {"MainThread", "work 0", "work 1"}
    for user, one, two, delta in zip(users, alone, together, deltas, strict=True):
        for key in ("loss_before", "loss_after", "heldout_before", "heldout_after"):
            assert two[key] == pytest.approx(one[key], rel=1e-4)
        stack = peopled.stacks.get(user.id, "lamp-2", bank.id)
        assert stack is not None and one["user"] == two["user"] == user.name
        after = load_weights(peopled, stack.digest, bank.base)
        for path, wide in delta.items():  # files are float16: a last bit there is 1e-3 of one number
            assert float((after.delta_weight(path) - wide).norm() / wide.norm()) < 1e-3
    assert [event.done for event in seen if training(event)][-1] == 18
    assert {run.status for run in peopled.runs.all()} == {"done"} and peopled.check_integrity() == []


def test_a_stopped_adaptation_finds_its_groups_again(peopled: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when one group has finished, and fewer people are left to share among the devices."""
    built(peopled)
    users, gate, calls = [peopled.users.get(name) for name in SHORT], threading.Event(), []

    def before(name: str) -> None:
        calls.append(name)
        if name == "work 0" and calls.count(name) > 2:
            gate.wait(60)

    watched(monkeypatch, before)
    job = adapt_users(peopled, users, on_two(), QUICK)
    for event in job:
        if isinstance(event, ArtifactSaved) and event.kind == "stack":
            gate.set()
            break
    assert isinstance(event, ArtifactSaved) and event.name == "kim"
    job.close()  # type: ignore[attr-defined]
    states = {run.subject: run.status for run in peopled.runs.all() if run.kind == "user adapt"}
    assert states == {"ida": "interrupted", "jon": "interrupted", "kim": "done"}
    results, seen = finish(adapt_users(peopled, users, on_two(), QUICK))
    assert [result["user"] for result in results] == list(SHORT)
    assert any("ida and 1 more: goes on from step" in text for text in notes(seen))


def test_who_fails_on_one_device_costs_nobody_their_stack(peopled: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    built(peopled)
    spoilt(monkeypatch, float("nan"))
    users = [peopled.users.get(name) for name in SHORT]
    results, seen = finish(adapt_users(peopled, users, on_two(), QUICK))
    assert [result["user"] for result in results] == ["ida", "jon"]
    assert [event.label for event in seen if isinstance(event, UnitFailed)] == ["kim"]


def test_only_as_many_bases_are_loaded_as_have_work(peopled: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    places: list[str] = []
    honest = bases.load_base

    def load(path: Path, *, name: str, fingerprint: str, device: str, dtype: str) -> bases.LoadedBase:
        places.append(device)
        return honest(path, name=name, fingerprint=fingerprint, device=device, dtype=dtype)

    monkeypatch.setattr(bases, "load_base", load)
    finish(build_bank(peopled, bank_request(machine=TWO)))
    assert places == ["cpu,cpu", "cpu"]
    finish(fuse_user(peopled, peopled.users.get("ida"), on_two(weights="evidence")))
    assert places == ["cpu,cpu", "cpu", "cpu,cpu"]
    finish(adapt_users(peopled, [peopled.users.get("ida")], on_two(), QUICK))
    assert places == ["cpu,cpu", "cpu", "cpu,cpu", "cpu,cpu"]


@pytest.mark.parametrize("device", ["cpu,gpu", "auto,cpu"])
def test_a_bad_list_is_refused_before_anything_is_written(peopled: Registry, device: str) -> None:
    before = peopled.count_rows()
    with pytest.raises(UsageError, match="device"):
        finish(build_bank(peopled, bank_request(machine=MachineOptions(device=device))))
    assert peopled.count_rows() == before
