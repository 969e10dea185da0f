"""`mta ask` where a server of the store runs: the same answer, and no base is loaded."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mta_cli.events import JobResult
from mta_cli.options import AnswerOptions, MachineOptions, MemoryOptions
from mta_cli.pipeline.chat import answer_on_server
from mta_cli.pipeline.chat.answer_on_server import find_equivalent_server
from mta_cli.pipeline.models.installed import resolve_model
from mta_cli.pipeline.requests import ChatOptions
from mta_cli.pipeline.users.servers import RunningServer, recheck_servers, running_servers, short_path
from store.registry import Registry
from tests.pipeline.world import make_world
from tests.serving.running import Process
from tests.shell import mta, mta_ok

FLAGS = ("--dtype", "float32")


@pytest.fixture
def films(store_root: Path) -> Iterator[Process]:
    """A server on the world of movie tags."""
    make_world(store_root, "lamp-2").reg.close()
    made = Process()
    yield made
    made.end(signal.SIGKILL)


def both(*words: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The answer by the server and by the command itself."""
    by_server = mta_ok("ask", *words, *FLAGS, "--json")
    assert "by mta serve" in by_server.err
    here = mta_ok("ask", *words, *FLAGS, "--json", "--no-server")
    assert "loading" in here.err and "by mta serve" not in here.err
    return by_server.json(), here.json()


@pytest.mark.parametrize(
    "words",
    [
        ("alice", "Who are you?"),
        ("bob", "Who are you?"),
        ("carol", "Who are you?"),
        ("Who are you?",),
        ("alice", "Who are you?", "--mode", "common"),
        ("alice", "Who are you?", "--mode", "base", "--history-items", "0"),
        ("alice", "Who are you?", "--system", "Be brief.", "--max-tokens", "5"),
    ],
)
def test_the_answer_is_the_same_and_nothing_is_loaded(process: Process, words: tuple[str, ...]) -> None:
    by_server, here = both(*words)
    passing = ("seconds", "loading_seconds")
    assert {k: v for k, v in by_server.items() if k not in passing} == {
        k: v for k, v in here.items() if k not in passing
    }
    assert by_server["loading_seconds"] == 0


def test_a_label_is_the_same_with_the_same_memory(films: Process) -> None:
    for memory in ("off", "neighbours"):
        by_server, here = both("alice", "a film about the sea", "--task", "lamp-2", "--memory", memory)
        assert (by_server["text"], by_server["ended"]) == (here["text"], "label")
        gaps = [by_server["labels"][label] - here["labels"][label] for label in here["labels"]]
        assert max(gaps) - min(gaps) < 1e-3, "log-probabilities, where the command itself has log-likelihoods"


def test_the_owner_needs_no_key_and_strangers_do(process: Process) -> None:
    mta_ok("serve", "key", "add", "phone", "--users", "bob")
    process.process.send_signal(signal.SIGHUP)
    assert "by mta serve" in mta_ok("ask", "alice", "Who are you?", *FLAGS).err


def test_what_the_server_lacks_is_said_in_one_line(process: Process) -> None:
    for refused in ("--mode", "adapted"), ("--mode", "fused"):
        ran = mta("ask", "carol", "Who are you?", *FLAGS, *refused)
        assert ran.code != 0 and f"carol has no {refused[1]} model" in ran.err, ran.err


def test_only_a_server_with_the_same_settings_answers(process: Process, store_root: Path) -> None:
    (running,) = running_servers(store_root)
    machine = MachineOptions(dtype="float32")
    entry, same = resolve_model("tiny", "base"), ChatOptions(machine)
    with Registry.open(store_root) as reg:
        found = find_equivalent_server(reg, entry, same)
        assert found is not None and found.process == running.process
        for other in (
            ChatOptions(replace(machine, dtype="bfloat16")),
            ChatOptions(replace(machine, quantize="nf4")),
            ChatOptions(machine, memory=MemoryOptions(prior_weight=2.0)),
            ChatOptions(machine, free_decoding=True, task="lamp-2"),
            ChatOptions(machine, stops=("\n",)),
        ):
            assert find_equivalent_server(reg, entry, other) is None, other
        for as_asked in (
            ChatOptions(replace(machine, seed=3)),
            ChatOptions(machine, memory=MemoryOptions(memory="off")),
            ChatOptions(machine, answer=AnswerOptions(max_tokens=3, temperature=1.0)),
        ):
            assert find_equivalent_server(reg, entry, as_asked) is not None, as_asked
        assert find_equivalent_server(reg, replace(entry, fingerprint="sha256:other"), same) is None


@pytest.mark.parametrize(
    "change", [{"ready": False}, {"fingerprint": None}, {"chat": {}}, {"chat": None}], ids=lambda change: str(change)
)
def test_a_server_that_loads_or_is_of_another_version_is_left_alone(
    process: Process, store_root: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    (running,) = running_servers(store_root)
    changed = RunningServer(running.process, running.http, running.about | change)
    monkeypatch.setattr(answer_on_server, "running_servers", lambda root: [changed])
    machine = MachineOptions(dtype="float32")
    with Registry.open(store_root) as reg:
        assert find_equivalent_server(reg, resolve_model("tiny", "base"), ChatOptions(machine)) is None


def test_where_the_server_ends_in_between_the_model_is_loaded_here(process: Process, store_root: Path) -> None:
    (running,) = running_servers(store_root)
    process.end(signal.SIGKILL)
    asking = ChatOptions(MachineOptions(dtype="float32"))
    with Registry.open(store_root) as reg:
        entry = resolve_model("tiny", "base")
        events = list(answer_on_server.answer_on_server(reg, running, entry, "alice", "Who are you?", asking))
    here = mta_ok("ask", "alice", "Who are you?", *FLAGS, "--json").json()
    assert [event.result["text"] for event in events if isinstance(event, JobResult)] == [here["text"]]


def test_a_server_that_hangs_is_silent_and_keeps_nobody_waiting(process: Process, store_root: Path) -> None:
    process.process.send_signal(signal.SIGSTOP)
    try:
        (path,) = (store_root / "servers").glob("*.sock")
        waiting = []
        for _ in range(1_000):  # until it takes no more connections
            one = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            one.setblocking(False)
            waiting.append(one)
            try:
                with short_path(path) as place:
                    one.connect(place)
            except BlockingIOError:
                break
        assert running_servers(store_root) == []
        assert recheck_servers(store_root) == [process.process.pid]
    finally:
        process.process.send_signal(signal.SIGCONT)
        for one in waiting:
            one.close()


@pytest.mark.parametrize("users", [("alice",), ("bob", "carol")])
def test_a_comparison_is_the_same(process: Process, users: tuple[str, ...]) -> None:
    asked = ("compare", *(f"--user={one}" for one in users), "Who are you?", *FLAGS, "--json")
    by_server, here = mta_ok(*asked), mta_ok(*asked, "--no-server")
    assert _lasting(by_server.json()) == _lasting(here.json())


def test_a_comparison_of_labels_has_the_same_steps(films: Process) -> None:
    asked = ("compare", "alice", "a film about the sea", "--task", "lamp-2", *FLAGS, "--json")
    by_server, here = mta_ok(*asked).json(), mta_ok(*asked, "--no-server").json()
    assert by_server["answers"] == here["answers"]
    steps = [{mode: one and one["step"] for mode, one in each["details"].items()} for each in (by_server, here)]
    assert steps[0] == steps[1]


def _lasting(value: Any) -> Any:
    """Without seconds and rates, which differ each time."""
    if isinstance(value, list):
        return [_lasting(one) for one in value]
    if isinstance(value, dict):
        return {k: _lasting(v) for k, v in value.items() if k not in ("seconds", "tokens_per_second")}
    return value
