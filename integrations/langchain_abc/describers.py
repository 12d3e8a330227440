"""A LangChain vision chat model that writes the pairs of a benchmark."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import HumanMessage
from langchain_core.messages.content import create_image_block, create_text_block
from langchain_core.runnables import Runnable

from abc_rag.errors import InputError
from abc_rag.evaluation.authoring.chat import Describer

__all__ = ["chat_model_describer"]


def chat_model_describer(model: BaseChatModel, *, name: str | None = None) -> Describer:
    """Let a chat model that sees pictures write pairs for `abc_rag.evaluation.authoring.build.build_ctrlbench`.

    It is asked for structured output where it has that, and for JSON in text otherwise. What it raises counts as a
    failure of that picture; retries and time limits are the chat model's own settings.

    Args:
        model: The chat model. It is called from several threads at once.
        name: Under which its answers are kept. If not given: its ``model_name`` or ``model``, else its class's name.

    Raises:
        abc_rag.errors.InputError: ``model`` is no chat model, or ``name`` is blank.

    Example:
        >>> from langchain_abc import chat_model_describer
        >>> from langchain.chat_models import init_chat_model  # doctest: +SKIP
        >>> model = init_chat_model("openai:gpt-4o-mini", temperature=0)  # doctest: +SKIP
        >>> build_ctrlbench("photos", "bench", chat_model_describer(model))  # doctest: +SKIP
    """
    if not isinstance(model, BaseChatModel):
        raise InputError(f"model must be a LangChain chat model, not {type(model).__name__}")
    if name is None:
        names = [getattr(model, field, None) for field in ("model_name", "model")]
        name = next((one for one in names if isinstance(one, str) and one), type(model).__name__)
    if not isinstance(name, str) or not name.strip():
        raise InputError(f"name must be a str that is not blank, not {name!r}")
    return _ChatModelDescriber(model, name)


class _ChatModelDescriber(Describer):
    def __init__(self, model: BaseChatModel, name: str) -> None:
        self._model = model
        self._name = name

    @property
    def name(self) -> str:
        return self._name

    def settings(self) -> dict[str, Any]:
        # Only the class: other fields of a chat model may contain keys.
        return {**super().settings(), "type": type(self._model).__name__}

    def describe(self, image: bytes, mime_type: str, prompt: str, schema: Mapping[str, Any]) -> str:
        picture = create_image_block(base64=base64.b64encode(image).decode("ascii"), mime_type=mime_type)
        message = HumanMessage(content_blocks=[create_text_block(prompt), picture])
        try:
            asked: Runnable[Any, Any] = self._model.with_structured_output(dict(schema))
        except NotImplementedError:
            # LangChain's base class raises this for a model that calls no tools.
            return str(self._model.invoke([message]).text)
        # None, if the model called no tool after all, counts as an unusable answer.
        return json.dumps(asked.invoke([message]))
