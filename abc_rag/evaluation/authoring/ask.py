"""Asks a chat model about many pictures at once; a failure costs its own picture only."""

from __future__ import annotations

import io
import queue
import threading
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import PIL.Image

from abc_rag.errors import ABCRagError, ImageError, InputError
from abc_rag.evaluation.authoring.chat import Describer
from abc_rag.evaluation.authoring.pairs import PAIRS_SCHEMA, Pair, ParsedAnswer, parse_answer, prompt_for
from abc_rag.evaluation.authoring.scan import Picture
from abc_rag.images.limits import ImageLimits
from abc_rag.images.open import open_image

__all__ = ["LEAST_PAIRS", "Asked", "Asking", "jpeg_of"]

LEAST_PAIRS = 2  # with one pair, a model that ignores instructions is right
_TRIES = 3
_QUALITY = 90
_POLL_S = 0.5
# If this number of requests fails before the first answer, the pictures are not the cause.
_HOPELESS = 10


@dataclass(frozen=True)
class Asked:
    """The outcome for one picture.

    Attributes:
        picture: The picture.
        pairs: The usable pairs; none after a failure.
        tries: Number of requests.
        dropped: Number of unusable pairs of the chosen answer, by problem.
        problem: The kind of failure, or empty.
        detail: Details of the failure.
    """

    picture: Picture
    pairs: Sequence[Pair] = ()
    tries: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    problem: str = ""
    detail: str = ""


@dataclass(frozen=True)
class Asking:
    """Requests about pictures.

    Attributes:
        describer: The chat model.
        out: The folder that picture paths are relative to.
        pairs: Number of pairs per picture.
        side: Maximum pixels of the longer side of a picture that is sent.
        limits: Limits for opening pictures.
        threads: Number of concurrent requests.
    """

    describer: Describer
    out: Path
    pairs: int
    side: int
    limits: ImageLimits
    threads: int

    def run(self, pictures: Sequence[Picture]) -> Generator[Asked, None, None]:
        """Ask about each picture, and yield the outcomes as they arrive.

        Raises:
            ABCRagError: The model cannot answer at all.
        """
        waiting = iter(pictures)
        # Bounded, so that little is lost if answers arrive faster than they can be saved.
        results: queue.Queue[Asked | BaseException] = queue.Queue(self.threads)
        turn, stop = threading.Lock(), threading.Event()

        def hand_over(one: Asked | BaseException) -> None:
            while not stop.is_set():
                try:
                    return results.put(one, timeout=_POLL_S)
                except queue.Full:
                    continue

        def work() -> None:
            while not stop.is_set():
                with turn:
                    picture = next(waiting, None)
                if picture is None:
                    return
                try:
                    hand_over(self._ask(picture))
                except BaseException as error:  # raised by the consumer
                    hand_over(error)
                    return

        # Daemons: an interrupt must not wait minutes for answers that are no longer wanted.
        for _ in range(min(self.threads, len(pictures))):
            threading.Thread(target=work, name="abc-rag-ask", daemon=True).start()
        answered = failed = 0
        try:
            for _ in pictures:
                one = _next(results)
                if isinstance(one, BaseException):
                    raise one
                answered += not one.problem
                failed += bool(one.problem) and one.tries > 0
                yield one
                if failed >= _HOPELESS and not answered:
                    raise ABCRagError(
                        f"{self.describer.name}: the first {failed} pictures all failed, the last one by: "
                        f"{one.problem} ({one.detail}); stopped asking"
                    )
        finally:
            stop.set()

    def _ask(self, picture: Picture) -> Asked:
        try:
            opened = open_image(self.out / picture.image, limits=self.limits)
        except ImageError as error:
            return Asked(picture, problem="unusable picture", detail=error.reason)
        if opened.sha256 != picture.sha256:
            return Asked(picture, problem="picture that has changed", detail="run this again")
        return self._talk(picture, jpeg_of(opened.image, self.side, _QUALITY))

    def _talk(self, picture: Picture, image: bytes) -> Asked:
        prompt = prompt_for(self.pairs)
        best, problems = ParsedAnswer(), ""
        for tries in range(1, _TRIES + 1):
            again = f"\nAn earlier answer could not be used: {problems}. Mend that.\n" if problems else ""
            try:
                answer = self.describer.describe(image, "image/jpeg", prompt + again, PAIRS_SCHEMA)
            except InputError as error:
                return Asked(picture, tries=tries, problem="picture that the model does not answer", detail=str(error))
            except ABCRagError:
                raise
            except Exception as error:  # other people's chat models may raise anything
                detail = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
                return Asked(picture, tries=tries, problem="failed request", detail=detail)
            parsed = parse_answer(answer, self.pairs)
            if tries == 1 or len(parsed.pairs) > len(best.pairs):
                best = parsed
            if len(best.pairs) == self.pairs:
                break
            problems = "; ".join(parsed.problems[:6])
        if len(best.pairs) < LEAST_PAIRS:
            return Asked(picture, tries=tries, problem="unusable answer", detail=problems)
        return Asked(picture, best.pairs, tries, best.dropped)


def jpeg_of(image: PIL.Image.Image, side: int, quality: int) -> bytes:
    """A picture as a JPEG file of at most ``side`` pixels, without metadata such as its location."""
    small = image
    if max(image.size) > side:
        small = image.copy()
        small.thumbnail((side, side), PIL.Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def _next(results: queue.Queue[Asked | BaseException]) -> Asked | BaseException:
    while True:
        try:
            return results.get(timeout=_POLL_S)  # without a timeout, Windows would delay an interrupt
        except queue.Empty:
            continue
