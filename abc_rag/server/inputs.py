"""Inputs as requests write them, made typed inputs. Nothing is guessed: each protocol says what its strings are."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from abc_rag.errors import ImageFormatError, InputError
from abc_rag.types import URL, DataURI, Image, ImageSource, Input, InstructedImage, InstructedText, Interleaved, Text

__all__ = ["ContentPart", "ImageUrlPart", "Item", "Lenient", "TextPart", "input_of", "item_input", "picture_from"]


class Lenient(BaseModel):
    """A part of a request. Unknown fields are ignored: clients of each protocol send some that mean nothing here."""

    model_config = ConfigDict(extra="ignore")


class Item(Lenient):
    """A text, or a picture with or without an instruction, as Jina writes them."""

    text: str | None = Field(None, description="A text; exactly one of text and image.")
    image: str | None = Field(None, description="A picture: a data: URI, base64, or an http(s) URL if any are fetched.")
    instruction: str | None = Field(None, description="What to look at in the picture, or to look for with the text.")
    role: str | None = Field(None, description="query or document, or another prompt of the model.")


class TextPart(Lenient):
    """A text within a message."""

    type: Literal["text", "input_text"]
    text: str


class ImageUrl(Lenient):
    """Where a picture is."""

    url: str


class ImageUrlPart(Lenient):
    """A picture within a message."""

    type: Literal["image_url"]
    image_url: ImageUrl | str

    @property
    def url(self) -> str:
        """The address."""
        return self.image_url if isinstance(self.image_url, str) else self.image_url.url


ContentPart = Annotated[TextPart | ImageUrlPart, Field(discriminator="type")]


def picture_from(value: str) -> ImageSource:
    """A picture as Jina, vLLM and Cohere write it: a data URI, a URL, or plain base64.

    Raises:
        ImageFormatError: It is none of these.
    """
    if value[:5].lower() == "data:":
        return DataURI(value)
    if value[:8].lower().startswith(("http://", "https://")):
        return URL(value)
    return decoded(value)


def decoded(value: str) -> bytes:
    """Bytes from base64.

    Raises:
        ImageFormatError: It is none.
    """
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageFormatError(
            "image", f"is neither a data: URI nor a URL nor base64 ({error}); encode it again"
        ) from error


def item_input(item: Item | str, *, instruction: str | None, role: str, accepts: tuple[type, ...]) -> Input:
    """The input that an item of a list is; what the request says holds where the item says nothing.

    Raises:
        InputError: It is none.
    """
    if isinstance(item, str):
        item = Item(text=item, image=None, instruction=None, role=None)
    if (item.text is None) == (item.image is None):
        raise InputError("an item has exactly one of text and image; what to look at in a picture is its instruction")
    instruction = instruction if item.instruction is None else item.instruction
    part = Text(item.text) if item.text is not None else Image(picture_from(item.image or ""))
    return input_of([part], instruction=instruction, role=item.role or role, accepts=accepts)


def input_of(parts: Sequence[Text | Image], *, instruction: str | None, role: str, accepts: tuple[type, ...]) -> Input:
    """One input of texts and pictures.

    One picture and texts are that picture, and the texts are what to look at, where the model takes that; other mixes
    stay in their order.

    Args:
        parts: The texts and pictures.
        instruction: What to look at or for.
        role: What the input is for.
        accepts: What the model takes.

    Raises:
        InputError: There is nothing, or an instruction beside what has one already.
    """
    if not parts:
        raise InputError("there is neither a text nor a picture; send one")
    texts = [part.text for part in parts if isinstance(part, Text)]
    pictures: list[Any] = [picture for part in parts for picture in part.pictures]
    if not pictures:
        text = "\n".join(texts)
        # An empty instruction for a text is none; for a picture it is one.
        return InstructedText(text, instruction) if instruction else Text(text, role=role)
    if len(pictures) == 1 and (not texts or (instruction is None and InstructedImage in accepts)):
        told = "\n".join(texts) if texts else instruction
        return Image(pictures[0], role=role) if told is None else InstructedImage(pictures[0], told, role=role)
    if instruction is not None:
        raise InputError("texts between pictures are read as they are; put the instruction among them")
    return Interleaved(list(parts), role=role)
