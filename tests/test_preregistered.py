"""The commands of docs/results/preregistered.md run as they are printed, on invented users and a tiny base."""

from __future__ import annotations

import json
import random
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from tests.shell import mta_ok

PAGE = Path(__file__).parent.parent / "docs" / "results" / "preregistered.md"
SEEDS = "0", "1"


def invented(name: str, *, queries: int) -> dict[str, Any]:
    """A reviewer with a scale of their own, in the form of the data."""
    draw = random.Random(name)
    words = [
        f"{draw.choice(('dull', 'warm', 'loud', 'sly'))} {draw.choice(('film', 'play', 'farce'))}" for _ in range(9)
    ]
    items = [
        {
            "id": f"{name}-{n}",
            "text": f"A {said}, scene {n}.",
            "score": str(draw.randint(1, 5)),
            "date": f"2001-01-{n + 1:02}",
        }
        for n, said in enumerate(words)
    ]
    asked = [
        {
            "id": f"{name}-q{n}",
            "input": f"A {said}, act {n}.",
            "gold": str(draw.randint(1, 5)),
            "date": f"2002-01-{n + 1:02}",
        }
        for n, said in enumerate(words[:queries])
    ]
    return {"user_id": name, "profile": items, "query": asked}


def commands() -> list[str]:
    """The lines of the page's block, without comments."""
    (block,) = re.findall(r"^```\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.S | re.M)
    return [line.partition("#")[0].strip() for line in block.splitlines()]


def test_the_commands_measure_new_users(store_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MTA_BANK_RANK", "2")
    new = [invented(f"new{n}", queries=2) for n in range(8)]
    (tmp_path / "KNOWN.json").write_text(json.dumps([invented(f"known{n}", queries=0) for n in range(8)]))
    (tmp_path / "NEW.json").write_text(json.dumps(new))
    (tmp_path / "NEW.txt").write_text("".join(f"{one['user_id']}\n" for one in new))
    export, *lines = commands()
    assert export == "export MTA_STORE=new-$SEED" and lines[0] == "mta init"
    for seed in SEEDS:
        monkeypatch.setenv("MTA_STORE", f"new-{seed}")
        for line in lines:
            words = [word.replace("$SEED", seed).replace("TASK", "lamp-3") for word in shlex.split(line)]
            words = ["3" if before == "--anchors" else word for before, word in zip(["", *words], words, strict=False)]
            assert words[0] == "mta"
            mta_ok(*words[1:])
    shown = mta_ok("eval", "show", *(f"new-{seed}.json" for seed in SEEDS), "--json").json()
    steps = {one["step"] for one in shown["ladder"]["steps"]}
    assert {"common+memory", "fused", "adapted", "another's"} <= steps and shown["users"] == 8
    (whose,) = (one for one in shown["ladder"]["whose"] if one["step"] == "adapted")
    assert whose["questions"] == 16 * len(SEEDS)
