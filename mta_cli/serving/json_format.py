"""Answers that are JSON: which tokens may follow, by a grammar of the schema (llguidance)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from mta_cli.serving.errors import invalid, unsupported

if TYPE_CHECKING:
    from torch import Tensor

    from mta_cli.engine.generation.sampler import TokenConstraint
    from mta_cli.engine.model.load import LoadedBase
    from mta_cli.serving.schemas import ResponseFormat

ANY_OBJECT: dict[str, Any] = {"type": "object"}
SCHEMA_KEYS = {"name", "schema", "strict", "description"}
COMPACT = {"whitespace_flexible": False}  # a small model may write blanks without end


def json_schema(wanted: ResponseFormat | None) -> dict[str, Any] | None:
    """The schema of a `response_format`; None for a text. Raises ApiError."""
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return ANY_OBJECT
    given = wanted.json_schema or {}
    if unknown := sorted(set(given) - SCHEMA_KEYS):
        raise invalid("response_format", f"json_schema has no {unknown[0]!r:.100}.")
    if not isinstance(given.get("schema"), dict):
        raise invalid("response_format", "json_schema has no schema.")
    return dict(given["schema"])


class JsonFormats:
    """Grammars for the tokenizer of one base."""

    def __init__(self, base: LoadedBase) -> None:
        self._base, self._tokenizer = base, None

    def constraint(self, schema: dict[str, Any]) -> TokenConstraint:
        """What an answer under a schema may say. Raises ApiError for a schema that is none or says too much."""
        try:
            from llguidance import LLMatcher
            from llguidance.hf import from_tokenizer
        except ImportError as error:
            raise unsupported("response_format", "the server has no llguidance") from error
        if self._tokenizer is None:
            assert self._base.llama_decoder is not None
            vocabulary = self._base.llama_decoder.head.weight.shape[0]
            self._tokenizer = from_tokenizer(self._base.tokenizer, vocabulary, list(self._base.end_ids))
        try:
            grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=COMPACT)
            fault = LLMatcher.validate_grammar(grammar, self._tokenizer)
        except (ValueError, RecursionError) as error:
            raise invalid("response_format", f"The schema cannot be used: {error}"[:500]) from error
        if fault:
            raise invalid("response_format", f"The schema cannot be used: {fault}"[:500])
        return _Constraint(LLMatcher(self._tokenizer, grammar))


class _Constraint:
    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher

    def allowed(self) -> Tensor:
        import torch

        bits = np.unpackbits(np.frombuffer(self._matcher.compute_bitmask(), np.uint8), bitorder="little")
        return torch.from_numpy(bits.astype(bool))

    def take(self, token: int) -> None:
        self._matcher.consume_token(token)
