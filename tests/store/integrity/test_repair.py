"""A repair looks again before it removes: the store goes on while the user reads the question."""

from __future__ import annotations

from store.registry import Registry
from tests.store.making import adapter


def test_a_file_that_got_its_row_while_the_question_waited_stays(reg: Registry) -> None:
    reg.files.write(b"left by a killed job")
    reg.files.write(b"left for good")
    found = reg.repairs()
    assert len(found) == 2
    digest = adapter(reg, b"left by a killed job")
    for each in found:
        each.apply()
    assert reg.check_integrity() == [] and reg.files.stored_digests() == {digest}
