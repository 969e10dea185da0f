"""Turns mails into rows of a received mail and the user's reply."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator

from mta_cli.errors import BadInput, Flag, UsageError
from mta_cli.pipeline.data.formats.mail.message import Mail
from mta_cli.pipeline.data.formats.parse_results import ParseFindings, SourceLocation, format_value
from mta_cli.pipeline.data.formats.rows import RawRow
from store.staged_mails import StagedMail, StagedMails

NO_PARENT, TO_MYSELF, NO_QUESTION, NO_WORDS = (
    "your replies to mails that are not in the import",
    "your replies to your own mails",
    "your replies to mails without plain text",
    "your replies without words of your own in plain text",
)
NO_REPLY = "mails of yours that are not replies"
SEARCHED_MAILS = 2_000
"""The mails read before asking for the user's address, if it was not given."""
_COUNTED_ADDRESSES, _NAMED_ADDRESSES = 100_000, 3


class MailReplies:
    """Collects the mails of an import and pairs them; `addresses` are the user's, in folded case."""

    def __init__(self, addresses: Collection[str], name: str, staged: StagedMails, findings: ParseFindings) -> None:
        self._addresses, self._name, self._staged, self._findings = addresses, name, staged, findings
        self._seen, self._mine = 0, 0
        self._counts: Counter[str] = Counter()

    def add(self, mails: Iterable[Mail]) -> None:
        """Add the mails of a file. Raises UsageError, with likely addresses, if no address was given."""
        for mail in mails:
            self._seen += 1
            for address in dict.fromkeys((mail.sender, *mail.receivers)):
                if address in self._counts or len(self._counts) < _COUNTED_ADDRESSES:
                    self._counts[address] += 1
            if not self._addresses and self._seen >= SEARCHED_MAILS:
                self._raise_no_address()
            mine = mail.sender in self._addresses
            self._mine += mine
            if mine and not mail.answered:
                self._findings.skip_counts[NO_REPLY] += 1
            file, record, _ = mail.place
            self._staged.add(StagedMail(mail.id, mine, mail.answered, mail.subject, mail.text, mail.time, file, record))

    def rows(self) -> Iterator[RawRow]:
        """A row for each of the user's replies to another sender's mail in the import, if both have plain text.

        Raises UsageError if no address was given, and BadInput if no mail is from the user.
        """
        if not self._addresses and self._seen:
            self._raise_no_address()
        if not self._mine and self._seen:
            given = ", ".join(sorted(self._addresses))
            hint = ("add ", Flag("me", "ADDRESS"), f"; {self._frequent_addresses()}")
            raise BadInput(f"no mail in {self._name} is from {given}", hint=hint)
        for reply in self._staged.replies():
            asked = self._staged.find(reply.answered)
            reason = _skip_reason(asked, reply)
            if asked is None or reason:
                self._findings.skip_counts[reason] += 1
                continue
            question = f"{asked.subject}\n\n{asked.text}".strip()
            yield (
                SourceLocation(reply.file, reply.record),
                {"input": question, "output": reply.text, "time": reply.time},
            )

    def _raise_no_address(self) -> None:
        """Raise UsageError, which asks for the user's address: none was given."""
        raise UsageError(
            f"which mails in {self._name} are yours?",
            hint=("add ", Flag("me", "ADDRESS"), f"; {self._frequent_addresses()}"),
        )

    def _frequent_addresses(self) -> str:
        """The most frequent addresses, for an error message."""
        most = self._counts.most_common(_NAMED_ADDRESSES)
        named = ", ".join(f"{format_value(address)} ({count:,} mails)" for address, count in most)
        return f"the most frequent addresses are {named}"


def _skip_reason(asked: StagedMail | None, reply: StagedMail) -> str:
    """The reason why a reply gives no row; empty if it gives one."""
    if asked is None:
        return NO_PARENT
    if asked.mine:
        return TO_MYSELF
    if asked.text is None or not (asked.text or asked.subject):
        return NO_QUESTION
    return "" if reply.text else NO_WORDS
