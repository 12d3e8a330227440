"""abc-rag: ask questions of pictures, from LangChain, LlamaIndex or plain Python.

Importing this package loads neither torch nor chromadb nor any framework: each comes with its first use.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from abc_rag.answering.retriever import Retriever
    from abc_rag.embedding.embedder import Embedder
    from abc_rag.embedding.load import load_embedder
    from abc_rag.embedding.settings import EngineSettings
    from abc_rag.errors import ABCRagError
    from abc_rag.images.limits import ImageLimits
    from abc_rag.models.abc.loader import ABCCheckpoint
    from abc_rag.store.chroma.store import ChromaStore
    from abc_rag.types import (
        URL,
        DataURI,
        Fingerprint,
        Hit,
        Image,
        ImageSource,
        Input,
        InstructedImage,
        InstructedText,
        Interleaved,
        Record,
        Text,
        Trace,
    )

__all__ = [
    "URL",
    "ABCCheckpoint",
    "ABCRagError",
    "ChromaStore",
    "DataURI",
    "Embedder",
    "EngineSettings",
    "Fingerprint",
    "Hit",
    "Image",
    "ImageLimits",
    "ImageSource",
    "Input",
    "InstructedImage",
    "InstructedText",
    "Interleaved",
    "Record",
    "Retriever",
    "Store",
    "Text",
    "Trace",
    "__version__",
    "load_embedder",
]

try:
    __version__ = version("abc-rag")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

_HOME = {
    "URL": "types",
    "ABCCheckpoint": "embedding.load",
    "ABCRagError": "errors",
    "ChromaStore": "store.chroma.store",
    "DataURI": "types",
    "Embedder": "embedding.embedder",
    "EngineSettings": "embedding.settings",
    "Fingerprint": "types",
    "Hit": "types",
    "Image": "types",
    "ImageLimits": "images.limits",
    "ImageSource": "types",
    "Input": "types",
    "InstructedImage": "types",
    "InstructedText": "types",
    "Interleaved": "types",
    "Record": "types",
    "Retriever": "answering.retriever",
    "Store": "store.base",
    "Text": "types",
    "Trace": "types",
    "load_embedder": "embedding.load",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name not in _HOME:
        raise AttributeError(f"module 'abc_rag' has no attribute {name!r}")
    return getattr(import_module(f"abc_rag.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return list(__all__)
