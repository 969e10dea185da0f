"""Answers that match a JSON schema: llguidance makes a grammar, which allows only certain next tokens."""

from __future__ import annotations

import hashlib
import json
import logging
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from mta_cli.serving.errors import ApiError, invalid, unsupported

if TYPE_CHECKING:
    from torch import Tensor

    from mta_cli.engine.generation.sampler import TokenConstraint
    from mta_cli.engine.model.load import LoadedBase
    from mta_cli.serving.request_bodies import ResponseFormat

log = logging.getLogger("mta.serve")
ANY_OBJECT: dict[str, Any] = {"type": "object"}
SCHEMA_KEYS = {"name", "schema", "strict", "description"}
COMPACT = {"whitespace_flexible": False}  # without flexible whitespace; a small model might write blanks endlessly
MAX_CPU_SECONDS = 2  # the most CPU time for a grammar
STEP_FUEL = 50_000  # llguidance's limit of work for one token's mask: about 4 ms, for which all running answers wait
REMEMBERED = 1_000  # the most grammars that are remembered as fast, and not tried again
# Each grammar is first built in a process with a CPU limit: some patterns take exponential time, and llguidance has no
# time limit of its own.
TRIAL = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_CPU, ({MAX_CPU_SECONDS}, {MAX_CPU_SECONDS}))
from llguidance import LLMatcher, LLTokenizer
LLMatcher(LLTokenizer("byte"), sys.stdin.read())
"""


def json_schema(wanted: ResponseFormat | None) -> dict[str, Any] | None:
    """The schema of a `response_format`; None for a text. Raises ApiError if it is not supported."""
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return ANY_OBJECT
    given = wanted.json_schema or {}
    if unknown := sorted(set(given) - SCHEMA_KEYS):
        raise invalid("response_format", f"json_schema takes no key {unknown[0]!r:.100}.")
    if not isinstance(given.get("schema"), dict):
        raise invalid("response_format", "json_schema needs the key 'schema' with a JSON object.")
    if extensions := sorted(key for key in given["schema"] if key.startswith("x-")):
        raise invalid("response_format", f"{extensions[0]!r:.100} is not supported in a schema.")
    return dict(given["schema"])


class JsonFormats:
    """Makes grammars for the tokenizer of one base. Use it in one thread only; a grammar may take seconds."""

    def __init__(self, base: LoadedBase) -> None:
        self._base, self._tokenizer = base, None
        self._fast: set[bytes] = set()  # digests of fast grammars

    def constraints(self, schema: dict[str, Any], count: int) -> list[TokenConstraint]:
        """The token constraints of `count` answers. Raises ApiError for an invalid, too large or too slow schema."""
        try:
            from llguidance import LLMatcher, LLParserLimits
            from llguidance.hf import from_tokenizer
        except ImportError as error:
            raise unsupported("response_format", "the package llguidance is not installed on the server") from error
        if self._tokenizer is None:
            vocabulary = self._base.decoder.head.weight.shape[0]
            self._tokenizer = from_tokenizer(self._base.tokenizer, vocabulary, list(self._base.end_ids))
        try:
            grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=COMPACT)
            self._require_fast(grammar)
            limits = LLParserLimits(step_lexer_fuel=STEP_FUEL)
            matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=limits)
        except (ValueError, RecursionError) as error:
            raise _unusable(str(error)) from error
        if fault := matcher.get_error():
            raise _unusable(fault)
        if warnings := matcher.get_grammar_warnings():
            log.warning("the grammar of a schema has %d warnings", len(warnings))
        return [_Constraint(matcher.deep_copy()) for _ in range(count)]

    def _require_fast(self, grammar: str) -> None:
        """Raises ApiError for a grammar that a process with a CPU limit cannot build in time."""
        digest = hashlib.sha256(grammar.encode()).digest()
        if digest in self._fast:
            return
        trial = subprocess.run([sys.executable, "-P", "-c", TRIAL], input=grammar.encode(), capture_output=True)
        if trial.returncode < 0:  # killed by a signal
            message = f"The schema takes more than {MAX_CPU_SECONDS} s to prepare. Use fewer or simpler patterns."
            raise invalid("response_format", message)
        if len(self._fast) >= REMEMBERED:
            self._fast.clear()
        self._fast.add(digest)


def _unusable(fault: str) -> ApiError:
    """The error for a schema, with only the first line of llguidance's reason: later lines quote the answer."""
    reason = next(iter(fault.splitlines()), "")
    return invalid("response_format", f"The schema cannot be used: {reason}"[:500])


class _Constraint:
    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher

    def allowed(self) -> Tensor:
        """Which tokens may come next, as booleans [vocabulary].

        Raises ApiError once llguidance has given up, because its mask then allows only the end of the answer.
        """
        import torch

        mask = self._matcher.compute_bitmask()
        if fault := self._matcher.get_error():
            log.warning("llguidance gave up on a schema: an answer ended with an error")
            raise _unusable(fault)
        return torch.from_numpy(np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little").astype(bool))

    def take(self, token: int) -> None:
        self._matcher.consume_token(token)
