"""What `ABCEmbeddings` is told: its settings, written down and read back, copied and pickled."""

from __future__ import annotations

import copy
import dataclasses
import os
from typing import Any, Literal, cast

from llama_index.core.bridge.pydantic import ConfigDict, Field, PrivateAttr, field_serializer, model_validator
from llama_index.core.embeddings import MultiModalEmbedding
from typing_extensions import Self

from abc_rag import ABCCheckpoint, Embedder, EngineSettings, ImageLimits, load_embedder
from abc_rag.errors import InputError

__all__ = ["Settings"]


class Settings(MultiModalEmbedding):
    """The settings of `ABCEmbeddings`, and the embedder that they make."""

    # A misspelt setting must not quietly load another model.
    model_config = ConfigDict(extra="forbid", protected_namespaces=(), arbitrary_types_allowed=True)

    model: str | os.PathLike[str] | ABCCheckpoint | None = None
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    weights: Literal["full", "int8", "int4"] = "full"
    min_tokens: int | None = None
    max_tokens: int | None = None
    resolution: int | str | None = None
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"
    query_instruction: str | None = None
    image_limits: ImageLimits | None = None
    engine: EngineSettings | None = None
    show_progress: bool = False
    # What LlamaIndex's events show. Made from `model`, so not a setting.
    model_name: str = Field(default="", exclude=True)
    # A live connection, not a setting; the base class would write it down, address and all.
    embeddings_cache: Any | None = Field(default=None, exclude=True)

    _embedder: Embedder = PrivateAttr()

    @model_validator(mode="after")
    def _prepare(self) -> Self:
        if self.model is None:
            # Settled now: settings that are written down must not mean another model where they are read back.
            self.model = os.environ.get("ABC_RAG_MODEL") or "abc"
        name = _name(self.model)
        if self.model_name not in ("", name):
            raise InputError(f"model_name={self.model_name!r} chooses nothing here; write model={self.model_name!r}")
        self.model_name = name
        self._embedder = load_embedder(
            self.model,
            device=self.device,
            dtype=self.dtype,
            weights=self.weights,
            min_tokens=self.min_tokens,
            max_tokens=self.max_tokens,
            resolution=self.resolution,
            attention=self.attention,
            image_limits=self.image_limits,
            engine=self.engine,
        )
        return self

    @classmethod
    def class_name(cls) -> str:
        """The name under which settings are written down."""
        return "ABCEmbeddings"

    @property
    def embedder(self) -> Embedder:
        """The `abc_rag.Embedder` that computes; mixed and instructed inputs can be given to it directly."""
        return self._embedder

    @field_serializer("model")
    def _write_model(self, model: str | os.PathLike[str] | ABCCheckpoint) -> str | dict[str, str | None]:
        if isinstance(model, ABCCheckpoint):
            return {field.name: _plain(getattr(model, field.name)) for field in dataclasses.fields(model)}
        return cast(str, _plain(model))

    @field_serializer("image_limits")
    def _write_limits(self, limits: ImageLimits | None) -> dict[str, Any] | None:
        if limits is None:
            return None
        return {**dataclasses.asdict(limits), "formats": sorted(limits.formats)}  # JSON knows no sets

    @field_serializer("engine")
    def _write_engine(self, engine: EngineSettings | None) -> dict[str, Any] | None:
        if engine is None:
            return None
        folder = None if engine.cache_folder is None else os.fspath(engine.cache_folder)
        return {**dataclasses.asdict(engine), "cache_folder": folder}

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        return copy.copy(self)  # weights are shared

    def __reduce__(self) -> tuple[Any, ...]:
        # The base class would pickle field by field with warnings; another process loads the weights itself.
        left_behind = {"callback_manager", "rate_limiter"}
        fields = {name: getattr(self, name) for name in type(self).model_fields if name not in left_behind}
        return _rebuild, (type(self), fields)


def _rebuild(cls: type[Settings], fields: dict[str, Any]) -> Settings:
    return cls(**fields)


def _plain(value: str | os.PathLike[str] | None) -> str | None:
    """A setting as text. A path keeps a mark of being one, for a bare word names a model or a hub's repository."""
    if value is None or isinstance(value, str):
        return value
    path = os.fspath(value)
    return path if path.startswith(("/", "./", "../", "~")) else os.path.join(".", path)


def _name(model: str | os.PathLike[str] | ABCCheckpoint) -> str:
    if isinstance(model, ABCCheckpoint):
        return "+".join(str(part) for part in (model.base, model.pretrain, model.instruct))
    return str(model)
