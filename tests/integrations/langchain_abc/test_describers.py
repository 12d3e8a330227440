"""LangChain chat models, with structured output and without, as what writes a benchmark's pairs."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from langchain_abc import chat_model_describer
from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from pydantic import Field, SecretStr

from abc_rag.errors import InputError
from abc_rag.evaluation.authoring.build import build_ctrlbench

PAIRS = {"pairs": [{"instruction": f"what is at {n}?", "phrase": f"thing {n}"} for n in range(3)]}


class Seeing(BaseChatModel):
    """Answers in words; remembers the messages. The secret must stay where it is."""

    answer: str = ""
    model_name: str = "seeing-1"
    api_key: SecretStr = SecretStr("sk-secret")
    messages: list[list[BaseMessage]] = Field(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return "seeing"

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        self.messages.append(messages)
        return ChatResult(generations=[ChatGeneration(message=self._message())])

    def _message(self) -> AIMessage:
        return AIMessage(self.answer)


class Calling(Seeing):
    """Answers by calling the tool that it was given, where it has an answer."""

    tools: list[Any] = Field(default_factory=list)

    def bind_tools(
        self, tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool], **_: Any
    ) -> Runnable[LanguageModelInput, AIMessage]:
        self.tools[:] = tools
        return self

    def _message(self) -> AIMessage:
        if not self.answer:
            return AIMessage("I would rather talk.")
        return AIMessage("", tool_calls=[{"name": "Pairs", "args": json.loads(self.answer), "id": "1"}])


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    grid = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    PIL.Image.fromarray(grid).resize((400, 300)).save(folder / "a.png")
    return folder


@pytest.mark.parametrize("kind", [Seeing, Calling])
def test_a_chat_model_writes_a_benchmark(kind: type[Seeing], photos: Path) -> None:
    model = kind(answer=json.dumps(PAIRS))
    report = build_ctrlbench(photos, photos.parent / "out", chat_model_describer(model), pairs=3, side=200)
    assert (report.model, report.pairs) == ("seeing-1", 3)
    assert json.loads(report.file.read_text())["pairs"] == PAIRS["pairs"]
    ((message,),) = model.messages
    text, picture = message.content_blocks
    assert text["type"] == "text"
    assert "Write 3 pairs" in text["text"]
    assert picture["type"] == "image"
    assert picture["mime_type"] == "image/jpeg"
    assert PIL.Image.open(io.BytesIO(base64.b64decode(picture["base64"]))).size == (200, 150)
    if isinstance(model, Calling):
        assert "pairs" in json.dumps(model.tools)
    for file in report.file.parent.rglob("*"):
        assert not file.is_file() or b"sk-secret" not in file.read_bytes()


def test_a_model_that_calls_no_tool_is_asked_again_and_then_bad(photos: Path) -> None:
    model = Calling()
    report = build_ctrlbench(photos, photos.parent / "out", chat_model_describer(model), pairs=3)
    assert report.pictures == 0
    assert len(model.messages) == 3
    assert report.bad["by_problem"] == {"unusable answer": 1}


def test_langchains_own_fake(photos: Path) -> None:
    model = GenericFakeChatModel(messages=iter(["not yet", f"```json\n{json.dumps(PAIRS)}\n```"]))
    describer = chat_model_describer(model)
    assert describer.name == "GenericFakeChatModel"
    assert build_ctrlbench(photos, photos.parent / "out", describer, pairs=3).pairs == 3


def test_what_a_chat_model_raises_costs_only_the_picture(photos: Path) -> None:
    describer = chat_model_describer(GenericFakeChatModel(messages=iter([])), name="empty")
    report = build_ctrlbench(photos, photos.parent / "out", describer)
    assert report.bad["by_problem"] == {"failed request": 1}


def test_bad_arguments() -> None:
    with pytest.raises(InputError, match="must be a LangChain chat model, not str"):
        chat_model_describer("gpt-4o-mini")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="name must be a str that is not blank"):
        chat_model_describer(Seeing(), name=" ")
