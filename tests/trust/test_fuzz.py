"""A short run of the fuzzer: a few hundred spoilt files, the same every time; `python -m tests.trust.fuzz` has more."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mta_cli.errors import BadInput
from tests.trust.fuzz import Tally, fuzz, table
from tests.trust.importers import Ground, Importer, importers
from tests.trust.tally import tally

SLOW = {"config": 15, "tokenizer": 20, "tokenizer config": 10}  # files that are loaded, the others `EACH`
EACH = 40


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    """One for all importers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MTA_MODELS", str(tmp_path_factory.mktemp("models")))
        made = Ground(tmp_path_factory.mktemp("fuzz") / "ground")
        yield made
        made.reg.close()


def test_spoilt_files_are_refused_in_words_or_taken(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MTA_CONFIG", str(ground.inbox / "mta.toml"))
    tallies = [fuzz(importer, 0, executions=SLOW.get(importer.name, EACH)) for importer in importers(ground)]
    crashes = {one.name: list(one.crashes) for one in tallies if one.crashes}
    assert not crashes, f"{table(tallies)}\n{crashes}"
    for one in tallies:
        assert 0 < one.refusals <= one.executions, one.name
        tally(f"spoilt files for {len(tallies)} importers", "refused in words", one.refusals)
        tally(f"spoilt files for {len(tallies)} importers", "taken", one.executions - one.refusals)
    assert "\x1b" not in capfd.readouterr().out  # nothing that a library writes itself, past our own writer


def test_the_fuzzer_tells_a_crash_and_a_change_behind_a_refusal(ground: Ground) -> None:
    def crash(content: bytes) -> None:
        if content != b"good":
            raise KeyError("x")

    def change(content: bytes) -> None:
        if content != b"good":
            ground.unchanged(lambda: (ground.reg.users.add(f"u{len(ground.reg.users.names())}"), refuse()))

    def refuse() -> None:
        raise BadInput("no")

    for offer, words in ((crash, "KeyError"), (change, "a refusal left something")):
        found: Tally = fuzz(Importer("it", [b"good"], lambda random, seed, seeds: b"bad", offer), 0, executions=3)
        assert found.executions == 3 and len(found.crashes) == 1 and words in next(iter(found.crashes))
