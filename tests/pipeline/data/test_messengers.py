"""Exports of WhatsApp, Slack and Discord: whose words become items, what they answer, and what is left out."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import time
import tracemalloc
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mta_cli.errors import BadInput, Flag, UsageError, words_to_text
from mta_cli.pipeline.data.formats import archive
from mta_cli.pipeline.data.formats.messengers import discord, slack
from mta_cli.pipeline.data.formats.messengers import replies as messenger_replies
from mta_cli.pipeline.data.formats.messengers.whatsapp import OPEN_ORDER
from mta_cli.pipeline.data.formats.parse_results import ParseFindings, SourceLocation
from mta_cli.pipeline.data.formats.turns import Turn, pair_turns
from store.registry import Registry
from tests.pipeline.data.test_exports import EXPORTS, OTHERS, STRANGE, items, places, reg, take

__all__ = ["reg"]
PHONE, ANDROID = EXPORTS / "whatsapp" / "_chat.txt", EXPORTS / "whatsapp" / "WhatsApp Chat with Bob Lind.txt"
SLACK, DISCORD = EXPORTS / "slack", EXPORTS / "discord" / "Harbour - boats [300].json"
MARK, NARROW = "\u200e", "\u202f"


def chat(tmp_path: Path, *lines: str, head: str = "02/03/2026, 08:{:02} - ", name: str = "chat.txt") -> Path:
    """A chat whose lines have a minute each; a line that begins with a space continues the one above."""
    written, minute = [], 0
    for line in lines:
        minute += not line.startswith(" ")
        written.append(line[1:] if line.startswith(" ") else head.format(minute) + line)
    path = tmp_path / name
    path.write_text("\n".join(written) + "\n", encoding="utf-8")
    return path


def talk(reg: Registry, path: Path, *me: str, **options: Any) -> list[tuple[str, str]]:
    """Inputs and outputs of an import as a new user."""
    me = me or ("Ann",)
    take(reg, path, *me, **options)
    found = [(question, answer) for question, answer, _ in items(reg, me[0])]
    reg.users.forget(reg.users.get(me[0]).id)
    return found


def test_whatsapp_of_an_iphone(reg: Registry) -> None:
    result, notes = take(reg, PHONE, "ann reed")
    assert (result["format"], result["items_added"]) == ("whatsapp", 2)
    assert items(reg, "ann reed") == [
        (
            "Are you at the pier?\nThe ferry leaves\nat ten: sharp",
            "almost\ntwo more minutes",
            "2026-03-02T08:17:02",
        ),
        ("@Ann Reed see page two", "found it", "2026-03-14T09:00:00"),
    ]
    assert notes == [
        "_chat.txt is read as whatsapp: 12 messages, of which 6 are yours, from 'Ann Reed'",
        "left out, messages without text: 5",
        "left out, your replies to messages without text: 1",
        OTHERS,
    ]


def test_whatsapp_of_android(reg: Registry) -> None:
    result, notes = take(reg, ANDROID, "ann", "Ann Reed")
    assert (result["format"], result["items_added"]) == ("whatsapp", 3)
    assert items(reg, "ann") == [
        ("Are you at the pier?", "almost", "2026-03-02T08:16:00"),
        ("The new boat\n\nDo you like it?", "A lot.", "2026-03-02T21:10:00"),
        ("Still up?", "yes", "2026-03-13T00:33:00"),
    ]
    assert notes[1:-1] == [
        "left out, service messages: 2",
        "left out, messages without text: 2",
        "left out, your replies to messages without text: 1",
    ]


HEADS = {
    "en-GB": ("02/03/2026, 20:05 - ", "13/03/2026, 20:06 - "),
    "en-US": (f"3/2/26, 8:05{NARROW}PM - ", f"3/13/26, 8:06{NARROW}PM - "),
    "en-US with a plain space": ("3/2/26, 8:05 PM - ", "3/13/26, 8:06 PM - "),
    "en-CA": (f"2026-03-02, 8:05{NARROW}p.m. - ", f"2026-03-13, 8:06{NARROW}p.m. - "),
    "en-IN": (f"02/03/26, 8:05{NARROW}pm - ", f"13/03/26, 8:06{NARROW}pm - "),
    "de": ("02.03.26, 20:05 - ", "13.03.26, 20:06 - "),
    "es": ("2/3/26, 20:05 - ", "13/3/26, 20:06 - "),
    "es-MX": ("2/3/2026 8:05\u00a0p.\u00a0m. - ", "13/3/2026 8:06\u00a0p.\u00a0m. - "),
    "fr": ("02/03/2026 à 20:05 - ", "13/03/2026 à 20:06 - "),
    "nl": ("02-03-2026 20:05 - ", "13-03-2026 20:06 - "),
    "fi": ("2.3.2026 klo 20.05 - ", "13.3.2026 klo 20.06 - "),
    "da": ("02.03.2026 20.05 - ", "13.03.2026 20.06 - "),
    "sv": ("2026-03-02 20:05 - ", "2026-03-13 20:06 - "),
    "hu": ("2026. 03. 02. 20:05 - ", "2026. 03. 13. 20:06 - "),
    "ja": ("2026/03/02 20:05 - ", "2026/03/13 20:06 - "),
    "zh": ("2026/3/2 下午8:05 - ", "2026/3/13 下午8:06 - "),
    "ar": ("٢\u200f/٣\u200f/٢٠٢٦، ٨:٠٥ م - ", "١٣\u200f/٣\u200f/٢٠٢٦، ٨:٠٦ م - "),
    "iPhone": ("[02/03/2026, 20:05:07] ", "[13/03/2026, 20:06:07] "),
    "iPhone, en-US": (f"[3/2/26, 8:05:07{NARROW}PM] ", f"{MARK}[3/13/26, 8:06:07{NARROW}PM] "),
    "iPhone, de": ("[02.03.26, 20:05:07] ", "[13.03.26, 20:06:07] "),
    "iPhone, fi": ("[2.3.2026 klo 20.05.07] ", "[13.3.2026 klo 20.06.07] "),
    "iPhone, zh": ("[2026/3/2 下午8:05:07] ", "[2026/3/13 下午8:06:07] "),
    "iPhone, ko": ("[2026. 3. 2. 오후 8:05:07] ", "[2026. 3. 13. 오후 8:06:07] "),
    "iPhone, without a comma": ("[02/03/2026 20:05:07] ", "[13/03/2026 20:06:07] "),
}


@pytest.mark.parametrize("name", HEADS)
def test_dates_of_whatsapp_in_many_languages(reg: Registry, tmp_path: Path, name: str) -> None:
    first, second = HEADS[name]
    path = tmp_path / "chat.txt"
    path.write_text(f"{first}Bob: Ready?\n{second}Ann: Yes\n", encoding="utf-8")
    _, notes = take(reg, path, "Ann")
    seconds = "07" if name.startswith("iPhone") else "00"
    assert items(reg, "Ann") == [("Ready?", "Yes", f"2026-03-13T20:06:{seconds}")]
    assert not any(OPEN_ORDER in note for note in notes)


@pytest.mark.parametrize(
    ("dates", "last", "doubt"),
    [
        (("01/02/2026", "02/03/2026", "13/03/2026"), "2026-03-13", ""),
        (("01/02/2026", "02/13/2026", "03/01/2026"), "2026-03-01", ""),
        (("01/02/2026", "11/02/2026", "01/03/2026"), "2026-03-01", ""),
        (("02/01/2026", "02/11/2026", "03/01/2026"), "2026-03-01", ""),
        (("03/03/2026", "04/04/2026", "05/05/2026"), "2026-05-05", ""),
        (("01.02.2026", "01.02.2026", "02.03.2026"), "2026-03-02", ""),
        (("3/1/26", "3/2/26", "3/9/26"), "2026-03-09", "month/day"),
        (("1/3/26", "2/3/26", "9/3/26"), "2026-03-09", "day/month"),
        (("02/03/2026", "02/03/2026", "02/03/2026"), "2026-03-02", "day/month"),
    ],
)
def test_the_whole_file_decides_between_days_and_months(
    reg: Registry, tmp_path: Path, dates: tuple[str, ...], last: str, doubt: str
) -> None:
    path = tmp_path / "chat.txt"
    said = zip(dates, ("Bob: One", "Bob: Two", "Ann: Three"), strict=True)
    path.write_text("".join(f"{date}, 10:00 - {words}\n" for date, words in said))
    _, notes = take(reg, path, "Ann")
    assert items(reg, "Ann") == [("One\nTwo", "Three", f"{last}T10:00:00")]
    assert [note for note in notes if OPEN_ORDER in note] == ([f"chat.txt: {OPEN_ORDER} {doubt}"] if doubt else [])


def test_midnight_and_noon_of_twelve_hours(reg: Registry, tmp_path: Path) -> None:
    hours = ("12:00 AM", "12:10 AM", "1:00 AM", "12:00 PM", "12:30 PM", "1:00 PM")
    said = [f"3/13/26, {hour} - {'AB'[n % 2]}: {n}\n" for n, hour in enumerate(hours, 1)]
    path = tmp_path / "chat.txt"
    path.write_text("".join(said))
    take(reg, path, "A")
    assert [moment for _, _, moment in items(reg, "A")] == [
        "2026-03-13T00:10:00",
        "2026-03-13T12:00:00",
        "2026-03-13T13:00:00",
    ]


OMITTED = [
    "<Media omitted>",
    "<Medien ausgeschlossen>",
    "<Multimedia omitido>",
    "<Médias omis>",
    "<Media omessi>",
    "<Mídia oculta>",
    "<Media weggelaten>",
    "<Без медиафайлов>",
    "<メディアなし>",
    "<Media omitted>\n timetable.pdf",
    "IMG-20260302-WA0001.jpg (file attached)",
    "IMG-20260302-WA0001.jpg (Datei angehängt)",
    f"{MARK}PTT-20260302-WA0001.opus (archivo adjunto)",
    "This message was deleted",
    "Diese Nachricht wurde gelöscht.",
    "You deleted this message",
    "Данное сообщение удалено",
    "null",
    f"{MARK}image omitted",
    f"{MARK}Bild weggelassen",
    f"{MARK}<attached: 00000012-PHOTO-2026-03-02-08-15-30.jpg>",
    f"{MARK}POLL:\n Pier or boat?\n {MARK}OPTION: Pier ({MARK}2 votes)",
]


@pytest.mark.parametrize("words", OMITTED)
def test_a_reply_to_what_is_no_text_joins_no_older_message(reg: Registry, tmp_path: Path, words: str) -> None:
    lines = [f"Bob: {words}".split("\n")[0], *words.split("\n")[1:]]
    path = chat(tmp_path, "Bob: Dinner at 8?", "Ann: Yes.", *lines, "Ann: Is it yours?", "Bob: No.", "Ann: Pity.")
    assert talk(reg, path) == [("Dinner at 8?", "Yes."), ("No.", "Pity.")]
    mine = chat(tmp_path, "Bob: Dinner at 8?", f"Ann: {lines[0].removeprefix('Bob: ')}", *lines[1:], "Ann: Yes.")
    assert talk(reg, mine) == [("Dinner at 8?", "Yes.")]


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        ("fine <This message was edited>", "fine"),
        ("fine <Diese Nachricht wurde bearbeitet.>", "fine"),
        ("I <3 this", "I <3 this"),
        ("x <b>bold</b>", "x <b>bold</b>"),
        ("see a.pdf (old)", "see a.pdf (old)"),
        ("IMG-1.jpg (file attached)\n The boat", "The boat"),
        ("at 10:30: sharp - really", "at 10:30: sharp - really"),
        ("one\n\n two", "one\ntwo"),
        ("02/03/2026 nine\n [02/03/2026, 08:00:00] Bob: pasted", "02/03/2026 nine\n[02/03/2026, 08:00:00] Bob: pasted"),
        ("\u202eevil\u202c @\u2068Bob\u2069", "evil @Bob"),
        ("👩\u200d🚀", "👩\u200d🚀"),
        ("a\0b\x07c", "ab\x07c"),
    ],
)
def test_what_is_kept_of_a_message(reg: Registry, tmp_path: Path, words: str, kept: str) -> None:
    first, *more = words.split("\n")
    assert talk(reg, chat(tmp_path, "Bob: Well?", f"Ann: {first}", *filter(None, more))) == [("Well?", kept)]


@pytest.mark.parametrize(
    "sender", ["all", "../x", "Bob 🚀", "\u202a+47 400 00 000\u202c", "~\u202fBob", "Bob: work", 'Bob "Bo" Lind']
)
def test_strange_senders_are_only_asked(reg: Registry, tmp_path: Path, sender: str) -> None:
    found = talk(reg, chat(tmp_path, f"{sender}: Well?", "Ann: Yes"))
    assert [answer for _, answer in found] == ["Yes"] and found[0][0].endswith("Well?")
    assert reg.users.names() == []


def test_a_name_is_found_in_any_case_and_without_its_marks(reg: Registry, tmp_path: Path) -> None:
    path = chat(tmp_path, "Bob: Well?", "~\u202fA\u0301nn\u00a0 Reed: Yes", head="[02/03/2026, 08:{:02}:00] ")
    assert talk(reg, path, "\u00e1nn reed") == [("Well?", "Yes")]


def test_several_senders_of_one_user_are_named(reg: Registry, tmp_path: Path) -> None:
    path = chat(tmp_path, "Bob: Well?", "Ann: Yes", "Bob: And?", "+47 400: No", 'Ann changed the name to "a: b"')
    _, notes = take(reg, path, "ann", "+47 400")
    assert notes[0] == "chat.txt is read as whatsapp: 4 messages, of which 2 are yours, from '+47 400', 'Ann'"
    assert "left out, service messages: 1" in notes
    assert [answer for _, answer, _ in items(reg, "ann")] == ["Yes", "No"]


def test_several_people_are_several_turns(reg: Registry, tmp_path: Path) -> None:
    said = ("Bob: Pizza?", "Bob: Or soup?", "Cy: Sunny today", "Ann: yes", "Cy: x", "Ann changed it", "Ann: y")
    path = chat(tmp_path, *said)
    assert talk(reg, path) == [("Sunny today", "yes"), ("x", "y")]


def test_without_a_name_the_likely_senders_are_named(reg: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    for path, named in (
        (PHONE, "'Ann Reed' (4 messages), 'Bob Lind' (3 messages)"),
        (SLACK, "'Ann Reed' (6 messages), 'Bob Lind' (3 messages), 'Cleo Park' (1 message)"),
        (DISCORD, "'ann_reed' (4 messages), 'cleo' (2 messages), 'bob' (1 message)"),
    ):
        with pytest.raises(UsageError, match=r"which messages in .* are yours") as caught:
            take(reg, path)
        assert isinstance(caught.value.hint, tuple) and Flag("me", "SENDER") in caught.value.hint
        assert words_to_text(caught.value.hint).endswith(named)
        with pytest.raises(BadInput, match=r"no message in .* is from zoe") as unknown:
            take(reg, path, "zoe")
        assert words_to_text(unknown.value.hint or "").endswith(named)
    monkeypatch.setattr(messenger_replies, "SEARCHED_MESSAGES", 2)
    with pytest.raises(UsageError) as early:
        take(reg, PHONE)
    assert words_to_text(early.value.hint or "").endswith("'Bob Lind' (1 message)")
    assert reg.users.names() == []


def test_a_chat_without_words_says_so(reg: Registry, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        take(reg, chat(tmp_path, "Bob: <Media omitted>"))
    assert words_to_text(caught.value.hint or "").endswith("none of its messages has text")


def test_slack(reg: Registry) -> None:
    result, notes = take(reg, SLACK, "ann", "U0100ANN")
    assert (result["format"], result["items_added"]) == ("slack", 4)
    assert items(reg, "ann") == [
        ("Fish & chips at <noon>?", "yes please", "2026-03-02T08:03:00"),
        ("Who paints the #harbour shed? @here", "I do, on Friday", "2026-03-02T08:04:00"),
        ("Lunch?", "In ten minutes", "2026-03-02T12:01:00"),
        (
            "With which paint? See the list or mail bob@work.example",
            "The grey one, @Bob Lind.",
            "2026-03-03T08:01:00",
        ),
    ]
    assert notes == [
        "slack is read as slack: 12 messages, of which 6 are yours, from 'Ann Reed'",
        "left out, service messages: 1",
        "left out, messages of bots: 1",
        "left out, messages without text: 1",
        "left out, your replies to messages without text: 2",
        OTHERS,
    ]
    again, _ = take(reg, SLACK, "ann", "U0100ANN")
    assert (again["items_added"], again["items_unchanged"]) == (0, 4)


@pytest.mark.parametrize("me", ["ann.reed", "ANN REED", "ann", "ann@work.example", "u0100ann"])
def test_a_person_of_slack_has_many_names(reg: Registry, me: str) -> None:
    assert len(talk(reg, SLACK, me)) == 4


def test_a_name_of_two_senders_is_refused(reg: Registry, tmp_path: Path) -> None:
    export = shutil.copytree(SLACK, tmp_path / "export")
    users = json.loads((SLACK / "users.json").read_text())
    users[1]["profile"]["display_name"] = "Ann"
    (export / "users.json").write_text(json.dumps(users))
    with pytest.raises(BadInput, match="'ann' is the name of two senders in export: ") as caught:
        take(reg, export, "ann")
    assert words_to_text(caught.value.hint or "").startswith(
        "give the full name of the sender that is you, such as --me U0"
    )
    assert len(talk(reg, export, "ann.reed")) == 4


def test_one_channel_and_one_day_of_slack(reg: Registry, tmp_path: Path) -> None:
    assert len(talk(reg, SLACK / "D0900", "ann")) == 1
    assert talk(reg, SLACK / "D0900" / "2026-03-02.json", "ann") == [("Lunch?", "In ten minutes")]
    alone = shutil.copytree(SLACK / "D0900", tmp_path / "deep" / "D0900")  # without users.json
    assert talk(reg, alone, "U0100ANN") == [("Lunch?", "In ten minutes")]


def test_days_without_messages_and_other_files_of_slack(reg: Registry, tmp_path: Path) -> None:
    export = shutil.copytree(SLACK, tmp_path / "export")
    (export / "harbour" / "2026-03-01.json").write_text("[]")
    (export / "harbour" / "canvas_in_the_conversation.json").write_text("{}")
    (export / "integration_logs.json").write_text("[]")
    assert len(talk(reg, export, "ann")) == 4
    for folder in ("harbour", "D0900"):
        shutil.rmtree(export / folder)
    with pytest.raises(BadInput):
        take(reg, export, "ann")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<@U1> and <@U2|bo> and <@U9>", "@Ann and @bo and @U9"),
        ("<#C1|pier> <#C2>", "#pier #C2"),
        ("<!channel> <!subteam^S1|@crew> <!date^17^{date}|today>", "@channel @crew today"),
        ("<https://example.net> <https://example.net/a|the plan>", "https://example.net the plan"),
        ("<tel:123|123> <mailto:a@b>", "123 a@b"),
        ("a &lt;b&gt; &amp;lt; < c", "a <b> &lt; < c"),
        ("<> <@> <!> <|>", "@ @"),
        ("x" * 10 + "\0\ud800", "x" * 10 + "?"),
    ],
)
def test_text_of_slack_is_what_readers_see(text: str, shown: str) -> None:
    assert slack.markup_to_text(text, {"U1": ("Ann", "U1")}) == shown


def test_discord(reg: Registry) -> None:
    result, notes = take(reg, DISCORD, "ann", "ann_reed")
    assert (result["format"], result["items_added"]) == ("discord", 2)
    assert items(reg, "ann") == [
        ("Who has the key?", "under the mat\nas ever", "2026-03-02T08:03:00.123000"),
        ("Rowing at six?", "make it seven", "2026-03-02T08:06:00.123000"),
    ]
    assert notes == [
        "Harbour - boats [300].json is read as discord: 9 messages, of which 4 are yours, from 'ann_reed'",
        "left out, service messages: 1",
        "left out, messages of bots: 1",
        "left out, messages without text: 1",
        "left out, your replies to messages without text: 1",
        OTHERS,
    ]


@pytest.mark.parametrize("me", ["ann_reed", "ANN", "100000000000000001"])
def test_a_person_of_discord_has_many_names(reg: Registry, me: str) -> None:
    assert len(talk(reg, DISCORD, me)) == 2


def replies(tmp_path: Path, *said: tuple[str, str, int | None]) -> Path:
    """A channel of (author, words, the number of the message that it answers)."""
    messages = [
        {
            "id": str(n),
            "type": "Default" if answered is None else "Reply",
            "content": words,
            "author": {"id": f"id {who}", "name": who},
            "reference": None if answered is None else {"messageId": str(answered)},
        }
        for n, (who, words, answered) in enumerate(said)
    ]
    path = tmp_path / "channel.json"
    path.write_text(json.dumps({"guild": {}, "messages": messages}))
    return path


def test_a_reply_of_discord_answers_what_it_names(
    reg: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [("bob", "One?", None), ("bob", "Two?", None), ("cy", "Sun", None), ("ann", "two", 1), ("ann", "one", 0)]
    lines += [("ann", "both", 3), ("cy", "", None), ("ann", "?", 6), ("ann", "gone", 99)]
    assert talk(reg, replies(tmp_path, *lines), "ann") == [("Two?", "two"), ("One?", "one\nboth")]
    monkeypatch.setattr(discord, "RECENT_MESSAGES", 2)
    lines = [*lines[:3], ("ann", "one", 0), ("cy", "Rain", None), ("ann", "oh", None)]
    assert talk(reg, replies(tmp_path, *lines), "ann") == [("Rain", "oh")]


def test_the_data_package_of_discord_is_refused_in_words(reg: Registry, tmp_path: Path) -> None:
    record = {"ID": 1, "Timestamp": "2026-03-02 08:00:00", "Contents": "hi", "Attachments": ""}
    for name, content in {
        "messages.json": json.dumps([record]),
        "messages.csv": "ID,Timestamp,Contents,Attachments\n1,2026-03-02 08:00:00,hi,\n",
    }.items():
        (tmp_path / name).write_text(content)
        with pytest.raises(BadInput, match=f"{name} is from Discord's data package, which lacks") as caught:
            take(reg, tmp_path / name, "ann")
        assert "DiscordChatExporter" in words_to_text(caught.value.hint or "")


def test_another_file_that_is_said_to_be_a_messenger_s(reg: Registry, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("one\ntwo\n")
    for form, what in {
        "whatsapp": "1 fault; nothing was imported",
        "slack": "is not JSON: Expecting a list",
        "discord": "is not JSON: Expecting an object",
    }.items():
        with pytest.raises(BadInput, match=what):
            run_as(reg, form, path)
    with pytest.raises(BadInput, match=r"chat\.txt looks like whatsapp, not jsonl"):
        run_as(reg, "jsonl", chat(tmp_path, "Bob: x"))


def run_as(reg: Registry, form: str, path: Path) -> None:
    from mta_cli.pipeline.data.import_source import ImportSource
    from mta_cli.pipeline.users.import_file import import_source

    list(import_source(reg, ImportSource(form, path, user="ann")))


def test_whatsapp_in_utf16_and_with_windows_line_ends(reg: Registry, tmp_path: Path) -> None:
    path = chat(tmp_path, "Bob: Well?", "Ann: Yes", " indeed")
    path.write_bytes(path.read_text().replace("\n", "\r\n").encode("utf-16"))
    assert talk(reg, path) == [("Well?", "Yes\nindeed")]


def test_bytes_that_are_no_text_are_a_fault_of_their_message(reg: Registry, tmp_path: Path) -> None:
    path = chat(tmp_path, "Bob: Well?", "Ann: Yes", "Bob: caf#", " and more", "Ann: No", "Bob: So?", "Ann: \ufffd")
    path.write_bytes(path.read_bytes().replace(b"#", b"\xe9"))
    with pytest.raises(BadInput) as caught:
        take(reg, path, "Ann")
    assert caught.value.faults == ("chat.txt: record 3: is not UTF-8",)
    assert talk(reg, path, skip_faulty=True) == [("Well?", "Yes"), ("So?", "\ufffd")]


def test_long_lines_and_long_messages(reg: Registry, tmp_path: Path) -> None:
    path = chat(tmp_path, "Bob: Well?", "Ann: Yes", "Bob: " + "<" * 9_000_000, "Ann: " + " " * 9_000_000 + ".")
    started = time.process_time()
    found = talk(reg, path)
    assert time.process_time() - started < 10
    assert [len(question) for question, _ in found] == [5, 9_000_000] and found[1][1] == "."
    path = chat(tmp_path, "Bob: Well?", "Ann: Yes", "Bob: " + "x" * 10_000_000)
    with pytest.raises(BadInput) as caught:
        take(reg, path, "Ann")
    assert "the line is longer than" in caught.value.faults[0]
    path = chat(tmp_path, "Bob: Well?", "Ann: Yes", *([" " + "y" * 6_000_000] * 3))
    with pytest.raises(BadInput) as caught:
        take(reg, path, "Ann")
    assert "the most is 10,000,000" in caught.value.faults[0]


def test_a_turn_of_many_messages_takes_little_memory() -> None:
    turns = (Turn(False, "x" * 1_000, None, SourceLocation("f", n)) for n in range(50_000))
    said = itertools.chain(turns, [Turn(True, "yes", None, SourceLocation("f"))])
    tracemalloc.start()
    [(_, row)] = pair_turns(said, ParseFindings())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 10_000_000 < len(row["input"]) < 10_100_000  # which is refused
    assert peak < 30_000_000


SLOW = {
    "digits": "1" * 5_000_000,
    "dates": "1/1/1 " * 800_000,
    "marks": MARK * 1_600_000,
    "edits": "<A b" * 1_200_000,
    "attachments": "a.jpg (" * 700_000,
    "links": "<@" * 2_000_000,
}


@pytest.mark.parametrize("name", SLOW)
def test_hostile_text_is_read_in_linear_time(reg: Registry, tmp_path: Path, name: str) -> None:
    started = time.process_time()
    talk(reg, chat(tmp_path, "Bob: Well?", f"Ann: Yes {SLOW[name]} x", SLOW[name], f" {SLOW[name]}"))
    slack.markup_to_text(SLOW[name], {})
    assert time.process_time() - started < 20


@pytest.mark.parametrize("path", [DISCORD, SLACK / "D0900" / "2026-03-02.json"])
def test_values_of_other_types_end_in_words(reg: Registry, tmp_path: Path, path: Path) -> None:
    whole = json.loads(path.read_bytes())
    ways = list(_few_places(whole))
    strange = tmp_path / "2026-03-02.json"
    for number, (holder, key) in enumerate(ways):
        kept, holder[key] = holder[key], STRANGE[number % len(STRANGE)]
        strange.write_text(json.dumps(whole))
        holder[key] = kept
        try:
            take(reg, strange, "ann_reed" if path == DISCORD else "U0100ANN", dry_run=True)
        except (BadInput, UsageError) as refused:
            assert str(refused).isprintable()
    assert len(ways) > 10


def _few_places(whole: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in a list of messages, but of three messages only."""
    messages = whole["messages"] if isinstance(whole, dict) else whole
    for holder, key in places(whole):
        if not any(holder is each or holder in each.values() for each in messages[3:] if isinstance(each, dict)):
            yield holder, key


@pytest.mark.parametrize(
    ("path", "field", "value", "fault"),
    [
        ("discord", "content", 5, "record 2, field content: is a number, not text or null"),
        ("discord", "author", {"id": 7}, "record 2, field author.id: is a number, not text or null"),
        ("slack", "text", [], "record 2, field text: is a list, not text or null"),
    ],
)
def test_a_field_of_another_type_is_named(
    reg: Registry, tmp_path: Path, path: str, field: str, value: Any, fault: str
) -> None:
    whole = json.loads((DISCORD if path == "discord" else SLACK / "D0900" / "2026-03-02.json").read_bytes())
    (whole["messages"] if path == "discord" else whole)[1][field] = value
    (tmp_path / "day").mkdir()
    wrong = tmp_path / "day" / "wrong.json"
    wrong.write_text(json.dumps(whole))
    with pytest.raises(BadInput) as caught:
        take(reg, wrong, "ann_reed", "U0100ANN")
    assert [each.partition("wrong.json: ")[2] for each in caught.value.faults] == [fault]


@pytest.mark.parametrize("path", [DISCORD, SLACK / "D0900" / "2026-03-02.json"])
def test_a_file_that_is_cut_short_is_one_line(reg: Registry, tmp_path: Path, path: Path) -> None:
    cut = tmp_path / "2026-03-02.json"
    cut.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(BadInput, match=r"2026-03-02\.json is cut short"):
        take(reg, cut, "ann_reed", "U0100ANN")
    assert reg.users.names() == []


def test_a_broken_list_of_users(reg: Registry, tmp_path: Path) -> None:
    export = shutil.copytree(SLACK, tmp_path / "export")
    (export / "users.json").write_text('[7, {"id": []}, {"id": "U0100ANN", "name": "ann"}, {"name": "x"}]')
    assert len(talk(reg, export, "ann")) == 4
    (export / "users.json").write_text("{")
    os.utime(export / "users.json", (1, 1))
    with pytest.raises(BadInput, match=r"users\.json is cut short"):
        take(reg, export, "ann")


@pytest.mark.parametrize("path", [PHONE, SLACK, DISCORD])
def test_nobody_is_an_anchor_by_default(reg: Registry, path: Path) -> None:
    def ask(users: int) -> bool:
        raise AssertionError("nobody is asked")

    take(reg, path, "ann", "ann reed", "ann_reed", ask=ask)
    assert reg.users.get("ann").can_anchor is False


def packed(path: Path, folder: Path, *more: tuple[str, bytes], top: str = "") -> Path:
    """The files of a folder as a zip archive, below `top`, and others."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for file in sorted(folder.rglob("*")):
            made.write(file, f"{top}{file.relative_to(folder).as_posix()}")
        for name, content in more:
            made.writestr(name, content)
    return path


@pytest.mark.parametrize("top", ["", "Harbour export/"])
def test_a_packed_export_is_read_in_place(reg: Registry, tmp_path: Path, top: str) -> None:
    more = [(f"__MACOSX/{top}._users.json", b"\0"), (f"{top}.hidden.json", b"["), ("../x/2026-01-01.json", b"[")]
    path = packed(tmp_path / "export.ZIP", SLACK, *more, top=top)
    result, notes = take(reg, path, "ann")
    assert (result["format"], result["items_added"]) == ("slack", 4)
    assert notes[0] == "export.ZIP is read as slack: 12 messages, of which 6 are yours, from 'Ann Reed'"
    unpacked, _ = take(reg, SLACK, "ann")
    assert (unpacked["items_added"], unpacked["items_unchanged"]) == (0, 4)
    assert [each.name for each in tmp_path.iterdir() if each.name != "store"] == ["export.ZIP"]


def test_a_packed_chat_with_its_pictures(reg: Registry, tmp_path: Path) -> None:
    chat(tmp_path, "Bob: Well?", "Ann: Yes", name="_chat.txt")
    (tmp_path / "media").mkdir()
    shutil.move(tmp_path / "_chat.txt", tmp_path / "media" / "_chat.txt")
    path = packed(tmp_path / "WhatsApp Chat - Bob.zip", tmp_path / "media", ("00000001-PHOTO.jpg", b"\xff\xd8" * 1000))
    assert talk(reg, path) == [("Well?", "Yes")]
    with pytest.raises(UsageError, match=r"which messages in WhatsApp Chat - Bob\.zip are yours"):
        take(reg, path)


def test_of_a_packed_account_the_chats_are_read(reg: Registry, tmp_path: Path) -> None:
    more = [("message_feedback.json", b'[{"id": "x", "rating": "up"}]'), ("user.json", b'{"id": "x"}')]
    path = packed(tmp_path / "a.zip", EXPORTS / "chatgpt", *more, ("shared.json", b"[]"), ("chat.html", b"<html>"))
    result, notes = take(reg, path, "ann")
    assert (result["format"], result["items_added"]) == ("chatgpt", 2)
    table = packed(tmp_path / "t.zip", tmp_path / "none", ("a.csv", b"user,input,output\nbo,x,y\n"), ("b.txt", b"x"))
    result, notes = take(reg, table)
    assert (result["format"], result["items_added"], notes) == ("csv", 1, ["left out, files of an unknown format: 1"])


def test_archives_that_are_not_read(reg: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = packed(tmp_path / "a.zip", SLACK / "D0900")
    content = good.read_bytes()

    def refused(content: bytes, words: str) -> None:
        (tmp_path / "b.zip").write_bytes(content)
        with pytest.raises(BadInput, match=words):
            take(reg, tmp_path / "b.zip", "U0100ANN")
        assert reg.users.names() == []

    refused(b"", "is not a zip archive, or is damaged")
    refused(b"date,text\n", "is not a zip archive, or is damaged")
    refused(content[:-40], "is not a zip archive, or is damaged")
    refused(content[:60] + b"\xff" * 40 + content[100:], "2026-03-02.json' is damaged in the archive")
    refused(packed(tmp_path / "c.zip", tmp_path / "none", ("a.jpg", b"x")).read_bytes(), "contains no text files")
    refused(packed(tmp_path / "c.zip", tmp_path / "none", ("a.txt", b"x")).read_bytes(), "no file in a known format")
    secret = bytearray(content)
    for at in (content.index(b"PK\3\4") + 6, content.index(b"PK\1\2") + 8):
        secret[at] |= 1
    refused(bytes(secret), "cannot be unpacked: .* encrypted")
    refused(content + b"PK\6\7", "is too large: it is a ZIP64")
    monkeypatch.setattr(archive, "MAX_DIRECTORY_BYTES", 50)
    refused(content, "is too large: it is a ZIP64")
    monkeypatch.setattr(archive, "MAX_DIRECTORY_BYTES", 1_000)
    monkeypatch.setattr(archive, "MAX_BYTES", 100)
    refused(content, "the text files in 'b.zip' have 0 MiB; the most is 0 MiB")


def test_a_file_of_an_archive_has_no_more_bytes_than_it_says(reg: Registry, tmp_path: Path) -> None:
    path = packed(tmp_path / "a.zip", tmp_path / "none", ("chat.txt", b"02/03/2026, 08:00 - Bob: " + b"x" * 50_000_000))
    content = bytearray(path.read_bytes())
    assert len(content) < 100_000
    at = content.index(b"PK\1\2") + 24
    content[at : at + 4] = (1_000).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(BadInput, match=r"'chat\.txt' is damaged in the archive"):
        take(reg, path, "Ann")
