"""What the chat models of both frameworks share: their settings, whom they ask, and what a call may bring along."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, Field, InstanceOf, PrivateAttr, field_serializer, field_validator, model_validator
from typing_extensions import Self

from abc_rag.answering.generator import Generator
from abc_rag.answering.load import load_generator
from abc_rag.embedding.load import default_model
from abc_rag.embedding.options import EmbedderOptions, ModelName, keywords_of, model_as_json, model_from_json
from abc_rag.errors import InputError
from abc_rag.models.abc.loader import ABCCheckpoint

__all__ = ["CALL_KEYWORDS", "ChatSettings"]

CALL_KEYWORDS: Mapping[str, str] = {
    "temperature": "temperature",
    "max_tokens": "max_new_tokens",
    "seed": "seed",
    "stop": "stop",
}
"""What frameworks call an option of a call -> what `Generator.generate` calls it."""


class ChatSettings(BaseModel):
    """The settings of a chat model, which say what its generator is; the classes of the frameworks describe them.

    Raises:
        InputError: A generator is given, and what to load besides; or as `load_generator` raises.
    """

    model: str | os.PathLike[str] | ABCCheckpoint | None = None
    options: InstanceOf[EmbedderOptions] = Field(default_factory=EmbedderOptions)
    given: InstanceOf[Generator] | None = Field(default=None, alias="generator", exclude=True, repr=False)
    max_tokens: int = Field(default=512, ge=1)
    temperature: float = Field(default=0.0, ge=0)
    seed: int | None = None
    drop_oldest: bool = False

    _generator: Generator = PrivateAttr()

    @field_validator("model", mode="before")
    @classmethod
    def _read_model(cls, model: object) -> object:
        return model_from_json(model) if isinstance(model, Mapping) else model

    @field_serializer("model")
    def _write_model(self, model: ModelName | None) -> str | dict[str, Any] | None:
        # A folder must not turn into a model's name or a hub id on its way through JSON.
        return None if model is None else model_as_json(model)

    @field_validator("options", mode="before")
    @classmethod
    def _from_json(cls, options: object) -> object:
        return EmbedderOptions.from_dict(options) if isinstance(options, Mapping) else options

    @field_serializer("options")
    def _as_json(self, options: EmbedderOptions) -> dict[str, Any]:
        return options.as_dict()

    @model_validator(mode="after")
    def _prepare(self) -> Self:
        if self.given is None:
            self._generator = load_generator(self.model, **keywords_of(self.options))  # nothing is loaded yet
        elif self.model is not None or self.options != EmbedderOptions():
            raise InputError("give model and options, or a generator, which has its own; not both")
        else:
            self._generator = self.given
        return self

    @property
    def generator(self) -> Generator:
        """The underlying `abc_rag.answering.Generator`. A local one has the ``embedder`` of the same weights."""
        return self._generator

    @property
    def generator_name(self) -> str:
        """The name of the model that answers."""
        if self.given is not None:
            return self.given.model
        return str(default_model() if self.model is None else self.model)

    def asked_of(self, told: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
        """What a call asks of `Generator.generate`.

        Args:
            told: The call's own keywords, by the framework's names.
            names: Those that are known; see `CALL_KEYWORDS`.

        Raises:
            InputError: One is unknown.
        """
        for key in told:
            if key not in names:
                tools = " (tools cannot be called: the model was not trained to)" if "tool" in key else ""
                raise InputError(f"{type(self).__name__} takes no {key!r}{tools}; a call takes {', '.join(names)}")
        return {
            "max_new_tokens": self.max_tokens,
            "temperature": self.temperature,
            "seed": self.seed,
            "drop_oldest": self.drop_oldest,
            **{names[key]: value for key, value in told.items()},
        }
