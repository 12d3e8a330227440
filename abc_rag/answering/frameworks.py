"""What the chat models of both frameworks share: whom they ask, and what a call may bring along."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from abc_rag.answering.generator import Generator
from abc_rag.answering.load import load_generator
from abc_rag.embedding.options import EmbedderOptions, ModelName, keywords_of
from abc_rag.errors import InputError

__all__ = ["CALL_KEYWORDS", "asked_of", "chosen_generator"]

CALL_KEYWORDS: Mapping[str, str] = {
    "temperature": "temperature",
    "max_tokens": "max_new_tokens",
    "seed": "seed",
    "stop": "stop",
}
"""What frameworks call an option of a call -> what `Generator.generate` calls it."""


def chosen_generator(given: Generator | None, model: ModelName | None, options: EmbedderOptions) -> Generator:
    """The generator that is given, or one that is loaded on first use.

    Raises:
        InputError: Both are asked for; or as `load_generator` raises.
    """
    if given is None:
        return load_generator(model, **keywords_of(options))
    if model is not None or options != EmbedderOptions():
        raise InputError("give model and options, or a generator, which has its own; not both")
    return given


def asked_of(given: Mapping[str, Any], names: Mapping[str, str], who: str) -> dict[str, Any]:
    """A call's keywords in our terms.

    Args:
        given: By the framework's names.
        names: Those that are known; see `CALL_KEYWORDS`.
        who: The chat model, for the message.

    Raises:
        InputError: One is unknown.
    """
    for key in given:
        if key not in names:
            tools = " (tools cannot be called: the model was not trained to)" if "tool" in key else ""
            raise InputError(f"{who} takes no {key!r}{tools}; a call takes {', '.join(names)}")
    return {names[key]: value for key, value in given.items()}
