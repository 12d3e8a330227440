"""A question that is ready to be searched with."""

from __future__ import annotations

from dataclasses import dataclass

from abc_rag.search.rewriting.rewriter import Rewrite, Wants
from abc_rag.store.keywords import Keywords
from abc_rag.types import Image, ImageSource, Input, InstructedImage, Text, Vectors

__all__ = ["Query"]


@dataclass(frozen=True, eq=False)
class Query:
    """A question, a picture or both, checked and rewritten: `Retriever.prepare` makes it, `Retriever.search` takes it.

    Attributes:
        question: The question as it was asked; None for a picture or a vector alone.
        image: The picture that the question is about.
        rewrite: What the question became; None where there is no question.
        texts: Texts to search with besides the picture or, without one, in place of the question. Where the question
            itself is among them, its target is.
        vector: The vector to search with, float32 of shape ``(dim,)`` and unit length; None where it has to be
            embedded.
        keywords: The question as a keyword search reads it; None where keywords are not searched for.
    """

    question: str | None = None
    image: ImageSource | None = None
    rewrite: Rewrite | None = None
    texts: tuple[str, ...] = ()
    vector: Vectors | None = None
    keywords: Keywords | None = None

    @property
    def wants(self) -> Wants:
        """The kind of record that the question asks for."""
        return "any" if self.rewrite is None else self.rewrite.wants

    @property
    def complete(self) -> str | None:
        """The question, complete by itself where a rewriter made it so; None for a picture or a vector alone."""
        return self.question if self.rewrite is None or self.rewrite.question is None else self.rewrite.question

    @property
    def instruction(self) -> str | None:
        """What to look at in ``image``; None where there is no picture or no question about it."""
        return None if self.image is None or self.rewrite is None else self.rewrite.instruction

    @property
    def inputs(self) -> list[Input]:
        """What is embedded; the query's vector is the mean of these, and ``vector`` where that is given."""
        if self.vector is not None:
            return []
        own: list[Input] = []
        if self.image is not None:
            asked, image = self.instruction, self.image
            own = [Image(image, role="query") if asked is None else InstructedImage(image, asked, role="query")]
        elif self.rewrite is not None and (not self.texts or self.question in self.texts):
            own = [Text(self.rewrite.target, role="query")]
        # Made-up answers are looked for as the documents that they could be.
        return [*own, *(Text(text) for text in self.texts if text != self.question)]
