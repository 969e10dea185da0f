"""Jinja as chat templates expect it, but bounded: a template is code that came with a model, and may be hostile.

Jinja's immutable sandbox keeps it from attributes. A `Meter` bounds what it costs: lines that run, and characters and
members that are made by operators, calls, filters, literals, slices and output. Knows no messages.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, ItemsView, Iterator, KeysView, ValuesView
from contextlib import contextmanager
from datetime import datetime
from functools import wraps
from types import FrameType, GeneratorType
from typing import Any

from jinja2 import TemplateError, filters, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

SOURCE_LIMIT = 100_000  # characters of a template
MAX_LINES = 200_000  # that may run in one rendering
MAX_LINES_TIMES_SOURCE = 10**8  # long templates may run fewer lines: each line may write the whole of its text
MAX_OPERATION_SIZE = 2_000_000  # what one operation may be asked to make, in characters and members
MAX_TOTAL_SIZE = 10_000_000  # what all of a rendering's operations may make
MEMBER_SIZE = 8  # what a member of a list counts, in characters: it costs as much more to look at
EXTRA_LINES_PER_MESSAGE = 200  # that may run besides, for each message
GROWTH_LIMIT = 100_000  # largest operand of `*`, as a number or a length
EXPONENT_LIMIT = 64  # the same for `**`
FORMAT_LIMIT = 100  # characters of a date's format
_DAY = "2024-07-26"  # templates that print today's date would make a trained adapter's prompts change every day
_WIDE_FIELD = re.compile(r"%[-+ #0]*\d*\.?\d{4}|:[^{}]*\d{4}")  # a field of a thousand columns or more
_COLLECTION_TYPES = (list, tuple, set, frozenset, KeysView, ValuesView, ItemsView)
_UNMETERED_FILTERS = ("count", "d", "default", "first", "last", "length")  # they copy nothing
# They make much of little in ways that a product of sizes does not bound, or something else every time.
_REMOVED_FILTERS = ("pprint", "random", "striptags", "urlize", "wordwrap", "xmlattr")


class Meter:
    """What a rendering may still cost."""

    def __init__(self, source: int, messages: int) -> None:
        """For a template of `source` characters that is to show `messages`."""
        self.lines = min(MAX_LINES, MAX_LINES_TIMES_SOURCE // max(1, source)) + EXTRA_LINES_PER_MESSAGE * messages
        self.work = MAX_TOTAL_SIZE

    @contextmanager
    def count_lines(self) -> Iterator[None]:
        """Inside, lines of templates and of Jinja's filters count."""
        before = sys.gettrace()
        sys.settrace(self._trace)
        try:
            yield
        finally:
            sys.settrace(before)

    def _trace(self, frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename not in ("<template>", filters.__file__):
            return None
        if event == "line":
            self.lines -= 1
            if self.lines < 0:
                raise SecurityError("it runs too long")
        return self._trace

    def charge(self, made: Any) -> Any:
        """`made`, paid for."""
        self.work -= value_size(made)
        if self.work < 0:
            raise SecurityError("it makes too much")
        return made

    def charge_operands(self, *operands: Any) -> None:
        """Pay for operands, and refuse those of which too much could be made: the largest times all others."""
        sizes = sorted(value_size(operand, numbers=True) for operand in operands)
        if sizes and sizes[-1] * max(1, sum(sizes[:-1])) > MAX_OPERATION_SIZE:
            raise SecurityError("an operation with operands this large")
        self.charge(operands)


def value_size(value: Any, *, numbers: bool = False) -> int:
    """Characters, and members at `MEMBER_SIZE` each, of a value as a tree, up to a little above `MAX_OPERATION_SIZE`.

    With `numbers` also how large its numbers are.
    """
    total, waiting = 0, [value]
    while waiting and total <= MAX_OPERATION_SIZE:
        one = waiting.pop()
        total += 1
        if isinstance(one, str):
            total += len(one)
        elif isinstance(one, int | float):
            # A comparison without NaN's or infinity's surprises; the width of a number counts where its size does not.
            size = MAX_OPERATION_SIZE if not abs(one) < MAX_OPERATION_SIZE else int(abs(one))
            total += size if numbers else one.bit_length() // 8 if isinstance(one, int) else 0
        elif isinstance(one, dict):
            total += MEMBER_SIZE * len(one)
            waiting += [*one.keys(), *one.values()]
        elif isinstance(one, range):
            total += len(one)
        elif isinstance(one, _COLLECTION_TYPES):
            total += MEMBER_SIZE * len(one)
            waiting += one
    return total


def _materialize(value: Any) -> Any:
    """A generator as a list, so that it can be weighed."""
    return list(value) if isinstance(value, GeneratorType) else value


class GenerationTag(Extension):
    """`{% generation %}`: marks the assistant's words for training frameworks; here its body is just shown."""

    tags = {"generation"}  # noqa: RUF012 - the class attribute is Jinja's interface

    def parse(self, parser: Any) -> Any:
        """The block's body as it is."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class MeteredCode(CodeGenerator):
    """Generated code whose literals, slices and concatenations pass through the environment."""

    def _write_charged(self, visit: Callable[[Any, Frame], None], node: Any, frame: Frame) -> None:
        self.write("environment.charge_value(")
        visit(node, frame)
        self.write(")")

    def visit_List(self, node: nodes.List, frame: Frame) -> None:  # noqa: N802 - Jinja's name
        """A list that was paid for."""
        self._write_charged(super().visit_List, node, frame)

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:  # noqa: N802 - Jinja's name
        """A dictionary that was paid for."""
        self._write_charged(super().visit_Dict, node, frame)

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:  # noqa: N802 - Jinja's name
        """A tuple that was paid for, where it is a value and no target."""
        if node.ctx == "load":
            self._write_charged(super().visit_Tuple, node, frame)
        else:
            super().visit_Tuple(node, frame)

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:  # noqa: N802 - Jinja's name
        """A slice copies, so it is paid for."""
        if isinstance(node.arg, nodes.Slice):
            self._write_charged(super().visit_Getitem, node, frame)
        else:
            super().visit_Getitem(node, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802 - Jinja's name
        """`a ~ b`, joined by the environment."""
        self.write("environment.concatenate((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's immutable sandbox with a meter: refuses what turns a short template into gigabytes or hours."""

    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "%", "**"))
    code_generator_class = MeteredCode

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[GenerationTag, loopcontrols],
            optimized=False,  # nothing of a template runs before there is a meter
            finalize=self.charge_value,
        )
        self.meter = Meter(0, 0)
        kept = {name: each for name, each in self.filters.items() if name not in _REMOVED_FILTERS}
        self.filters = {
            name: each if name in _UNMETERED_FILTERS else self._meter_filter(each) for name, each in kept.items()
        }
        self.filters["tojson"] = self._meter_filter(_tojson)
        del self.globals["lipsum"]
        self.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}

    def charge_value(self, made: Any) -> Any:
        """`made`, paid for."""
        return self.meter.charge(made)

    def concatenate(self, parts: tuple[Any, ...]) -> str:
        """What `~` makes."""
        self.charge_value(parts)
        return "".join(map(str, parts))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """An operator's result, unless its operands are too large."""
        if operator in ("*", "**"):
            most = GROWTH_LIMIT if operator == "*" else EXPONENT_LIMIT
            if max(value_size(left, numbers=True), value_size(right, numbers=True)) > most + 1:
                raise SecurityError(f"the operator {operator} with operands this large")
        if operator == "*" or (operator == "%" and isinstance(left, str)):
            self.meter.charge_operands(left, right)
            _reject_wide_fields(left)
        else:
            self.charge_value((left, right))
        return self.charge_value(super().call_binop(context, operator, left, right))

    def call(self, __context: Any, __obj: Any, *given: Any, **named: Any) -> Any:
        """A call's result, unless what it is asked for is too large."""
        owner = getattr(getattr(__obj, "__wrapped__", __obj), "__self__", None)  # Jinja wraps `format`
        arguments = [_materialize(argument) for argument in given]
        self.meter.charge_operands(owner, *arguments, *named.values())
        if isinstance(owner, str) and getattr(__obj, "__name__", "") in ("format", "format_map"):
            _reject_wide_fields(owner)
        return self.charge_value(super().call(__context, __obj, *arguments, **named))

    def _meter_filter(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter that asks before it works; Jinja's own marks on it stay."""

        @wraps(function)
        def metered(*given: Any, **named: Any) -> Any:
            arguments = [_materialize(argument) for argument in given]
            self.meter.charge_operands(*arguments, *named.values())
            if function is filters.FILTERS["format"]:
                _reject_wide_fields(arguments[0])
            return self.charge_value(function(*arguments, **named))

        return metered


def _reject_wide_fields(format: Any) -> None:
    if isinstance(format, str) and _WIDE_FIELD.search(format):
        raise SecurityError("a field this wide")


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(format: str) -> str:
    if len(format) > FORMAT_LIMIT:
        raise SecurityError("a date's format this long")
    return datetime.fromisoformat(_DAY).strftime(format)


def _tojson(value: Any, indent: int | None = None, **_: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)
