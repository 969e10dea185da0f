"""Ways to spoil a good file: bytes, tokens of its language, and values inside its structure. Knows no importer."""

from __future__ import annotations

import io
import json
import struct
import warnings
import zipfile
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

Mutate = Callable[[Random, bytes, Sequence[bytes]], bytes]

STRANGE: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1,
    10**6,
    10**12,
    2**63,
    2**64,
    10**400,
    1.5,
    float("nan"),
    float("inf"),
    -1e308,
    "",
    " ",
    "\0",
    "x" * 5000,
    "../../x",
    "/etc/passwd",
    "\x1b]52;c;eA==\x07",
    "\u202e\u009b2J",
    "\ud800",
    "{input}",
    "{{ 1 }}",
    "%n%s",
    "(a+)+$",
    [],
    {},
    [[[]]],
    {"a": {"a": {}}},
    ["x"] * 50,
    "2026-13-45T99:99",
    "F32",
    "BF16",
    "true",
)
TOKENS = (
    b"\0",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\r\n",
    b"\r",
    b"\\ud800",
    b"\\u0000",
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"9" * 5000,
    b"[" * 2000,
    b'{"a":' * 500,
    b'"',
    b"'",
    b'"""',
    b"'" * 3,
    b"{{",
    b"}}",
    b"{%",
    b"%}",
    b"{% for i in range(99999) %}",
    b"{% endfor %}",
    b"{{ x.__class__ }}",
    b"|center(99999999)",
    b" ~ x",
    b"(a+)+$",
    b"{9,}{9,}",
    b"(?P<input>",
    b"../",
    b"\x1b[2J",
    "\u202e".encode(),
    "\u009b31m".encode(),
    b",,,,,,",
    b";",
    b"\t",
    b"#",
    b"[labels]\n",
    b"a" + b".a" * 500 + b" = 1\n",
    b"0x" + b"f" * 9000,
    b"x" * 20_000,
    b"--help",
    b"\x80\x04.",
    b"PK\x03\x04",
    b"GGUF",
)


def spoil_bytes(random: Random, seed: bytes, seeds: Sequence[bytes]) -> bytes:
    """A few of: bits flipped, cut short, a piece gone, doubled or from another file, a token in the middle."""
    raw = bytearray(seed)
    for _ in range(random.choice((1, 1, 1, 2, 3, 8))):
        at, end = sorted(random.randrange(len(raw) + 1) for _ in range(2))
        match random.randrange(7):
            case 0 if raw:
                raw[random.randrange(len(raw))] ^= 1 << random.randrange(8)
            case 1:
                del raw[at:]
            case 2:
                del raw[at : min(end, at + 200)]
            case 3:
                raw[at:at] = raw[at : min(end, at + 2000)]
            case 4:
                other = random.choice(seeds)
                begin = random.randrange(len(other) + 1)
                raw[at:end] = other[begin : begin + 500]
            case 5:
                raw[at:at] = random.randbytes(random.randrange(1, 20))
            case _:
                raw[at:at] = random.choice(TOKENS)
    return bytes(raw)


def spoil_value(random: Random, value: Any) -> Any:
    """The value with one of its inner values, or itself, replaced, left out, doubled or renamed."""
    if isinstance(value, dict) and value and random.random() < 0.85:
        key = random.choice(list(value))
        match random.randrange(6):
            case 0:
                return {name: inner for name, inner in value.items() if name != key}
            case 1:
                return {(str(random.choice(STRANGE)) if name == key else name): each for name, each in value.items()}
            case _:
                return {**value, key: spoil_value(random, value[key])}
    if isinstance(value, list) and value and random.random() < 0.85:
        at = random.randrange(len(value))
        match random.randrange(6):
            case 0:
                return value[:at] + value[at + 1 :]
            case 1:
                return value[:at] + [value[at]] * random.choice((2, 50)) + value[at + 1 :]
            case _:
                return [*value[:at], spoil_value(random, value[at]), *value[at + 1 :]]
    return random.choice(STRANGE)


def _json(random: Random, value: Any) -> bytes:
    ascii_only = random.random() < 0.5
    text = json.dumps(value, ensure_ascii=ascii_only, indent=random.choice((None, None, 1)))
    return text.encode("utf-8", "surrogatepass")


def spoil_json(random: Random, seed: bytes, seeds: Sequence[bytes]) -> bytes:
    """A JSON document with a value spoilt, or its bytes."""
    if random.random() < 0.4:
        return spoil_bytes(random, seed, seeds)
    value = json.loads(seed)
    for _ in range(random.choice((1, 1, 2, 5))):
        value = spoil_value(random, value)
    return _json(random, value)


def spoil_lines(random: Random, seed: bytes, seeds: Sequence[bytes]) -> bytes:
    """A JSON document on one of several lines spoilt, or the bytes of all."""
    if random.random() < 0.4:
        return spoil_bytes(random, seed, seeds)
    lines = seed.splitlines()
    at = random.randrange(len(lines))
    lines[at] = _json(random, spoil_value(random, json.loads(lines[at]))).replace(b"\n", b"")
    return random.choice((b"\n", b"\r\n", b"\n\n")).join(lines)


def spoil_header(random: Random, seed: bytes, seeds: Sequence[bytes]) -> bytes:
    """A safetensors file whose header says something else, or whose bytes do."""
    if random.random() < 0.3:
        return spoil_bytes(random, seed, seeds)
    length = struct.unpack("<Q", seed[:8])[0]
    header, body = json.loads(seed[8 : 8 + length]), seed[8 + length :]
    raw = _json(random, spoil_value(random, header))
    raw += b" " * (-len(raw) % 8)
    said = random.choice((len(raw),) * 9 + (random.choice((0, 1, 2**24, 2**40, 2**63, len(raw) - 1)),))
    return struct.pack("<Q", said) + raw + body


def spoil_zip(random: Random, seed: bytes, seeds: Sequence[bytes]) -> bytes:
    """An archive with members whose names, kinds and sizes are attacks, or with spoilt bytes."""
    if random.random() < 0.4:
        return spoil_bytes(random, seed, seeds)
    made = io.BytesIO(seed)
    with warnings.catch_warnings(), zipfile.ZipFile(made, "a", zipfile.ZIP_DEFLATED) as archive:
        warnings.simplefilter("ignore")  # one name twice is one of the attacks
        folder = archive.namelist()[0].split("/")[0]
        for _ in range(random.randrange(1, 4)):
            names = ("../../x", "/etc/x", "a/../../x", "..\\x", "\x1b[2J", "config.json", "a" * 300, ".x", "d/", "//x")
            info = zipfile.ZipInfo(f"{folder}/model/{random.choice(names)}")
            if random.random() < 0.3:
                info.external_attr = 0o120777 << 16  # a symbolic link
            info.compress_type = random.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
            archive.writestr(info, random.choice((b"/etc/passwd", b"x", b"\0" * 2_000_000)))
    return made.getvalue()
