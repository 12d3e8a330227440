"""Questions in, ranked pictures and passages out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from abc_rag.embedder import Embedder
from abc_rag.errors import InputError
from abc_rag.store import ChromaStore
from abc_rag.types import Hit, Image, ImageSource, Input, InstructedImage, Modality, Text

__all__ = ["Answer", "Retriever"]


@dataclass(frozen=True)
class Answer:
    """What a search found, and how it was asked.

    Attributes:
        question: The question, if one was asked.
        instruction: What the picture was embedded under; ``None`` without a picture or without a question.
        hits: Best first.
    """

    question: str | None
    instruction: str | None
    hits: list[Hit]


class Retriever:
    """An embedder and a store together.

    Args:
        embedder: Makes the vectors of questions; must be the one that made the store's.
        store: What is searched.
    """

    def __init__(self, embedder: Embedder, store: ChromaStore) -> None:
        self.embedder = embedder
        self.store = store

    def search(
        self,
        question: str | None = None,
        *,
        image: ImageSource | None = None,
        k: int = 4,
        where: Mapping[str, Any] | None = None,
        modality: Modality | None = None,
    ) -> Answer:
        """Find what is nearest to a question, a picture, or a picture seen under a question.

        Args:
            question: A question or a description. With a picture it is the instruction: what to look at in it.
            image: A picture that the question is about.
            k: Most hits.
            where: Chroma's metadata filter.
            modality: Only pictures, or only passages.

        Raises:
            InputError: Neither a question nor a picture is given, or the question is blank.
        """
        if question is not None:
            _check_question(question)
        query: Input
        if image is not None and question is not None:
            query = InstructedImage(image, question)
        elif image is not None:
            query = Image(image)
        elif question is not None:
            query = Text(question)
        else:
            raise InputError("nothing to search for: pass a question, image=..., or both")
        vector = self.embedder.embed([query])[0]
        hits = self.store.search(vector, k=k, where=where, modality=modality)
        return Answer(question, question if isinstance(query, InstructedImage) else None, hits)


def _check_question(question: object) -> None:
    if not isinstance(question, str):
        raise InputError(f"the question must be a str, not {type(question).__name__}")
    if not question.strip():
        raise InputError("the question is empty; ask something, or pass only image=...")
    try:
        question.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"the question {question!r} is not valid Unicode ({error.reason}); clean it first") from error
