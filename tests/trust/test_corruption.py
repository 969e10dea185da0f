"""A bit flips, a file is cut, two things change places: the answer is the same or the damage is named, never another.

40 flips that a seed chooses; `MTA_TEST_FLIPS=400` chooses so many.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from pathlib import Path

import pytest

from mta_cli.errors import IntegrityFault
from mta_cli.pipeline.maintenance.repair import repair
from store.registry import Registry
from store.seals import SEALED
from tests.pipeline import town
from tests.shell import mta, mta_ok
from tests.trust.harm import Ground, change, cut, exchange, flip, kept, swap
from tests.trust.tally import tally

READ = {"users", "items", "profiles", "neighbours", "recipes", "stacks", "banks", "anchors", "adapters"}
"""Tables whose rows the questions of `harm` read."""

FLIPS = int(os.environ.get("MTA_TEST_FLIPS", "40"))
SHARES = {"registry": 0.6, "adapters": 0.2, "models": 0.2}


def outcome(ground: Ground, root: Path, when: str, harm: str) -> str:
    """How a `harm` came out: the same answers, or a named fault; anything else fails the test."""
    found = ground.ask(root)
    is_another = found.fault is None and found.given != ground.answers
    tally(harm, "another answer", int(is_another))
    assert not is_another, when
    if found.fault is None:
        tally(harm, "the same answers")
        return "same"
    assert found.fault.message and found.fault.hint, when
    tally(harm, "damage named")
    return "named"


def mended(root: Path, when: str) -> bool:
    """Whether a repair brought the store to where nothing is wrong; else it must have said that nothing does."""
    try:
        town.finish(repair(root, 10.0, lambda found: None))
    except IntegrityFault as fault:
        assert fault.hint, when
        tally("then `mta doctor --repair`", "told to restore a copy")
        return False
    with Registry.open(root) as reg:
        assert reg.check_integrity() == [], when
    assert town.finish(repair(root, 10.0, lambda found: None))[0] == {"repairs": []}, when
    tally("then `mta doctor --repair`", "nothing wrong afterwards")
    return True


def test_bits_of_the_registry(ground: Ground) -> None:
    rng, count = random.Random("registry"), Counter[str]()
    for _ in range(round(FLIPS * SHARES["registry"])):
        root = ground.copy()
        when = flip(root / "registry.db", rng)
        how = outcome(ground, root, when, "one bit of registry.db")
        count[how] += 1
        count["mended"] += mended(root, when)
    assert count["named"] > 0 and count["same"] > 0
    assert count["mended"] >= 0.95 * FLIPS * SHARES["registry"], "too many were given up"


def test_bits_of_adapters(ground: Ground) -> None:
    rng, count = random.Random("adapters"), Counter[str]()
    files = sorted(path.relative_to(ground.root) for path in ground.root.glob("adapters/??/*.safetensors"))
    for number in range(max(len(files), round(FLIPS * SHARES["adapters"]))):
        root = ground.copy()
        when = flip(root / files[number % len(files)], rng)
        count[outcome(ground, root, when, "one bit of an adapter")] += 1
        assert mended(root, when)
    assert count["named"] > 0


def test_bits_of_models(ground: Ground) -> None:
    rng, count = random.Random("models"), Counter[str]()
    files = sorted(path for folder in ground.folders.values() for path in folder.rglob("*") if path.is_file())
    for number in range(max(len(files), round(FLIPS * SHARES["models"]))):
        path = files[number % len(files)]
        with kept(path):
            count[outcome(ground, ground.copy(), flip(path, rng), "one bit of a model's file")] += 1
    assert count == {"named": count["named"]}


CUT = {"registry": "registry.db", "adapters": "an adapter", "models": "a model's file"}


@pytest.mark.parametrize("which", CUT)
def test_a_file_is_cut(ground: Ground, which: str) -> None:
    root = ground.copy()
    paths = {
        "registry": [root / "registry.db"] * 4,
        "adapters": list(root.glob("adapters/??/*.safetensors")),
        "models": [path for folder in ground.folders.values() for path in folder.rglob("*") if path.is_file()],
    }[which]
    for number, path in enumerate(sorted(paths)):
        with kept(path):
            when = cut(path, random.Random(f"{which} {number}"))
            assert outcome(ground, root, when, f"{CUT[which]} cut short") == "named", when


def test_adapters_in_each_others_places(ground: Ground) -> None:
    root = ground.copy()
    one, other, *_ = sorted(root.glob("adapters/??/*.safetensors"))
    swap(one, other)
    assert outcome(ground, root, "swapped", "two files in each other's places") == "named"
    assert mended(root, "swapped")


def filled(root: Path) -> None:
    """Something of every table that the ground has nothing of."""
    with Registry.open(root) as reg:
        for name in ("one", "two"):
            reg.tasks.save_task(name, f"name = '{name}'")
            chat = reg.chats.start_chat(reg.users.get("ida").id, name)
            reg.chats.add_message(chat.id, "user", name, {})
        first = reg.banks.get("lamp-2")
        reg.banks.get_or_create_bank("other", "key", "lamp-2", first.base, first.embedder, 0, {})


@pytest.mark.parametrize("table", SEALED)
def test_rows_in_each_others_places(ground: Ground, table: str) -> None:
    root = ground.copy()
    filled(root)
    exchange(root, table)
    with Registry.open(root) as reg:
        assert sum("is not what was stored" in line for line in reg.check_integrity()) >= 2
    how = outcome(ground, root, table, "two rows in each other's places")
    assert how == ("named" if table in READ else "same")
    assert mended(root, table)


@pytest.mark.parametrize("table", SEALED)
def test_every_sealed_column_is_looked_at(ground: Ground, table: str) -> None:
    whole = ground.copy()
    filled(whole)
    numbers, texts = SEALED[table]
    path = whole / "registry.db"
    number = "item_id" if table == "neighbours" else "rowid"
    for column in (*numbers, *texts):
        other = "9999" if column in numbers else f"coalesce({column}, '') || 'x'"
        with kept(path):
            change(whole, f"UPDATE {table} SET {column} = {other} WHERE {number} = (SELECT min({number}) FROM {table})")
            with Registry.open(whole) as reg:
                assert any("is not what was stored" in line for line in reg.check_integrity()), column
        tally("another value in a sealed column", "named by the check")


@pytest.mark.parametrize("table", [table for table, (_, texts) in SEALED.items() if texts])
def test_a_text_that_became_the_same_bytes_is_found(ground: Ground, table: str) -> None:
    """As one flipped bit in a record's header leaves it: a BLOB is no label, and is embedded as something else."""
    whole = ground.copy()
    filled(whole)
    path, found = whole / "registry.db", 0
    for column in SEALED[table][1]:
        with kept(path):
            there = f"(SELECT min(rowid) FROM {table} WHERE {column} IS NOT NULL)"
            if change(whole, f"UPDATE {table} SET {column} = CAST({column} AS BLOB) WHERE rowid = {there}") == 0:
                continue
            with Registry.open(whole) as reg:
                assert any("is not what was stored" in line for line in reg.check_integrity()), column
        tally("a text as bytes in a sealed column", "named by the check")
        found += 1
    assert found > 0


@pytest.mark.parametrize("key", ["bank_id", "item_id"])
def test_a_key_that_is_no_number_any_more_is_named_and_repaired(ground: Ground, key: str) -> None:
    root = ground.copy()
    first = "item_id = (SELECT min(item_id) FROM neighbours)"
    assert change(root, f"UPDATE neighbours SET {key} = x'0102' WHERE {first}") == 1
    with Registry.open(root) as reg:
        assert any("is not what was stored" in line for line in reg.check_integrity())
    tally("a key as bytes", "named by the check")
    assert mended(root, key)


def test_the_doctor_names_it_repairs_it_and_says_what_follows(ground: Ground) -> None:
    root = ground.copy()
    change(root, "UPDATE stacks SET numbers = zeroblob(length(numbers)) WHERE numbers IS NOT NULL")
    broken = mta("--store", root, "doctor", "--json")
    assert broken.code == 5 and "stack" in broken.out and "ida" in broken.out
    refused = mta("--store", root, "doctor", "--repair")
    assert refused.code == 2 and "--yes" in refused.err
    done = mta_ok("--store", root, "doctor", "--repair", "--yes", "--json").json()
    assert done["ok"] is True
    (only,) = done["repairs"]
    assert "ida" in only["what"] and only["again"] == "mta user adapt ida --task lamp-2"
    assert mta_ok("--store", root, "doctor", "--repair", "--yes", "--json").json()["repairs"] == []
