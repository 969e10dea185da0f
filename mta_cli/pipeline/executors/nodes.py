"""The versions of mta, Python and Ray on every node of a Ray cluster; a job needs the same versions on all."""

from __future__ import annotations

import platform
from typing import Any

from mta_cli import __version__
from mta_cli.pipeline.executors.ray_workers import connect, import_ray

ANSWER_SECONDS = 120.0  # the timeout of a node's answer


def versions_here() -> dict[str, str]:
    """Versions of mta, Python and Ray in this process."""
    return {"mta": __version__, "python": platform.python_version(), "ray": import_ray().__version__}


def node_versions(address: str) -> dict[str, dict[str, str] | str]:
    """The versions on each node of the cluster at `address`, by `host:port`, or an error message in their place.

    A node without mta gives an error message, because this code cannot run there. Raises UsageError without Ray or
    without a cluster.
    """
    ray = import_ray()
    connect(ray, address)
    try:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        ask = ray.remote(versions_here)
        nodes = [node for node in ray.nodes() if node["Alive"]]
        answers = {
            f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}": ask.options(
                num_cpus=0,
                max_retries=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
            ).remote()
            for node in nodes
        }
        return {name: _answer(ray, reference) for name, reference in answers.items()}
    finally:
        ray.shutdown()


def _answer(ray: Any, reference: Any) -> dict[str, str] | str:
    try:
        found: dict[str, str] = ray.get(reference, timeout=ANSWER_SECONDS)
    except Exception as error:  # any type of error, depending on what the node lacks
        return str(error).strip().splitlines()[-1] or type(error).__name__
    return found
