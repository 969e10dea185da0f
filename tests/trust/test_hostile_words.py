"""Templates that reach for Python; hostile task files and histories, refused in bounded memory and time, in words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mta_cli.engine.text.chat_template import ChatTemplate
from mta_cli.engine.text.task_files import parse_task
from mta_cli.errors import BadInput, MtaError
from mta_cli.pipeline.users.import_file import import_file
from store.registry import Registry
from tests.shell import mta
from tests.trust.limits import run_bounded
from tests.trust.tally import tally

SAY = "{{ messages[0]['content'] }}"
REFUSED_TEMPLATES = {
    "class": "{{ ''.__class__.__mro__ }}",
    "globals": "{{ messages[0].__init__.__globals__ }}",
    "cycler": "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "attr filter": "{{ (messages | attr('__class__')).x }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}",
    "append": "{% set _ = messages.append(1) %}",
}
SILENT_TEMPLATES = {
    "format attribute": "{{ '{0.__class__}'.format(messages) }}",
    "format map": "{{ '{x.__class__}'.format_map({'x': messages}) }}",
    "attr filter": "{{ messages | attr('__class__') }}",
    "map attribute": "{{ messages | map(attribute='__class__') | join }}",
}


@pytest.mark.parametrize("label", REFUSED_TEMPLATES)
def test_a_template_that_reaches_for_python_is_refused(label: str) -> None:
    with pytest.raises(BadInput, match="chat template"):
        ChatTemplate(REFUSED_TEMPLATES[label] + SAY, {}).render_layout(("user",), generation=True)
    tally("templates that reach for Python", "refused in words")


@pytest.mark.parametrize("label", SILENT_TEMPLATES)
def test_no_attribute_is_shown(label: str) -> None:
    layout = ChatTemplate(SILENT_TEMPLATES[label] + SAY, {}).render_layout(("user",), generation=True)
    assert layout.texts == ("", "")
    tally("templates that reach for Python", "said nothing of it")


def test_templates_that_bases_really_have_are_let_through() -> None:
    """What such templates do, in a conversation of 500 turns: loops, slices, namespaces, filters, splits, macros."""
    source = (
        "{%- macro turn(role, text) -%}<|{{ role }}|>{{ text | trim }}{{ eos_token }}{%- endmacro -%}"
        "{%- set ns = namespace(last=0, seen='') -%}{%- if messages[0]['role'] == 'system' -%}"
        "{%- set loop_messages = messages[1:] -%}{%- else -%}{%- set loop_messages = messages -%}{%- endif -%}"
        "{%- for m in loop_messages -%}{%- if m['role'] == 'user' -%}{%- set ns.last = loop.index0 -%}{%- endif -%}"
        "{%- if (loop.index0 % 2 == 0) != (m['role'] == 'user') -%}{{ raise_exception('order') }}{%- endif -%}"
        "{%- set content = m.content.split('</think>')[-1].lstrip('\\n') if '</think>' in m.content else m.content -%}"
        "{{ turn(m['role'], content) }}{{ '\\n' + ' ' * 2 if not loop.last }}{%- endfor -%}"
        "{{ {'a': [1, 2]} | tojson }}{{ '%s-%02d' % (ns.last, 7) }}{{ messages | length }}"
    )
    roles = ("user", "assistant") * 250
    found = ChatTemplate(source, {"eos_token": "</s>"}).render_layout(roles, generation=True, system="Be brief. " * 900)
    assert found.message_indices == tuple(range(500)) and found.texts[-1].endswith('{"a": [1, 2]}498-07501')


PATTERNS = {
    "(a+)+(?P<input>$)": "a" * 5000 + "!",
    "(a|aa)+(?P<input>$)": "a" * 50_000 + "!",
    "(?P<input>(x+x+)+y)": "x" * 50_000,
}


def test_patterns_end_whatever_the_question() -> None:
    """Each in one gigabyte, and in seconds: it matches, it does not, or it is given up with words."""
    questions = {
        "lamp-1": "For an author who has written the paper with the title " + ", which reference is related? " * 30_000
    }
    source = (
        "import json\nfrom mta_cli.engine.text.task_files import parse_task\n"
        "from mta_cli.engine.text.tasks import BUILTIN_TASKS\n"
        f"for n, (pattern, text) in enumerate(json.loads({json.dumps(json.dumps(PATTERNS))}).items()):\n"
        '    toml = \'name = "mine"\\nprompt = "{input}"\\nquestion_pattern = \' + json.dumps(pattern)\n'
        "    task = parse_task(toml, 'it')\n    attempt(str(n), lambda: task.strip_instruction(text))\n"
        f"for name, text in json.loads({json.dumps(json.dumps(questions))}).items():\n"
        "    attempt(name, lambda: BUILTIN_TASKS[name].strip_instruction(text))\n"
    )
    ran = run_bounded(source, megabytes=1024, seconds=30)
    assert ran.code == 0, ran.err[-2000:]
    assert len(ran.said) == len(PATTERNS) + 1
    assert "takes too long" in ran.said["1"] and "takes too long" in ran.said["lamp-1"]
    ran.count("patterns that explode")


@pytest.mark.parametrize(
    ("pattern", "fault"),
    [
        ("(?:(?:(?:a{99}){99}){99}){99}(?P<input>b)", "repetition counts may be at most 1,000"),
        ("(?P<input>a{4000000000})", "repetition counts may be"),
        ("(?P<input>a{99999999999})", "repeats something too often"),
        ("(?P<input>" + "a" * 1000 + ")", "the most is 1,000"),
        ("(?P<input>(?R))", "is not a regular expression"),
    ],
)
def test_patterns_that_are_refused_when_a_task_is_added(pattern: str, fault: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse_task(f'name = "mine"\nprompt = "{{input}}"\nquestion_pattern = {json.dumps(pattern)}', "it")
    assert any("question_pattern" in each and fault in each for each in caught.value.faults)
    tally("patterns of absurd size", "refused in words")


def test_patterns_of_dates_and_short_counts_are_taken() -> None:
    task = parse_task(
        'name = "mine"\nprompt = "{input}"\nquestion_pattern = \'\\d{4}-\\d{2}-\\d{2} (?P<input>.{1,9})\'', "t"
    )
    question = "2026-08-01 and more of it"
    assert task.strip_instruction(question) == "and more "


TRICKS = ("{input.__class__}", "{0}", "{input!r}", "{{input}}", "%s %(x)s %n", "{input:>99999999}", "${HOME}", "`id`")


@pytest.mark.parametrize("trick", TRICKS)
def test_formats_in_a_task_stay_words(trick: str) -> None:
    task = parse_task(
        f'name = "mine"\nprompt = {json.dumps(trick + " {input}")}\nitem = {json.dumps(trick + "{output}")}', "t"
    )
    assert task.fill_prompt("x") == trick.replace("{input}", "x") + " x"
    assert task.fill_item("{output}", "{input}") == trick.replace("{input}", "{output}") + "{input}"
    tally("tricks of formats in tasks", "stayed words")


TASKS = {
    "dots": "kind" + ".a" * 100_000 + " = 1",
    "quoted-dots": "kind" + ' . "a b"' * 50_000 + " = 1",
    "table-dots": "[" + "a." * 100_000 + "a]",
    "inline-dots": "labels = {a" + ".b" * 100_000 + " = 1}",
    "many-dots": ("a" + ".b" * 100 + " = 1\n") * 3_000,
    "hex": "name = 0x" + "f" * 100_000,
    "hex-budget": "query_tokens = 0x" + "f" * 100_000,
    "digits": "query_tokens = " + "9" * 100_000,
    "labels": "labels = [" + '"x", ' * 150_000 + "]",
    "many-labels": "labels = [" + ", ".join(f'"{n}"' for n in range(1001)) + "]",
    "deep-table": "a = " + "{a = " * 50_000,
    "deep-list": "labels = " + "[" * 50_000 + "]" * 50_000,
    "tables": "[a]\n" * 1000,
    "time": "prompt = 1979-05-27T07:32:00.999999999999999999999999-07:00",
    "mark": "\ufeffname = 'x'",
    "nul": "name = 'x\0'",
    "open": "prompt = '''" + "x" * 900_000,
    "quotes": '"' * 900_001,
}


def test_task_files_beyond_reason_are_bad_input(tmp_path: Path) -> None:
    """In half a gigabyte of address space and some seconds; no message is longer than a few lines."""
    (tmp_path / "tasks.json").write_text(json.dumps(TASKS))
    source = (
        "import json\nfrom pathlib import Path\nfrom mta_cli.engine.text.task_files import parse_task\n"
        f"for label, text in json.loads(Path({str(tmp_path / 'tasks.json')!r}).read_text()).items():\n"
        "    attempt(label, lambda: parse_task(text, 'it'))\n"
    )
    ran = run_bounded(source, megabytes=512, seconds=30)
    assert ran.code == 0, ran.err[-2000:]
    assert all(said.startswith("refused BadInput") and len(said) < 600 for said in ran.said.values())
    assert ran.said.keys() == TASKS.keys()
    ran.count("task files beyond reason")


def test_a_prompt_may_have_many_dots() -> None:
    words = "a." * 200 + " " + '." .' * 30
    task = parse_task(f'name = "mine"\nprompt = {json.dumps(words + " {input}")}', "it")
    assert task.prompt == words + " {input}"


DEEP = 10_000
HISTORIES = {
    "deep.jsonl": b'{"user": "a", "input": ' + b"[" * DEEP + b"]" * DEEP + b', "output": "o"}',
    "deep.users": b'[{"user_id": "a", "profile": ' + b'[{"a":' * DEEP + b"1" + b"}]" * DEEP + b"}]",
    "deep.lamp": b"[" * DEEP + b"]" * DEEP,
    "deep.json": b'[{"user": "a", "input": "i", "output": "o"}, ' + b"[" * DEEP + b"]" * DEEP + b"]",
    "wide.json": b"[{" + b'"a": 1, ' * 1_000_000 + b'"a": 1}]',
    "long.jsonl": b'{"user": "a", "input": "' + b"x" * 10_000_001 + b'", "output": "o"}',
    "long.csv": b"user,input,output\na,i," + b"x" * 10_000_001,
    "wide.csv": b"," * 5_000_000,
    "quotes.csv": b'user,input,output\na,"' + b'""' * 4_000_000,
    "nul.jsonl": b'{"user": "a", "input": "x\\u0000y", "output": "o"}',
    "raw-nul.jsonl": b'{"user": "a", "input": "x\0y", "output": "o"}',
    "nul.csv": b"user,input,output\na,x\0y,o\n",
    "surrogate.jsonl": b'{"user": "a", "input": "\\ud800", "output": "o"}',
    "surrogate-name.jsonl": b'{"user": "\\udc80", "input": "i", "output": "o"}',
    "surrogate.users": b'[{"user_id": "a", "profile": [{"id": "1", "input": "\\udfff", "output": "o"}]}]',
    "utf16.jsonl": '{"user": "a", "input": "i", "output": "o"}'.encode("utf-16")[:-1],
    "number.jsonl": b'{"user": "a", "input": "i", "output": ' + b"9" * 5000 + b"}",
    "exponent.jsonl": b'{"user": "a", "input": "i", "output": 1e99999}',
    "name.jsonl": json.dumps({"user": "x" * 100_000, "input": "i", "output": "o"}).encode(),
    "gzip.jsonl": b"\x1f\x8b\x08\x00" + b"\0" * 100,
}


def test_histories_beyond_reason_are_refused_whole(tmp_path: Path) -> None:
    """In one gigabyte of address space and a few seconds; the store has nobody in it afterwards."""
    for name, content in HISTORIES.items():
        (tmp_path / name).write_bytes(content)
    source = (
        "from pathlib import Path\nfrom mta_cli.pipeline.users.import_file import import_file\n"
        "from store.registry import Registry\n"
        f"reg = Registry.open(Path({str(tmp_path / 'store')!r}), create=True)\n"
        f"for name in {list(HISTORIES)!r}:\n"
        f"    path = Path({str(tmp_path)!r}) / name\n    kind = name.rsplit('.', 1)[1]\n"
        "    attempt(name, lambda: list(import_file(reg, kind, path, task='lamp-2' if kind == 'lamp' else None)))\n"
        "print('left', reg.users.names(), reg.check_integrity())\n"
    )
    ran = run_bounded(source, megabytes=1024, seconds=30)
    assert ran.code == 0, ran.err[-2000:]
    assert {name: said.split()[:2] for name, said in ran.said.items()} == {
        name: ["refused", "BadInput"] for name in HISTORIES
    }
    with Registry.open(tmp_path / "store") as reg:
        assert not reg.users.names()
        assert reg.check_integrity() == []
    ran.count("histories beyond reason")


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\n\r\n"])
def test_marks_and_line_ends_are_no_fault(store_root: Path, tmp_path: Path, ends: str) -> None:
    rows = [json.dumps({"user": "ann", "input": f"i{n}", "output": "o"}) for n in range(3)]
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + ends.join(rows).encode())
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbf" + ends.join(["user,input,output", "bob,i,o", "bob,j,o"]).encode())
    with Registry.open(store_root, create=True) as reg:
        for name in ("a.jsonl", "a.csv"):
            list(import_file(reg, name[2:], tmp_path / name))
        assert {user.name: count for user, count in reg.users.users_with_items("free")} == {"ann": 3, "bob": 2}


def test_a_refusal_is_one_clean_message_with_its_exit_code(store_root: Path, tmp_path: Path) -> None:
    Registry.open(store_root, create=True).close()
    for name in ("deep.jsonl", "surrogate-name.jsonl", "nul.csv"):
        (tmp_path / name).write_bytes(HISTORIES[name])
        ran = mta("data", "import", name.rsplit(".")[1], tmp_path / name)
        assert ran.code == 4 and ran.err.startswith("error: ") and "\x1b" not in ran.err and "Traceback" not in ran.err


def test_settings_beyond_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mta_cli.configuration.settings import Settings
    from mta_cli.options import BankOptions

    path = tmp_path / "mta.toml"
    monkeypatch.setenv("MTA_CONFIG", str(path))
    for text in (
        "[bank]\nrank = 0x" + "f" * 9_000,
        "[bank]\nrank = " + "9" * 9_000,
        "bank.rank" + ".a" * 50_000 + " = 1",
        "[bank]\nrank = " + "[" * 50_000,
        "[bank]\nname = '\x1b'",
        "[bank]\nrank = 1e999",
        "\0",
    ):
        path.write_text(text)
        with pytest.raises(MtaError) as caught:
            Settings.load().build_options(BankOptions)
        assert len(caught.value.message) < 600
        tally("settings beyond reason", "refused in words")
