"""What abc-mini takes from a teacher: see ``scripts/teach_words.py``."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from abc_rag.errors import InputError

__all__ = ["Teacher", "load_teacher"]

_SHRUNK = 0.5  # of the principal components' lengths: 0 keeps them, 1 makes them equal


@dataclass(frozen=True, eq=False)
class Teacher:
    """Words and sentences with their vectors.

    Attributes:
        words: By frequency.
        word_vectors: float32 ``(words, width)``.
        sentences: Short ones.
        sentence_vectors: float32 ``(sentences, width)``, unit length.
    """

    words: list[str]
    word_vectors: npt.NDArray[np.float32]
    sentences: list[str]
    sentence_vectors: npt.NDArray[np.float32]

    def embeddings(self, tokenizer: Tokenizer, width: int, *, norm: float) -> npt.NDArray[np.float32]:
        """Embeddings ``(vocabulary, width)``: of words by their principal components, of other tokens at random.

        A word that training never uses stays where its neighbours in meaning are.
        """
        centred = self.word_vectors - self.word_vectors.mean(axis=0)
        _, lengths, axes = np.linalg.svd(centred, full_matrices=False)
        reduced = centred @ axes[:width].T / np.maximum(lengths[:width], 1e-3 * lengths[0]) ** _SHRUNK
        reduced /= np.linalg.norm(reduced, axis=1, keepdims=True)
        row = {word: i for i, word in enumerate(self.words)}
        rng = np.random.default_rng(0)
        found = rng.normal(size=(tokenizer.get_vocab_size(), width)) / np.sqrt(width)
        for token, at in tokenizer.get_vocab().items():
            known = row.get(token.removeprefix("\u0120"))
            if known is not None:
                found[at] = 0.0
                found[at, : reduced.shape[1]] = reduced[known]
                if not token.startswith("\u0120"):
                    found[at] += 0.3 * rng.normal(size=width) / np.sqrt(width)  # another token than behind a space
        scaled: npt.NDArray[np.float32] = (norm * found).astype(np.float32)
        return scaled


@lru_cache(maxsize=2)
def load_teacher(archive: str) -> Teacher | None:
    """Read an archive; None without one.

    Raises:
        InputError: It cannot be read, or is no such archive.
    """
    if not archive:
        return None
    try:
        with np.load(Path(archive).expanduser(), allow_pickle=False) as stored:
            return Teacher(
                [str(word) for word in stored["words"]],
                stored["word_vectors"].astype(np.float32),
                [str(sentence) for sentence in stored["sentences"]],
                stored["sentence_vectors"].astype(np.float32),
            )
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{archive}: no teacher's archive ({error}); write one with scripts/teach_words.py") from error
