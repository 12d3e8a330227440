"""The settings of `ABCEmbeddings`: validation, serialization, copies and pickles."""

from __future__ import annotations

import copy
import os
from functools import partial
from typing import Any, Literal

from llama_index.core.bridge.pydantic import ConfigDict, Field, PrivateAttr, field_serializer, model_validator
from llama_index.core.embeddings import MultiModalEmbedding
from typing_extensions import Self

from abc_rag import ABCCheckpoint, Embedder, EngineSettings, ImageLimits, load_embedder
from abc_rag.embedding.load import loading_of
from abc_rag.embedding.options import EmbedderOptions, keywords_of, model_as_text
from abc_rag.errors import InputError

__all__ = ["Settings"]


class Settings(MultiModalEmbedding):
    """The settings of `ABCEmbeddings`, and the embedder that is loaded from them."""

    # A misspelt setting must not silently load another model.
    model_config = ConfigDict(extra="forbid", protected_namespaces=(), arbitrary_types_allowed=True)

    model: str | os.PathLike[str] | ABCCheckpoint | None = None
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    weights: Literal["full", "int8", "int4"] = "full"
    min_tokens: int | None = None
    max_tokens: int | None = None
    resolution: int | str | None = None
    dims: int | None = None
    query_instruction: str | None = None
    document_instruction: str | None = None
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"
    background: str | None = None
    depth: Literal["published", "scaled"] = "published"
    image_limits: ImageLimits | None = None
    engine: EngineSettings | None = None
    show_progress: bool = False
    # Shown in LlamaIndex's events. Derived from `model`, so not a setting.
    model_name: str = Field(default="", exclude=True)
    # A live connection, which the base class would serialize with its address.
    embeddings_cache: Any | None = Field(default=None, exclude=True)

    _embedder: Embedder = PrivateAttr()

    @model_validator(mode="after")
    def _prepare(self) -> Self:
        if self.model is None:
            # Resolved now, so that serialized settings mean the same model elsewhere.
            self.model = os.environ.get("ABC_RAG_MODEL") or "abc"
        name = _name(self.model)
        if self.model_name not in ("", name):
            raise InputError(f"model_name={self.model_name!r} chooses nothing here; write model={self.model_name!r}")
        self.model_name = name
        self._embedder = load_embedder(self.model, **keywords_of(self))
        return self

    @classmethod
    def of(cls, embedder: Embedder, **settings: Any) -> Self:  # noqa: ANN401
        """Embeddings by an embedder that exists already, such as that of a generator, with its settings.

        Args:
            embedder: From ``abc_rag.load_embedder``, or the ``embedder`` of ``abc_rag.answering.load_generator``.
            **settings: What else the class takes, such as ``embed_batch_size``.

        Raises:
            InputError: It was made otherwise.
        """
        loading = loading_of(embedder)
        made = cls(model=loading.model, **keywords_of(loading.options), **settings)
        made._embedder = embedder
        return made

    @classmethod
    def class_name(cls) -> str:
        """The class's name in serialized settings."""
        return "ABCEmbeddings"

    @property
    def embedder(self) -> Embedder:
        """The underlying `abc_rag.Embedder`. It also takes mixed and instructed inputs."""
        return self._embedder

    @field_serializer("model")
    def _write_model(self, model: str | os.PathLike[str] | ABCCheckpoint) -> Any:  # noqa: ANN401
        return model_as_text(model)

    @field_serializer("image_limits")
    def _write_limits(self, limits: ImageLimits | None) -> Any:  # noqa: ANN401
        return EmbedderOptions(image_limits=limits).as_dict()["image_limits"]

    @field_serializer("engine")
    def _write_engine(self, engine: EngineSettings | None) -> Any:  # noqa: ANN401
        return EmbedderOptions(engine=engine).as_dict()["engine"]

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        return copy.copy(self)  # weights are shared

    def __reduce__(self) -> tuple[Any, ...]:
        # A pickle contains the settings. The base class would pickle each field, with warnings.
        left_behind = {"callback_manager", "rate_limiter"}
        fields = {name: getattr(self, name) for name in type(self).model_fields if name not in left_behind}
        return partial(type(self), **fields), ()


def _name(model: str | os.PathLike[str] | ABCCheckpoint) -> str:
    if isinstance(model, ABCCheckpoint):
        return "+".join(str(part) for part in (model.base, model.pretrain, model.instruct))
    return str(model)
