"""The options of answering in words: which model judges and answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from abc_rag.cli.options import EmbedderFlags, ModelFlags
from abc_rag.cli.output import put
from abc_rag.errors import InputError

if TYPE_CHECKING:
    from abc_rag.answering.generator import Generator
    from abc_rag.answering.retriever import Retriever
    from abc_rag.embedding.embedder import Embedder
    from abc_rag.embedding.options import EmbedderKeywords
    from abc_rag.search.answer import Answer
    from abc_rag.types import Message

__all__ = ["AnsweringFlags"]


@dataclass(frozen=True, kw_only=True)
class AnsweringFlags:
    """Who answers, and how sure of what was found one has to be.

    Raises:
        InputError: An option is out of its range, or of no use without another.
    """

    answer: Annotated[
        bool, typer.Option("--answer", help="Answer in words from what is found, with its sources as [1].")
    ] = False
    generator: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL|URL",
            help="What rewrites the question, judges and answers: a model as for --model, or the URL of a server with "
            "OpenAI's protocol. Default: the base of --model itself, with --answer or --judge.",
        ),
    ] = None
    served: Annotated[str | None, typer.Option(help="With a URL: the model's name there.")] = None
    api_key_env: Annotated[
        str | None, typer.Option(help="With a URL: environment variable with the key. Default: none.")
    ] = None
    judge: Annotated[
        bool, typer.Option("--judge", help="Rank by how likely it is that a hit shows or says what is asked for.")
    ] = False
    min_confidence: Annotated[
        float | None,
        typer.Option(
            help="Leave out hits that are judged less likely than this, in [0, 1]. Default: with --answer, the model's "
            "own threshold."
        ),
    ] = None

    def __post_init__(self) -> None:
        """Checks what can be checked without a model."""
        if self.min_confidence is not None and not 0.0 <= self.min_confidence <= 1.0:
            raise InputError(f"--min-confidence takes a number between 0 and 1, not {self.min_confidence}")
        if self._is_url != (self.served is not None):
            raise InputError("a server is asked with both: --generator URL and --served MODEL")
        if self.api_key_env is not None and not self._is_url:
            raise InputError("--api-key-env is for a server; give --generator URL")

    @property
    def _is_url(self) -> bool:
        return self.generator is not None and self.generator.startswith(("http://", "https://"))

    def open(self, embedding: EmbedderFlags) -> tuple[Embedder, Generator | None]:
        """The embedder of a command, and its generator if one is asked for.

        Raises:
            InputError: An option is unusable.
            MissingExtraError: A package is not installed.
        """
        if not (self.answer or self.judge or self.generator is not None or self.min_confidence is not None):
            return embedding.open(), None
        if self.generator is not None and self.served is not None:
            from abc_rag.answering.openai import OpenAIGenerator

            server = OpenAIGenerator(
                self.generator, self.served, api_key_env=self.api_key_env, image_limits=embedding.limits
            )
            return embedding.open(), server
        from abc_rag.answering.load import load_generator

        if self.generator in (None, embedding.model):
            own = load_generator(embedding.model, **embedding.keywords())
            return own.embedder, own
        # What a store's vectors depend on concerns the embedder alone.
        seeing: EmbedderKeywords = {**ModelFlags.keywords(embedding), "image_limits": embedding.limits}
        return embedding.open(), load_generator(self.generator, **seeing)

    def ask(
        self,
        retriever: Retriever,
        question: str | None,
        options: dict[str, Any],
        *,
        history: Sequence[Message] = (),
        aloud: bool,
    ) -> Answer:
        """Search and, if it is to be, answer in words.

        Args:
            retriever: What answers.
            question: What is asked.
            options: As `Retriever.search` takes them, but for what this class has; ``rerank`` as it was given.
            history: The turns before it.
            aloud: Print the words as they come.
        """
        if self.judge or (self.answer and options["rerank"] == "auto"):
            options = {**options, "rerank": "judge"}
        if self.min_confidence is not None:
            options = {**options, "min_confidence": self.min_confidence}
        if not self.answer or question is None:
            return retriever.search(question, **options)
        with retriever.stream_answer(question, history=history, **options) as pieces:
            for piece in pieces:
                if aloud:
                    put(piece)
        if aloud:
            put("\n")
        assert pieces.result is not None
        return pieces.result
