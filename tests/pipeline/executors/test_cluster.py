"""A cluster of eight small nodes, most of which are lost in the middle of a job: the bytes are those of one process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mta_cli.engine.training.session import SessionStep
from mta_cli.options import ExecutorOptions
from mta_cli.pipeline.executors import ray_workers
from tests.pipeline.executors.test_executors import LOCAL, made

NODES, WORKERS = 8, 4
LOST = 6  # so that workers are lost wherever they are


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without processors and eight nodes of one processor each."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'mta-cli[ray]'")
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(NODES):
        made.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    yield made
    made.shutdown()


def test_nodes_that_are_lost_change_nothing(
    cluster: Any, store_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, lost = made(tmp_path / "here", LOCAL), list[Any]()
    take = ray_workers.RayExecutor._next_report

    def lose_nodes(self: ray_workers.RayExecutor, task: Any) -> Any:
        report = take(self, task)
        if isinstance(report, SessionStep) and len(lost) < LOST:
            lost.append(cluster.list_all_nodes()[-1])
            cluster.remove_node(lost[-1], allow_graceful=False)
        return report

    monkeypatch.setattr(ray_workers.RayExecutor, "_next_report", lose_nodes)
    there = ExecutorOptions(executor="ray", workers=WORKERS, ray_address=cluster.address)
    assert made(tmp_path / "there", there) == here and len(lost) == LOST
