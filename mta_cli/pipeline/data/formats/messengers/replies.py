"""Turns messages of several people into rows of a message and the user's reply."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator

from mta_cli.errors import BadInput, Flag, UsageError
from mta_cli.pipeline.data.formats.messengers.message import Message, fold_name
from mta_cli.pipeline.data.formats.parse_results import ParseFindings, format_value
from mta_cli.pipeline.data.formats.rows import RawRow
from mta_cli.pipeline.data.formats.turns import Turn, TurnPairs
from mta_cli.text.formatting import pluralise

SEARCHED_MESSAGES = 20_000
"""The messages read before asking for the user's name, if none was given."""
_COUNTED_SENDERS, _NAMED_SENDERS = 100_000, 5


class MessengerReplies:
    """Pairs the messages of all files of an import; `names` are the user's names; their case does not matter."""

    def __init__(self, names: Collection[str], file: str, findings: ParseFindings) -> None:
        self._names = {fold_name(name) for name in names}
        self._file, self._findings = file, findings
        self._senders: dict[str, str] = {}  # the sender of each of the user's names
        self._conversation, self._threads = "", dict[str, TurnPairs]()
        self._forms: dict[str, None] = {}
        self._seen, self._mine, self._shown = 0, 0, set[str]()
        self._counts: Counter[str] = Counter()

    def add(self, form: str, messages: Iterable[Message]) -> Iterator[RawRow]:
        """Add the messages of a file in format `form`; yields a row for each of the user's turns that ends in them.

        Raises UsageError, with likely names, if no name was given, and BadInput if two senders have the same name of
        the user.
        """
        self._forms[form] = None
        for message in messages:
            if message.conversation != self._conversation:
                yield from self._end_conversation()
                self._conversation = message.conversation
            self._seen += 1
            if message.text and message.names:
                shown = message.names[0]
                if shown in self._counts or len(self._counts) < _COUNTED_SENDERS:
                    self._counts[shown] += 1
            if not self._names and self._seen >= SEARCHED_MESSAGES:
                self._raise_no_name()
            mine = self._is_mine(message)
            self._mine += mine
            answers = message.answered.text if message.answered is not None else None
            if message.answered is not None and message.answered.sender in self._senders.values():
                answers = None  # the user continues
            for thread in message.threads:
                opens = thread and len(message.threads) > 1
                text = "" if opens and mine else message.text  # it is an item of the main conversation
                sender = "" if mine else message.sender
                pairs = self._threads.setdefault(thread, TurnPairs(self._findings))
                yield from pairs.add(Turn(mine, text, message.time, message.place, sender, answers))

    def end(self) -> Iterator[RawRow]:
        """The rows of the last turns. Adds a note on the messages read.

        Raises UsageError if no name was given, and BadInput if no message is from the user.
        """
        if not self._seen:
            return
        if not self._names:
            self._raise_no_name()
        if not self._mine and not self._findings.fault_lines:  # with faults, the user's messages may be the faulty ones
            given = ", ".join(sorted(self._names))
            hint = ("add ", Flag("me", "SENDER"), f", as the file writes it; {self._frequent_senders()}")
            raise BadInput(f"no message in {self._file} is from {given}", hint=hint)
        yield from self._end_conversation()
        read = f"{self._file} is read as {', '.join(self._forms)}: {pluralise(self._seen, 'message')}"
        whose = ", ".join(sorted(map(format_value, self._shown)))
        self._findings.notes.append(f"{read}, of which {self._mine:,} are yours, from {whose}")

    def _end_conversation(self) -> Iterator[RawRow]:
        for pairs in self._threads.values():
            yield from pairs.end()
        self._threads = {}

    def _is_mine(self, message: Message) -> bool:
        own = self._names.intersection(map(fold_name, message.names))
        for name in own:
            if self._senders.setdefault(name, message.sender) != message.sender:
                both = f"{format_value(self._senders[name])} and {format_value(message.sender)}"
                raise BadInput(
                    f"{format_value(name)} is the name of two senders in {self._file}: {both}",
                    hint=("give the full name of the sender that is you, such as ", Flag("me", message.sender)),
                )
        if own:
            self._shown.add(message.names[0])
        return bool(own)

    def _raise_no_name(self) -> None:
        """Ask which sender is the user: no name was given."""
        raise UsageError(
            f"which messages in {self._file} are yours?",
            hint=("add ", Flag("me", "SENDER"), f"; {self._frequent_senders()}"),
        )

    def _frequent_senders(self) -> str:
        """The most frequent senders, for an error message."""
        most = self._counts.most_common(_NAMED_SENDERS)
        named = ", ".join(f"{format_value(sender)} ({pluralise(count, 'message')})" for sender, count in most)
        return f"the most frequent senders are {named}" if named else "none of its messages has text"
