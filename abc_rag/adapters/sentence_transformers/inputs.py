"""Typed inputs for the values that ``encode`` of sentence-transformers takes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace

import PIL.Image

from abc_rag.errors import InputError
from abc_rag.types import URL, DataURI, Image, Input, InstructedImage, Text

__all__ = ["as_input", "with_prompt"]

_TAKEN = (
    'a str (always a text), {"image": ...}, {"text": ...}, {"image": ..., "text": ...}, a PIL image, a path object, '
    "bytes, or abc_rag.Text, Image, InstructedImage, URL or DataURI"
)


def as_input(value: object) -> Input:
    """The typed input for one value that was passed to ``encode``.

    A ``str`` is always a text; under the key ``"image"`` it is a path.

    Raises:
        InputError: The model cannot embed such a value.
    """
    if isinstance(value, (Text, Image, InstructedImage)):
        return value
    if isinstance(value, str):
        return Text(value)
    if isinstance(value, (os.PathLike, bytes, URL, DataURI, PIL.Image.Image)):
        return Image(value)
    if isinstance(value, Mapping):
        return _message([value]) if "role" in value else _mapping(value)
    if isinstance(value, Sequence) and value and all(isinstance(v, Mapping) and "role" in v for v in value):
        return _message(value)
    hint = ""
    if hasattr(value, "__array__"):
        hint = "; an array says not how its channels are meant: make a picture with PIL.Image.fromarray"
    raise InputError(f"cannot embed a {type(value).__name__}{hint}. Pass {_TAKEN}")


def _mapping(value: Mapping[object, object]) -> Input:
    keys = set(value)
    if not keys or not keys <= {"image", "text"}:
        raise InputError(f"a dict has the keys image, text or both, not {sorted(map(str, keys))}")
    if isinstance(value.get("image"), Sequence) and not isinstance(value["image"], (str, bytes)):
        raise InputError("a dict has one picture, not several; pass one dict for each")
    # The dataclasses check the values.
    if "image" not in keys:
        return Text(value["text"])  # type: ignore[arg-type]
    if "text" not in keys:
        return Image(value["image"])  # type: ignore[arg-type]
    return InstructedImage(value["image"], value["text"])  # type: ignore[arg-type]


def _message(messages: Sequence[Mapping[object, object]]) -> Input:
    """The input of a conversation with one turn, the only kind that this model was trained on."""
    if len(messages) != 1 or messages[0]["role"] != "user":
        raise InputError('a conversation must be one message of the role "user", with at most one picture and one text')
    content = messages[0].get("content")
    if isinstance(content, str):
        return Text(content)
    found: dict[object, object] = {}
    for part in content if isinstance(content, Sequence) else ():
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind not in ("image", "text") or kind in found or kind not in part:
            raise InputError(
                'a message has at most one {"type": "image", "image": ...} and one {"type": "text", "text": ...}, '
                f"and nothing else; got {part!r:.100}"
            )
        found[kind] = part[kind]
    return _mapping(found)


def with_prompt(item: Input, prompt: str) -> Input:
    """Put sentence-transformers' prompt before a text or an instruction; a picture alone has no text to put it before.

    Args:
        item: An input.
        prompt: Put directly before the text, without a space in between.
    """
    if isinstance(item, Text):
        return Text(prompt + item.text)
    if isinstance(item, InstructedImage):
        return replace(item, instruction=prompt + item.instruction)
    return item
