"""What makes a model family an embedder: preprocessing, scheduling, caches, one owner of the model.

Importing this package loads no torch: `EngineSettings` are needed where no model is.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from abc_rag.engine._runner import BatchReport
    from abc_rag.engine.local import LocalEmbedder
    from abc_rag.engine.settings import EngineSettings, WorkerKind

__all__ = ["BatchReport", "EngineSettings", "LocalEmbedder", "WorkerKind"]

_HOME = {"BatchReport": "_runner", "EngineSettings": "settings", "LocalEmbedder": "local", "WorkerKind": "settings"}


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name not in _HOME:
        raise AttributeError(f"module 'abc_rag.engine' has no attribute {name!r}")
    return getattr(import_module(f"abc_rag.engine.{_HOME[name]}"), name)
