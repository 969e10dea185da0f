"""WhatsApp's export of a chat: a text file, in the form of iPhones (`[date, time] Name: text`) or of Android
(`date, time - Name: text`), with dates and notices in the phone's language.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from mta_cli.pipeline.data.formats.archive import ArchivedFile
from mta_cli.pipeline.data.formats.detect import FileSample
from mta_cli.pipeline.data.formats.fields import MAX_TEXT_CHARS
from mta_cli.pipeline.data.formats.messengers.message import (
    INVISIBLE_MARKS,
    NO_TEXT,
    SERVICE,
    Message,
    fold_name,
    without_marks,
)
from mta_cli.pipeline.data.formats.parse_results import ParseFindings, SourceLocation
from mta_cli.pipeline.data.formats.reading import iter_lines
from mta_cli.pipeline.data.formats.turns import clean_text, known_time

BEFORE_FIRST = "lines before the first message"
OPEN_ORDER = "its dates can mean day/month or month/day; they are read as"

_MARK = f"[{INVISIBLE_MARKS}]*"
_DATE = rf"(\d{{1,4}}){_MARK}[./-]{_MARK}\s?(\d{{1,2}}){_MARK}[./-]{_MARK}\s?(\d{{1,4}})"
_TIME = r"(\d{1,2})[:.](\d\d)(?:[:.](\d\d))?"
# Between date and time, and after the time, may be a word such as `klo`, `PM` or `下午`.
_HEAD = rf"{_DATE}([^\d\n]{{1,10}}){_TIME}([^\d\n\]]{{0,12}}?)"
_IPHONE = re.compile(rf"{_MARK}\[{_HEAD}\]\s")
_FORMS = (_IPHONE, re.compile(rf"{_MARK}{_HEAD}\s[-–]\s"))
_MORNING, _AFTERNOON = {"am", "πμ", "ص", "上午", "午前", "오전"}, {"pm", "μμ", "م", "下午", "午後", "오후"}

_SENDER = re.compile(r"([^:\n]{1,100}?)\s?:(?:\s|$)")
_QUOTES = re.compile('["“”„«»]')
_NOTICE_MARK = "\u200e"
"""The mark before WhatsApp's own words; on iPhones it may also be in the middle of a message."""
_OMITTED = re.compile(r"<[^<>]{0,40}[^!-~<>][^<>]{0,40}>")  # `<Media omitted>`, in any language
_ATTACHED = re.compile(r".{1,200}\.\w{2,5} \([^()]{1,40}[^!-~()][^()]{1,40}\)")  # `IMG-1.jpg (file attached)`
_FILE = re.compile(r".{1,200}\.\w{2,5}")
_EDITED = re.compile(r"\s?<[^\Wa-z_][^<>]{0,60}[^!-~<>][^<>]{0,60}>$")  # ` <This message was edited>`
_EDITED_CHARS = 130
_HEAD_BYTES = 400
_NO_LETTERS = re.compile(r"[\W_]+")
# Notices that replace a message, in the most frequent languages; on iPhones they begin with `_NOTICE_MARK`.
_NOTICES = frozenset(
    line.strip().casefold()
    for line in """
    null
    Waiting for this message
    This message was deleted
    You deleted this message
    Missed voice call
    Missed video call
    image omitted
    video omitted
    audio omitted
    sticker omitted
    GIF omitted
    document omitted
    Contact card omitted
    Diese Nachricht wurde gelöscht
    Du hast diese Nachricht gelöscht
    Verpasster Sprachanruf
    Verpasster Videoanruf
    Bild weggelassen
    Video weggelassen
    Audio weggelassen
    Sticker weggelassen
    Se eliminó este mensaje
    Este mensaje fue eliminado
    Eliminaste este mensaje
    imagen omitida
    Video omitido
    audio omitido
    sticker omitido
    Ce message a été supprimé
    Vous avez supprimé ce message
    Questo messaggio è stato eliminato
    Hai eliminato questo messaggio
    Mensagem apagada
    Esta mensagem foi apagada
    Você apagou esta mensagem
    Dit bericht is verwijderd
    Je hebt dit bericht verwijderd
    Ta wiadomość została usunięta
    Usunięto tę wiadomość
    Данное сообщение удалено
    Вы удалили данное сообщение
    Bu mesaj silindi
    Bu mesajı sildiniz
    """.strip().splitlines()
)


def recognise(sample: FileSample) -> bool:
    """Whether the first line begins a message, as WhatsApp writes it on an iPhone or on Android."""
    return _find_form(sample.first_line) is not None


def read_messages(stream: BinaryIO, path: Path | ArchivedFile, findings: ParseFindings) -> Iterator[Message]:
    """The messages of the chat. Times are the phone's, taken for UTC.

    A line begins a message only in the form of the first message, so a pasted chat of the other form is not split.
    """
    form, day_first = _find_form_and_date_order(stream, path.name, findings)
    stream.seek(0)
    if form is None:
        findings.add_fault(SourceLocation(path.name), "has no line such as `01/03/2026, 09:00 - Name: text`")
        return
    for place, head, words in _split_messages(stream, path.name, form, findings):
        sender = _SENDER.match(words)
        # a quotation that is open at the colon belongs to a notice: `Ann changed the name to "Pier: news"`
        if sender is None or len(_QUOTES.findall(sender[1])) % 2:
            findings.skip_counts[SERVICE] += 1
            continue
        text = (
            "" if place in findings.skipped_places else _typed_text(words[sender.end() :], from_iphone=form is _IPHONE)
        )
        if not text:
            findings.skip_counts[NO_TEXT] += 1
        name = clean_text(without_marks(sender[1])).removeprefix("~").strip()  # iPhones mark unknown numbers by `~`
        time = known_time("{:04}-{:02}-{:02}T{:02}:{:02}:{:02}".format(*_parse_date_time(head, day_first)))
        yield Message(path.name, place, fold_name(name), (name,), text, time)


def _find_form(line: str) -> re.Pattern[str] | None:
    return next((form for form in _FORMS if form.match(line)), None)


def _find_form_and_date_order(
    stream: BinaryIO, file: str, findings: ParseFindings
) -> tuple[re.Pattern[str] | None, bool]:
    """The form of the first message, and whether days come before months.

    The order with fewer months above 12 is chosen, then the order with fewer steps back in time. If both orders fit
    equally, days come first, with one exception: with ambiguous dates that contain `/`, the findings report a doubt,
    and months come first if the chat is shorter that way.
    """
    form: re.Pattern[str] | None = None
    day_first, month_first, is_open = _DateReading(), _DateReading(), False
    for _, content in iter_lines(stream, file, ParseFindings()):
        line = content[:_HEAD_BYTES].decode("utf-8", "replace")
        form = form or _find_form(line)
        head = form.match(line) if form is not None else None
        if head is None or len(head[1]) == 4:
            continue
        day_first.add(_parse_date_time(head, day_first=True))
        month_first.add(_parse_date_time(head, day_first=False))
        is_open = is_open or ("/" in head[0] and int(head[1]) != int(head[2]))
    ranks = [(each.wrong, each.back) for each in (day_first, month_first)]
    if ranks[0] != ranks[1]:
        return form, ranks[0] < ranks[1]
    is_day_first = day_first.days <= month_first.days or not is_open
    if is_open:
        findings.doubts.append(f"{file}: {OPEN_ORDER} {'day/month' if is_day_first else 'month/day'}")
    return form, is_day_first


class _DateReading:
    """The dates in one order of day and month: months above 12, steps back in time, and days from first to last."""

    def __init__(self) -> None:
        self.wrong, self.back = 0, 0
        self._last: tuple[int, ...] = ()
        self._days: tuple[int, int] | None = None

    @property
    def days(self) -> int:
        """The approximate length of the chat in days."""
        return self._days[1] - self._days[0] if self._days is not None else 0

    def add(self, moment: tuple[int, ...]) -> None:
        """Count the time of a message."""
        year, month, day = moment[:3]
        self.wrong += month > 12
        self.back += moment < self._last
        self._last, number = moment, 372 * year + 31 * month + day
        first, last = self._days or (number, number)
        self._days = min(first, number), max(last, number)


def _parse_date_time(head: re.Match[str], day_first: bool) -> tuple[int, ...]:
    """Year, month, day, hour, minute and second, as written; they need not exist in the calendar."""
    first, second, third = (int(head[number]) for number in (1, 2, 3))
    if len(head[1]) == 4:
        year, month, day = first, second, third
    else:
        year = third + 2000 if len(head[3]) <= 2 else third
        day, month = (first, second) if day_first else (second, first)
    hour, words = int(head[5]), {_NO_LETTERS.sub("", head[number]).casefold() for number in (4, 8)}
    if words & _AFTERNOON and hour < 12:
        hour += 12
    elif words & _MORNING and hour == 12:
        hour = 0
    return year, month, day, hour, int(head[6]), int(head[7] or 0)


def _split_messages(
    stream: BinaryIO, file: str, form: re.Pattern[str], findings: ParseFindings
) -> Iterator[tuple[SourceLocation, re.Match[str], str]]:
    """Each message: its location, the match of its date and time, and its text from the name on."""
    place, head, lines, size = SourceLocation(file), None, list[str](), 0
    for line, content in iter_lines(stream, file, findings):
        text = content.decode("utf-8", "replace").rstrip("\r\n")
        begin = form.match(text)
        if begin is not None:
            if head is not None:
                yield place, head, "\n".join(lines)
            place, head, lines, size = SourceLocation(file, (place.record or 0) + 1, line), begin, [], 0
            text = text[begin.end() :]
        elif head is None:
            findings.skip_counts[BEFORE_FIRST] += bool(text.strip())
        if head is not None and size <= MAX_TEXT_CHARS:  # a longer text is refused anyway
            lines.append(text)
            size += len(text)
        if "\ufffd" in text and not _is_utf8(content):
            findings.add_fault(place, "is not UTF-8")
    if head is not None:
        yield place, head, "\n".join(lines)


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def _typed_text(words: str, *, from_iphone: bool) -> str:
    """The text that the sender typed, from the lines after the name; "" if there is none."""
    first, _, rest = words.partition("\n")
    if first.startswith(_NOTICE_MARK):  # a caption may follow; after a colon, a poll follows
        words = "" if first.rstrip().endswith(":") else rest
    elif _OMITTED.fullmatch(first.strip()):
        words = "" if _FILE.fullmatch(rest.strip()) else rest
    elif _ATTACHED.fullmatch(first.strip()):
        words = rest
    if from_iphone and _NOTICE_MARK in words:
        words = "\n".join(filter(None, (_text_before_notice(line) for line in words.split("\n"))))
    text = clean_text(without_marks(words))
    end = text[-_EDITED_CHARS:]
    if edited := _EDITED.search(end):
        text = text[: len(text) - len(end) + edited.start()].rstrip()
    return "" if text.casefold().removesuffix(".") in _NOTICES else text


def _text_before_notice(line: str) -> str:
    """The line before WhatsApp's own words; "" if that is only a document's name (`a.pdf • 3 pages`)."""
    text, mark, _ = line.partition(_NOTICE_MARK)
    return "" if mark and text.rstrip().endswith("•") else text.rstrip()
