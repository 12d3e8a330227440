"""VLM2Vec's prompts: typed inputs to the words that the published models were trained on. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from abc_rag.types import Image, Input, InstructedImage, InstructedText, Interleaved, Text

__all__ = ["TASK_INSTRUCTIONS", "prompt_of"]

TASK_INSTRUCTIONS: Mapping[str, str] = MappingProxyType(
    {
        # Of a picture, with or without a text after it.
        "image": "Represent the given image.",
        "vqa": "Represent the given image with the following question:",
        "classification": "Represent the given image for classification",
        "object_classification": "Identify the object shown in the image",
        "scene_classification": "Identify the scene shown in the image",
        "country_classification": "Identify the country depicted in the image",
        "news_classification": "Represent the given news image with the following caption for domain classification:",
        "hateful_memes": (
            "Represent the given image for binary classification to determine whether it constitutes hateful speech "
            "or not"
        ),
        "image_to_text": "Find an image caption describing the given everyday image.",
        "picture_to_caption": "Find an image caption describing the given image.",
        "image_to_news": "Find a caption for the news in the given photo.",
        "image_to_image": "Find a day-to-day image that looks similar to the provided image.",
        "changed_image": "Given an image, find a similar everyday image with the described changes:",
        "fashion_image": "Find an image to match the fashion image and style note:",
        "image_to_wikipedia": (
            "Retrieve a Wikipedia image-description pair that provides evidence for the question of this image:"
        ),
        "grounding": "Select the portion of the image that isolates the object labeled as",
        "grounding_label": "Select the portion of the image that isolates the object of the given label:",
        "grounding_expression": "Select the portion of the image that follows the language expressions.",
        "grounding_question": "Select the portion of the image that answers the question",
        # Of a text.
        "text_to_image": "Find me an everyday image that matches the given caption:",
        "news_to_image": "Retrieve an image of this news caption.",
        "dialogue_to_image": "Represent the given dialogue about an image, which is used for image retrieval:",
        "question_to_wikipedia": "Find a Wikipedia image that answers this question:",
        "caption_to_news_image": "Find a news image that matches the provided caption:",
        "question_to_document": "Find the document image that can answer the given query:",
        # Of what is searched among.
        "cropped_image": "Represent the given cropped image of the object",
        "wikipedia_image": "Represent the given Wikipedia image with related text information:",
        "image_with_text": "Represent the given image with related text information:",
    }
)
"""Task -> how the published models were told it: the words of ``TIGER-Lab/MMEB-train`` and ``MMEB-eval``.

Questions of pictures are ``"vqa"``, which is what a plain instruction of an `InstructedImage` becomes. Texts that look
for pictures are ``"text_to_image"``; pictures that look for captions ``"image_to_text"``; a part of a picture that is
asked for by name is ``"grounding"``, with the name in quotation marks after it.
"""

_QUESTION = TASK_INSTRUCTIONS["vqa"]
_PUBLISHED = tuple(TASK_INSTRUCTIONS.values())


def prompt_of(item: Input, tokens: Sequence[int], told: str | None = None) -> list[str | int]:
    """The prompt of an input: text pieces, and its pictures as the number of their image tokens.

    Args:
        item: The input.
        tokens: Image tokens of each of its pictures.
        told: The instruction of the input's role; None for none.
    """
    if isinstance(item, Text):
        return [item.text if told is None else f"{told} {item.text}"]
    if isinstance(item, InstructedText):
        return [f"{item.instruction} {item.text}"]
    if isinstance(item, Image):
        # An instruction for texts says nothing of a picture by itself.
        return [tokens[0], f" {TASK_INSTRUCTIONS['image']}"]
    if isinstance(item, InstructedImage):
        asked = item.instruction
        return [tokens[0], f" {asked}" if asked.startswith(_PUBLISHED) else f" {_QUESTION} {asked}"]
    assert isinstance(item, Interleaved)
    parts: list[str | int] = []
    numbers = iter(tokens)
    for part in item.parts:
        if isinstance(part, Image):
            parts.append(next(numbers))
        elif parts and isinstance(parts[-1], str):
            parts[-1] += part.text
        else:
            parts.append(part.text)
    return parts
