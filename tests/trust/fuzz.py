"""Passes damaged files to every importer: `python -m tests.trust.fuzz --minutes 60 --seed 0` prints the results.

Only an MtaError may be raised, nothing may be written if it is, and each importer must stay within `MEMORY` bytes of
address space and `SECONDS` of computing for one file; a model's file that needs more counts as refused. A file that
broke a rule is kept under `--keep`.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

from mta_cli.errors import MtaError
from tests.trust.importers import Ground, Importer, importers

MEMORY = 8 << 30  # of address space, most of which libraries map and never touch
SECONDS = 20


@dataclass
class Tally:
    """What came of one importer's files."""

    name: str
    executions: int = 0
    refusals: int = 0
    slowest: float = 0.0  # seconds of computing for one file
    peak: int = 0  # MiB resident, the libraries included
    crashes: dict[str, bytes] = field(default_factory=dict)


class TooLong(BaseException):
    """An importer did not come to an end."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raises TooLong inside after so many seconds of computing, where the system can tell."""
    if not hasattr(signal, "setitimer"):
        yield
        return

    def stop(*_: Any) -> None:
        raise TooLong(f"more than {seconds} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def offer(importer: Importer, content: bytes, tally: Tally) -> None:
    """One file to one importer."""
    tally.executions += 1
    started = time.process_time()
    try:
        with at_most(SECONDS):
            importer.offer(content)
    except MtaError as error:
        tally.refusals += 1
        if not str(error).strip():
            tally.crashes["an error without words"] = content
    except (Exception, TooLong) as error:
        tally.crashes.setdefault(_signature(error), content)
    except BaseException as error:  # a panic of compiled code; Ctrl-C is not one
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        tally.crashes.setdefault(_signature(error), content)
    tally.slowest = max(tally.slowest, time.process_time() - started)


def _signature(error: BaseException) -> str:
    """The kind of a crash and the line of ours that it came through, so that each is told once."""
    place, trace = "", error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if "mta_cli" in file or "/store/" in file or "importers" in file:
            place = f"{Path(file).name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return f"{type(error).__name__} at {place}: {str(error)[:100]}"


def fuzz(importer: Importer, seed: int, *, executions: int | None = None, seconds: float = 1e9) -> Tally:
    """Offer spoilt files, the same for the same seed, until either limit."""
    random, tally = Random(f"{seed} {importer.name}"), Tally(importer.name)
    end = time.monotonic() + seconds
    importer.offer(importer.seeds[0])  # a good file is taken
    while time.monotonic() < end and (executions is None or tally.executions < executions):
        offer(importer, importer.spoil(random, random.choice(importer.seeds), importer.seeds), tally)
    return tally


def _apart(name: str, seed: int, seconds: float, limited: bool) -> Tally:
    """One importer in a process of its own, with bounded memory, and silent."""
    with TemporaryDirectory() as root, open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        ground = Ground(Path(root) / "ground")
        importer = next(each for each in importers(ground) if each.name == name)
        if limited:
            import resource

            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            os.dup2(nowhere.fileno(), 1)  # compiled code writes there,
            os.dup2(nowhere.fileno(), 2)  # and its panics here
        tally = fuzz(importer, seed, seconds=seconds)
        if limited:
            tally.peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        ground.reg.close()
    return tally


def table(tallies: list[Tally]) -> str:
    """What came of every importer, a line each."""
    lines = [f"{'importer':18}{'executions':>12}{'refusals':>10}{'crashes':>9}{'slowest s':>11}{'peak MiB':>10}"]
    for one in tallies:
        lines.append(
            f"{one.name:18}{one.executions:12,}{one.refusals:10,}{len(one.crashes):9}{one.slowest:11.2f}{one.peak:10,}"
        )
    total = [sum(values) for values in zip(*((t.executions, t.refusals, len(t.crashes)) for t in tallies), strict=True)]
    return "\n".join([*lines, f"{'all':18}{total[0]:12,}{total[1]:10,}{total[2]:9}"])


def main() -> int:
    """The command line; 1 where something crashed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="for all importers together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", default=[], help="an importer's name; may be given several times")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-crashes"), help="where files that crash are put")
    given = parser.parse_args()
    with TemporaryDirectory() as root:
        every = [(each.name, each.share) for each in importers(Ground(Path(root) / "ground"))]
    chosen = [(name, share) for name, share in every if not given.only or name in given.only]
    unit = 60 * given.minutes / sum(share for _, share in chosen)
    tallies = []
    for name, share in chosen:
        with get_context("spawn").Pool(1) as pool:
            tallies.append(pool.apply(_apart, (name, given.seed, unit * share, sys.platform != "win32")))
        print(table(tallies[-1:]).splitlines()[1], flush=True)
        for signature, content in tallies[-1].crashes.items():
            given.keep.mkdir(exist_ok=True)
            file = given.keep / f"{name.replace(' ', '-')}-{hashlib.sha256(content).hexdigest()[:12]}"
            file.write_bytes(content)
            print(f"  {signature}\n  {file}", flush=True)
    print(table(tallies))
    return 1 if any(tally.crashes for tally in tallies) else 0


if __name__ == "__main__":
    sys.exit(main())
