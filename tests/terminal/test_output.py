"""What reaches the terminal: results on standard output, talk on standard error, no control byte of data on any."""

from __future__ import annotations

import io
import itertools
import json
import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mta_cli import events as ev
from mta_cli.errors import BadInput, Interrupted, MtaError, NotFound
from mta_cli.terminal.output import Output, StdoutClosed, group, text
from mta_cli.terminal.tables import key_value_grid, table
from mta_cli.text.printable import clean_line, clean_text, to_json, to_jsonable

# Clear the screen, set the clipboard (OSC 52), a title by C1, a NUL, backspaces, a bidi override, a line separator.
HOSTILE = "a\x1b[2Jb\x1b]52;c;ZXZpbA==\x07c\x9d0;t\x9c\x9b2Jd\x00\x08\x08e\u202egpj.exe\u2066f\u2028g\rh"
FORBIDDEN = re.compile("[\x00-\x08\x0b-\x1a\x1c-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
OWN_STYLING = re.compile(r"\x1b\[[0-9;]*m")  # colours; Rich's other codes are not used for results and messages
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
ANYTHING = st.text(alphabet=st.characters(codec=None, categories=None), max_size=60)


def is_harmless(shown: str) -> bool:
    rest = OWN_STYLING.sub("", shown)
    return "\x1b" not in rest and not FORBIDDEN.search(rest)


@settings(deadline=None)
@given(ANYTHING)
def test_clean_leaves_only_what_can_be_printed(raw: str) -> None:
    cleaned = clean_text(raw)
    cleaned.encode()
    assert clean_text(cleaned) == cleaned
    assert is_harmless(cleaned)
    assert "\x1b" not in cleaned
    for char in set(cleaned) - set("\n\t\u200c\u200d"):
        assert char.isprintable() or char.isspace()


@settings(deadline=None)
@given(st.text(alphabet=st.characters(categories=["L", "N", "P", "S", "M"]), max_size=60))
def test_clean_changes_no_letter_sign_or_number(raw: str) -> None:
    assert clean_text(raw) == raw


@pytest.mark.parametrize(
    "raw", ["tab\tand\nnewline", "no\u00a0break", "👩\u200d🔬", "می\u200cخواهم", "naïve — ‘quotes’"]
)
def test_clean_keeps_what_people_write(raw: str) -> None:
    assert clean_text(raw) == raw


@settings(deadline=None)
@given(ANYTHING)
def test_a_clean_line_is_one_line(raw: str) -> None:
    assert "\n" not in clean_line(raw) and "\t" not in clean_line(raw)
    assert clean_line(clean_line(raw)) == clean_line(raw)


@settings(deadline=None)
@given(JSON)
def test_json_reads_back_as_it_was_and_is_printable(value: Any) -> None:
    document = to_json(value)
    document.encode()
    assert is_harmless(document) and "\x1b" not in document
    assert json.loads(document) == value


def test_json_escapes_what_a_terminal_obeys() -> None:
    assert to_json(HOSTILE) == json.dumps(HOSTILE)
    assert to_json("\U000e0041\ud800") == json.dumps("\U000e0041\ud800")


def test_plain_makes_values_json_can_hold() -> None:
    value = {
        "row": ev.PlanLine("a", "b", "default"),
        3: {2, 1},
        "nan": [float("nan"), (1, float("inf"))],
        "e": KeyError,
    }
    expected = {"row": {"name": "a", "value": "b", "origin": "default"}, "3": [1, 2], "nan": [None, [1, None]]}
    assert to_jsonable(value) == {**expected, "e": str(KeyError)}


@pytest.mark.parametrize("colour", [False, True])
def test_nothing_hostile_reaches_either_stream(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, colour: bool
) -> None:
    if colour:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.delenv("NO_COLOR", raising=False)
        monkeypatch.setenv("TERM", "xterm-256color")
    else:
        monkeypatch.setenv("NO_COLOR", "1")
    output = Output(verbosity=2)
    renderings = [
        HOSTILE,
        text(HOSTILE),
        key_value_grid([(HOSTILE, HOSTILE)]),
        table((HOSTILE, "n"), [(HOSTILE, 1), (None, 2.5)]),
        group(text(HOSTILE), HOSTILE),
    ]
    for rendering in renderings:
        output.print_result(None, lambda _, shown=rendering: shown)
    for value in (HOSTILE, [HOSTILE], {HOSTILE: {HOSTILE: [HOSTILE]}}, [{HOSTILE: HOSTILE}]):
        output.print_result(value)
    Output(json=True).print_result({HOSTILE: HOSTILE})
    output.write_stdout(HOSTILE)
    output.print_help(HOSTILE)
    for say in (output.note, output.warn):
        say(HOSTILE)
    try:
        raise BadInput(HOSTILE, hint=HOSTILE, faults=(HOSTILE,))
    except MtaError as error:
        output.error(error)
    output.error(RuntimeError(HOSTILE))
    output.run_job(iter(_hostile_job()))
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    output.read_answer(HOSTILE)
    for shown in capsys.readouterr():
        assert len(shown) > 100
        shown = (
            re.sub(r"\r?\x1b\[(\?25[lh]|[0-9]*[A-G]|[0-2]?K)", "", shown) if colour else shown
        )  # the bar's own codes
        assert is_harmless(shown), FORBIDDEN.findall(shown)


def _hostile_job() -> Iterator[ev.Event]:
    yield ev.JobPlan(HOSTILE, (ev.PlanLine(HOSTILE, HOSTILE, HOSTILE),))
    yield ev.JobStarted(HOSTILE, 2, HOSTILE)
    yield ev.JobProgress(HOSTILE, 1, loss=1.0, tokens=5)
    yield ev.ArtifactSaved(HOSTILE, HOSTILE, HOSTILE)
    yield ev.UnitFailed(HOSTILE, HOSTILE)
    yield ev.Note(HOSTILE, warning=True)
    yield ev.TextChunk(HOSTILE, HOSTILE)
    yield ev.JobResult({})


def test_markup_in_data_is_plain_text(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output()
    output.print_result(None, lambda _: table(("[b]name[/b]",), [("[/red] :smile: [link=x]",)]))
    output.print_result("[bold]and[/oops]")
    output.warn("[TODO] and [/b]")
    out, err = capsys.readouterr()
    assert "[b]name[/b]" in out and "[/red] :smile: [link=x]" in out and "[bold]and[/oops]" in out
    assert "[TODO] and [/b]" in err


def test_a_message_cannot_forge_another(capsys: pytest.CaptureFixture[str]) -> None:
    Output().error(MtaError("user 'x\nhint: rm -rf ~' is unknown"))
    assert "\nhint" not in capsys.readouterr().err


def test_results_and_talk_go_to_their_own_streams(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output(json=True)
    result = output.run_job_and_print(
        iter([ev.Note("hello"), ev.ArtifactSaved("bank", "b"), ev.TextChunk("streamed"), ev.JobResult({"a": 1})])
    )
    out, err = capsys.readouterr()
    assert result == {"a": 1}
    assert json.loads(out) == {"a": 1}
    assert err == "hello\nsaved bank b\n"


def test_quiet_silences_notes_but_no_warning(capsys: pytest.CaptureFixture[str]) -> None:
    job = [
        ev.Note("note"),
        ev.ArtifactSaved("bank", "b"),
        ev.Note("careful", warning=True),
        ev.UnitFailed("x", "y"),
        ev.JobResult(1),
    ]
    Output(quiet=True).run_job(iter(job))
    assert capsys.readouterr().err == "warning: careful\nwarning: x failed: y\n"


def test_tokens_stream_under_their_column(capsys: pytest.CaptureFixture[str]) -> None:
    tokens = [ev.TextChunk("Hel", "base"), ev.TextChunk("lo", "base"), ev.TextChunk("Hi", "fused"), ev.JobResult()]
    Output().run_job(iter(tokens))
    assert capsys.readouterr().out == "base:\nHello\n\nfused:\nHi\n"


def test_a_note_in_the_middle_of_a_stream_begins_on_its_own_line(capsys: pytest.CaptureFixture[str]) -> None:
    Output().run_job(iter([ev.TextChunk("half a"), ev.Note("by the way"), ev.TextChunk(" line"), ev.JobResult()]))
    assert capsys.readouterr().out == "half a\n line\n"


def test_a_dry_run_prints_the_plan_once(capsys: pytest.CaptureFixture[str]) -> None:
    lines = (ev.PlanLine("bank.rank", "8", "flag --rank"),)
    Output().run_job_and_print(iter([ev.JobPlan("bank build", lines), ev.JobResult({"tokens": 5})]), dry_run=True)
    out = capsys.readouterr().out
    assert "bank build" in out and "flag --rank" in out and out.count("bank.rank") == 1
    Output(json=True).run_job_and_print(
        iter([ev.JobPlan("bank build", lines), ev.JobResult({"tokens": 5})]), dry_run=True
    )
    expected = {"name": "bank.rank", "value": "8", "origin": "flag --rank"}
    assert json.loads(capsys.readouterr().out) == {"tokens": 5, "job": "bank build", "plan": [expected]}


def test_the_plan_of_a_real_run_is_shown_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    for verbosity, shown in ((0, False), (1, True)):
        Output(verbosity=verbosity).run_job(iter([ev.JobPlan("j", (ev.PlanLine("a.b", "1"),)), ev.JobResult()]))
        out, err = capsys.readouterr()
        assert ("a.b" in err) is shown and not out


def test_ctrl_c_closes_the_job_and_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    closed = []

    def job() -> Iterator[ev.Event]:
        try:
            yield ev.JobStarted("work", 10)
            yield ev.JobProgress("a", 1)
            yield ev.Note("interrupt me")
        finally:
            closed.append(True)

    output = Output()
    output.note = _interrupt  # type: ignore[method-assign]
    with pytest.raises(Interrupted) as raised:
        output.run_job_and_print(job(), resumes=True)
    assert closed == [True]
    assert raised.value.exit_code == 130 and "same command again" in str(raised.value.hint)
    with pytest.raises(Interrupted) as raised:
        output.run_job_and_print(job())
    assert raised.value.hint is None
    assert str(raised.value) == "interrupted"  # an import that was stopped keeps nothing


def _interrupt(message: str) -> None:
    raise KeyboardInterrupt


def test_an_error_of_the_job_passes_through() -> None:
    def job() -> Iterator[ev.Event]:
        yield ev.JobStarted("work")
        raise NotFound("gone")

    with pytest.raises(NotFound):
        Output().run_job(job())


def test_an_error_shows_faults_and_hint(capsys: pytest.CaptureFixture[str]) -> None:
    Output().error(BadInput("2 faults", hint="mend them", faults=("f.jsonl: record 1", "f.jsonl: record 2")))
    assert capsys.readouterr().err == "error: 2 faults\n  f.jsonl: record 1\n  f.jsonl: record 2\nhint: mend them\n"


def test_the_unexpected_has_a_traceback_only_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        raise ZeroDivisionError("boom")
    except ZeroDivisionError as error:
        Output().error(error)
        assert "Traceback" not in capsys.readouterr().err
        Output(verbosity=2).error(error)
        err = capsys.readouterr().err
    assert err.startswith("unexpected: ZeroDivisionError: boom\n") and "Traceback" in err


def test_a_reader_that_has_gone_ends_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(io.StringIO):
        def write(self, raw: str) -> int:
            raise BrokenPipeError

    for deliver in (
        lambda: Output().write_stdout("x"),
        lambda: Output().print_result("x"),
        lambda: Output(json=True).print_result("x"),
    ):
        monkeypatch.setattr(sys, "stdout", Gone())
        with pytest.raises(StdoutClosed):
            deliver()
        assert not isinstance(sys.stdout, Gone)


def test_a_full_disk_is_told_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.StringIO):
        def write(self, raw: str) -> int:
            raise OSError(28, "No space left on device")

    for deliver in (
        lambda: Output().write_stdout("x"),
        lambda: Output().print_result("x"),
        lambda: Output(json=True).print_result("x"),
    ):
        monkeypatch.setattr(sys, "stdout", Full())
        with pytest.raises(MtaError, match="standard output cannot be written: No space left"):
            deliver()
        assert not isinstance(sys.stdout, Full)


def test_progress_in_a_log_is_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mta_cli.terminal.progress.LOG_INTERVAL_SECONDS", 0.0)
    steps = [ev.JobProgress("alice", done, loss=2.5, tokens=100) for done in (51, 52)]
    Output().run_job(iter([ev.JobStarted("bank build", 96), *steps, ev.JobResult()]))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[1].startswith("bank build · alice: 52/96 steps · loss 2.500 · ")
    assert "tokens/s" in lines[1] and "steps/s" in lines[1] and "ETA 0:00:00" in lines[1]


def test_a_resumed_job_is_not_thought_to_be_fast(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = itertools.count(0.0, 20.0)
    monkeypatch.setattr("mta_cli.terminal.progress.time.monotonic", lambda: next(ticks))
    steps = [ev.JobProgress("alice", done, tokens=500) for done in (51, 52, 53)]
    Output().run_job(iter([ev.JobStarted("bank build", 96), *steps, ev.JobResult()]))
    assert capsys.readouterr().err.splitlines() == [
        "bank build · alice: 51/96 steps · 25 tokens/s",
        "bank build · alice: 52/96 steps · 25 tokens/s · 0.05 steps/s · ETA 0:14:40",
        "bank build · alice: 53/96 steps · 25 tokens/s · 0.05 steps/s · ETA 0:14:20",
    ]


def test_progress_in_a_terminal_is_a_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    for columns, job in (("80", ""), ("140", "bank build · ")):
        monkeypatch.setenv("COLUMNS", columns)
        steps = [ev.JobProgress("anchor 3/12: ida", done, loss=1.0, tokens=100) for done in (1, 2)]
        Output().run_job(iter([ev.JobStarted("bank build", 2), *steps, ev.JobResult()]))
        last = plain_text(capsys.readouterr().err).splitlines()[-1]
        assert last.startswith(f"{job}anchor 3/12: ida ") and "2/2 loss 1.000 · " in last
        assert "tokens/s" in last and "ETA 0:00:00" in last and len(last.rstrip()) <= int(columns)


def test_a_title_that_is_too_long_for_a_narrow_bar_loses_its_names_and_is_not_cut(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    for label, shown in (("anchor 1/8: ansel and 7 more", "anchor 1/8 "), ("x" * 30, "x" * 19 + "… ")):
        Output().run_job(iter([ev.JobStarted("bank build", 1), ev.JobProgress(label, 1), ev.JobResult()]))
        assert plain_text(capsys.readouterr().err).splitlines()[-1].startswith(shown)


def plain_text(drawn: str) -> str:
    """What a terminal's reader sees, each state of a bar on a line of its own."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn).replace("\r", "\n").rstrip("\n")


def test_numbers_stand_right_and_long_cells_are_kept_whole(capsys: pytest.CaptureFixture[str]) -> None:
    Output().print_result(None, lambda _: table(("name", "items"), [("a" * 300, 5), ("b", 12345)]))
    out = capsys.readouterr().out
    assert out.count("a") == 300 + len("name") - 3
    assert re.search(r" {4}5 *$", out, re.MULTILINE)


def test_a_long_line_in_a_pipe_stays_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    path = "/a long folder/" * 40
    Output().print_result({"path": path}, lambda result: text(result["path"]))
    assert capsys.readouterr().out == path + "\n"


ROWS = [("ann", 5), ("bob", 12345), ("a much longer name", None), ("\x1b[2Jcy", 1)]


def test_long_results_are_printed_a_page_at_a_time(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mta_cli.terminal.output.PAGE_ROWS", 2)

    def rows() -> Iterator[tuple[str, int | None]]:
        for number, row in enumerate(ROWS):
            if number == 2:
                out = capsys.readouterr().out
                assert "ann" in out and "bob" in out, "the first page is there before the second is asked for"
            yield row

    Output().print_rows(("name", "items"), rows(), lambda row: row)
    assert capsys.readouterr().out == "a much longer name       –\n[2Jcy                    1\n"
    Output(json=True).print_rows(("name", "items"), rows(), lambda row: row)


@pytest.mark.parametrize("rows", [ROWS[:1], ROWS[:2], ROWS, []])
def test_pages_of_a_long_result_make_one_document(
    rows: list[tuple[str, int | None]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Output(json=True).print_result(rows)
    whole = capsys.readouterr().out
    Output().print_result(None, lambda _: table(("name", "items"), rows))
    drawn = capsys.readouterr().out
    for size in (1, 2, 500):
        monkeypatch.setattr("mta_cli.terminal.output.PAGE_ROWS", size)
        Output(json=True).print_rows(("name", "items"), iter(rows), lambda row: row)
        assert capsys.readouterr().out == whole
    Output().print_rows(("name", "items"), iter(rows), lambda row: row)
    assert capsys.readouterr().out == drawn, "the look is that of any table"
