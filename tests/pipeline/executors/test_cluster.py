"""A cluster of eight small nodes: asked for their versions, and most of them replaced in the middle of a job."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mta_cli.engine.training.session import SessionStep
from mta_cli.options import ExecutorOptions
from mta_cli.pipeline.executors import nodes, ray_workers
from tests.pipeline.executors.test_executors import LOCAL, made
from tests.shell import mta

NODES, WORKERS = 8, 4
LOST = 5  # more than are without a worker


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without processors and eight nodes of one processor each."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'mta-cli[ray]'")
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(NODES):
        add_node(made)
    yield made
    made.shutdown()


def add_node(cluster: Any) -> None:
    cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)


def test_doctor_asks_every_node(cluster: Any, store_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = mta("doctor", "--ray-address", cluster.address, "--json")
    (found,) = [check for check in ran.json()["checks"] if check["name"] == "cluster"]
    assert found["ok"] and f"{NODES + 1} nodes; here mta " in found["detail"], found["detail"]
    monkeypatch.setattr(nodes, "__version__", "0.0")
    ran = mta("doctor", "--ray-address", cluster.address, "--json")
    (found,) = [check for check in ran.json()["checks"] if check["name"] == "cluster"]
    assert ran.code == 5 and found["detail"].count(" has mta ") == NODES + 1


def test_nodes_that_are_replaced_change_nothing(
    cluster: Any, store_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, old, lost = made(tmp_path / "here", LOCAL), list(cluster.worker_nodes), list[Any]()
    take = ray_workers.RayExecutor._next_report

    def lose_nodes(self: ray_workers.RayExecutor, task: Any) -> Any:
        report = take(self, task)
        if isinstance(report, SessionStep) and len(lost) < LOST:
            lost.append(old.pop())
            cluster.remove_node(lost[-1], allow_graceful=False)
            add_node(cluster)
        return report

    monkeypatch.setattr(ray_workers.RayExecutor, "_next_report", lose_nodes)
    there = ExecutorOptions(executor="ray", workers=WORKERS, ray_address=cluster.address)
    assert made(tmp_path / "there", there) == here and len(lost) == LOST
