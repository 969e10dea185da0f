"""Damages a copy of a store or of models at chosen places, and asks it. Asserts nothing."""

from __future__ import annotations

import gc
import os
import random
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from mta_cli.errors import IntegrityFault
from mta_cli.options import AnswerOptions, PromptOptions
from mta_cli.pipeline.chat.answer import ChatModel
from mta_cli.pipeline.chat.compare import Question, compare_question
from mta_cli.pipeline.chat.conversation import Conversation
from mta_cli.pipeline.models import verify
from mta_cli.pipeline.models.installed import resolve_model
from mta_cli.pipeline.models.pull import register_folder
from mta_cli.pipeline.personalize.adapt import adapt_users
from mta_cli.pipeline.personalize.fuse import fuse_user
from mta_cli.pipeline.requests import AdaptRequest, ChatOptions
from store.registry import Registry
from tests.pipeline import town

ASKING = ChatOptions(machine=town.CPU, prompt=PromptOptions(2), answer=AnswerOptions(max_tokens=3))
QUESTION = "a film about a ship and a horse"
TIMES = {"seconds", "tokens_per_second", "created"}


@dataclass(frozen=True)
class Answers:
    """What was answered; else the fault that was named instead."""

    given: Any = None
    fault: IntegrityFault | None = None


class Ground:
    """A store that can answer, with models; every trial is on copies. `place` is a folder of its own."""

    def __init__(self, place: Path, base: Path, embedder: Path) -> None:
        self.place, self._numbers = place, iter(range(10**9))
        self.folders = {"tiny": place / "models" / "b", "tiny-embedder": place / "models" / "e"}
        for folder, source in zip(self.folders.values(), (base, embedder), strict=True):
            shutil.copytree(source, folder)
        self.root = place / "store"
        for name, folder in self.folders.items():
            register_folder(folder, name=name)
        with Registry.open(self.root, create=True) as reg:
            town.people(reg, long=4, items=6)
            town.built(reg)
            town.finish(adapt_users(reg, AdaptRequest([reg.users.get("ida")], town.QUICK, town.fuse_request())))
            town.give_core(reg, "jon")  # of a former version
            town.finish(fuse_user(reg, reg.users.get("kim"), town.fuse_request()))

    @cached_property
    def answers(self) -> Any:
        """What the undamaged store answers."""
        whole = self.ask(self.copy())
        assert whole.fault is None, whole.fault
        return whole.given

    def copy(self) -> Path:
        """The store once more."""
        return Path(shutil.copytree(self.root, self.place / f"trial-{next(self._numbers)}"))

    def ask(self, root: Path) -> Answers:
        """All users' answers in every way, as from a fresh process."""
        verify._verified_keys.clear()
        try:
            return Answers(list(map(_timeless, _given(root))))
        except IntegrityFault as fault:
            found = Answers(fault=fault.with_traceback(None))
            fault.__cause__ = fault.__context__ = None
        gc.collect()  # what failed may hold a statement of SQLite, and that the store
        return found


def _given(root: Path) -> Iterator[Any]:
    """All users in one batch, one user alone with text, and a new fusion."""
    with Registry.open(root) as reg:
        ida, jon, kim = map(reg.users.get, town.SHORT)
        voice = ChatModel.load_for_user(reg, resolve_model("tiny", "base"), ida, replace(ASKING, task="lamp-2"))
        yield town.finish(compare_question(voice, Question(QUESTION), [jon, kim]))[0]
        voice.set_user_and_options(jon, ASKING)
        yield town.finish(Conversation(voice, autosave=False).answer_message(QUESTION))[0]
        yield town.finish(fuse_user(reg, kim, town.fuse_request()))[0]


def _timeless(document: Any) -> Any:
    if isinstance(document, dict):
        return {key: _timeless(value) for key, value in document.items() if key not in TIMES}
    return [_timeless(value) for value in document] if isinstance(document, list) else document


def flip(path: Path, rng: random.Random) -> str:
    """Flip one bit of a file, where something is written more often than not; returns where. Its times stay."""
    times, content = path.stat(), bytearray(path.read_bytes())
    written = [place for place, byte in enumerate(content) if byte] if rng.random() < 0.7 else range(len(content))
    place, bit = rng.choice(written), rng.randrange(8)
    content[place] ^= 1 << bit
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    return f"{path.name}: byte {place}, bit {bit}"


def cut(path: Path, rng: random.Random) -> str:
    """Cut a file off; returns where."""
    size = rng.randrange(path.stat().st_size)
    os.truncate(path, size)
    return f"{path.name}: cut to {size} bytes"


def swap(one: Path, other: Path) -> None:
    """Put two files in each other's places."""
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


def change(root: Path, *statements: str) -> int:
    """Change the database as no program of ours would; returns how many rows changed."""
    with closing(sqlite3.connect(root / "registry.db", isolation_level=None)) as conn:
        conn.execute("PRAGMA foreign_keys = OFF")
        for statement in statements:
            conn.execute(statement)
        return conn.total_changes


@contextmanager
def kept(path: Path) -> Iterator[None]:
    """Afterwards, a file is as it was before."""
    content, times = path.read_bytes(), path.stat()
    try:
        yield
    finally:
        path.write_bytes(content)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
