"""Trains groups on workers of a Ray cluster. Each worker loads the base once and keeps it.

A worker gets token ids, factors and seeds, and neither names nor the store; it needs mta in the same version, and the
base in a folder of the same fingerprint. Checkpoints come back with the reports, so a group whose worker is lost goes
on elsewhere from its last one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mta_cli import __version__
from mta_cli.engine.training.session import SessionReport, SessionStep, TrainingResult
from mta_cli.errors import BadInput, IntegrityFault, MtaError, UsageError

if TYPE_CHECKING:
    from mta_cli.engine.lora.adapter import LoraWeights
    from mta_cli.engine.model.load import LoadedBase
    from mta_cli.engine.training.work import GroupWork
    from mta_cli.options import ExecutorOptions

MAX_TRIES = 4  # of one group, as workers are lost


@dataclass(frozen=True)
class WorkerFault:
    """An error of this program in a worker, as it is told to the driver."""

    message: str
    hint: str | None


@dataclass(frozen=True)
class WorkerBase:
    """How a worker gets the base: a folder, and what it must be."""

    path: str
    name: str
    fingerprint: str
    device: str
    dtype: str
    threads: int
    version: str = __version__


class TrainingWorker:
    """The actor: one process with the base and the task adapter."""

    def __init__(self, given: WorkerBase) -> None:
        import torch

        from mta_cli.engine.lora.adapter import AdapterMerger
        from mta_cli.engine.model.checkpoint_files import fingerprint
        from mta_cli.engine.model.load import load_base

        torch.set_num_threads(given.threads)
        self._fault, path = None, Path(given.path)
        try:
            if given.version != __version__:
                raise BadInput(f"This node has mta {__version__}, and the driver {given.version}.")
            if fingerprint(path) != given.fingerprint:
                raise IntegrityFault(f"{path} on this node is not {given.name}.", hint="pull the base there")
            self._base = load_base(
                path, name=given.name, fingerprint=given.fingerprint, device=given.device, dtype=given.dtype
            )
            self._merger = AdapterMerger(self._base)
        except MtaError as error:
            self._fault = WorkerFault(error.message, error.hint)

    def train(self, work: GroupWork, below: LoraWeights | None) -> Iterator[SessionReport | WorkerFault]:
        """Train a group above a task adapter; the reports as they come."""
        if self._fault is not None:
            yield self._fault
            return
        try:
            self._merger.set_adapter(below)
            yield from work.run(self._base)
        except MtaError as error:
            yield WorkerFault(error.message, error.hint)


@dataclass
class _Running:
    number: int
    work: GroupWork
    worker: Any
    reports: Any
    tries: int = 1


class RayExecutor:
    """On `options.workers` workers, each with as many threads as this process, so that the bytes are the same."""

    def __init__(self, base: LoadedBase, path: Path, options: ExecutorOptions) -> None:
        """Connect to the cluster, or begin one on this machine. Raises UsageError without Ray."""
        import torch

        ray = self._ray = import_ray()
        self.workers = list[Any]()
        threads = torch.get_num_threads()
        need, self._began = options.workers * threads, not ray.is_initialized()
        if self._began:
            here = {"num_cpus": need, "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
            address, cluster = (options.ray_address, {}) if options.ray_address else ("local", here)
            try:
                ray.init(address, log_to_driver=False, logging_level="error", **cluster)
            except (ConnectionError, ValueError, OSError) as error:
                raise UsageError(
                    f"There is no Ray cluster at {options.ray_address}.", hint="ray start --head, or leave it out"
                ) from error
        if (there := int(ray.cluster_resources().get("CPU", 0))) < need:
            self.close()
            raise UsageError(
                f"{options.workers} workers of {threads} threads need {need} processors; the cluster has {there}.",
                hint=f"--workers {max(1, there // threads)}, or fewer threads by OMP_NUM_THREADS",
            )
        on_gpu = base.device.type == "cuda"
        environment = {"env_vars": {"OMP_NUM_THREADS": str(threads)}}
        self._class = ray.remote(TrainingWorker).options(
            num_cpus=threads, num_gpus=options.gpus if on_gpu else 0, runtime_env=environment
        )
        dtype = str(base.dtype).removeprefix("torch.")
        self._given = WorkerBase(str(path), base.name, base.fingerprint, base.device.type, dtype, threads)
        self._below = ray.put(None)
        self._idle = [self._new_worker() for _ in range(options.workers)]

    def _new_worker(self) -> Any:
        worker = self._class.remote(self._given)
        self.workers.append(worker)
        return worker

    def set_task_adapter(self, below: LoraWeights | None) -> None:
        """See `Executor`."""
        self._below = self._ray.put(below)

    def run(self, works: Iterable[GroupWork]) -> Iterator[tuple[int, SessionReport]]:
        """See `Executor`."""
        waiting, running = enumerate(works), list[_Running]()
        try:
            while True:
                while self._idle and (drawn := next(waiting, None)) is not None:
                    running.append(self._start(*drawn, self._idle.pop()))
                if not running:
                    return
                (ready, *_), _ = self._ray.wait([one.reports for one in running], num_returns=1)
                one = next(one for one in running if one.reports is ready)
                report = self._next_report(one)
                if report is None:
                    running.remove(one)
                    self._idle.append(one.worker)
                elif isinstance(report, WorkerFault):
                    raise BadInput(report.message, hint=report.hint)
                else:
                    yield one.number, report
        finally:
            for one in running:
                with suppress(Exception):
                    self._ray.kill(one.worker)

    def checkpoint(self, number: int) -> bytes | None:
        """None: workers send theirs with the reports."""
        return None

    def close(self) -> None:
        """End the workers, and the cluster if it began here."""
        for worker in self.workers:
            with suppress(Exception):
                self._ray.kill(worker)
        if self._began:
            self._ray.shutdown()

    def _start(self, number: int, work: GroupWork, worker: Any) -> _Running:
        return _Running(number, work, worker, worker.train.options(num_returns="streaming").remote(work, self._below))

    def _next_report(self, one: _Running) -> SessionReport | WorkerFault | None:
        """The next report; None at the end. A group whose worker is lost begins again from its last checkpoint."""
        lost = (self._ray.exceptions.RayActorError, self._ray.exceptions.WorkerCrashedError)
        while True:
            try:
                report: SessionReport | WorkerFault = self._ray.get(next(one.reports))
            except StopIteration:
                return None
            except lost as error:
                if one.tries >= MAX_TRIES:
                    raise BadInput(f"A group lost {MAX_TRIES} workers.", hint="look at Ray's logs") from error
                again = self._start(one.number, one.work, self._new_worker())
                one.worker, one.reports, one.tries = again.worker, again.reports, one.tries + 1
                continue
            if isinstance(report, SessionStep) and report.checkpoint is not None:
                one.work = replace(one.work, checkpoint=report.checkpoint)
            if isinstance(report, TrainingResult):
                one.work = replace(one.work, checkpoint=None)
            return report


def import_ray() -> Any:
    """Ray. Raises UsageError where it is not installed."""
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise UsageError("--executor ray needs Ray.", hint="pip install 'mta-cli[ray]'") from error
    return ray
