"""Trials that a seed draws: commands beside each other, signals, modes of files, odd places of a store, false hubs.

Whatever happens, a command ends with a known code and at most one error line, the store stays sound, and what it said
that it did is so. `MTA_TEST_TRIALS=20` makes so many of each kind.
"""

from __future__ import annotations

import json
import os
import random
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from store.registry import Registry
from tests.trust.inspection import contents, difference, faults
from tests.trust.orders import Harm, Outcome
from tests.trust.scenes import ADAPT, CHAT, CPU, LINES, SCENES, Stage
from tests.trust.tally import tally

TRIALS = range(int(os.environ.get("MTA_TEST_TRIALS", "1")))
CODES = range(6)
LEAVING = ("user1", "user2", "user3")
"""Users with items, some of them anchors."""


def explained(ran: Outcome) -> Outcome:
    """It ended in one of the ways that are written down: no traceback, and one error line where it failed."""
    assert ran.code in CODES and "Traceback" not in ran.err, ran
    assert ran.err.count("error: ") == (ran.code != 0), ran
    return ran


def drawn_commands(rng: random.Random, place: Path, count: int) -> list[tuple[str, ...]]:
    """Commands of a user's day, each import with a new user of its own."""
    found: list[tuple[str, ...]] = []
    for number in range(count):
        file = place / f"new{number}.jsonl"
        rows = [{"user": f"new{number}", "id": str(n), "input": f"page {n}", "output": "read"} for n in range(50)]
        file.write_text("\n".join(map(json.dumps, rows)))
        found.append(
            rng.choice(
                (
                    ("data", "import", "jsonl", str(file)),
                    ("user", "rm", rng.choice(LEAVING), "--yes"),
                    ("user", "consent", rng.choice(LEAVING), "--no-can-anchor"),
                    ("user", "fuse", rng.choice(("ida", "jon", "kim")), *CPU),
                    (*ADAPT, "--seed", str(number)),
                    CHAT,
                    ("user", "list", "--json"),
                    ("user", "export", "ida", "--all-data", "--to", str(place / f"out{number}")),
                    ("backup", str(place / f"backup{number}.mta")),
                    ("doctor", "--json"),
                )
            )
        )
    return found


@pytest.mark.parametrize("seed", TRIALS)
def test_commands_beside_each_other(stage: Stage, seed: int) -> None:
    rng, trial = random.Random(f"together {seed}"), stage.trial("user adapt")
    commands = drawn_commands(rng, trial.place, 8)
    jobs = []
    for command in commands:
        jobs.append(stage.begin(trial.store, command, LINES))
        time.sleep(rng.choice((0.0, 0.0, 0.2)))
    ended = [(command, explained(job.wait())) for command, job in zip(commands, jobs, strict=True)]
    assert faults(trial.store, trial.place) == []
    with Registry.open(trial.store) as reg:
        items = {row.name: row.items for row in reg.user_table.summaries()}
    for command, ran in ended:
        if command[:2] == ("data", "import"):
            assert ran.code == 0, (command, ran)
            assert items.pop(Path(command[3]).stem) == 50
        elif command[:2] == ("user", "rm") and ran.code == 0:
            assert command[2] not in items
        tally("commands beside seven others", f"code {ran.code}, explained" if ran.code else "done")


SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGKILL)
INTERRUPTED = ("bank build", "user adapt", "data import", "chat")


@pytest.mark.parametrize("seed", TRIALS)
@pytest.mark.parametrize("name", INTERRUPTED)
def test_signals_at_any_time(stage: Stage, name: str, seed: int) -> None:
    rng, trial = random.Random(f"signal {name} {seed}"), stage.trial(name)
    job = stage.begin(trial.store, trial.scene.arguments, trial.scene.stdin)
    job.process.join(rng.uniform(0.0, 2.0))
    sent = rng.choice(SIGNALS)
    if job.process.is_alive():
        os.kill(job.process.pid, sent)
    ran = job.wait()
    assert ran.code in (*CODES, 130, *(-number for number in SIGNALS)) and "Traceback" not in ran.err, ran
    assert trial.faults() == []
    explained(trial.run())
    assert trial.faults() == []
    tally(f"{sent.name} at any time", "sound, and ended when run again")


MODES = (0o000, 0o100, 0o400, 0o500, 0o444)


@pytest.mark.parametrize("seed", TRIALS)
def test_files_that_may_not_be_read_or_written(stage: Stage, seed: int) -> None:
    rng = random.Random(f"modes {seed}")
    name = rng.choice([name for name in SCENES if name not in ("model pull", "restore")])
    trial = stage.trial(name)
    before = contents(trial.store) if not name.startswith("migration") else {}
    paths = [trial.store, *sorted(trial.store.rglob("*"))]
    chosen = rng.sample(paths, rng.randint(1, min(3, len(paths))))
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in chosen}
    for path in reversed(chosen):
        path.chmod(rng.choice(MODES))
    ran = trial.run(Harm(bound_by_modes=True))
    for path, mode in modes.items():
        if path.exists():
            path.chmod(mode)
    explained(ran)
    if ran.code and before and name != "chat":
        left = {key: value for key, value in contents(trial.store).items() if key in ("users", "items", "stacks")}
        assert difference(left, {key: before[key] for key in left}) == "" or name == "user rm", ran
    assert explained(trial.run()).code in trial.scene.again
    assert trial.faults() == []
    tally("files and folders without rights", "refused in one line" if ran.code else "not needed")


def odd_stores(place: Path) -> dict[str, Path]:
    """Places of a store that people and scripts name; some can't be one."""
    (place / "file").write_text("mine")
    (place / "full").mkdir()
    (place / "full" / "note.txt").write_text("mine")
    (place / "real").mkdir()
    (place / "link").symlink_to(place / "real")
    (place / "dangling").symlink_to(place / "nowhere")
    (place / "loop").symlink_to(place / "loop")
    names = ("with space", "quote'\"", "line\nbreak", "per%20cent?x=1#y", "рамा", "-dash", "~", "$HOME", "a" * 255, ".")
    odd = {name[:20]: place / name / "store" for name in names}
    below = {"below a file": place / "file" / "store", "too long": place / ("b" * 256), "in full": place / "full"}
    links = {name: place / name for name in ("file", "link", "dangling", "loop")}
    return {**odd, **below, **links, "device": Path("/dev/null"), "dots": place / "x" / ".." / "store"}


def test_odd_places_of_a_store(stage: Stage, tmp_path: Path) -> None:
    history = str(stage.place / "history.jsonl")
    for name, path in odd_stores(tmp_path).items():
        made = explained(stage.begin(path, ("init",)).wait())
        if made.code:
            tally("odd places of a store", "refused in one line")
            continue
        added = explained(stage.begin(path, ("data", "import", "jsonl", history)).wait())
        listed = explained(stage.begin(path, ("user", "list", "--json")).wait())
        assert added.code == 0 and sum(row["items"] for row in listed.json()) == 80, (name, added)
        tally("odd places of a store", "works")
    assert (tmp_path / "file").read_text() == (tmp_path / "full" / "note.txt").read_text() == "mine"


COMMIT = "0123456789abcdef0123456789abcdef01234567"
FALSEHOODS = (
    "honest",
    "longer than listed",
    "endless",
    "cut off",
    "other bytes",
    "a page instead of a file",
    "a listing that is no JSON",
    "a name that leaves the folder",
    "an absolute name",
    "pickles alone",
    "server error",
    "sent to a local file",
    "sent round in circles",
    "no size",
    "own code",
)
MANY = 64 << 20  # bytes that are not listed


class _Hub(BaseHTTPRequestHandler):
    """A hub of one repository, the folder `files`, with one falsehood."""

    files: dict[str, bytes] = {}  # noqa: RUF012
    falsehood = "honest"

    def log_message(self, *_: object) -> None: ...

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if self.falsehood == "server error":
            self._send(500, b"no")
        elif self.path.startswith("/api/"):
            found = self._listing()
            tree = [
                {"type": "file", "oid": "0" * 40, "path": row["rfilename"], "size": row.get("size", 0)} for row in found
            ]
            model = {"id": "org/name", "sha": COMMIT, "siblings": found, "tags": [], "private": False}
            answer = json.dumps(tree if "/tree/" in self.path else model).encode()
            self._send(200, b"<html>" if "no JSON" in self.falsehood else answer)
        else:
            self._send_file(self.path.partition(f"/resolve/{COMMIT}/")[2])

    def _listing(self) -> list[dict[str, object]]:
        found: list[dict[str, object]] = [{"rfilename": name, "size": len(data)} for name, data in self.files.items()]
        if self.falsehood == "a name that leaves the folder":
            found.append({"rfilename": "../../escaped.json", "size": 2})
        elif self.falsehood == "an absolute name":
            found.append({"rfilename": "/tmp/escaped.json", "size": 2})
        elif self.falsehood == "pickles alone":
            found = [{"rfilename": "pytorch_model.bin", "size": 10}]
        elif self.falsehood == "no size":
            found = [{"rfilename": row["rfilename"]} for row in found]
        elif self.falsehood == "own code":
            found.append({"rfilename": "modeling_own.py", "size": 2})
        return found

    def _send_file(self, name: str) -> None:
        data = self.files.get(name, b"{}")
        if self.falsehood == "sent to a local file":
            return self._send(302, b"", Location="file:///etc/passwd")
        if self.falsehood == "sent round in circles":
            return self._send(302, b"", Location=self.path)
        if name.endswith(".safetensors"):
            if self.falsehood == "other bytes":
                data = data[::-1]
            elif self.falsehood == "longer than listed":
                data += bytes(1000)
            elif self.falsehood == "endless":
                data += bytes(MANY)
            elif self.falsehood == "a page instead of a file":
                data = b"<html></html>"
        return self._send(200, data, ETag=f'"{COMMIT}-{len(data)}"', **{"X-Repo-Commit": COMMIT})

    def _send(self, code: int, data: bytes, **headers: str) -> None:
        self.send_response(code)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data[: len(data) // 2] if self.falsehood == "cut off" else data)


@contextmanager
def false_hub(model: Path, falsehood: str) -> Iterator[str]:
    """The address of a hub that has `model`."""
    files = {path.name: path.read_bytes() for path in model.iterdir() if path.is_file()}
    handler = type("Hub", (_Hub,), {"files": files, "falsehood": falsehood})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("falsehood", FALSEHOODS)
def test_false_hubs(tiny_base_path: Path, tmp_path: Path, falsehood: str) -> None:
    models = tmp_path / "home" / "models"
    models.mkdir(parents=True)
    (tmp_path / "home" / "kept.txt").write_text("mine")
    with false_hub(tiny_base_path, falsehood) as address:
        env = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("HF_", "MTA_"))},
            "HF_ENDPOINT": address,
            "HF_HOME": str(tmp_path / "cache"),
            "MTA_MODELS": str(models),
            "MTA_STORE": str(tmp_path / "store"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DOWNLOAD_TIMEOUT": "2",
        }
        line = [sys.executable, "-m", "mta_cli", "model", "pull", "hf:org/name"]
        ran = subprocess.run(line, env=env, capture_output=True, text=True, timeout=120, check=False)
    outcome = explained(Outcome(ran.returncode, ran.stdout, ran.stderr, 0, (), 0.0))
    assert outcome.code == 0 or falsehood != "honest", outcome
    works = falsehood in ("honest", "no size", "own code", "a name that leaves the folder", "an absolute name")
    assert works or outcome.code != 0, outcome
    placed = [path for path in models.iterdir() if not path.name.startswith(".")]
    assert bool(placed) == (outcome.code == 0), placed
    assert sorted(path.name for path in (tmp_path / "home").iterdir()) == ["kept.txt", "models"]
    assert not list(tmp_path.rglob("escaped*")) and not Path("/tmp/escaped.json").exists()
    size = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert size < MANY, "the disk holds what nobody listed"
    tally("false hubs", "refused in one line" if outcome.code else "took what was listed and whole")
