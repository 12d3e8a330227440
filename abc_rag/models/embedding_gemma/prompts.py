"""Prompts of EmbeddingGemma 2: a task's prefix before what is embedded, texts and pictures in their order.

Source: model card of ``google/embeddinggemma-2`` on the hub, transformers' guide ``embedding_gemma2`` and its
conversion script, whose chat template holds nothing but the prompt and the parts. A prompt counts in the mean of the
tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from abc_rag.errors import CheckpointError
from abc_rag.models.config import Config
from abc_rag.models.tokenizer import PlainTokenizer

__all__ = ["PROMPTS", "GemmaPrompts", "read_prompts", "task_prefix"]

_MOST_PROMPTS, _LONGEST_PROMPT = 1000, 10_000
_TASKS = {
    "search result": ("query", "Retrieval", "Retrieval-query", "Reranking", "BitextMining", "SearchQuery"),
    "classification": ("Classification", "MultilabelClassification"),
    "clustering": ("Clustering",),
    "code retrieval": ("CodeRetrieval", "InstructionRetrieval"),
    "fact checking": ("FactChecking",),
    "question answering": ("QuestionAnswering",),
    "sentence similarity": ("STS", "SentenceSimilarity", "PairClassification", "Summarization"),
}
_DOCUMENT = "title: none | text: "


def task_prefix(task: str) -> str:
    """The prefix of a task, such as ``"search result"``; spaces around it and a full stop behind it are dropped."""
    return f"task: {task.strip().removesuffix('.').rstrip()} | query: "


PROMPTS: Mapping[str, str] = {
    **{name: task_prefix(task) for task, names in _TASKS.items() for name in names},
    **dict.fromkeys(("document", "Document", "Retrieval-document"), _DOCUMENT),
}
"""The published prompts by name."""


def read_prompts(folder: Path) -> dict[str, str]:
    """The prompts of a checkpoint by name: those of its ``config_sentence_transformers.json``, else `PROMPTS`.

    Raises:
        CheckpointError: The file holds something else.
    """
    file = folder / "config_sentence_transformers.json"
    if not file.is_file():
        return dict(PROMPTS)
    own = Config.read(file).part("prompts")
    if len(own.values) > _MOST_PROMPTS:
        raise CheckpointError(f"{own.where}: {len(own.values):,} prompts; at most {_MOST_PROMPTS:,} are read")
    return {**PROMPTS, **{name: own.text(name, most=_LONGEST_PROMPT) for name in own.values}}


class GemmaPrompts:
    """Inputs to token ids. What a user wrote is plain text: a special token typed into it stays harmless.

    Args:
        tokenizer: The checkpoint's.
        ends: Ids of the first and the last token of every input.
        image: Ids of the tokens that begin a picture, stand for one of its tokens, and end it.
    """

    def __init__(self, tokenizer: PlainTokenizer, *, ends: tuple[int, int], image: tuple[int, int, int]) -> None:
        self._plain = tokenizer
        self._ends = ends
        self._image = image

    def __call__(self, prefix: str, parts: Sequence[str | int]) -> npt.NDArray[np.int64]:
        """Token ids.

        Args:
            prefix: The prompt.
            parts: Texts, and pictures as the number of their image tokens.

        Raises:
            InputError: A text holds half a character.
        """
        begin, one, end = self._image
        ids, words = [self._ends[0]], prefix
        for part in parts:
            if isinstance(part, str):  # neighbours are tokenised together, as in one string
                words += part
                continue
            ids += [*self._read(words), begin, *[one] * part, end]
            words = ""
        return np.array([*ids, *self._read(words), self._ends[1]], dtype=np.int64)

    def _read(self, words: str) -> list[int]:
        return self._plain(words) if words else []
