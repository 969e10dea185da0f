"""Commands that are put on trial, each with the store that it begins on, made once."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from pathlib import Path

from store.registry import Registry
from tests.pipeline import town
from tests.store.test_schema import older_store, sql
from tests.trust.inspection import Contents, contents, faults, folder, torn_models
from tests.trust.orders import NOTHING, Harm, Job, Order, Outcome, begin, crew

CPU = ("--device", "cpu", "--dtype", "float32")
SECRET = "the heron waits by lock nineteen"
BUILD = (
    "bank",
    "build",
    "--task",
    "lamp-2",
    "--anchors",
    "3",
    "--rank",
    "2",
    "--epochs",
    "1",
    "--task-epochs",
    "1",
    "--min-items",
    "5",
    *CPU,
)
ADAPT = ("user", "adapt", *town.SHORT, "--steps", "4", *CPU)
CHAT = ("chat", "--user", "ida", "--max-tokens", "4", *CPU)
IMPORT = ("data", "import", "jsonl", "history.jsonl")
LARGE_IMPORT = ("data", "import", "jsonl", "large.jsonl")
IMPORTED = {"history.jsonl": 80, "large.jsonl": 6_000}  # records; so many are written in several batches
LINES = b"a film about a ship\nand one about a horse\nwhich of them is older\n"


@dataclass(frozen=True)
class Scene:
    """A command and the store that it begins on. `again`: the codes with which it may end when it is run once more."""

    name: str
    start: str
    arguments: tuple[str, ...]
    stdin: bytes = b""
    again: tuple[int, ...] = (0,)


SCENES = {
    scene.name: scene
    for scene in (
        Scene("bank build", "people", BUILD),
        Scene("user adapt", "bank", ADAPT),
        Scene("data import", "people", IMPORT),
        Scene("large data import", "people", LARGE_IMPORT),
        Scene("user rm", "adapted", ("user", "rm", "ida", "--yes"), again=(0, 3)),
        Scene("pull", "copy", ("pull", "fleet")),
        Scene("restore", "forgotten", ("restore", "backup.mta", "--yes")),
        Scene("model pull", "nothing", ("model", "pull", "tiny", "--name", "mine")),
        Scene("chat", "adapted", CHAT, LINES),
        Scene("migration", "old schema", ("user", "list", "--json")),
    )
}


@dataclass
class Trial:
    """A scene on stores and models of its own."""

    stage: Stage
    scene: Scene
    place: Path

    @property
    def store(self) -> Path:
        """The store that the command works on."""
        return self.place / "store"

    @property
    def models(self) -> Path:
        """The models directory that it works with."""
        return self.place / "models" if self.scene.start == "nothing" else self.stage.models

    def run(self, harm: Harm = NOTHING, *, checkpoints: bool = True) -> Outcome:
        """Run the command, and let it meet `harm`."""
        scene = self.scene
        return self.stage.begin(self.store, scene.arguments, scene.stdin, harm, self.models, checkpoints).wait()

    def faults(self) -> list[str]:
        """See `inspection`."""
        if self.scene.start == "nothing":
            return torn_models(self.models)
        found = faults(self.store, self.place)
        if self.scene.name == "pull":  # a file too many, which the next pull removes
            found = [line for line in found if "a file of no recorded adapter" not in line]
        return found

    def contents(self) -> Contents:
        """See `inspection`."""
        return folder(self.models) if self.scene.start == "nothing" else contents(self.store)


class Stage:
    """Runs commands, and makes the stores that they begin on. `place` is a folder of its own."""

    def __init__(self, place: Path, base: Path, embedder: Path) -> None:
        self.place = place
        self._context, self._numbers = crew(), count()
        for name, path in (("tiny", base), ("tiny-embedder", embedder)):
            (place / name).symlink_to(path)
        (place / "settings.toml").touch()
        for name, many in IMPORTED.items():
            records = [
                {"user": f"reader{n % 4}", "id": str(n), "input": f"page {n}", "output": "x" * (n % 80 + 1)}
                for n in range(many)
            ]
            (place / name).write_text("".join(json.dumps(record) + "\n" for record in records))

    def begin(
        self,
        store: Path,
        arguments: tuple[str, ...],
        stdin: bytes = b"",
        harm: Harm = NOTHING,
        models: Path | None = None,
        checkpoints: bool = True,
    ) -> Job:
        """Start a command on a store, in the stage's own folder."""
        env = {
            "MTA_STORE": str(store),
            "MTA_MODELS": str(models or self.models),
            "MTA_MODELS_BASE": "tiny",
            "MTA_MODELS_EMBEDDER": "tiny-embedder",
            "MTA_CONFIG": str(self.place / "settings.toml"),
            "NO_COLOR": "1",
        }
        said = self.place / f"said-{next(self._numbers)}"
        return begin(self._context, Order(arguments, env, stdin, self.place, said, harm, checkpoints))

    def trial(self, name: str) -> Trial:
        """The scene of this name, on a copy of its store."""
        scene = SCENES[name]
        place = self.place / f"trial-{next(self._numbers)}"
        place.mkdir()
        if scene.start != "nothing":
            shutil.copytree(self.store(scene.start), place / "store")
        return Trial(self, scene, place)

    @cached_property
    def models(self) -> Path:
        """A models directory with both tiny models. Treat it as read-only."""
        path = self.place / "models"
        for name in ("tiny", "tiny-embedder"):
            ran = self.begin(self.place, ("model", "pull", f"./{name}", "--name", name), models=path).wait()
            assert ran.code == 0, ran.err
        return path

    def store(self, name: str) -> Path:
        """The store of this name, made when first asked for. Treat it as read-only."""
        root = self.place / "stores" / name
        if root.exists():
            return root
        root.parent.mkdir(exist_ok=True)
        if name == "old schema":
            _older(root)
        elif name == "people":
            with Registry.open(root, create=True) as reg:
                town.people(reg, long=4, items=6)
                user = reg.users.get("ida")
                reg.items.append_items(user.id, [town.NewItem("secret", "lamp-2", SECRET, "comedy", "2020-02-01")])
        elif name == "forgotten":
            shutil.copytree(self.store("adapted"), root)
            for arguments in (
                ("backup", "backup.mta"),
                ("user", "rm", "ida", "--yes"),
                ("user", "consent", "kim", "--no-can-anchor"),
            ):
                ran = self.begin(root, arguments).wait()
                assert ran.code == 0, ran.err
        elif name == "copy":
            source = self.place / "stores" / "published"
            shutil.copytree(self.store("adapted"), source)
            for store, arguments in (
                (source, ("snapshot", "fleet")),
                (root, ("pull", "fleet")),
                (source, ("user", "rm", "ida", "--yes")),
                (source, ("snapshot", "fleet")),
            ):
                ran = self.begin(store, arguments).wait()
                assert ran.code == 0, ran.err
        else:
            earlier, commands = ("people", [BUILD]) if name == "bank" else ("bank", [ADAPT, CHAT])
            shutil.copytree(self.store(earlier), root)
            for arguments in commands:
                ran = self.begin(root, arguments, LINES).wait()
                assert ran.code == 0, ran.err
        return root


def _older(root: Path) -> None:
    """A store as it was before, with people and items in it."""
    older_store(root)
    people = ", ".join(f"({n}, 'user{n}', 1, '2020')" for n in range(1, 6))
    items = ", ".join(f"({n}, '{key}', 'free', 'an old sentence', 'out')" for n in range(1, 6) for key in range(12))
    sql(root, f"INSERT INTO users (id, name, can_anchor, created) VALUES {people}")
    sql(root, f"INSERT INTO items (user_id, key, task, input, output) VALUES {items}")
