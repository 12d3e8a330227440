"""The retriever that also answers: `abc_rag.search.retriever.Retriever` with a model that generates."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from abc_rag.answering.generator import Generator
from abc_rag.answering.judge import GenerativeJudge
from abc_rag.answering.namer import GenerativeNamer
from abc_rag.answering.rewriter import GenerativeRewriter
from abc_rag.answering.writing import AnswerStream, AsyncAnswerStream, Writing
from abc_rag.embedding.embedder import Embedder
from abc_rag.embedding.threads import in_thread
from abc_rag.errors import ContextError, InputError
from abc_rag.images.limits import ImageLimits
from abc_rag.search import retriever as searching
from abc_rag.search.answer import Answer
from abc_rag.search.fusion import KEYWORD_WEIGHT
from abc_rag.search.judging import Judge
from abc_rag.search.rewriting.rewriter import Rewriter
from abc_rag.store.base import Store
from abc_rag.types import ImageSource, Message, Modality

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["AnswerKeywords", "Retriever"]


# What the generator is told.
_TOLD = ("max_new_tokens", "temperature", "seed")


class AnswerKeywords(TypedDict, total=False):
    """What `Retriever.answer` takes besides a question, for functions that hand it on."""

    image: ImageSource | None
    history: Sequence[Message]
    k: int
    where: Mapping[str, Any] | None
    modality: Modality | None
    rerank: bool | Literal["auto", "judge"]
    keywords: bool | Literal["auto"]
    facet_map: bool | Literal["auto"]
    mmr: float | None
    min_score: float | None
    min_confidence: float | Literal["auto"] | None
    trace: bool
    shorten: bool
    max_new_tokens: int
    temperature: float
    seed: int | None


class Retriever(searching.Retriever):
    """Searches a store with an embedder and, given a generator, judges what it finds and answers from it.

    With a generator, `groups` has phrases that it says of the most typical pictures, unless others are given.

    Args:
        embedder: Embeds questions; must be the one that made the store's vectors. A generator that computes here has
            one of the same weights, ``generator.embedder``.
        store: What is searched.
        generator: Rewrites, judges and answers. Without one this only searches.
        rewriter: Turns a question into an instruction. If not given: `GenerativeRewriter` with the generator or,
            without one, the rules.
        judge: Judges hits. If not given: `GenerativeJudge` with the generator.
        candidates: See `abc_rag.search.retriever.Retriever`, as for all that follows.
        judged: How many of the first hits are judged; at least ``k``.
        weight: Weight of the second look.
        keyword_weight: Weight of keywords against vectors.
        image_limits: Which pictures may be opened.
        roots: Further files and folders from which pictures may be opened.
        kinds: Filters for the two modalities.
    """

    def __init__(
        self,
        embedder: Embedder,
        store: Store,
        *,
        generator: Generator | None = None,
        rewriter: Rewriter | None = None,
        judge: Judge | None = None,
        candidates: int = 50,
        judged: int = 8,
        weight: float = searching.WEIGHT,
        image_limits: ImageLimits | None = None,
        roots: Iterable[str | os.PathLike[str]] = (),
        kinds: Mapping[Modality, Mapping[str, Any]] | None = None,
        keyword_weight: float = KEYWORD_WEIGHT,
    ) -> None:
        if generator is not None:
            rewriter = GenerativeRewriter(generator) if rewriter is None else rewriter
            judge = GenerativeJudge(generator) if judge is None else judge
        super().__init__(
            embedder,
            store,
            rewriter=rewriter,
            judge=judge,
            candidates=candidates,
            judged=judged,
            weight=weight,
            image_limits=image_limits,
            roots=roots,
            kinds=kinds,
            keyword_weight=keyword_weight,
        )
        self.generator = generator
        self.namer = None if generator is None else GenerativeNamer(generator)

    def answer(self, question: str, **options: Unpack[AnswerKeywords]) -> Answer:
        """Search, and answer from what is found.

        The hits are numbered and given to the generator, pictures as pictures; to one that answers from few sources at
        once (`abc_rag.models.tasks.TaskFacts`) only the first. It is told to cite them, as in ``[1]``,
        and to say `abc_rag.models.tasks.REFUSAL` where none has the answer. That is also the answer where no hit is
        confident enough, and the generator is then not asked.

        Args:
            question: What is asked.
            **options: ``image``: a picture that the question is about. ``history``: the turns before it, oldest first.
                ``k``, ``where``, ``modality``, ``keywords``, ``facet_map``, ``mmr``, ``min_score``, ``trace``: as for
                `search`. ``rerank``: likewise; ``"judge"`` if not given. ``min_confidence``: likewise; if not given,
                what the model was calibrated to, with ``rerank="judge"``. ``shorten``: where there is more than the
                model reads at once, leave out the oldest turns and then the last sources, and note it (the default);
                False is an error. ``max_new_tokens`` (512), ``temperature`` and ``seed``: as for `Generator.generate`.

        Returns:
            Text, citations, hits (those that were given come first, in the order of their numbers), sentences without
            a source, the confidence, and notes.

        Raises:
            InputError: There is no generator, the question is blank, or an argument is unusable.
            ContextError: Not even one source fits; or not all do, with ``shorten=False``.
            CheckpointError: The model cannot generate.
        """
        return self.stream_answer(question, **options).whole()

    def stream_answer(self, question: str, **options: Unpack[AnswerKeywords]) -> AnswerStream:
        """`answer` as it is written. The search happens with the first piece."""
        return AnswerStream(self._pieces(*self._asked(question, options)))

    async def aanswer(self, question: str, **options: Unpack[AnswerKeywords]) -> Answer:
        """`answer` for event loops; a cancelled task ends the answer at its next token."""
        return await self.astream_answer(question, **options).whole()

    def astream_answer(self, question: str, **options: Unpack[AnswerKeywords]) -> AsyncAnswerStream:
        """`stream_answer` for event loops."""
        return AsyncAnswerStream(self._apieces(*self._asked(question, options)))

    def _asked(self, question: str, options: AnswerKeywords) -> tuple[Generator, str, AnswerKeywords]:
        unknown = options.keys() - AnswerKeywords.__annotations__.keys()
        if unknown:
            raise InputError(f"answer() knows no {', '.join(sorted(unknown))}; correct the name")
        if self.generator is None:
            raise InputError(
                "answering needs a model that generates; make the retriever with generator=load_generator(...)"
            )
        if not isinstance(question, str):
            raise InputError(f"the question must be a str, not {type(question).__name__}")
        return self.generator, question, options

    def _writing(self, generator: Generator, question: str, options: AnswerKeywords) -> Writing:
        rerank = options.get("rerank", "judge")
        least = options.get("min_confidence", "auto")
        if least == "auto":
            least = generator.tasks.min_confidence if rerank == "judge" else None
        history = options.get("history", ())
        keywords = options.get("keywords", "auto")
        query = self.prepare(question, image=options.get("image"), keywords=keywords, history=history)
        asked = _given(options, "k", "where", "modality", "facet_map", "mmr", "min_score", "trace")
        found = self.search(query, rerank=rerank, keywords=keywords, min_confidence=least, **asked)
        shorten = options.get("shorten", True)
        most = generator.tasks.sources
        return Writing(found, self.pictures, image=query.image, history=history, shorten=shorten, most=most)

    def _pieces(self, generator: Generator, question: str, options: AnswerKeywords) -> Iterator[str | Answer]:
        writing = self._writing(generator, question, options)
        while writing.sources:
            stream = generator.generate(writing.messages, stream=True, **_given(options, *_TOLD))
            with stream:
                try:
                    first = next(stream, "")
                except ContextError as error:
                    writing.shorten(error)
                    continue
                yield writing.feed(first)
                for piece in stream:
                    yield writing.feed(piece)
            yield writing.rest()
            assert stream.result is not None
            yield writing.ended(stream.result)
            return
        refused = writing.refused()
        yield refused.text
        yield refused

    async def _apieces(
        self, generator: Generator, question: str, options: AnswerKeywords
    ) -> AsyncIterator[str | Answer]:
        writing = await in_thread(partial(self._writing, generator, question, options))
        while writing.sources:
            stream = await generator.agenerate(writing.messages, stream=True, **_given(options, *_TOLD))
            async with stream:
                try:
                    first = await anext(stream, "")
                except ContextError as error:
                    writing.shorten(error)
                    continue
                yield writing.feed(first)
                async for piece in stream:
                    yield writing.feed(piece)
            yield writing.rest()
            assert stream.result is not None
            yield writing.ended(stream.result)
            return
        refused = writing.refused()
        yield refused.text
        yield refused


def _given(options: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: options[name] for name in names if name in options}
