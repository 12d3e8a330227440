"""The input of a retriever: a string, the dict of a chain, or the messages of a chat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, convert_to_messages
from langchain_core.prompt_values import PromptValue

from abc_rag import URL, DataURI, Image, ImageSource, Text
from abc_rag.errors import InputError
from abc_rag.images import describe_source
from abc_rag.search.rewriting import follows_up
from abc_rag.types import Message


class Asked(NamedTuple):
    """The input of a retriever. Of question and picture, one may be None; the turns before are oldest first."""

    question: str | None
    image: ImageSource | None
    history: tuple[Message, ...] = ()


# Settings that can also be passed with a call.
SETTINGS = (
    "k", "filter", "modality", "same", "different", "rerank", "keywords", "facet_map", "mmr", "min_score",
    "min_confidence", "trace",
)  # fmt: skip
_HISTORY = ("chat_history", "history", "messages")


def asked_of(given: object) -> Asked:
    """The question and the picture of a retriever's input, and the turns of the chat before them.

    Raises:
        InputError: There is neither, or it cannot be used.
    """
    question, image, earlier = _parts(given)
    if question is None and image is None:
        raise InputError("nothing to search for: pass a 'question', an 'image', or both")
    if question is not None and not isinstance(question, str):
        raise InputError(f"the question must be a str, not {type(question).__name__}")
    if isinstance(question, str) and not question.strip():
        raise InputError("the question is empty; ask something, or pass only {'image': ...}")
    # Image() checks the type.
    return Asked(question, None if image is None else Image(image).source, _turns(earlier))


def told_of(asked: Asked) -> str:
    """The query that callbacks get: a str, as they expect, without the picture's bytes."""
    image = asked.image
    parts = [asked.question or "", "" if image is None else f"[picture: {describe_source(image)}]"]
    return " ".join(part for part in parts if part)


_Parts = tuple[Any, Any, Sequence[BaseMessage]]


def _parts(given: object) -> _Parts:
    if isinstance(given, str):
        return given, None, ()
    if (messages := _messages(given)) is not None:
        return _of_chat(messages)
    if not isinstance(given, Mapping):
        raise InputError(
            f"a question is a str or {{'question': ..., 'image': ...}}, or a list of messages, not "
            f"{type(given).__name__}; a picture alone is {{'image': ...}}"
        )
    misplaced = [key for key in given if key in SETTINGS]
    if misplaced:
        raise InputError(f"unknown keys {misplaced!r} in a question; pass settings with the call or by bind(...)")
    question, image = given.get("question"), given.get("image")
    asked: Sequence[BaseMessage] = ()
    if (messages := _messages(question)) is not None:
        question, pictured, asked = _of_chat(messages)
        image = pictured if image is None else image
    history = next((found for key in _HISTORY if (found := _messages(given.get(key))) is not None), None)
    if question is None and image is None:
        if "messages" in given and history is not None:
            return _of_chat(history)
        if given and not {"question", "image"} & given.keys():
            raise InputError(
                f"unknown keys {list(given)!r}; a question is {{'question': ..., 'image': ...}}: rename the key by "
                "itemgetter('...') | retriever"
            )
    # Other keys of a chain's input are ignored.
    if image is None and history and isinstance(question, str) and follows_up(question):
        image = _last_picture(history)
    return question, image, [*(history or ()), *asked]


def _messages(given: object) -> list[BaseMessage] | None:
    """The input as messages; None if it is something else."""
    if isinstance(given, PromptValue):
        return given.to_messages()
    if isinstance(given, BaseMessage):
        return [given]
    if isinstance(given, Sequence) and not isinstance(given, (str, bytes)):
        if given and all(map(_is_message, given)):
            try:
                return convert_to_messages(given)
            except (ValueError, TypeError, KeyError) as error:  # such as a role that LangChain does not know
                reason = str(error).splitlines()[0].rstrip(".")
                raise InputError(f"the messages cannot be read: {reason}; pass LangChain messages") from error
    return None


def _is_message(given: object) -> bool:
    """Whether this is a message, a ``(role, content)`` pair, or a dict with a role and a content."""
    if isinstance(given, Mapping):
        return "content" in given and ("role" in given or "type" in given)
    if isinstance(given, tuple):
        return len(given) == 2 and isinstance(given[0], str)
    return isinstance(given, BaseMessage)


def _of_chat(messages: Sequence[BaseMessage]) -> _Parts:
    """The last human message, with the picture that it is about and what was said before."""
    place = next((n for n in reversed(range(len(messages))) if isinstance(messages[n], HumanMessage)), None)
    if place is None:
        raise InputError("none of the messages is a HumanMessage, so nothing is asked; end with one")
    said = messages[place]
    question = str(said.text).strip() or None
    image = _picture_of(said)
    if image is None and question is not None and follows_up(question):
        image = _last_picture(messages)
    return question, image, messages[:place]


def _turns(messages: Sequence[BaseMessage]) -> tuple[Message, ...]:
    """What people and the model said, as abc-rag has it; other messages and empty ones are left out."""
    turns = []
    for message in messages:
        if isinstance(message, (HumanMessage, AIMessage)):
            text, picture = str(message.text).strip(), _picture_of(message)
            parts: list[Text | Image] = [
                *([] if picture is None else [Image(picture)]),
                *([Text(text)] if text else []),
            ]
            if parts:
                turns.append(Message("user" if isinstance(message, HumanMessage) else "assistant", parts))
    return tuple(turns)


def _last_picture(messages: Sequence[BaseMessage]) -> ImageSource | None:
    people = (message for message in reversed(messages) if isinstance(message, HumanMessage))
    return next((picture for message in people if (picture := _picture_of(message)) is not None), None)


def _picture_of(message: BaseMessage) -> ImageSource | None:
    """The last picture in a message, in any form that LangChain understands."""
    for block in reversed(message.content_blocks):
        if block["type"] == "image":
            if data := block.get("base64"):
                return DataURI(f"data:{block.get('mime_type') or 'image/png'};base64,{data}")
            if url := block.get("url"):
                return DataURI(url) if url[:5].lower() == "data:" else URL(url)
    return None
