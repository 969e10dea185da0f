"""Mail and conversations in the form in which people have them: whose words become items, and what is left out."""

from __future__ import annotations

import json
import mailbox
import time
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest

from mta_cli.errors import BadInput, Flag, UsageError, words_to_text
from mta_cli.pipeline.data.formats.chatgpt import BROKEN
from mta_cli.pipeline.data.formats.mail import mbox
from mta_cli.pipeline.data.formats.mail.message import UNREADABLE, read_mail
from mta_cli.pipeline.data.formats.parse_results import ParseFindings, SourceLocation
from mta_cli.pipeline.data.import_source import ImportSource
from mta_cli.pipeline.users.import_file import import_source
from store.registry import Registry
from tests.pipeline.histories import run

EXPORTS = Path(__file__).parent / "exports"
ANN = ("ann@example.org", "Ann.Reed@work.example")
OTHERS = (
    "the inputs are the words of the people who wrote to you: new users may not be anchors unless you add --can-anchor"
)


@pytest.fixture
def reg(tmp_path: Path) -> Iterator[Registry]:
    with Registry.open(tmp_path / "store", create=True) as registry:
        yield registry


def take(reg: Registry, path: Path, *me: str, **options: Any) -> tuple[dict[str, Any], list[str]]:
    """The result and the notes of an import; `me` are the user's names."""
    user, also = (me[0], me[1:]) if me else (None, ())
    asked = {name: options.pop(name) for name in ("can_anchor", "ask", "dry_run") if name in options}
    return run(import_source(reg, ImportSource(None, path, user=user, also_me=also, **options), **asked))


def items(reg: Registry, user: str) -> list[tuple[str, str, str | None]]:
    return [(each.input, each.output, each.time) for each in reg.items.recent_items(reg.users.get(user).id, "free")]


def mail(number: int, sender: str = "bob@example.net", answers: int | None = None, **headers: str) -> EmailMessage:
    made = EmailMessage()
    made["From"], made["To"], made["Subject"] = sender, "ann@example.org, bob@example.net", f"Subject {number}"
    made["Message-ID"] = f"<{number}@example.net>"
    if answers is not None:
        made["In-Reply-To"] = f"<{answers}@example.net>"
    for name, value in headers.items():
        made[name] = value
    made.set_content(f"Text {number}")
    return made


def raw_box(path: Path, *mails: bytes) -> Path:
    path.write_bytes(b"".join(b"From x Mon Mar  2 08:15:00 2026\n" + each + b"\n\n" for each in mails))
    return path


def exchange(*more: bytes) -> list[bytes]:
    return [mail(1).as_bytes(), mail(2, "ann@example.org", 1).as_bytes(), *more]


def test_a_mailbox(reg: Registry) -> None:
    result, notes = take(reg, EXPORTS / "mail" / "takeout.mbox", *ANN)
    assert (result["format"], result["users"], result["items_added"]) == ("mbox", 1, 2)
    assert items(reg, "ann@example.org") == [
        (
            "Boat house, märz\n\nHi Ann,\n\nshall we paint the boat house on Saturday? The café opens at eight.",
            "Saturday is fine, but not before nine.\nFrom ten on I have the whole day.",
            "2026-03-02T19:02:11",
        ),
        (
            "Boat house\n\nDo you bring the brushes?\nAnd who drives?",
            "Yes, three of them.\n\nYou do.\n\nAnn",
            "2026-03-04T10:00:00",
        ),
    ]
    assert notes == [
        "left out, mails of yours that are not replies: 1",
        "left out, your replies to mails without plain text: 1",
        OTHERS,
    ]


def test_again_changes_nothing_and_queries_are_the_last_replies(reg: Registry, tmp_path: Path) -> None:
    mails = [mail(1)] + [mail(n, "ann@example.org", 1, Date=f"Mon, {n} Mar 2026 08:00:00 +0000") for n in range(2, 8)]
    path = raw_box(tmp_path / "box", *(each.as_bytes() for each in mails))
    first, _ = take(reg, path, "ann", "ann@example.org", hold_out=2)
    assert (first["items_added"], first["queries_added"]) == (4, 2)
    assert [query.gold for query in reg.items.queries(reg.users.get("ann").id, "free")] == ["Text 6", "Text 7"]
    again, _ = take(reg, path, "ann", "ann@example.org", hold_out=2)
    assert (again["items_added"], again["queries_added"], again["items_unchanged"]) == (0, 0, 4)


def test_a_folder_of_mails(reg: Registry) -> None:
    result, _ = take(reg, EXPORTS / "mail" / "saved", "ann", "ANN@example.org")
    assert (result["format"], result["items_added"]) == ("eml", 1)
    expected = ("Lunch?\n\nNoodles or soup today?", "Soup. It is cold outside.", "2026-03-06T12:10:00")
    assert items(reg, "ann") == [expected]


def test_replies_are_found_in_other_files_and_mails_that_come_twice_count_once(reg: Registry, tmp_path: Path) -> None:
    asked, answer = mail(1), mail(2, "ann@example.org", 1)
    (tmp_path / "mail").mkdir()
    for name, mails in {"Archive": [asked, answer], "Sent": [answer], "Trash": [asked]}.items():
        box = mailbox.mbox(tmp_path / "mail" / name)
        for each in mails:
            box.add(each)
        box.close()
    (tmp_path / "mail" / "Sent.msf").write_bytes(b'// <!-- <mdb:mork:z v="1.4"/> -->')
    result, notes = take(reg, tmp_path / "mail", "ann@example.org")
    assert notes == ["left out, files of an unknown format: 1", OTHERS]
    assert (result["items_added"], items(reg, "ann@example.org")) == (1, [("Subject 1\n\nText 1", "Text 2", None)])


def test_without_an_address_the_likely_ones_are_named(reg: Registry) -> None:
    path = EXPORTS / "mail" / "takeout.mbox"
    for me in ((), ("ann",)):
        with pytest.raises(UsageError, match=r"which mails in takeout.mbox are yours\?") as caught:
            take(reg, path, *me)
        assert isinstance(caught.value.hint, tuple) and Flag("me", "ADDRESS") in caught.value.hint
        assert "'bob@example.net' (5 mails), 'ann@example.org' (5 mails)" in words_to_text(caught.value.hint)
    with pytest.raises(BadInput, match=r"no mail in takeout\.mbox is from no@example\.org"):
        take(reg, path, "no@example.org")
    with pytest.raises(UsageError, match="--me reed is not an address"):
        take(reg, path, "ann@example.org", "reed")
    assert reg.users.names() == []


def test_an_address_is_searched_in_the_first_mails_only(
    reg: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mta_cli.pipeline.data.formats.mail.replies.SEARCHED_MAILS", 2)
    path = raw_box(tmp_path / "box", *(mail(n).as_bytes() for n in range(9)))
    with pytest.raises(UsageError) as caught:
        take(reg, path)
    assert "(2 mails)" in words_to_text(caught.value.hint or "")


def test_deleted_mails_and_drafts_are_left_out(reg: Registry, tmp_path: Path) -> None:
    mails = [mail(1)]
    headers = [("X-Mozilla-Status", status) for status in ("0011", "0009", "8")]
    for number, (header, value) in enumerate([*headers, ("X-Gmail-Labels", "Opened, Drafts")], 2):
        mails.append(mail(number, "ann@example.org", 1))
        mails[-1][header] = value
    (tmp_path / "mail").mkdir()
    raw_box(tmp_path / "mail" / "Sent", *(each.as_bytes() for each in mails))
    raw_box(tmp_path / "mail" / "Drafts", mail(6, "ann@example.org", 1).as_bytes())
    _, notes = take(reg, tmp_path / "mail", "ann@example.org")
    assert [said for _, said, _ in items(reg, "ann@example.org")] == ["Text 2", "Text 4"]
    assert {"left out, deleted mails: 1", "left out, drafts: 2"} <= {*notes}


def test_words_behind_a_picture_are_read_and_no_list_footer(reg: Registry, tmp_path: Path) -> None:
    def mixed(number: int, sender: str, *parts: str) -> bytes:
        head = f"From: {sender}\nMessage-ID: <{number}@example.net>\nIn-Reply-To: <{number - 1}@example.net>\n"
        kind = 'Content-Type: multipart/mixed; boundary="b"\n\n'
        return "".join([head, kind, *(f"--b\n{part}\n" for part in parts), "--b--\n"]).encode()

    picture, plain = "Content-Type: image/jpeg\nContent-Disposition: inline\n\nx", "Content-Type: text/plain"
    asked = mixed(1, "bob@x", f"{plain}\n\n\n", picture, f"{plain}\n\nWhich?")
    others = [f"{plain}\nContent-Disposition: inline\n\nA list", f"{plain}; name=a.txt\n\nA file"]
    answer = mixed(2, "ann@example.org", f"{plain}\n\nLeft.", picture, f"{plain}\n\nOr both?", *others)
    take(reg, raw_box(tmp_path / "box", asked, answer), "ann@example.org")
    assert [each[:2] for each in items(reg, "ann@example.org")] == [("Which?", "Left.\nOr both?")]


@pytest.mark.parametrize("name", ["ann@example.org", "Ann @ Work", "[Team] Ann", "Ann; Reed", "'ann@example.org'", ""])
def test_the_sender_is_the_address_in_angle_brackets(name: str) -> None:
    content = f"From: {name} <Ann@example.org>\nTo: bob@x\nCc: Ann; Reed <cy@x>\n\ntext".encode()
    [read] = read_mail(content, SourceLocation("f"), ParseFindings())
    assert read.sender == "ann@example.org" and "bob@x" in read.receivers


NESTED = b"".join(b'Content-Type: multipart/mixed; boundary="%d"\n\n--%d\n' % (n, n) for n in range(3_000))
HOSTILE = {
    "no sender": b"Subject: x\n\ntext",
    "long header": b"X: " + b"a" * 10_000_000 + b"\nFrom: a@b\n\ntext",
    "many comments": b"From: a@b\nSubject: x\nTo: " + b"(" * 100_000 + b"\n\ntext",
    "nested parts": b"From: a@b\n" + NESTED,
    "unknown charset": b'From: a@b\nContent-Type: text/plain; charset="no-such"\n\ntext',
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_mail_is_left_out_and_the_others_are_read(reg: Registry, tmp_path: Path, name: str) -> None:
    result, notes = take(reg, raw_box(tmp_path / "box", *exchange(HOSTILE[name])), "ann@example.org")
    assert result["items_added"] == 1
    assert f"left out, {UNREADABLE}: 1" in notes


SLOW = {
    "parameters": b"Content-Type: text/plain" + b"; a=b" * 200_000 + b"\n\ntext",
    "encoded words": b"Subject: " + b"=?utf-8?q?a?= " * 100_000 + b"\n\ntext",
    "addresses": b"To: " + b"a@b, <" * 100_000 + b"\n\ntext",
    "uuencode": b"Content-Transfer-Encoding: uuencode\n\n" + b"QUFB\n" * 200_000,
    "punycode": b"Content-Type: text/plain; charset=punycode\n\n" + b"aaaa-" * 200_000,
    "angle brackets": b"From: " + b"<a@" * 100_000 + b"\n\ntext",
    "announcements": b"\n" + b"On a\n> b\n" * 200_000,
}


@pytest.mark.parametrize("name", SLOW)
def test_what_the_library_reads_slowly_is_cut_or_left_out(name: str) -> None:
    started = time.process_time()
    list(read_mail(b"From: a@b\n" + SLOW[name], SourceLocation("f"), ParseFindings()))
    assert time.process_time() - started < 5


def test_strange_bytes_become_text_that_can_be_stored(reg: Registry, tmp_path: Path) -> None:
    asked = b"From: bob@x\nMessage-ID: <1@example.net>\nSubject: caf\xe9 \xff\n\nA\0B \xff\xfe"
    head = b"From: ann@example.org\nIn-Reply-To: <1@example.net>\nDate: Mon, 99 Foo 0000\n"
    answer = head + b"Content-Type: text/plain; charset=utf-8\n\n\xc3\xa9\xff\0!"
    take(reg, raw_box(tmp_path / "box", asked, answer), "ann@example.org")
    [(question, said, moment)] = items(reg, "ann@example.org")
    assert "AB" in question and question.startswith("caf") and (said, moment) == ("é\N{REPLACEMENT CHARACTER}!", None)


def test_attachments_are_not_read(reg: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mbox, "MAIL_BYTES", 2_000)
    heavy = mail(2, "ann@example.org", 1)
    heavy.add_attachment(b"\0" * 3_000_000, maintype="image", subtype="png", filename="x.png")
    path = raw_box(tmp_path / "box", mail(1).as_bytes(), heavy.as_bytes())
    with path.open("rb") as stream:
        assert max(map(len, mbox.split_mails(stream))) < 2_200
    assert take(reg, path, "ann@example.org")[0]["items_added"] == 1
    assert items(reg, "ann@example.org")[0][1] == "Text 2"


def test_a_mailbox_may_be_larger_than_other_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reg: Registry
) -> None:
    monkeypatch.setattr("mta_cli.pipeline.data.formats.reading.FILE_BYTES", 100)
    path = raw_box(tmp_path / "box", *exchange())
    assert take(reg, path, "ann@example.org")[0]["items_added"] == 1
    monkeypatch.setattr("mta_cli.pipeline.data.formats.reading.MBOX_BYTES", 200)
    with pytest.raises(BadInput, match="the most is"):
        take(reg, path, "ann@example.org")


def test_telegram(reg: Registry) -> None:
    result, notes = take(reg, EXPORTS / "telegram" / "result.json", "ann")
    assert (result["format"], result["items_added"]) == ("telegram", 2)
    assert items(reg, "ann") == [
        (
            "Are you at the pier?\nSee https://example.net/pier for the way",
            "almost\ntwo more minutes",
            "2026-03-01T08:02:00",
        ),
        ("Good.", "Here!", "2026-03-01T08:04:30"),
    ]
    assert notes == [
        "left out, service messages: 1",
        "left out, messages without text: 1",
        "left out, forwarded messages and messages of bots: 1",
        "left out, your messages that begin a conversation: 1",
        "left out, chats that are not with one person: 1",
        OTHERS,
    ]


def test_a_reply_to_a_message_without_text_joins_no_other(reg: Registry, tmp_path: Path) -> None:
    def said(user: int, text: str, **more: str) -> dict[str, Any]:
        return {"type": "message", "from_id": f"user{user}", "text": text, **more}

    talk = [said(2, "Dinner at 8?"), said(1, "Yes."), said(2, "", photo="dog.jpg"), said(1, "Is it yours?")]
    talk += [said(2, "A joke", forwarded_from="X"), said(1, "haha"), said(2, "", photo="x.jpg"), said(2, "Good?")]
    talk += [said(1, "Very."), said(1, "", photo="y.jpg"), said(1, "Look.")]
    path = tmp_path / "result.json"
    path.write_text(json.dumps({"name": "Bob", "type": "personal_chat", "id": 2, "messages": talk}))
    _, notes = take(reg, path, "ann")
    assert [each[:2] for each in items(reg, "ann")] == [("Dinner at 8?", "Yes."), ("Good?", "Very.\nLook.")]
    assert "left out, your replies to messages without text: 2" in notes


def test_a_picture_of_an_assistant_is_no_answer_to_the_next_question(reg: Registry, tmp_path: Path) -> None:
    asked, red = ("user", "all", "draw a boat"), ("user", "all", "no, red!")
    nodes: dict[str, Any] = {"0": {"message": None, "parent": None}}
    for role, to, text in (("assistant", "all", ""), asked, ("assistant", "dalle", "{}"), ("tool", "all", ""), red):
        message = {"author": {"role": role}, "recipient": to, "content": {"content_type": "text", "parts": [text]}}
        nodes[str(len(nodes))] = {"message": message, "parent": str(len(nodes) - 1)}
    claude = [("human", "plot it"), ("assistant", ""), ("human", "larger")]
    for name, conversation in {
        "chatgpt": {"title": "Boat", "mapping": nodes, "current_node": "5"},
        "claude": {"name": "Plot", "chat_messages": [{"sender": sender, "text": text} for sender, text in claude]},
    }.items():
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps([conversation]))
        _, notes = take(reg, path, name)
        assert "left out, your replies to messages without text: 1" in notes
    assert items(reg, "chatgpt") == [("Boat", "draw a boat", None)]
    assert items(reg, "claude") == [("Plot", "plot it", None)]


def test_one_chat_of_telegram(reg: Registry) -> None:
    assert take(reg, EXPORTS / "telegram" / "one_chat.json", "ann")[0]["items_added"] == 1
    assert items(reg, "ann") == [("Are you at the pier?", "almost", "2026-03-01T09:02:00")]


def test_chatgpt(reg: Registry) -> None:
    result, notes = take(reg, EXPORTS / "chatgpt" / "conversations.json", "ann")
    assert (result["format"], result["items_added"]) == ("chatgpt", 2)
    assert items(reg, "ann") == [
        ("Painting a boat house", "which paint for this wall?", "2026-03-01T08:00:02"),
        ("An oil paint, in two coats.", "two?? no time. one.", "2026-03-01T08:00:06"),
    ]
    assert notes[0] == f"left out, {BROKEN}: 1"
    assert notes[-1].startswith("the inputs are the words of an assistant: ")


def test_claude(reg: Registry) -> None:
    result, notes = take(reg, EXPORTS / "claude" / "conversations.json", "ann")
    assert (result["format"], result["items_added"]) == ("claude", 2)
    assert [item[:2] for item in items(reg, "ann")] == [
        ("Names for a rowing boat", "short names for a grey rowing boat"),
        ("Heron, Slate, Mole.", "mole! haha, taken"),
    ]
    assert notes[:2] == ["left out, messages without text: 1", "left out, conversations without messages: 1"]


def test_training_conversations_of_one_user_or_of_a_column(reg: Registry) -> None:
    from mta_cli.pipeline.data.column_mapping import ColumnMapping

    path = EXPORTS / "messages" / "openai.jsonl"
    result, notes = take(reg, path, columns=ColumnMapping(user="author"))
    assert (result["format"], result["users"]) == ("messages", 2)
    assert items(reg, "mina") == [("And the pot?", "By the door.", None)]
    assert items(reg, "odd") == [("Is it late?", "Nine.", None)]
    assert notes[0] == "left out, conversations whose last question has no answer: 1"
    take(reg, EXPORTS / "messages" / "sharegpt.json", "cy")
    assert items(reg, "cy") == [("Name a bird.", "A wren.", None)]


@pytest.mark.parametrize("path", ["telegram/result.json", "chatgpt/conversations.json", "claude/conversations.json"])
def test_chats_need_one_name(reg: Registry, path: str) -> None:
    with pytest.raises(UsageError, match="does not name its user"):
        take(reg, EXPORTS / path)
    with pytest.raises(UsageError, match="--me lee is a second name"):
        take(reg, EXPORTS / path, "ann", "lee")


@pytest.mark.parametrize("path", ["telegram/result.json", "chatgpt/conversations.json", "claude/conversations.json"])
def test_a_file_that_is_cut_short_is_one_line(reg: Registry, tmp_path: Path, path: str) -> None:
    whole = (EXPORTS / path).read_bytes()
    cut = tmp_path / "cut.json"
    cut.write_bytes(whole[:-20])
    with pytest.raises(BadInput, match=r"cut\.json is cut short"):
        take(reg, cut, "ann")
    assert reg.users.names() == []


STRANGE: list[Any] = [None, 1, "x", [], {}, [[]], {"x": "\ud800"}, [None], "\0", True, -1e308]


@pytest.mark.parametrize("path", ["telegram/result.json", "chatgpt/conversations.json", "claude/conversations.json"])
def test_values_of_other_types_end_in_words(reg: Registry, tmp_path: Path, path: str) -> None:
    """Every value in turn becomes something else; the import ends in words, or with what can be stored."""
    whole = json.loads((EXPORTS / path).read_bytes())
    ways = list(places(whole))
    strange = tmp_path / "strange.json"
    for number, (holder, key) in enumerate(ways):
        kept, holder[key] = holder[key], STRANGE[number % len(STRANGE)]
        strange.write_text(json.dumps(whole))
        holder[key] = kept
        try:
            take(reg, strange, "ann", dry_run=True)
        except (BadInput, UsageError) as refused:
            assert refused.message.isprintable()
    assert len(ways) > 50


WRONG: list[tuple[str, str, Any, str]] = [
    ("telegram/one_chat", "messages.1", 7, "record 2: is a number, not an object"),
    ("telegram/one_chat", "messages.1.text", [{"text": 5}], "record 2, field text[0].text: is a number, not text"),
    ("telegram/one_chat", "messages.1.from_id", [], "record 2, field from_id: is a list, not a number or text or null"),
    ("chatgpt/conversations", "1", "x", "record 2: is text, not an object"),
    ("chatgpt/conversations", "0.title", 1, "record 1, field title: is a number, not text or null"),
    (
        "chatgpt/conversations",
        "0.mapping.u1b.message.author.role",
        [],
        "record 1, field mapping[...].message.author.role: is a list, not text or null",
    ),
    (
        "claude/conversations",
        "0.chat_messages.2.content",
        "x",
        "record 1, field chat_messages[2].content: is text, not a list or null",
    ),
    (
        "messages/sharegpt",
        "0.conversations.1.value",
        {},
        "record 1, field conversations[1].value: is an object, not text or a list or null",
    ),
]


@pytest.mark.parametrize(("path", "field", "value", "fault"), WRONG)
def test_a_field_of_another_type_is_named(
    reg: Registry, tmp_path: Path, path: str, field: str, value: Any, fault: str
) -> None:
    whole = json.loads((EXPORTS / f"{path}.json").read_bytes())
    holder, *keys = (whole, *(int(key) if key.isdigit() else key for key in field.split(".")))
    for key in keys[:-1]:
        holder = holder[key]
    holder[keys[-1]] = value
    (wrong := tmp_path / "wrong.json").write_text(json.dumps(whole))
    with pytest.raises(BadInput) as caught:
        take(reg, wrong, "ann")
    assert caught.value.faults == (f"wrong.json: {fault}",)


def test_faulty_messages_can_be_left_out(reg: Registry, tmp_path: Path) -> None:
    whole = json.loads((EXPORTS / "telegram" / "result.json").read_bytes())
    whole["chats"]["list"][0]["messages"][2]["text"] = 5
    path = tmp_path / "result.json"
    path.write_text(json.dumps(whole))
    result, notes = take(reg, path, "ann", skip_faulty=True)
    assert (result["items_added"], items(reg, "ann")[0][0]) == (2, "Are you at the pier?")
    assert "field text: is a number, not text or a list or null" in notes[-2]


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield value, key
        yield from places(inner)


def test_deep_json_is_one_line(reg: Registry, tmp_path: Path) -> None:
    path = tmp_path / "deep.json"
    for begin in ('[{"mapping": {}, "x": ', '{"name": "x", "type": "personal_chat", "x": '):
        path.write_text(begin + "[" * 200_000)
        with pytest.raises(BadInput, match="nested too deep"):
            take(reg, path, "ann")


@pytest.mark.parametrize(("can_anchor", "may"), [(None, False), (True, True), (False, False)])
def test_nobody_is_an_anchor_by_default(reg: Registry, can_anchor: bool | None, may: bool) -> None:
    def ask(users: int) -> bool:
        raise AssertionError("nobody is asked")

    _, notes = take(reg, EXPORTS / "telegram" / "one_chat.json", "ann", can_anchor=can_anchor, ask=ask)
    assert reg.users.get("ann").can_anchor is may
    assert notes[-1].startswith("the inputs are the words of the people who wrote to you")
    assert ("--can-anchor" in notes[-1]) == (can_anchor is None)


def test_a_known_user_keeps_the_consent(reg: Registry) -> None:
    reg.users.add("ann")
    assert reg.users.get("ann").can_anchor
    take(reg, EXPORTS / "telegram" / "one_chat.json", "ann")
    assert reg.users.get("ann").can_anchor
