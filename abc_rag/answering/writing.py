"""From what was found to an answer in words: sources are given, citations checked."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace

from abc_rag.answering.generator import Generation
from abc_rag.answering.stream import AsyncTextStream, TextStream
from abc_rag.errors import ContextError
from abc_rag.models.tasks import REFUSAL, Source, answering
from abc_rag.search.answer import Answer, Citation
from abc_rag.search.citations import CheckedCitations, cited_numbers, sentences
from abc_rag.search.pictures import Pictures
from abc_rag.search.sources import sources_of
from abc_rag.types import ImageSource, Message

__all__ = ["AnswerStream", "AsyncAnswerStream", "Writing"]


class Writing:
    """One answer while it is written.

    Args:
        found: What was found.
        pictures: Opens pictures.
        image: The picture of the question.
        history: The turns before it.
        shorten: Leave out the oldest turns, then the last sources, then the end of the only one that is left, where
            there is more than the model reads.
        most: The most sources that the model is given.

    Attributes:
        sources: What the model is given, by number from 1.
    """

    def __init__(
        self,
        found: Answer,
        pictures: Pictures,
        *,
        image: ImageSource | None = None,
        history: Sequence[Message] = (),
        shorten: bool = True,
        most: int | None = None,
    ) -> None:
        opened = list(zip(found.hits, sources_of(found.hits, pictures), strict=True))
        usable = [(hit, source) for hit, source in opened if isinstance(source, Source)]
        left = [(hit, source) for hit, source in opened if not isinstance(source, Source)]
        self.sources = [source for _, source in usable[:most]]
        self._found = replace(found, hits=[hit for hit, _ in [*usable, *left]])
        self._notes = [*found.notes, *(f"left out: {error}" for _, error in left)]
        complete = None if found.rewrite is None else found.rewrite.question
        self._question = complete or found.question or ""
        self._history = [] if complete else [turn for turn in history if turn.role != "system"]
        self._image = image
        self._shorten = shorten
        self._turns_left_out, self._sources_left_out = 0, len(usable) - len(self.sources)
        self._cut = False
        self._citations = CheckedCitations(len(self.sources))
        self._text = ""

    @property
    def messages(self) -> list[Message]:
        """The conversation that asks for the answer."""
        return answering(self._question, self.sources, image=self._image, history=self._history)

    def shorten(self, error: ContextError) -> None:
        """Leave something out, because the conversation is too long.

        Raises:
            ContextError: Nothing can be left out.
        """
        if self._shorten and self._history:
            self._history.pop(0)
            self._turns_left_out += 1
        elif self._shorten and len(self.sources) > 1:
            self.sources.pop()
            self._sources_left_out += 1
            self._citations = CheckedCitations(len(self.sources))
        elif self._shorten and (shorter := self.sources[0].shorter()) is not None:
            self.sources[0] = shorter
            self._cut = True
        else:
            raise error

    def feed(self, piece: str) -> str:
        """What can be shown of the answer after a further piece."""
        return self._shown(self._citations.feed(piece))

    def rest(self) -> str:
        """What was held back at the end."""
        return self._shown(self._citations.rest())

    def _shown(self, text: str) -> str:
        shown = text if self._text else text.lstrip()
        self._text += shown
        return shown

    def refused(self) -> Answer:
        """The answer where there is no source."""
        return replace(self._found, text=REFUSAL, notes=tuple(self._notes))

    def ended(self, generation: Generation) -> Answer:
        """The answer, checked."""
        notes = list(self._notes)
        if self._turns_left_out:
            notes.append(f"the oldest {self._turns_left_out} turns were left out: the model reads no more at once")
        if self._sources_left_out:
            whole = len(self.sources) + self._sources_left_out
            notes.append(f"only the first {len(self.sources)} of {whole} sources were read: the model reads no more")
        if self._cut:
            notes.append("of source [1] only the beginning was read: the model reads no more at once")
        if self._citations.dropped:
            said = ", ".join(f"[{one}]" for one in dict.fromkeys(self._citations.dropped))
            notes.append(f"citations of sources that were not given were dropped: {said}")
        if generation.outcome.finish == "length":
            notes.append("the answer was cut off; raise max_new_tokens, or give fewer sources")
        text = self._text.strip()
        if _bare(text) == _bare(REFUSAL):
            return replace(self._found, text=REFUSAL, notes=tuple(notes))
        if not text:
            notes.append("the model said nothing")
        count = len(self.sources)
        cited = cited_numbers(text, count)
        bare = [one for one in sentences(text) if not cited_numbers(one, count) and _bare(one) != _bare(REFUSAL)]
        return replace(
            self._found,
            text=text or REFUSAL,
            citations=tuple(Citation(number, self._found.hits[number - 1]) for number in cited),
            # A line that ends with a colon leads to the next one, and claims nothing.
            unsupported=tuple(one for one in bare if not one.endswith(":")),
            notes=tuple(notes),
        )


def _bare(text: str) -> str:
    return text.replace("\u2019", "'").strip(" .!\n").casefold()


class AnswerStream(TextStream[Answer]):
    """An answer as it is written: an iterator of its pieces, whose ``result`` is an `Answer` at the end."""

    def __init__(self, parts: Iterator[str | Answer]) -> None:
        super().__init__(parts, lambda _, answer: answer)


class AsyncAnswerStream(AsyncTextStream[Answer]):
    """`AnswerStream` for event loops."""

    def __init__(self, parts: AsyncIterator[str | Answer]) -> None:
        super().__init__(parts, lambda _, answer: answer)
