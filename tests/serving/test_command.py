"""`mta serve` as a process: addresses, signals, keys and what it says."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import httpx
import pytest

from mta_cli.pipeline.users.serve_keys import FILE_NAME, KeyFile
from mta_cli.pipeline.users.servers import recheck_servers
from store.registry import Registry
from tests.pipeline.world import make_world
from tests.serving.running import Process, ask
from tests.shell import mta, mta_ok


def test_it_answers_and_ends_when_it_is_told(process: Process, store_root: Path) -> None:
    body = ask("alice", "the canary sings", max_tokens=5)
    assert httpx.post(f"{process.url}/chat/completions", json=body, timeout=60).status_code == 200
    assert sorted(path.suffix for path in (store_root / "servers").iterdir()) == [".http", ".sock"]
    code, said = process.end()
    assert code == 0 and not list((store_root / "servers").iterdir())
    assert "POST /v1/chat/completions 200" in said and "canary" not in said and "alice" not in said


def test_running_answers_end_before_it_does(process: Process) -> None:
    body = {**ask("bob", "Tell me everything.", max_tokens=200, temperature=5, seed=1), "stream": True}
    with httpx.stream("POST", f"{process.url}/chat/completions", json=body, timeout=60) as stream:
        lines = stream.iter_lines()
        next(lines)
        process.process.send_signal(signal.SIGTERM)
        assert [line for line in lines if line][-1] == "data: [DONE]"
    assert process.end()[0] == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{process.url}/models")


def test_it_is_listed_with_the_running_jobs(process: Process, store_root: Path) -> None:
    with Registry.open(store_root) as reg, reg.hold_users("bank build of films", [reg.users.get("alice").id]):
        found = mta_ok("ps", "--json").json()
    assert {"kind": "job", "what": "bank build of films", "process": None, "users": 1} in found
    assert [one["process"] for one in found if one["kind"] == "server"] == [process.process.pid]
    assert "mta serve" in mta_ok("ps").out
    process.end()
    assert mta_ok("ps", "--json").json() == []


def test_ctrl_c_ends_it_as_every_job_and_is_no_error(process: Process) -> None:
    code, said = process.end(signal.SIGINT)
    assert code == 130 and "error" not in said


def test_removing_a_user_tells_the_server(process: Process) -> None:
    text = "a question that is long enough to be kept"
    assert httpx.post(f"{process.url}/chat/completions", json=ask("alice", text), timeout=60).status_code == 200
    mta_ok("user", "rm", "alice", "--yes")
    assert httpx.post(f"{process.url}/chat/completions", json=ask("alice", text), timeout=60).status_code == 404


def test_keys_are_made_listed_read_again_and_taken_back(process: Process, store_root: Path) -> None:
    made = mta_ok("serve", "key", "add", "phone", "--users", "alice,bob", "--json").json()
    assert made["users"] == ["alice", "bob"]
    assert mta_ok("serve", "key", "list", "--json").json()[0]["users"] == ["alice", "bob"]
    assert httpx.get(f"{process.url}/models").status_code == 200, "until it reads them again"
    process.process.send_signal(signal.SIGHUP)
    for _ in range(100):
        if (answered := httpx.get(f"{process.url}/models")).status_code == 401:
            break
        time.sleep(0.05)
    assert answered.status_code == 401
    opened = httpx.get(f"{process.url}/models", headers={"authorization": f"Bearer {made['key']}"}).json()
    assert [one["id"] for one in opened["data"]] == ["base", "alice", "bob"]
    mta_ok("user", "rm", "bob", "--yes")
    with Registry.open(store_root) as reg:
        reg.users.add("bob")
    again = httpx.get(f"{process.url}/models", headers={"authorization": f"Bearer {made['key']}"}).json()
    assert [one["id"] for one in again["data"]] == ["base", "alice"], "another bob"
    mta_ok("serve", "key", "rm", "phone")
    assert mta_ok("serve", "key", "list", "--json").json() == []
    assert mta("serve", "key", "rm", "phone").code == 3
    assert mta("serve", "key", "add", "x", "--users", "nobody").code == 3
    assert mta("serve", "key", "add", "x", "--users", " , ").code == 2


def test_a_key_may_be_for_a_name_with_a_comma(store_root: Path) -> None:
    with Registry.open(store_root, create=True) as reg:
        for name in ("ann", "Reed, Ann", "bob"):
            reg.users.add(name)
    made = mta_ok("serve", "key", "add", "phone", "--users", "Reed, Ann", "--users", "bob,ann", "--json").json()
    assert made["users"] == ["Reed, Ann", "bob", "ann"]


def test_no_name_makes_a_key_for_all_users(store_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Registry.open(store_root, create=True).close()
    for given in (["--users", "*"], ["--users", "*,bryn"], []):
        refused = mta("serve", "key", "add", "phone", *given)
        assert refused.code == 2 and "--all-users" in refused.err
    with monkeypatch.context() as before, Registry.open(store_root) as reg:
        before.setattr("store.names.RESERVED_NAMES", ())
        for name in ("*", "bryn"):  # the first in a store of an earlier version
            reg.users.add(name)
    assert mta("serve", "key", "add", "both", "--users", "*", "--all-users").code == 2
    mta_ok("serve", "key", "add", "star", "--users", "*")
    assert mta_ok("serve", "key", "add", "all", "--all-users", "--json").json()["users"] == ["*"]
    listed = {row["name"]: row["users"] for row in mta_ok("serve", "key", "list", "--json").json()}
    assert listed == {"star": ["*"], "all": ["*"]}
    keys = KeyFile.read(store_root / FILE_NAME)
    assert [[keys.allows(key, name) for name in ("*", "bryn")] for key in keys.keys] == [[True, False], [True, True]]


def test_what_cannot_be_served_is_said_at_once(store_root: Path) -> None:
    assert mta("serve").code == 3, "no store"
    make_world(store_root).reg.close()
    open_to_all = mta("serve", "--host", "0.0.0.0", "--port", "0")
    assert open_to_all.code == 2 and "mta serve key add" in open_to_all.err
    assert mta("serve", "--task", "nothing").code == 3
    assert mta("serve", "--keys", "no-file").code == 3
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        busy = mta("serve", "--port", taken.getsockname()[1])
    assert busy.code == 4 and "cannot listen on" in busy.err


def test_a_base_without_a_fast_path_is_refused_before_its_weights_are_read(
    store_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_world(store_root).reg.close()
    monkeypatch.setattr("mta_cli.engine.model.load.family_without_decoder", lambda path: "granite")
    monkeypatch.setattr("mta_cli.pipeline.models.load.load_on_device", None)
    ran = mta("serve", "--port", "0")
    assert ran.code == 2 and "does not support the family granite" in ran.err


def test_missing_packages_are_named(store_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mta_cli.commands.serve.PACKAGES", ("starlette", "no_such_package"))
    ran = mta("serve")
    assert ran.code == 2 and "no_such_package" in ran.err and ".[serve]" in ran.err


def test_a_socket_of_a_server_that_was_killed_disturbs_nobody(process: Process, store_root: Path) -> None:
    process.end(signal.SIGKILL)
    assert list((store_root / "servers").iterdir())
    assert recheck_servers(store_root) == [], "no server that runs is silent"
    mta_ok("user", "rm", "alice", "--yes")
    assert json.loads(mta_ok("user", "list", "--json").out)
