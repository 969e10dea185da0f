"""Training one adapter of the store: checkpoints, resumption, the file and its row. For bank builds and adaptation.

Knows neither how anchors are chosen nor what a recipe is.
"""

import importlib.metadata
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mta_cli.errors import BadInput
from mta_cli.events import Event, Note, Step
from store.models import Adapter

if TYPE_CHECKING:
    from mta_cli.engine.base import LoadedBase
    from mta_cli.engine.prompts import Row
    from mta_cli.engine.train import Schedule, Trainer
    from store.models import Run
    from store.registry import Registry

CHECKPOINT_SECONDS = 15.0
PROBE = 64  # about as many rows, evenly taken, on which the loss is measured before and after


@dataclass(frozen=True)
class AdapterJob:
    """What to train and how: everything that decides the bytes of the adapter, besides the base and the rows."""

    kind: str
    label: str
    task_adapter: str | None
    rank: int
    alpha: float
    targets: str
    placement: str
    seed: int
    data_hash: str
    schedule: "Schedule"
    config: dict[str, Any] = field(default_factory=dict)
    shown: str = ""

    @property
    def title(self) -> str:
        """What a person watching reads; `label` is what the store keeps, and holds no anchor's name."""
        return self.shown or self.label

    def checkpoint_key(self, base: str) -> str:
        """Names the training whose checkpoint may be resumed."""
        return repr((base, self.kind, self.label, self.task_adapter, self.rank, self.alpha, self.targets,
                     self.placement, self.seed, self.data_hash, self.schedule,
                     sorted(self.config.items())))  # fmt: skip


def library_versions() -> dict[str, str]:
    """Versions of the libraries that decide what a training gives."""
    return {name: importlib.metadata.version(name) for name in ("torch", "transformers", "safetensors")}


def train_adapter(
    reg: "Registry", base: "LoadedBase", job: AdapterJob, rows: "Sequence[Row]", run: "Run | None", done: int = 0
) -> Generator[Event, None, Adapter]:
    """Train and store one adapter; `return`s its row. Progress counts on from `done`.

    A checkpoint is kept while it runs, also when the generator is closed, and is gone when the adapter is stored.
    Raises BadInput when the loss is no longer a number; nothing is stored then.
    """
    from mta_cli.engine.lora import initial
    from mta_cli.engine.train import Trainer, mean_loss

    key = job.checkpoint_key(base.fingerprint)
    fresh = initial(base.model, job.targets, job.placement, job.rank, job.alpha, job.seed)
    probe = rows[:: max(1, len(rows) // PROBE)]
    first = mean_loss(base, probe)
    with Trainer(base, fresh, rows, job.schedule, job.seed) as trainer:
        if _resume(reg, trainer, key):
            yield Note(f"{job.title}: goes on from step {len(trainer.taken)} of {job.schedule.steps}.")
        try:
            yield from _run_steps(reg, trainer, key, job, run, done)
        except FloatingPointError as error:
            reg.files.drop_partial(key)
            raise BadInput(f"{job.title}: {error}", hint="lower the learning rate") from error
        weights, taken, last = trainer.weights().stored(), trainer.taken, mean_loss(base, probe)
    header = {"kind": job.kind, "base": base.fingerprint, "task_adapter": job.task_adapter, "rank": job.rank,
              "alpha": job.alpha, "seed": job.seed, "data_hash": job.data_hash}  # fmt: skip
    digest, size = reg.files.write(weights.to_bytes(header))
    schedule = {"steps": job.schedule.steps, "learning_rate": job.schedule.learning_rate,
                "batch_size": job.schedule.batch_size}  # fmt: skip
    adapter = Adapter(
        digest=digest, kind=job.kind, base=base.fingerprint, task_adapter=job.task_adapter, rank=job.rank,
        alpha=job.alpha, targets=job.targets, placement=str(weights.placement), dtype="float16", seed=job.seed,
        data_hash=job.data_hash, bytes=size,
        config={**job.config, **schedule, "compute": str(base.dtype).removeprefix("torch.")},
        versions=library_versions(), tokens=sum(s.tokens for s in taken), seconds=sum(s.seconds for s in taken),
        loss_first=first, loss_last=last,
    )  # fmt: skip
    reg.adapters.add(adapter)
    reg.files.drop_partial(key)
    return adapter


def _run_steps(
    reg: "Registry", trainer: "Trainer", key: str, job: AdapterJob, run: "Run | None", done: int
) -> Iterator[Event]:
    saved = time.monotonic()
    done += len(trainer.taken)
    try:
        for step in trainer.steps():
            done += 1
            if run is not None:
                reg.runs.step(run.id, job.label, step.step, step.loss, step.tokens, step.seconds)
            if time.monotonic() - saved > CHECKPOINT_SECONDS:
                reg.files.write_partial(key, trainer.state())
                saved = time.monotonic()
            yield Step(job.title, done, step.loss, step.tokens, step.seconds)
    except GeneratorExit:  # stopped between two steps: nothing of this training is lost
        reg.files.write_partial(key, trainer.state())
        raise


def _resume(reg: "Registry", trainer: "Trainer", key: str) -> bool:
    state = reg.files.read_partial(key)
    if state is None:
        return False
    try:
        trainer.resume(state)
    except (ValueError, KeyError):
        reg.files.drop_partial(key)
    return bool(trainer.taken)
