"""Stand-ins for tests: a generator that needs no model.

>>> from abc_rag import Text
>>> from abc_rag.answering.fake import FakeGenerator
>>> from abc_rag.models.tasks import Source, answering
>>> FakeGenerator().generate(answering("what does a pig eat?", [Source(text="Pigs eat apples.")])).text
'Pigs eat apples [1].'
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from abc_rag.answering.generator import GenerationRequest, Generator, Outcome
from abc_rag.models.tasks import REFUSAL, TaskFacts, rewriting_answer
from abc_rag.types import Message, Text

__all__ = ["FakeGenerator"]

_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
_SOURCE = re.compile(r'^\[(\d+)\].*?("(?:[^"\\]|\\.)*")?$', re.MULTILINE)


class FakeGenerator(Generator):
    """A deterministic `Generator` without a network, for tests of what stands on one.

    It does the tasks of `abc_rag.models.tasks` by words. A question is rewritten to itself. A source is judged by the
    share of the question's longer words that its text has; a picture without a text, at random but always alike. The
    answer is the first sentence of the best source by the same measure, with its citation; or a refusal, where no
    source has a word of the question. Any other conversation is answered with its last text, another schema with what
    the schema's first choices are.

    Args:
        reply: Says something else: from the messages to the answer. None from it means the fake's own answer.
        model: Its name.
        tasks: How it does, for those who ask.

    Attributes:
        asked: Every conversation that it was given, in order.
    """

    def __init__(
        self,
        reply: Callable[[tuple[Message, ...]], str | None] | None = None,
        *,
        model: str = "fake",
        tasks: TaskFacts | None = None,
    ) -> None:
        self._reply = reply
        self._model = model
        self._tasks = tasks or TaskFacts()
        self.asked: list[tuple[Message, ...]] = []

    @property
    def model(self) -> str:
        """Its name."""
        return self._model

    @property
    def tasks(self) -> TaskFacts:
        """What it was told that it does."""
        return self._tasks

    def _stream(self, request: GenerationRequest) -> Iterator[str | Outcome]:
        self.asked.append(request.messages)
        told = None if self._reply is None else self._reply(request.messages)
        pieces = re.findall(r"\s*\S+", _own(request) if told is None else told)
        for count, piece in enumerate(pieces):
            if count == request.max_new_tokens:
                yield Outcome("length", _words(request.messages), count)
                return
            yield piece
        yield Outcome("stop", _words(request.messages), len(pieces))

    def _score(self, messages: tuple[Message, ...], answers: tuple[str, ...]) -> list[float]:
        self.asked.append(messages)
        likely = _likelihood(messages)
        shares = [likely if answer.lower().startswith("yes") else 1.0 - likely for answer in answers]
        return [math.log(max(share, 1e-9) / len(answers)) for share in shares]


def _words(messages: tuple[Message, ...]) -> int:
    return sum(len(_said(message).split()) for message in messages)


def _said(message: Message) -> str:
    return "".join(part.text if isinstance(part, Text) else "<picture>" for part in message.parts)


def _shared(question: str, text: str) -> float:
    asked = {word for word in re.findall(r"\w+", question.lower()) if len(word) > 2}
    return sum(word in text.lower() for word in asked) / max(1, len(asked))


def _likelihood(messages: tuple[Message, ...]) -> float:
    question, _, source = _said(messages[-1]).partition("\nsource: ")
    if not _QUOTED.search(source):
        return (sum(question.encode()) % 100) / 100
    return _shared(_QUOTED.findall(question)[-1], source)


def _own(request: GenerationRequest) -> str:
    last = _said(request.messages[-1])
    *_, question = _QUOTED.findall(last) or [json.dumps(last)]
    asked = json.loads(question)
    if request.schema is not None:
        return _json(request.schema, asked)
    if "\nquestion: " not in last:
        return last.strip()
    sources = [(int(found[1]), json.loads(found[2])) for found in _SOURCE.finditer(last) if found[2]]
    number, text = max(sources, key=lambda one: (_shared(asked, one[1]), -one[0]), default=(0, ""))
    if not _shared(asked, text):
        return REFUSAL
    return f"{re.split(r'[.!?]', text)[0].strip()} [{number}]."


def _json(schema: Mapping[str, Any], asked: str) -> str:
    names = list(schema.get("properties", {}))
    if names[-3:] == ["instruction", "target", "wants"]:
        question = asked if names[0] == "question" else None
        return rewriting_answer(asked, asked, "any", question=question)
    return json.dumps(_least(schema))


def _least(schema: Mapping[str, Any]) -> object:
    """The least value of a schema: of its first choices, with only what is required."""
    if "enum" in schema:
        return schema["enum"][0]
    kind = schema.get("type")
    if kind == "object":
        properties = schema.get("properties", {})
        return {name: _least(properties.get(name, {})) for name in schema.get("required", ())}
    if kind == "array":
        return [_least(schema.get("items", {}))] * schema.get("minItems", 0)
    if kind == "string":
        return "x" * schema.get("minLength", 0)
    if kind in ("integer", "number"):
        return schema.get("minimum", 0)
    return False if kind == "boolean" else None
