"""JSON schemas as rules for tokens, by llguidance.

Of the libraries that constrain decoding, llguidance (MIT) requires no other package, has one wheel for all versions of
Python, and computes masks as they are needed, for recursive schemas too. xgrammar requires Triton and pydantic;
outlines-core turns a schema into a regular expression, which cannot nest without end.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from abc_rag.errors import GenerationError, InputError, MissingExtraError
from abc_rag.models.chat import ChatFacts

if TYPE_CHECKING:
    from llguidance import LLMatcher

__all__ = ["JsonRules", "SchemaCompiler", "closed_schema"]

_OF_SCHEMAS = ("properties", "patternProperties", "$defs", "definitions")
_OF_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")


class SchemaCompiler:
    """Turns schemas into rules for the tokens of one model. Making it takes about a second; keep it.

    Args:
        facts: Of the model.

    Raises:
        MissingExtraError: llguidance is not installed.
    """

    def __init__(self, facts: ChatFacts) -> None:
        try:
            from llguidance import LLTokenizer
        except ModuleNotFoundError as error:
            raise MissingExtraError.for_module(error, "an answer with a schema", extra="generate") from error
        self._facts = facts
        self._tokenizer = LLTokenizer(
            facts.tokenizer.to_str(), n_vocab=facts.vocabulary, eos_token=sorted(facts.stop_ids)
        )

    def __call__(self, schema: Mapping[str, Any]) -> JsonRules:
        """Rules for one answer.

        Raises:
            InputError: The schema is none, or one that nothing can meet.
        """
        from llguidance import LLMatcher

        try:
            # Without free white space, with which a model could fill an answer for ever.
            compact: Any = {"whitespace_flexible": False}
            grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=compact)
            matcher = LLMatcher(self._tokenizer, grammar, log_level=0)
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(f"the JSON schema cannot be used ({str(error)[:300]}); simplify it") from error
        if matcher.is_error():
            raise InputError(f"the JSON schema cannot be used ({matcher.get_error()[:300]}); simplify it")
        return JsonRules(matcher, self._facts)


class JsonRules:
    """See `abc_rag.embedding.engine.replies.Rules`."""

    def __init__(self, matcher: LLMatcher, facts: ChatFacts) -> None:
        self._matcher = matcher
        self._facts = facts

    def allowed(self) -> npt.NDArray[np.bool_]:
        """Which tokens may come next."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._check()
        found = np.zeros(self._facts.vocabulary, dtype=np.bool_)
        told = np.unpackbits(bits, bitorder="little")[: len(found)].astype(np.bool_)
        found[: len(told)] = told
        return found

    def accept(self, token: int) -> bool:
        """Take a token; whether the JSON is complete."""
        self._matcher.consume_token(token)
        self._check()
        return self._matcher.is_stopped()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise GenerationError(f"the JSON schema cannot be met ({self._matcher.get_error()[:300]}); simplify it")


def closed_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema with no other keys in its objects than those that it names, unless it says itself what others may be.

    JSON schema allows others by default, with which a model could go on for ever.
    """
    closed: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _OF_SCHEMAS and isinstance(value, Mapping):
            closed[key] = {name: closed_schema(one) if isinstance(one, Mapping) else one for name, one in value.items()}
        elif key in _OF_LISTS and isinstance(value, list):
            closed[key] = [closed_schema(one) if isinstance(one, Mapping) else one for one in value]
        elif key in ("items", "additionalProperties", "not") and isinstance(value, Mapping):
            closed[key] = closed_schema(value)
        else:
            closed[key] = value
    # Of an allOf each part would forbid the keys of the others.
    if "properties" in closed and "allOf" not in closed:
        closed.setdefault("additionalProperties", False)
    return closed
