"""Everything that reads what strangers wrote, each with good files to begin from and a way to offer it a spoilt one.

An importer's `offer` ends, or raises an MtaError and has then changed nothing; it raises AssertionError where it did.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mta_cli.errors import MtaError
from store.registry import Registry
from tests.tiny import CHAT_TEMPLATE, make_base
from tests.trust.mutations import (
    Mutate,
    spoil_bytes,
    spoil_header,
    spoil_json,
    spoil_lines,
    spoil_zip,
)

EXPORTS = Path(__file__).parent.parent / "pipeline" / "data" / "exports"
ITEMS = [{"id": str(n), "text": f"film {n}", "tag": "comedy", "date": "2026-01-02"} for n in range(3)]
LAMP = [{"id": "q1", "user_id": "ann", "input": "a film", "profile": [{**e, "description": e["text"]} for e in ITEMS]}]
USERS = [
    {
        "user_id": name,
        "profile": [{"id": str(n), "input": f"in {n}", "output": "out"} for n in range(3)],
        "query": [{"id": "q", "input": "more", "gold": "yes", "date": "2026-05-06"}],
    }
    for name in ("ann", "böb")
]
ROWS = [
    {"user": name, "input": f"say {n}", "output": "yes", "id": f"{n}", "time": "2026-08-01T12:00:00Z", "task": "free"}
    for name in ("ann", "böb")
    for n in range(3)
]
TOML = (
    'name = "mine"\nkind = "label"\nlabels = ["yes", "no"]\nprompt = "Say {input}"\nitem = "{input}: {output}"\n'
    'question_pattern = \'(?s)Which .*? tag: (?P<input>.*)\'\nquery_tokens = 30\ninput_field = ["a", "b"]\n'
)
SETTINGS = '[bank]\nrank = 4\nanchors = 3\n\n[models]\nbase = "tiny"\n\n[adapt]\nlearning_rate = 0.1\n'
QUESTION = "Which of these is the tag: " + "a, " * 200


@dataclass(frozen=True)
class Importer:
    """A reader of foreign files. `share` is how much of the time it gets, against 1."""

    name: str
    seeds: Sequence[bytes]
    spoil: Mutate
    offer: Callable[[bytes], None]
    share: float = 1.0


class Ground:
    """A folder with a store and good models, on which spoilt files are tried."""

    def __init__(self, root: Path) -> None:
        self.root, self.inbox = root, root / "inbox"
        self.inbox.mkdir(parents=True)
        self.base = make_base(root / "base")
        self.reg = Registry.open(root / "store", create=True)

    def file(self, name: str, content: bytes) -> Path:
        """The content as a file."""
        path = self.inbox / name
        path.write_bytes(content)
        return path

    def folder(self, **files: bytes) -> Path:
        """The good base with some files changed; `tokenizer_json=…` is tokenizer.json."""
        path = self.inbox / "model"
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(self.base, path)
        for name, content in files.items():
            (path / name.replace("_json", ".json").replace("_safetensors", ".safetensors")).write_bytes(content)
        return path

    def unchanged(self, act: Callable[[], Any]) -> None:
        """Act on the store; where that is refused, nothing in it may have changed."""
        before = self._state()
        try:
            act()
        except MtaError:
            assert self._state() == before, "a refusal left something in the store"
            raise

    def _state(self) -> list[Any]:
        counts = [
            len(self.reg.users.names()),
            sum(count for task in ("free", "lamp-2") for _, count in self.reg.users.users_with_items(task)),
            sorted(self.reg.tasks.all()),
        ]
        return [*counts, len(self.reg.adapters.all()), sorted(os.listdir(self.root / "store"))]


def _histories(ground: Ground) -> list[Importer]:
    from mta_cli.pipeline.users.import_file import import_file

    def offer(format: str, task: str | None, user: str | None = None) -> Callable[[bytes], None]:
        def each(content: bytes) -> None:
            path = ground.file(f"history.{format}", content)
            ground.unchanged(lambda: list(import_file(ground.reg, format, path, task=task, user=user)))
            with ground.reg.transaction():  # what is known would be refused for that alone
                for name in ground.reg.users.names():
                    ground.reg.users.forget(ground.reg.users.get(name).id)

        return each

    def offer_zip(content: bytes) -> None:
        path = ground.file("chat.zip", content)
        ground.unchanged(lambda: list(import_file(ground.reg, None, path, user="ann reed", dry_run=True)))

    chat = io.BytesIO()
    with zipfile.ZipFile(chat, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("_chat.txt", "WhatsApp Chat with Bob Lind.txt"):
            archive.write(EXPORTS / "whatsapp" / name, name)
    lines = "\n".join(json.dumps(row) for row in ROWS).encode()
    table = "\n".join([",".join(ROWS[0]), *(",".join(f'"{cell}"' for cell in row.values()) for row in ROWS)]).encode()
    return [
        Importer("lamp", [json.dumps(LAMP).encode()], spoil_json, offer("lamp", "lamp-2")),
        Importer("users", [json.dumps(USERS).encode()], spoil_json, offer("users", None)),
        Importer("jsonl", [lines], spoil_lines, offer("jsonl", None)),
        Importer("json", [json.dumps(ROWS).encode()], spoil_json, offer("json", None)),
        Importer("zip", [chat.getvalue()], spoil_zip, offer_zip),
        Importer("csv", [table, table.replace(b",", b";")], spoil_bytes, offer("csv", None)),
        *(
            Importer(name, [(EXPORTS / path).read_bytes()], spoil, offer(name, None, me))
            for name, path, spoil, me in (
                ("mbox", "mail/takeout.mbox", spoil_bytes, "ann@example.org"),
                ("telegram", "telegram/result.json", spoil_json, "ann@example.org"),
                ("whatsapp", "whatsapp/_chat.txt", spoil_bytes, "ann reed"),
                ("slack", "slack/harbour/2026-03-02.json", spoil_json, "U0100ANN"),
                ("discord", "discord/Harbour - boats [300].json", spoil_json, "ann_reed"),
                ("chatgpt", "chatgpt/conversations.json", spoil_json, "ann@example.org"),
                ("claude", "claude/conversations.json", spoil_json, "ann@example.org"),
                ("messages", "messages/sharegpt.json", spoil_json, "ann@example.org"),
            )
        ),
    ]


def _words(ground: Ground) -> list[Importer]:
    from mta_cli.configuration.settings import OPTION_CLASSES, Settings
    from mta_cli.engine.text.task_files import parse_task, task_to_toml
    from mta_cli.pipeline.data.tasks import add_task, remove_task
    from mta_cli.pipeline.models.manifest import read_manifest

    def task(content: bytes) -> None:
        path, found = ground.file("mine.toml", content), []
        ground.unchanged(lambda: found.append(add_task(ground.reg, path)))
        mine = found[0][0]
        assert parse_task(task_to_toml(mine), "again") == mine
        remove_task(ground.reg, mine.name)
        mine.strip_instruction(QUESTION)
        mine.fill_item(mine.fill_prompt("x"), "y")

    def settings(content: bytes) -> None:
        ground.file("mta.toml", content)
        read = Settings.load(ground.inbox)
        for section in OPTION_CLASSES:
            read.build_options(section)

    def manifest(content: bytes) -> None:
        ground.file("mta-model.json", content)
        read_manifest(ground.inbox)

    good = json.dumps({"name": "tiny", "kind": "base", "files": {"a": "b"}, "bytes": 3, "folder": "/x"}).encode()
    return [
        Importer("task", [TOML.encode()], spoil_bytes, task),
        Importer("settings", [SETTINGS.encode()], spoil_bytes, settings),
        Importer("manifest", [good], spoil_json, manifest, 0.3),
    ]


def _models(ground: Ground) -> list[Importer]:
    from mta_cli.engine.model.checkpoint_files import check_folder, parameter_count
    from mta_cli.engine.model.load import load_base
    from mta_cli.engine.text.chat_template import ChatTemplate

    def header(content: bytes) -> None:
        path = ground.folder(model_safetensors=content)
        check_folder(path)
        parameter_count(path)

    def loaded(name: str) -> Callable[[bytes], None]:
        def each(content: bytes) -> None:
            path = ground.folder(**{name: content})
            check_folder(path, thorough=True)  # as when it is pulled
            load_base(path, name="m", fingerprint="x", device="cpu", dtype="float32")

        return each

    def template(content: bytes) -> None:
        ChatTemplate(content.decode("utf-8", "replace"), {"bos_token": "<s>"}).render_layout(("user",), generation=True)

    def good(name: str) -> list[bytes]:
        return [(ground.base / name).read_bytes()]

    templates = [CHAT_TEMPLATE.encode(), b"{% set x = messages[0] %}{{ x['content'] | trim ~ '' }}"]
    return [
        Importer("weights header", good("model.safetensors"), spoil_header, header),
        Importer("config", good("config.json"), spoil_json, loaded("config_json"), 2),
        Importer("tokenizer", good("tokenizer.json"), spoil_json, loaded("tokenizer_json"), 2),
        Importer("tokenizer config", good("tokenizer_config.json"), spoil_json, loaded("tokenizer_config_json")),
        Importer("template", templates, spoil_bytes, template),
    ]


def _weights(ground: Ground) -> list[Importer]:
    from mta_cli.engine.lora.adapter import LoraWeights, init_lora_weights
    from mta_cli.engine.model.load import load_base
    from mta_cli.pipeline.models import download

    base = load_base(ground.base, name="tiny", fingerprint="x", device="cpu", dtype="float32")
    adapter = init_lora_weights(base.model, "q_proj,down_proj", "all", 2, 4.0, 0).to_bytes({"kind": "meta"})
    package = replace(
        next(iter(fetch_packages().values())), folder="tiny/model", gguf=None, bytes=400_000, wheel_bytes=400_000
    )

    def lora(content: bytes) -> None:
        weights = LoraWeights.from_file(ground.file("adapter.safetensors", content))
        weights.norm()
        assert weights.rank < 10**6

    def wheel(content: bytes) -> None:
        partial, outside = ground.inbox / "partial", hashlib.sha256(repr(_tree(ground)).encode()).digest()
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        path = partial / "x.whl"
        path.write_bytes(content)
        try:
            download._unpack(package, path, partial, partial / "model")
        finally:
            assert hashlib.sha256(repr(_tree(ground)).encode()).digest() == outside, "something left the folder"
            made = [file for file in partial.rglob("*") if file != path]
            assert all(file.is_relative_to(partial / "model") and not file.is_symlink() for file in made)

    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        for file in sorted(ground.base.iterdir()):
            archive.write(file, f"tiny/model/{file.name}")
    return [
        Importer("adapter", [adapter], spoil_header, lora),
        Importer("wheel", [whole.getvalue()], spoil_zip, wheel),
    ]


def fetch_packages() -> dict[str, Any]:
    """The catalogue, of which one entry is taken as a pattern."""
    from mta_cli.pipeline.models.catalog import PACKAGES

    return PACKAGES


def _tree(ground: Ground) -> list[Path]:
    """Every file below the ground that no wheel may touch."""
    kept = (ground.inbox / "partial",)
    return sorted(path for path in ground.root.rglob("*") if not any(path.is_relative_to(each) for each in kept))


def importers(ground: Ground) -> list[Importer]:
    """All importers."""
    return [*_histories(ground), *_words(ground), *_models(ground), *_weights(ground)]
