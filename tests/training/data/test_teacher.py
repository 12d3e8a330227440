"""What is taken from a teacher."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from abc_rag.errors import InputError
from abc_rag.scenes.words import train_tokenizer
from abc_rag.training.data.teacher import load_teacher

WORDS = ["left", "right", "enormous", "huge", "zebra", "apple"]


def archive(folder: Path) -> str:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(6, 16))
    vectors[3] = vectors[2] + 0.2 * rng.normal(size=16)  # "huge" is near "enormous"
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    file = folder / "teacher.npz"
    np.savez(
        file,
        words=np.array(WORDS),
        word_vectors=vectors.astype(np.float16),
        sentences=np.array(["a big thing"]),
        sentence_vectors=vectors[:1].astype(np.float16),
    )
    return str(file)


def test_words_lie_as_the_teacher_has_them(tmp_path: Path) -> None:
    teacher = load_teacher(archive(tmp_path))
    assert teacher is not None
    assert teacher.sentences == ["a big thing"]
    tokenizer = train_tokenizer(vocab_size=600, seed=0, words=WORDS)
    table = teacher.embeddings(tokenizer, 12, norm=2.0)
    assert table.shape == (tokenizer.get_vocab_size(), 12)
    row = {word: table[tokenizer.token_to_id(f"\u0120{word}")] for word in WORDS}
    cosine = {
        word: float(row["enormous"] @ row[word] / np.linalg.norm(row["enormous"]) / np.linalg.norm(row[word]))
        for word in WORDS
    }
    assert sorted(cosine, key=lambda word: -cosine[word])[:2] == ["enormous", "huge"]
    assert np.linalg.norm(row["left"]) == pytest.approx(2.0, rel=1e-3)


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    assert load_teacher("") is None
    with pytest.raises(InputError, match=r"teach_words\.py"):
        load_teacher(str(tmp_path / "missing.npz"))
