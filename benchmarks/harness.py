"""Common parts of benchmarks: taking turns, medians, the limits of the machine, invented users, one table and one JSON.

Contains no measurement of its own. Times are wall seconds.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    import torch

    from mta_cli.engine.model.load import LoadedBase
    from mta_cli.engine.text.prompts import HistoryExample, PromptBuilder, TrainingRow
    from mta_cli.engine.text.tasks import Task
    from mta_cli.pipeline.models.manifest import ModelEntry

MODEL = "smollm2-135m-instruct"
LIBRARIES = ("torch", "transformers", "peft", "trl", "accelerate", "bitsandbytes")
THREADING = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "MKL_NUM_THREADS")
WIDE = 256 * 2**20  # bytes of an array larger than any cache
SHAPES = [(rows, *sides) for rows in (256, 1024, 2048) for sides in ((576, 576), (576, 1536), (1536, 576))]
T = TypeVar("T")


@dataclass(frozen=True)
class Timed(Generic[T]):
    """One run: its seconds and its result."""

    seconds: float
    value: T


def timed(side: Callable[[], T]) -> Timed[T]:
    """One run of `side`; garbage of earlier runs is collected before the clock starts."""
    gc.collect()
    start = time.perf_counter()
    value = side()
    return Timed(time.perf_counter() - start, value)


def interleave(sides: Mapping[str, Callable[[], T]], repeats: int = 5) -> dict[str, list[Timed[T]]]:
    """`repeats` runs of every side in turn (A, B, A, B, …), after one warm-up round."""
    for side in sides.values():
        timed(side)
    runs: dict[str, list[Timed[T]]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            runs[name].append(timed(side))
    return runs


def median_seconds(runs: Sequence[Timed[Any]]) -> float:
    """The median of the runs' seconds."""
    return statistics.median(run.seconds for run in runs)


def machine() -> dict[str, Any]:
    """The machine of the measurement: processor, cores, threads, library versions and OpenMP settings."""
    import torch

    return {
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "libraries": {name: found for name in LIBRARIES if (found := _version(name))},
        "threading": {name: os.environ[name] for name in THREADING if name in os.environ},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    """The processor's name, with details that distinguish processors of the same name."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() or platform.machine()
    pairs = (line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
    facts = {key.strip(): value.strip() for key, value in pairs}
    wanted = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in facts.get("flags", "").split()]
    return f"{facts.get('model name', platform.machine())} ({', '.join(wanted) or 'no wide vectors'})"


def peak_bytes() -> int:
    """The peak resident memory of this process, on Linux."""
    status = Path("/proc/self/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


def bandwidth() -> float:
    """The bytes per second, read and written, when torch's threads copy an array in memory."""
    import torch

    source = torch.ones(WIDE // 4)
    target = torch.empty_like(source)
    return 2 * WIDE / _least(lambda: target.copy_(source))


def read_bandwidth() -> float:
    """The bytes per second that can be read from memory: the best of a sum and of matrix–vector products."""
    import torch

    wide = torch.ones(WIDE // 4)
    times = [_least(wide.sum)]
    for dtype in (torch.float32, torch.bfloat16):
        matrix = torch.ones(WIDE // (1024 * dtype.itemsize), 1024, dtype=dtype)
        vector = torch.ones(1, 1024, dtype=dtype)
        times.append(_least(_product(vector, matrix)))
    return WIDE / min(times)


def matrix_rate(dtype: torch.dtype) -> float:
    """Operations a second of a bare matrix product in `dtype`: the best of `SHAPES`, which are near the model's."""
    import torch

    rates = []
    for rows, inner, outer in SHAPES:
        left, right = torch.ones(rows, inner, dtype=dtype), torch.ones(outer, inner, dtype=dtype)
        rates.append(2 * rows * inner * outer / _least(_product(left, right)))
    return max(rates)


def _product(left: torch.Tensor, right: torch.Tensor) -> Callable[[], torch.Tensor]:
    import torch

    return lambda: torch.nn.functional.linear(left, right)


def _least(run: Callable[[], Any], repeats: int = 9) -> float:
    """The shortest of `repeats` runs after a warm-up, because a limit is the machine's best."""
    run()
    return min(timed(run).seconds for _ in range(repeats))


def report(bench: str, rows: Sequence[Mapping[str, Any]], **facts: Any) -> None:
    """Print `rows` as a table, then everything as one line of JSON.

    If `MTA_BENCH_OUT` names a folder, the JSON is also written there, to a file named after `bench`.
    """
    print("\n".join(_table(rows)))
    document = json.dumps({"bench": bench, "rows": list(rows), **facts, "machine": machine()}, ensure_ascii=False)
    print(document)
    if folder := os.environ.get("MTA_BENCH_OUT"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        Path(folder, f"{bench}.json").write_text(document + "\n", encoding="utf-8")


def _table(rows: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [columns, *([_cell(row.get(column)) for column in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    for line in cells:
        shown = (cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True)))
        yield "  ".join(shown).rstrip()


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)


def base_entry() -> ModelEntry:
    """The measured base; exits with the command that pulls it if it is missing."""
    from mta_cli.errors import MtaError
    from mta_cli.pipeline.models.installed import resolve_model

    try:
        return resolve_model(MODEL, "base")
    except MtaError as error:
        raise SystemExit(f"{error}. First: mta model pull {MODEL}") from error


def base_folder() -> Path:
    """The folder of `base_entry`."""
    return base_entry().path


def load(dtype: str = "auto", device: str = "cpu") -> LoadedBase:
    """The measured base in memory, loaded by the product's own code."""
    from mta_cli.engine.model.load import load_base

    entry = base_entry()
    return load_base(entry.path, name=entry.name, fingerprint=entry.fingerprint, device=device, dtype=dtype)


def forget(base: LoadedBase) -> None:
    """Drop the base's cached states of an earlier run, which would make this one faster."""
    if base.llama_decoder is not None:
        base.llama_decoder.activation_cache.clear()


@dataclass(frozen=True)
class Person:
    """An invented user with history items and later queries."""

    name: str
    items: tuple[HistoryExample, ...]
    queries: tuple[HistoryExample, ...]


def sample_task(task: str = "voice") -> Task:
    """The included sample's task `voice` (texts) or `taste` (labels)."""
    from mta_cli.engine.text.task_files import parse_task
    from mta_cli.pipeline.demo import SAMPLE

    return parse_task((SAMPLE / f"{task}.toml").read_text(encoding="utf-8"), task)


def people(users: int, items: int, seed: int = 0, task: str = "voice", queries: int = 4) -> list[Person]:
    """`users` invented users with `items` history items and up to `queries` queries each, from the sample's texts.

    Each has the history of a sample user in another order, filled up with other users' items if more are requested.
    """
    histories = _sample_histories(task)
    if items > (most := sum(len(history) for history, _ in histories)):
        raise ValueError(f"the sample has {most} items of {task}, not {items}")
    return [_person(number, items, queries, random.Random(f"{seed}/{number}"), histories) for number in range(users)]


def _sample_histories(task: str) -> list[tuple[list[HistoryExample], list[HistoryExample]]]:
    from mta_cli.engine.text.prompts import HistoryExample
    from mta_cli.pipeline.demo import SAMPLE

    of = sample_task(task)
    key, answer = of.input_field[0], of.output_field[0]
    found = json.loads((SAMPLE / f"{task}.users.json").read_text(encoding="utf-8"))
    return [
        (
            [HistoryExample(item[key], item[answer]) for item in user["profile"]],
            [HistoryExample(query["input"], query["gold"]) for query in user["query"]],
        )
        for user in found
    ]


def _person(
    number: int,
    items: int,
    queries: int,
    choose: random.Random,
    histories: Sequence[tuple[list[HistoryExample], list[HistoryExample]]],
) -> Person:
    first = number % len(histories)
    others = [i for i in range(len(histories)) if i != first]
    history: list[HistoryExample] = []
    for place in (first, *choose.sample(others, len(others))):
        history += choose.sample(histories[place][0], len(histories[place][0]))
    return Person(f"person {number + 1}", tuple(history[:items]), tuple(histories[first][1][:queries]))


def prompter(base: LoadedBase, task: str = "voice") -> PromptBuilder:
    """The product's own prompts of a sample task for `base`."""
    from mta_cli.engine.text.prompts import PromptBuilder

    return PromptBuilder(base.tokenizer, sample_task(task), base.end_ids)


def rows_of(prompts: PromptBuilder, person: Person, shown: int = 2) -> list[TrainingRow]:
    """A training row for each item of `person`, its prompt showing the `shown` items before it (cyclically)."""
    items = person.items
    return [
        prompts.training_row(
            item.input, item.output, [items[place - back] for back in range(min(shown, len(items) - 1), 0, -1)]
        )
        for place, item in enumerate(items)
    ]


def query_rows(prompts: PromptBuilder, person: Person, shown: int = 2) -> list[TrainingRow]:
    """A row for each query of `person` with its gold answer; all prompts begin with the same `shown` items."""
    from mta_cli.engine.text.prompts import TrainingRow

    rows = []
    for query in person.queries:
        prompt = prompts.prompt_ids(query.input, person.items[:shown])
        rows.append(TrainingRow((*prompt, *prompts.answer_ids(query.output)), len(prompt)))
    return rows
