"""All file formats that `mta data import` knows. A new one is a module of its own and an entry here.

The module is in `mail` or `messengers` if its format is one of these kinds.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

Kind = Literal["table", "chat", "mail", "messenger", "document", "repository"]
"""Columns of a table can be mapped. Chats, mail and messengers' files belong to one user: a chat's file says which
messages are the user's; in mail and messengers' files, the user's addresses or names identify them. A document names
its users and queries itself. A repository is a folder that is read as a whole.
"""


@dataclass(frozen=True)
class Format:
    """A file format: a description in one line, its module beside this one, and the endings of its files' names.

    Its module has `recognise(sample)`: whether a file with this beginning has the format, regardless of its name.
    Tables and chats also have `read_rows(stream, file, findings)`, which yields `RawRow`s. Mail has `read_mails` with
    the same parameters, which yields `Mail`. Messengers have `read_messages(stream, path, findings)`, which yields
    `Message`. The stream is at its start; faults go to the findings. A repository has no module.

    `input_authors` names the authors of the inputs if these are other people; then new users are not anchors by
    default. `third_parties` names the users if they are not the person who imports them; then new users are anchors
    only with consent in the terminal or by a flag.
    """

    meaning: str
    module: str
    endings: tuple[str, ...] = ()
    kind: Kind = "table"
    input_authors: str = ""
    third_parties: str = ""

    def load(self) -> Any:
        """Import and return the module."""
        return import_module(f"{__package__}.{self.module}")


_CORRESPONDENTS = "the people who wrote to you"

FORMATS = {
    "lamp": Format("LaMP's questions, with --outputs also its answers", "lamp", kind="document"),
    "users": Format("one JSON list of users with profile and held-out queries", "users", kind="document"),
    "mbox": Format("a mailbox: mails, and your replies to them", "mail.mbox", (".mbox",), "mail", _CORRESPONDENTS),
    "eml": Format("one mail, or a folder of mails", "mail.eml", (".eml",), "mail", _CORRESPONDENTS),
    "telegram": Format("Telegram's export of chats, result.json", "telegram", (), "chat", _CORRESPONDENTS),
    "whatsapp": Format(
        "WhatsApp's export of a chat, _chat.txt", "messengers.whatsapp", (), "messenger", _CORRESPONDENTS
    ),
    "slack": Format("Slack's export, a folder with users.json", "messengers.slack", (), "messenger", _CORRESPONDENTS),
    "discord": Format(
        "a channel of Discord, by DiscordChatExporter", "messengers.discord", (), "messenger", _CORRESPONDENTS
    ),
    "chatgpt": Format("ChatGPT's export, conversations.json", "chatgpt", (), "chat", "an assistant"),
    "claude": Format("Claude's export, conversations.json", "claude", (), "chat", "an assistant"),
    "messages": Format(
        "conversations for training, OpenAI's or ShareGPT's", "messages", (), "table", "the people who ask"
    ),
    "git": Format(
        "a git repository: each author's changes, and their messages",
        "",
        kind="repository",
        third_parties="the authors of a repository",
    ),
    "parquet": Format("an Apache Parquet table", "parquet", (".parquet",)),
    "jsonl": Format("one JSON record a line", "json_lines", (".jsonl", ".ndjson")),
    "json": Format("one JSON list of records", "json_records", (".json",)),
    "csv": Format("a table with a header line; commas, semicolons or tabs", "delimited", (".csv", ".tsv")),
}
"""The formats in the order of detection. csv comes last, because almost any text could be a table."""
