"""Finds the people behind the authors of commits: excludes bots, joins the addresses and spellings of one person.

Names come from git, which has applied the repository's mailmap.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterable

from mta_cli.errors import BadInput
from store.names import MAX_NAME_CHARS, check_name, normalise_name

FIRM_COMMITS = 3
"""After this number of commits under a name, the name stays the author's."""
MAX_NAMES_OF_ADDRESS = 4
"""An address with more names is shared, such as a mailing list's, and does not identify a person."""
_BOT = re.compile(
    r"\[bot\]|(^|[\s_.-])bot($|[\s_.-])|_bot_|^(dependabot|renovate|greenkeeper|pyup|snyk|mergify|bors|codecov|"
    r"github[ -]actions?|pre-commit[ -]ci|semantic-release|allcontributors|weblate|transifex|copybara|imgbot)\b",
    re.IGNORECASE,
)
_BOT_ADDRESSES = frozenset({"noreply@github.com", "action@github.com", "actions@github.com"})
_PLACEHOLDER_NAMES = frozenset(
    {"", "root", "unknown", "user", "admin", "administrator", "anonymous", "ubuntu", "your name", "no author"}
    | {"(no author)", "name", "none", "nobody", "me", "test", "git"}
)
_PLACEHOLDER_MAILBOXES = frozenset(
    {"", "root", "none", "noreply", "no-reply", "unknown", "nobody", "you", "user", "(no author)"}
)
_LOCAL_HOSTS = ("localhost", "localdomain", ".local", ".lan", "(none)")

Identity = tuple[str, str]
"""A name and an address, as git gives them."""


def is_bot(name: str, address: str) -> bool:
    """Whether commits of this identity are made by a program."""
    box = address.partition("@")[0]
    return bool(_BOT.search(name) or _BOT.search(box)) or address.casefold() in _BOT_ADDRESSES


class Authors:
    """The people behind the identities of a history.

    Identities with the same name or address belong to one person, except placeholders such as `root` and `noreply`. The
    person's name is the first under which they made `FIRM_COMMITS` commits, so that it stays when the history grows.
    """

    def __init__(self) -> None:
        self._numbers: dict[Identity, int] = {}
        self._order = array("L")
        self._first_commits: list[str] = []
        self._users: list[str | None] = []

    def add(self, identity: Identity, commit: str) -> int:
        """Record a commit; commits come oldest first. Returns the number of the identity."""
        number = self._numbers.setdefault(identity, len(self._numbers))
        if number == len(self._first_commits):
            self._first_commits.append(commit)
        self._order.append(number)
        return number

    def join(self, *, pseudonyms: bool) -> None:
        """Join identities into people, after the last commit. With `pseudonyms`, names are hashes of first commits."""
        people = _join_identities(list(self._numbers))
        if pseudonyms:
            firsts = dict(zip(reversed(people), reversed(self._first_commits), strict=True))
            digests = [hashlib.sha256(firsts[person].encode()).hexdigest() for person in people]
            self._users = [f"author-{digest[:8]}" for digest in digests]
        else:
            names = self._choose_names(people)
            self._users = [names[person] for person in people]

    def user(self, number: int) -> str | None:
        """The user name of the identity with this number; None if there is no usable name."""
        return self._users[number]

    def user_of(self, identity: Identity) -> str | None:
        """The user name of an identity; None if it was not added or has no usable name."""
        number = self._numbers.get(identity)
        return None if number is None else self._users[number]

    def _choose_names(self, people: list[int]) -> dict[int, str | None]:
        """The name of each person, None without a usable one."""
        written = [_clean_name(name) for name, _ in self._numbers]
        counts: dict[int, Counter[str]] = {}
        firm: dict[int, str] = {}
        for number in self._order:
            name, person = written[number], people[number]
            if name is None or _is_placeholder_name(name):
                continue
            own = counts.setdefault(person, Counter())
            own[name] += 1
            if own[name] == FIRM_COMMITS:
                firm.setdefault(person, name)
        fallback: dict[int, str | None] = {}
        for number, (_, address) in enumerate(self._numbers):
            if fallback.get(people[number]) is None:
                own_address = None if _address_key(address) is None else _clean_name(address)
                fallback[people[number]] = own_address or written[number] or _clean_name(address)
        return {
            person: firm.get(person) or (counts[person].most_common(1)[0][0] if person in counts else other)
            for person, other in fallback.items()
        }


def _join_identities(identities: list[Identity]) -> list[int]:
    """For each identity, the number of the first identity of the same person."""
    parents = list(range(len(identities)))

    def find(number: int) -> int:
        while parents[number] != number:
            parents[number] = parents[parents[number]]
            number = parents[number]
        return number

    shared = _shared_addresses(identities)
    first_with: dict[tuple[str, str], int] = {}
    for number, (name, address) in enumerate(identities):
        name_key, box = _name_key(name), _address_key(address)
        keys = [("name", name_key)] if not _is_placeholder_name(name_key) else []
        keys += [("address", box)] if box is not None and box not in shared else []
        for key in keys or [("neither", name_key or address)]:
            one, other = find(first_with.setdefault(key, number)), find(number)
            parents[max(one, other)] = min(one, other)
    return [find(number) for number in range(len(identities))]


def _shared_addresses(identities: Iterable[Identity]) -> set[str]:
    names: dict[str, set[str]] = {}
    for name, address in identities:
        if (box := _address_key(address)) is not None:
            names.setdefault(box, set()).add(_name_key(name))
    return {box for box, found in names.items() if len(found - _PLACEHOLDER_NAMES) > MAX_NAMES_OF_ADDRESS}


def _name_key(name: str) -> str:
    return normalise_name(_clean_name(name) or "")


def _is_placeholder_name(name: str) -> bool:
    return name.casefold() in _PLACEHOLDER_NAMES


def _address_key(address: str) -> str | None:
    """An address in folded case; None for a placeholder such as `noreply` or a local host."""
    box, _, host = address.casefold().strip().partition("@")
    if not host or box in _PLACEHOLDER_MAILBOXES or host.endswith(_LOCAL_HOSTS):
        return None
    return f"{box}@{host}"


def _clean_name(raw: str) -> str | None:
    """The name as a valid user name, if necessary without invalid characters; None if nothing is left."""
    for name in (raw, "".join(char if unicodedata.category(char)[0] not in "CZ" else " " for char in raw)):
        name = " ".join(name.split()).lstrip("- ")[:MAX_NAME_CHARS]
        try:
            return check_name(name)
        except BadInput:
            continue
    return None
