"""Model families as `abc_rag.load_embedder` finds them, one module for each."""

from __future__ import annotations

from abc_rag.families.loader import Checkpoint, LoadOptions, ModelLoader, register_loader, unregister_loader

__all__ = ["Checkpoint", "LoadOptions", "ModelLoader", "register_loader", "unregister_loader"]
