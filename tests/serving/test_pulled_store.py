"""A server on a pulled store goes on with the next copy, without a restart."""

from __future__ import annotations

from pathlib import Path

import pytest

from mta_cli.pipeline.maintenance.snapshot import publish_snapshot, pull_snapshot
from tests.network import allow_hosts
from tests.pipeline.world import make_world
from tests.serving.running import ask, run_server


def test_a_running_server_serves_the_next_copy(
    store_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allow_hosts(monkeypatch)
    world, fleet, node = make_world(store_root), str(tmp_path / "fleet"), tmp_path / "node"

    def ship() -> None:
        list(publish_snapshot(world.reg, fleet, (), None, hash_names=False, dry_run=False))
        list(pull_snapshot(node, fleet, None, 5.0, dry_run=False))

    ship()
    running = run_server(node, write=True)
    try:
        first = running.chat("alice", "Hi", logprobs=True)
        assert first["mta"]["mode"] == "adapted"
        written = running.post("/users/alice/items", {"input": "a", "output": "b"})
        assert written.status_code == 400 and "copy of a snapshot" in written.text
        bank = world.reg.banks.get("tests")
        world.reg.stacks.remove(world.alice.id, "free", bank.id)
        world.reg.users.forget(world.bob.id)
        world.reg.users.add("dora")
        assert running.chat("bob", "Hi")["mta"]["mode"] == "fused", "the copy is as it was"
        ship()
        assert running.chat("alice", "Hi", logprobs=True)["mta"]["mode"] == "fused"
        assert running.post("/chat/completions", ask("bob", "Hi")).status_code == 404
        assert running.chat("dora", "Hi")["mta"]["mode"] == "common"
    finally:
        running.stop()
        world.reg.close()
