"""Rows of JSONL and CSV files, as records."""

from __future__ import annotations

import json
from io import BytesIO

import pytest

from mta_cli.pipeline.data.column_mapping import ColumnMapping
from mta_cli.pipeline.data.formats import delimited, json_lines
from mta_cli.pipeline.data.formats.parse_results import ParseFindings, Record
from mta_cli.pipeline.data.formats.rows import parse_rows
from tests.pipeline.histories import staged


def jsonl(content: bytes | str, user: str | None = None) -> tuple[list[Record], ParseFindings]:
    findings = ParseFindings()
    rows = json_lines.read_rows(BytesIO(content.encode() if isinstance(content, str) else content), "f", findings)
    return list(parse_rows(rows, "free", findings, staged(), user)), findings


def table(
    content: bytes | str, user: str | None = None, columns: ColumnMapping | None = None
) -> tuple[list[Record], ParseFindings]:
    findings = ParseFindings()
    rows = delimited.read_rows(BytesIO(content.encode() if isinstance(content, str) else content), "f", findings)
    mapping = columns or ColumnMapping()
    return list(parse_rows(rows, "free", findings, staged(), user, mapping)), findings


def test_jsonl_records() -> None:
    first = {"user": "ann", "input": "i", "output": "o", "id": 5, "time": "2026-08-01T12:00:00+02:00", "task": "lamp-4"}
    records, findings = jsonl(json.dumps(first) + '\n\n{"user": "bob", "input": "i", "output": 3, "time": null}\n')
    assert findings.fault_count == 0
    ann, bob = records
    assert (ann.user, ann.item.key, ann.item.task, ann.item.time) == ("ann", "5", "lamp-4", "2026-08-01T10:00:00")
    assert (bob.item.task, bob.item.output, bob.item.time) == ("free", "3", None)
    assert str(bob.location) == "f: record 2 (line 3)"


def test_csv_records() -> None:
    content = '\n User ,Input,OUTPUT,time,note\nann,"two\nlines","say ""hi""",2026-08-01,x\n\nbob,i,o,,\n'
    records, findings = table(content)
    assert findings.fault_count == 0
    assert [(record.user, record.item.input, record.item.output, record.item.time) for record in records] == [
        ("ann", "two\nlines", 'say "hi"', "2026-08-01"),
        ("bob", "i", "o", None),
    ]
    assert list(findings.ignored_fields) == ["note"]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_csv_separators(separator: str) -> None:
    records, findings = table(f"user{separator}input{separator}output\r\nann{separator}i{separator}o\r\n")
    assert findings.fault_count == 0
    assert [record.user for record in records] == ["ann"]


def test_ids_made_of_content_are_the_same_every_time() -> None:
    line = '{"user": "ann", "input": "i", "output": "o"}\n'
    once, twice = jsonl(line)[0], jsonl(line * 2)[0]
    assert once[0].item.key == twice[0].item.key
    assert twice[0].item.key != twice[1].item.key
    assert jsonl(line.replace('"i"', '"j"'))[0][0].item.key != once[0].item.key


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("{", "is not JSON"),
        ("[]", "is a list, not an object"),
        ("NaN", "is not JSON: NaN is not a JSON value"),
        ("[" * 10_000, "nested too deep"),
        ("{}", ", field user: is missing"),
        ('{"user": "ann", "input": "", "output": "o"}', ", field input: is empty"),
        ('{"user": "ann", "input": {}, "output": "o"}', ", field input: is an object, not text"),
        ('{"user": "ann", "input": "i", "output": null}', ", field output: is null, not text"),
        ('{"user": "ann", "input": "i", "output": 1e999}', ", field output: is not a finite number"),
        ('{"user": "ann", "input": "i", "output": "o", "id": []}', ", field id: is a list, not text"),
        ('{"user": "ann", "input": "i", "output": "o", "time": "soon"}', ", field time: 'soon' is not an ISO 8601"),
        ('{"user": "\\u202eann", "input": "i", "output": "o"}', ", field user: "),
        ('{"user": "", "input": "i", "output": "o"}', ", field user: is empty"),
        ('{"user": "a\\nb", "input": "i", "output": "o"}', ", field user: "),
        ('{"user": "a\\u0000b", "input": "i", "output": "o"}', ", field user: "),
    ],
)
def test_jsonl_faults(line: str, what: str) -> None:
    _, findings = jsonl('{"user": "ann", "input": "i", "output": "first"}\n' + line)
    assert findings.fault_lines[0].startswith("f: record 2")
    assert what in findings.fault_lines[0]
    assert "\x1b" not in findings.fault_lines[0]
    assert "\n" not in findings.fault_lines[0]


def test_jsonl_that_is_not_utf8_goes_on() -> None:
    records, findings = jsonl(b'{"user": "ann"}\n\xff\xfe\n' + b'{"user": "b", "input": "caf\xe9", "output": "o"}\n')
    assert records == []
    assert findings.fault_lines[-2:] == [
        "f: record 2: is not UTF-8: byte 0xff at offset 0 of the line",
        "f: record 3: is not UTF-8: byte 0xe9 at offset 27 of the line",
    ]


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("user,input,output,input\n", "f, field header: the column 'input' appears twice"),
        ("user,input,output\nann,i\n", "f: record 1 (line 2): has 2 cells where the header has 3"),
        ('user,input,output\nann,i,"o', "f: record 1 (line 2): is not CSV: unexpected end of data"),
        ('user,input,output\nann,"i"x,o', "f: record 1 (line 2): is not CSV: "),
        ("user,input,output\nann,,o\n", "f: record 1 (line 2), field input: is empty"),
        ("user,input,output\n--help,i,o\n", "f: record 1 (line 2), field user: "),
        (b"user,input,output\nann,caf\xe9,o\n", "f: record 1 (line 2), field input: is not UTF-8: character 4"),
        (b"user,input,output\nann,\0,o\n", "f: record 1 (line 2), field input: contains a NUL character"),
    ],
)
def test_csv_faults(content: bytes | str, what: str) -> None:
    _, findings = table(content)
    assert findings.fault_count == 1
    assert findings.fault_lines[0].startswith(what)


@pytest.mark.parametrize("content", ["", "\n\n", "user,input,output\n"])
def test_csv_without_records(content: str) -> None:
    records, findings = table(content)
    assert (records, findings.fault_count) == ([], 0)


FILMS = ColumnMapping(user="Person", input="{film} ({about}). {review}", output="stars", id="")


def test_columns_of_ones_own() -> None:
    content = "id;person;film;about;review;stars;task;seen\n1;ann;Salt;sea;Fine.;4;x;y\n1;bob;Salt;;;5;x;y\n"
    records, findings = table(content, columns=FILMS)
    assert findings.fault_count == 0
    assert [(record.user, record.item.input, record.item.output, record.item.task) for record in records] == [
        ("ann", "Salt (sea). Fine.", "4", "free"),
        ("bob", "Salt", "5", "free"),
    ]
    assert list(findings.ignored_fields) == ["id", "task", "seen"]


def test_rows_whose_mapped_cells_are_empty_are_left_out_and_counted() -> None:
    content = "person,film,about,review,stars\nann,Salt,,,\nann,,,,4\n,Salt,,,3\nann,Salt,,,2\n"
    records, findings = table(content, columns=FILMS)
    assert [record.item.output for record in records] == ["2"]
    assert findings.skip_counts == {"rows without output": 1, "rows without input": 1, "rows without user": 1}
    assert findings.fault_count == 0


def test_where_one_column_is_mapped_rows_with_any_empty_part_are_left_out() -> None:
    _, findings = table("user,input,stars\n,Salt,4\nann,,3\n", columns=ColumnMapping(output="stars"))
    assert findings.skip_counts == {"rows without user": 1, "rows without input": 1} and not findings.fault_count


def test_a_time_may_be_a_number() -> None:
    records, _ = jsonl('{"user": "ann", "input": "i", "output": "o", "time": 964982703}\n')
    assert records[0].item.time == "2000-07-30T18:45:03"


def test_duplicate_ids_are_faults() -> None:
    line = '{"user": "ann", "input": "i", "output": "o", "id": "1"}\n'
    other = line.replace("ann", "bob")
    records, findings = jsonl(line + other + line)
    assert len(records) == 2
    assert findings.fault_lines == ["f: record 3, field id: '1' was already used in record 1"]


def test_a_file_of_one_user() -> None:
    rows = [{"input": "i"}, {"user": "ann", "input": "j"}, {"user": "bob", "input": "k"}]
    content = "\n".join(json.dumps(row | {"output": "o"}) for row in rows)
    records, findings = jsonl(content, "ann")
    assert [record.user for record in records] == ["ann", "ann"]
    assert findings.fault_lines == ["f: record 3, field user: is 'bob', but this is the history of 'ann'"]
    assert [record.user for record in table("input,output\ni,o\n", "ann")[0]] == ["ann"]


def test_with_rounding_outputs_are_multiples_and_no_numbers_are_left_out() -> None:
    findings = ParseFindings()
    content = b"user,input,output\nann,a,68\nann,b, 72.5 \nann,c,n/a\nann,d,-3\nann,e,65/100\nann,f,70.0\nann,g,\n"
    rows = delimited.read_rows(BytesIO(content), "f", findings)
    found = list(parse_rows(rows, "free", findings, staged(), round_to=5))
    assert [record.item.output for record in found] == ["70", "75", "-5", "70.0"]
    assert findings.skip_counts == {"rows whose output is not a number": 2, "rows without output": 1}
    assert not findings.fault_count


def test_outputs_off_the_scale_are_left_out() -> None:
    findings = ParseFindings()
    content = b"user,input,output\nann,a,5.2\nann,b,99\nann,c,-1\nann,d,0.6\n"
    rows = delimited.read_rows(BytesIO(content), "f", findings)
    found = list(parse_rows(rows, "free", findings, staged(), round_to=1, scale=(1, 5)))
    assert [record.item.output for record in found] == ["5", "1"]
    assert findings.skip_counts == {"rows whose output is outside the scale 1 to 5": 2}


def test_a_row_that_is_left_out_brings_no_user() -> None:
    findings = ParseFindings(skip_faulty=True)
    content = b"user,input,output,time\nann,a,1,\nbob,b,n/a,\ncy,c,3,soon\ndee,,4,\n"
    list(parse_rows(delimited.read_rows(BytesIO(content), "f", findings), "free", findings, staged(), round_to=1))
    assert list(findings.users) == ["ann"]


def test_faulty_rows_can_be_left_out_but_not_a_table_that_breaks_off() -> None:
    findings = ParseFindings(skip_faulty=True)
    content = b"user,input,output,time\n-x,a,1,\nann,b,2,soon\nann,c,3,2026-01-02\nann,d\nann,,4,\n"
    found = list(parse_rows(delimited.read_rows(BytesIO(content), "f", findings), "free", findings, staged()))
    assert [record.item.input for record in found] == ["c"]
    assert len(findings.skipped_places) == 4 and not findings.fault_count and "'-x'" in findings.fault_lines[0]
    broken = ParseFindings(skip_faulty=True)
    rows = delimited.read_rows(BytesIO(b'user,input,output\nann,a,1\nann,"b" c,2\n'), "f", broken)
    assert len(list(parse_rows(rows, "free", broken, staged()))) == 1 and broken.fault_count == 1
