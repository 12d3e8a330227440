"""Judging with a generator: the probability of "yes" against "no"."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from abc_rag.answering.generator import Generator
from abc_rag.errors import ABCRagError, CheckpointError, ContextError, InputError, MissingExtraError
from abc_rag.models.tasks import JUDGEMENTS, Source, judging
from abc_rag.search.judging import Judge
from abc_rag.types import ImageSource

__all__ = ["GenerativeJudge"]

_AT_ONCE = 8
_ENUM = {"enum": ["yes", "no"]}


class GenerativeJudge(Judge):
    """A multimodal cross-encoder: a vision chat model reads question and source together and says yes or no.

    The probability is that of "yes" among "yes" and "no", from one pass over the conversation (`Generator.score`). A
    generator that cannot score, such as a server of OpenAI's protocol, is asked to say one of them; that is 1 or 0.
    A passage that is longer than the model reads is judged by its beginning.

    Args:
        generator: Judges.

    Raises:
        InputError: It is no generator.
    """

    def __init__(self, generator: Generator) -> None:
        if not isinstance(generator, Generator):
            raise InputError(f"generator must be an abc_rag.answering.Generator, not {type(generator).__name__}")
        self._generator = generator

    def judge(
        self, question: str, sources: Sequence[Source], *, image: ImageSource | None = None
    ) -> list[float | ABCRagError]:
        """See `abc_rag.search.judging.Judge`.

        Raises:
            CheckpointError: The model cannot generate.
            MissingExtraError: A package is not installed.
        """
        _ = self._generator.tasks  # loads a model in this thread, and says here if it cannot generate
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="abc-rag-judge") as pool:
            return list(pool.map(partial(self._one, question, image), sources))

    def _one(self, question: str, image: ImageSource | None, source: Source) -> float | ABCRagError:
        messages = judging(question, source, image=image)
        try:
            if not self._generator.scores:
                said = self._generator.generate(messages, schema=_ENUM, max_new_tokens=8).json()
                return 1.0 if said == "yes" else 0.0
            found = self._generator.score(messages, JUDGEMENTS)
        except (CheckpointError, MissingExtraError):
            raise
        except ContextError as error:
            shorter = source.shorter()
            return error if shorter is None else self._one(question, image, shorter)
        except ABCRagError as error:
            return error
        whole = sum(found)
        return sum(found[: len(found) // 2]) / whole if whole > 0.0 else 0.0
