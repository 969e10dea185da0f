"""Runs units of work on workers of a Ray cluster. Each worker keeps the base and the anchors that it has loaded.

A worker receives token ids, LoRA factors and seeds, but no names and no access to the store; it needs the same version
of mta. It loads the base from a folder of the same path and fingerprint, or receives it through Ray, once for each
node. Checkpoints come with the reports, so a group whose worker is lost resumes on another worker.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mta_cli import __version__
from mta_cli.errors import BadInput, Flag, MtaError, UsageError, Words, extra_hint
from mta_cli.pipeline.executors.shipped_base import Pieces, put_base, receive_base, received_folder

if TYPE_CHECKING:
    from mta_cli.engine.lora.adapter import LoraWeights
    from mta_cli.engine.model.load import LoadedBase, MemoryLimits
    from mta_cli.engine.work import AnchorLookup, ReportT, Work
    from mta_cli.options import ExecutorOptions

BELOW = -1  # the number of the task adapter, beside the indices of anchors
MAX_TRIES = 4  # attempts at one unit of work if workers are lost
PLACE_SECONDS = 300.0  # the timeout for a worker to be ready while no work runs


@dataclass(frozen=True)
class WorkerFault:
    """An MtaError of a worker, in a form that can be sent to the driver."""

    message: Words
    hint: Words | None


@dataclass(frozen=True)
class WorkerBase:
    """The base that a worker loads: its folder, and its expected properties."""

    path: str
    name: str
    fingerprint: str
    device: str
    dtype: str
    quantize: str
    limits: MemoryLimits
    threads: int
    version: str = __version__

    @classmethod
    def of(cls, base: LoadedBase, path: Path) -> WorkerBase:
        """The description of `base`, loaded here from the folder `path`, for a worker."""
        import torch

        dtype = str(base.dtype).removeprefix("torch.")
        kept = (base.device.type, dtype, base.quantize, base.limits)
        return cls(str(path), base.name, base.fingerprint, *kept, torch.get_num_threads())


class Worker:
    """The Ray actor: a process that loads the base and runs units of work."""

    def __init__(self, given: WorkerBase) -> None:
        """Sets this process's threads; `prepare` loads the base."""
        import torch

        torch.set_num_threads(given.threads)
        self._given = given
        # by number: (Ray ObjectRef, weights), so that each is fetched once
        self._factors: dict[int, tuple[Any, LoraWeights | None]] = {}

    def prepare(self, pieces: Pieces | None = None) -> WorkerFault | Literal["ready", "needs base"]:
        """Load the base from a folder of this node, or from `pieces`. Returns `needs base` if it has neither."""
        from mta_cli.engine.lora.adapter import AdapterMerger
        from mta_cli.engine.model.checkpoint_files import fingerprint
        from mta_cli.engine.model.load import load_base

        given = self._given
        try:
            if given.version != __version__:
                raise BadInput(
                    f"The worker has mta {__version__}, and this machine has mta {given.version}.",
                    hint="install the same version on all nodes",
                )
            places = (Path(given.path), received_folder(given.fingerprint))
            path = next((one for one in places if one.is_dir() and fingerprint(one) == given.fingerprint), None)
            if path is None and pieces is None:
                return "needs base"
            if path is None:
                path = receive_base(given.fingerprint, pieces or {}, import_ray().get)
            base = load_base(
                path,
                name=given.name,
                fingerprint=given.fingerprint,
                device=given.device,
                dtype=given.dtype,
                quantize=given.quantize,
                limits=given.limits,
            )
            self._base, self._merger = base, AdapterMerger(base)
        except MtaError as error:
            return WorkerFault((f"Node {import_ray().util.get_node_ip_address()}: ", error.message), error.hint)
        return "ready"

    def run(self, work: Work[Any], factors: dict[int, Any]) -> Iterator[Any]:
        """Run `work` and yield its reports. `factors` are references to the task adapter and the anchors, by number.

        Factors that were fetched before are not fetched again.
        """
        try:
            before = self._factors.get(BELOW, (None, None))[0]
            for number, reference in factors.items():
                if number not in self._factors or self._factors[number][0] != reference:
                    self._factors[number] = (reference, import_ray().get(reference))
            if before != factors[BELOW]:
                self._merger.set_adapter(self._factors[BELOW][1])
            anchors = {number: found for number, (_, found) in self._factors.items() if found is not None}
            yield from work.session(self._base, anchors).run()
        except MtaError as error:
            yield WorkerFault(error.message, error.hint)


@dataclass
class _Task:
    """A scheduled unit of work: its remaining part, its worker, and the number of attempts."""

    number: int
    work: Work[Any] | None
    worker: Any = None
    reports: Any = None
    tries: int = 0


@dataclass
class _Factors:
    """The task adapter and the anchors of a run. Each is put into Ray's object store when it is first needed."""

    put: Any
    below: LoraWeights | None
    anchors: AnchorLookup
    references: dict[int, Any] = field(default_factory=dict)

    def references_for(self, work: Work[Any]) -> dict[int, Any]:
        """The references that a worker needs for this work."""
        for number in (BELOW, *work.anchors_used):
            if number not in self.references:
                self.references[number] = self.put(self.below if number == BELOW else self.anchors[number])
        return {number: self.references[number] for number in (BELOW, *work.anchors_used)}


class RayExecutor:
    """Runs works on `options.workers` workers.

    Each has as many threads as this process, so that its results have the same bytes as results of this process. The
    workers start with the first work, in a running cluster or in one that is started and stopped here.
    """

    def __init__(self, given: WorkerBase, options: ExecutorOptions) -> None:
        """Starts no workers yet. Raises UsageError if Ray is not installed."""
        ray = self._ray = import_ray()
        self._given, self._options = given, options
        self.workers, self._lost_at_start, self._began = list[Any](), 0, False
        names = ("RayActorError", "WorkerCrashedError", "ObjectLostError", "NodeDiedError")
        self._losses = tuple(getattr(ray.exceptions, name) for name in names if hasattr(ray.exceptions, name))
        # the ready workers; those that are starting, by the Ray reference of their call of `prepare`
        self._idle, self._pending = list[Any](), dict[Any, Any]()
        self._pieces: Pieces | None = None  # the base's files, cut up for nodes that lack them; None until one does

    def _begin(self) -> None:
        """Connect to the cluster, or start one on this machine, and start the workers. Raises UsageError."""
        ray, options, threads = self._ray, self._options, self._given.threads
        if not ray.is_initialized():
            here = {"num_cpus": options.workers * threads, "include_dashboard": False}
            address, cluster = (options.ray_address, {}) if options.ray_address else ("local", here)
            connect(ray, address, **cluster)
            self._began = True
        on_gpu = self._given.device == "cuda"
        self._class = ray.remote(Worker).options(
            num_cpus=threads,
            num_gpus=options.gpus if on_gpu else 0,
            runtime_env={"env_vars": {"OMP_NUM_THREADS": str(threads)}},
        )
        self._require_capacity(threads, options, on_gpu=on_gpu)
        for _ in range(options.workers):
            self._begin_worker()

    def _require_capacity(self, threads: int, options: ExecutorOptions, *, on_gpu: bool) -> None:
        """Raises UsageError if the cluster has too few processors or GPUs, because Ray would wait forever."""
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        places = sum(int(node.get("CPU", 0)) // threads for node in nodes)
        if on_gpu:
            places = min(places, sum(int(node.get("GPU", 0) / options.gpus + 1e-9) for node in nodes))
        if places < options.workers:
            self.close()
            each = f"{threads} processors" + (f" and {options.gpus:g} GPUs" if on_gpu else "")
            raise UsageError(
                f"The cluster has room for {places} of {options.workers} workers of {each} each.",
                hint=("use at most ", Flag("workers", places)) if places else "set OMP_NUM_THREADS to fewer threads",
            )

    def _begin_worker(self) -> None:
        worker = self._class.remote(self._given)
        self.workers.append(worker)
        self._pending[worker.prepare.remote()] = worker

    def _end_worker(self, worker: Any) -> None:
        self.workers.remove(worker)
        with suppress(Exception):
            self._ray.kill(worker)

    def run(
        self, works: Iterable[Work[ReportT]], below: LoraWeights | None = None, anchors: AnchorLookup = ()
    ) -> Iterator[tuple[int, ReportT]]:
        """See `Executor`. A work whose worker is lost resumes from its last checkpoint on the next free worker."""
        fresh, running = enumerate(works), list[_Task]()
        if (first := _next_task(fresh)) is None:
            return
        if not self.workers:
            self._begin()
        # waiting: the first work, and works of lost workers
        factors, waiting = _Factors(self._ray.put, below, anchors), deque([first])
        try:
            while True:
                while self._idle and (task := waiting.popleft() if waiting else _next_task(fresh)) is not None:
                    running.append(self._start(task, self._idle.pop(), factors))
                if not running and not waiting and (self._idle or not self._pending):
                    return
                refs = [task.reports for task in running] + list(self._pending)
                ready, _ = self._ray.wait(refs, num_returns=1, timeout=None if running else PLACE_SECONDS)
                if not ready:
                    raise BadInput(
                        f"No worker was ready within {PLACE_SECONDS:.0f} s.",
                        hint="`ray status` shows what uses the cluster",
                    )
                if ready[0] in self._pending:
                    self._handle_starting_worker(ready[0])
                    continue
                task = next(task for task in running if task.reports is ready[0])
                try:
                    report = self._next_report(task)
                except self._losses as error:
                    running.remove(task)
                    self._end_worker(task.worker)  # the worker may still run if only its messages were lost
                    self._begin_worker()
                    if task.work is not None:
                        if task.tries >= MAX_TRIES:
                            raise BadInput(
                                f"{MAX_TRIES} workers ended while they worked on the same users.",
                                hint="Ray's logs have the reason; often memory ran out",
                            ) from error
                        waiting.append(task)
                    continue
                if report is None:
                    running.remove(task)
                    self._idle.append(task.worker)
                else:
                    yield task.number, report
        finally:
            for task in running:
                self._end_worker(task.worker)

    def _handle_starting_worker(self, ref: Any) -> None:
        """Handle a starting worker that is ready, needs the base, or is lost. Raises BadInput if it has a fault."""
        worker = self._pending.pop(ref)
        try:
            answer: WorkerFault | str = self._ray.get(ref)
        except self._losses as error:
            self._end_worker(worker)
            self._lost_at_start += 1
            if self._lost_at_start >= MAX_TRIES * self._options.workers:  # Ray notices lost nodes late
                raise BadInput(
                    f"{self._lost_at_start} workers in a row ended before they were ready.",
                    hint="Ray's logs have the reason",
                ) from error
            self._begin_worker()
            return
        if isinstance(answer, WorkerFault):
            raise BadInput(answer.message, hint=answer.hint)
        if answer == "needs base":
            self._pieces = self._pieces or put_base(Path(self._given.path), self._ray.put)
            self._pending[worker.prepare.remote(self._pieces)] = worker
            return
        self._lost_at_start = 0
        self._idle.append(worker)

    def checkpoint(self, number: int) -> bytes | None:
        """Returns None, because workers send their checkpoints with the reports."""
        return None

    def close(self) -> None:
        """Stop the workers, and the cluster if it was started here."""
        for worker in list(self.workers):
            self._end_worker(worker)
        if self._began:
            self._ray.shutdown()
            self._began = False

    def _start(self, task: _Task, worker: Any, factors: _Factors) -> _Task:
        assert task.work is not None, "something is left to do"
        task.worker, task.tries = worker, task.tries + 1
        run = worker.run.options(num_returns="streaming")
        task.reports = run.remote(task.work, factors.references_for(task.work))
        return task

    def _next_report(self, task: _Task) -> Any:
        """The next report; None at the end. Raises BadInput for a fault, and one of `_losses` for a lost worker."""
        try:
            report = self._ray.get(next(task.reports))
        except StopIteration:
            return None
        if isinstance(report, WorkerFault):
            raise BadInput(report.message, hint=report.hint)
        if task.work is not None:
            task.work = task.work.remaining(report)
        return report


def _next_task(fresh: Iterator[tuple[int, Work[Any]]]) -> _Task | None:
    drawn = next(fresh, None)
    return None if drawn is None else _Task(*drawn)


def import_ray() -> Any:
    """The Ray module. Raises UsageError if it is not installed."""
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise UsageError((Flag("executor", "ray"), " needs Ray."), hint=extra_hint("ray")) from error
    return ray


def connect(ray: Any, address: str, **cluster: Any) -> None:
    """Connect to the cluster at `address`; `local` starts one.

    Raises UsageError if there is no cluster, or if it has other versions of Ray or Python.
    """
    try:
        ray.init(address, log_to_driver=False, logging_level="error", **cluster)
    except (ConnectionError, ValueError, OSError) as error:
        raise UsageError(
            f"There is no Ray cluster at {address}.",
            hint="start one with `ray start --head`, or leave the address out",
        ) from error
    except RuntimeError as error:  # the cluster has another version of Ray or Python
        raise UsageError(
            str(error).strip().partition("\n")[0], hint="install the same versions of Ray and Python on all nodes"
        ) from error
