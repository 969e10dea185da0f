"""Groups that are trained and weighed by workers become the same bytes as here, also when workers are lost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mta_cli.engine.model.checkpoint_files import fingerprint
from mta_cli.engine.training.session import SessionStep
from mta_cli.errors import BadInput, IntegrityFault, UsageError
from mta_cli.options import ExecutorOptions
from mta_cli.pipeline.bank.build import build_bank
from mta_cli.pipeline.executors import ray_workers, shipped_base
from mta_cli.pipeline.memory.knn import MIXTURE_WEIGHTS_KEY
from mta_cli.pipeline.models.installed import list_models, resolve_model
from mta_cli.pipeline.personalize.adapt import adapt_users
from mta_cli.pipeline.requests import AdaptRequest
from store.registry import Registry
from tests.pipeline.town import QUICK, bank_request, finish, fuse_request, people

LOCAL = ExecutorOptions()


def made(root: Path, executor: ExecutorOptions, weights: str | None = None) -> dict[str, Any]:
    """A bank and all users' recipes and stacks in a new store: digests, weights."""
    with Registry.open(root, create=True) as reg:
        people(reg)
        finish(build_bank(reg, replace(bank_request(anchors=4), executor=executor)))
        results, _ = finish(
            adapt_users(reg, AdaptRequest(None, QUICK, replace(fuse_request(weights=weights), executor=executor)))
        )
        bank = reg.banks.get("lamp-2")
        users = [reg.users.get(one["user"]).id for one in results]
        recipes = [reg.recipes.get(user, "lamp-2", bank.id) for user in users]
        own = [reg.stacks.get(user, "lamp-2", bank.id) for user in users]
        return {
            "task adapter": bank.task_adapter,
            "anchors": [anchor.digest for anchor in reg.banks.anchors(bank.id)],
            "memory": bank.config[MIXTURE_WEIGHTS_KEY],
            "recipes": [(one.method, one.shares) for one in recipes if one is not None],
            "stacks": [one.digest for one in own if one is not None],
            "losses": [(one["loss_before"], one["loss_after"], one["heldout_after"]) for one in results],
        }


@pytest.mark.parametrize(
    ("workers", "weights"),
    [(1, None), (2, None), (4, None), (2, "similarity")],
)
def test_workers_make_the_same_bytes(
    ray: Any, store_root: Path, tmp_path: Path, workers: int, weights: str | None
) -> None:
    here = made(tmp_path / "here", LOCAL, weights)
    assert len(here["anchors"]) == 3 and len(here["stacks"]) > 2, "several groups"
    assert {method for method, _ in here["recipes"]} == {weights or "evidence"}
    assert made(tmp_path / "there", ExecutorOptions(executor="ray", workers=workers), weights) == here


def test_a_group_whose_worker_is_lost_goes_on_elsewhere(
    ray: Any, store_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, killed = made(tmp_path / "here", LOCAL), list[int]()
    take = ray_workers.RayExecutor._next_report

    def kill_twice(self: ray_workers.RayExecutor, task: Any) -> Any:
        report = take(self, task)
        if isinstance(report, SessionStep) and len(killed) < 2:
            killed.append(task.number)
            ray.kill(task.worker)
        return report

    monkeypatch.setattr(ray_workers.RayExecutor, "_next_report", kill_twice)
    assert made(tmp_path / "there", ExecutorOptions(executor="ray", workers=2)) == here and len(killed) == 2


def test_a_group_that_loses_every_worker_ends_the_job(
    ray: Any, store_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = ray_workers.RayExecutor._start

    def start_and_kill(self: ray_workers.RayExecutor, *given: Any) -> Any:
        one = start(self, *given)
        ray.kill(one.worker)
        return one

    monkeypatch.setattr(ray_workers.RayExecutor, "_start", start_and_kill)
    with pytest.raises(BadInput, match="4 workers ended"):
        made(tmp_path / "there", ExecutorOptions(executor="ray", workers=1))


def test_a_node_with_another_version_is_told(
    ray: Any, store_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ray_workers.WorkerBase.of
    monkeypatch.setattr(ray_workers.WorkerBase, "of", lambda *of: replace(given(*of), version="0.0.0"))
    with pytest.raises(BadInput, match=r"The worker has mta .* this machine has mta 0\.0\.0"):
        made(tmp_path / "there", ExecutorOptions(executor="ray", workers=1))


def test_a_node_without_the_base_gets_it_once(
    ray: Any, store_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin, put, here = ray_workers.RayExecutor._begin_worker, ray_workers.put_base, made(tmp_path / "here", LOCAL)
    calls = list[Path]()

    def begin_elsewhere(self: ray_workers.RayExecutor) -> None:
        given, self._given = self._given, replace(self._given, path=str(tmp_path / "nowhere"))
        begin(self)
        self._given = given

    def put_and_count(path: Path, to: Any) -> Any:
        calls.append(path)
        return put(path, to)

    monkeypatch.setattr(shipped_base, "PIECE_BYTES", 50_000)
    monkeypatch.setattr(ray_workers, "put_base", put_and_count)
    monkeypatch.setattr(ray_workers.RayExecutor, "_begin_worker", begin_elsewhere)
    assert made(tmp_path / "there", ExecutorOptions(executor="ray", workers=2)) == here
    assert len(calls) == 1, "whatever the number of workers"
    (folder,) = [path for path in shipped_base.received_folder("").iterdir() if path.is_dir()]
    assert folder == shipped_base.received_folder(resolve_model("tiny", "base").fingerprint)
    assert "tiny" in {entry.name for entry in list_models()} and folder.name not in {e.name for e in list_models()}


def test_a_received_base_is_verified(store_root: Path, tmp_path: Path) -> None:
    entry, pieces = resolve_model("tiny", "base"), list[bytes]()
    files = shipped_base.put_base(entry.path, lambda piece: pieces.append(piece) or len(pieces) - 1)
    with pytest.raises(IntegrityFault, match="received"):
        shipped_base.receive_base("sha256:" + 64 * "0", files, pieces.__getitem__)
    assert not shipped_base.received_folder(64 * "0").exists()
    folder = shipped_base.receive_base(entry.fingerprint, files, pieces.__getitem__)
    assert shipped_base.receive_base(entry.fingerprint, {}, pieces.__getitem__) == folder, "it is there"
    next(folder.glob("*.safetensors")).write_bytes(b"damaged")
    shipped_base.receive_base(entry.fingerprint, files, pieces.__getitem__)
    assert fingerprint(folder) == entry.fingerprint


def test_a_cluster_of_another_version_is_no_fault_of_the_program() -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("Version mismatch: Ray 1\nRay 2")

    with pytest.raises(UsageError, match=r"^Version mismatch: Ray 1$"):
        ray_workers.connect(SimpleNamespace(init=refuse), "node:6379")


def test_without_ray_the_way_to_it_is_named(store_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(UsageError, match="needs Ray") as refused:
        made(tmp_path / "there", ExecutorOptions(executor="ray"))
    assert "'.[ray]'" in str(refused.value.hint)


def test_a_running_job_tells_its_workers(
    ray: Any, store_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = list[str]()

    def look(self: ray_workers.RayExecutor) -> None:
        with Registry.open(tmp_path / "there") as reg:
            seen.extend(title for title, _ in reg.jobs.running_jobs())
        raise UsageError("enough")

    monkeypatch.setattr(ray_workers.RayExecutor, "_begin", look)
    with pytest.raises(UsageError, match="enough"):
        made(tmp_path / "there", ExecutorOptions(executor="ray", workers=3))
    assert seen == ["bank build of lamp-2 on 3 Ray workers"]


def test_workers_that_do_not_fit_are_refused_before_they_wait(
    ray: Any, store_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 1.0}}] * 2)
    with pytest.raises(UsageError, match="has room for") as refused:
        made(tmp_path / "there", ExecutorOptions(executor="ray", workers=3))
    assert refused.value.hint is not None
