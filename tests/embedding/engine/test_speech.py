"""Conversations in the engine: what fails, and how many go on together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from chat_helpers import CONVERSATIONS
from helpers import FIXTURE

from abc_rag.answering import load_generator
from abc_rag.answering.local import LocalGenerator
from abc_rag.embedding.engine.speech import Speech
from abc_rag.errors import ABCRagError, GenerationError
from abc_rag.models.chat import Conversation, Decoding
from abc_rag.models.family import Prepared


class Failing(Decoding):
    """A batch whose first pass, or whose later ones, run out of memory while ``broken``."""

    broken = ""
    most = 0

    def __init__(self, real: Decoding) -> None:
        self.real = real

    def __len__(self) -> int:
        return len(self.real)

    def add(self, prepared: Prepared) -> torch.Tensor:
        if Failing.broken == "add":
            raise torch.OutOfMemoryError("no memory")
        found = self.real.add(prepared)
        Failing.most = max(Failing.most, len(self))
        return found

    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        if Failing.broken == "step":
            raise torch.OutOfMemoryError("no memory")
        return self.real.step(tokens)

    def drop(self, rows: Sequence[int]) -> None:
        self.real.drop(rows)


@pytest.fixture
def generator(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalGenerator]:
    made = load_generator(FIXTURE, device="cpu", min_tokens=4, max_tokens=16)
    chat: Any = made.embedder.family.chat
    real = chat.decoding
    monkeypatch.setattr(chat, "decoding", lambda: Failing(real()))
    monkeypatch.setattr(Failing, "broken", "")
    monkeypatch.setattr(Failing, "most", 0)
    yield made
    made.close()


@pytest.mark.parametrize("where", ["add", "step"])
def test_what_fails_once_fails_alone_and_says_why(where: str, generator: LocalGenerator) -> None:
    expected = generator.generate(CONVERSATIONS["text"], max_new_tokens=4)
    Failing.broken = where
    with pytest.raises(GenerationError, match=r"OutOfMemoryError.*fewer\s+pictures"):
        generator.generate(CONVERSATIONS["text"], max_new_tokens=4)
    Failing.broken = ""
    assert generator.generate(CONVERSATIONS["text"], max_new_tokens=4) == expected
    assert generator.embedder.speech().replies == 0


def test_more_conversations_than_rows_wait_for_theirs(generator: LocalGenerator) -> None:
    expected = generator.generate(CONVERSATIONS["text"], max_new_tokens=3)
    streams = [generator.generate(CONVERSATIONS["text"], max_new_tokens=3, stream=True) for _ in range(20)]
    said = ["".join(stream) for stream in streams]
    assert said == [expected.text] * 20
    found = generator.generate_all([CONVERSATIONS["text"]] * 20, max_new_tokens=3)
    assert found == [expected] * 20
    assert 1 <= Failing.most <= 16


def test_a_closed_speech_refuses_what_comes_later(generator: LocalGenerator) -> None:
    speech = generator.embedder.speech()
    assert isinstance(speech, Speech)
    generator.close()
    reply = speech.begin(Conversation(CONVERSATIONS["text"]), Any, lambda: None)  # type: ignore[arg-type]
    with pytest.raises(ABCRagError, match="was closed"):
        reply.take()
