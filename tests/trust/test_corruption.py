"""A bit of a weight flips, a file is cut, two change places: the answer is the same or the damage is named.

40 flips that a seed chooses; `MTA_TEST_FLIPS=400` chooses so many.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from pathlib import Path

import pytest

from mta_cli.errors import IntegrityFault
from store.registry import Registry
from tests.shell import mta, mta_ok
from tests.trust.harm import Ground, change, cut, flip, kept, swap
from tests.trust.tally import tally

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


def named(root: Path) -> bool:
    """Whether `mta doctor` names the damage, which must not raise another kind of error."""
    try:
        with Registry.open(root) as reg:
            found = reg.check_integrity()
    except IntegrityFault as fault:
        assert fault.message and fault.hint
        return True
    return bool(found)


def test_bits_of_the_registry(ground: Ground) -> None:
    """Damage to its structure is named. A bit of a row is not always: SQLite keeps no checksums."""
    rng, count = random.Random("registry"), Counter[bool]()
    for _ in range(round(FLIPS * SHARES["registry"])):
        root = ground.copy()
        flip(root / "registry.db", rng)
        is_named = named(root)
        count[is_named] += 1
        tally("one bit of registry.db", "damage named" if is_named else "not named")
    assert count[True] > 0 and count[False] > 0


def test_bits_of_adapters(ground: Ground) -> None:
    rng, count = random.Random("adapters"), Counter[str]()
    files = sorted(path.relative_to(ground.root) for path in ground.root.glob("adapters/??/*.safetensors"))
    for number in range(max(len(files), round(FLIPS * SHARES["adapters"]))):
        root = ground.copy()
        when = flip(root / files[number % len(files)], rng)
        count[outcome(ground, root, when, "one bit of an adapter")] += 1
        assert named(root), when
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
    assert named(root)


def test_the_doctor_names_it_and_repairs_what_loses_nothing(ground: Ground) -> None:
    root = ground.copy()
    change(root, "INSERT INTO items_fts (items_fts) VALUES ('delete-all')")
    broken = mta("--store", root, "doctor", "--json")
    assert broken.code == 5 and "full-text index" in broken.out
    refused = mta("--store", root, "doctor", "--repair")
    assert refused.code == 2 and "--yes" in refused.err
    done = mta_ok("--store", root, "doctor", "--repair", "--yes", "--json").json()
    assert done["ok"] is True
    (only,) = done["repairs"]
    assert only["again"] == "nothing is lost"
    assert mta_ok("--store", root, "doctor", "--repair", "--yes", "--json").json()["repairs"] == []
