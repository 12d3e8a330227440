"""Model families behind one seam: finding checkpoints and loading them."""

from __future__ import annotations

from abc_rag.models.loader import Checkpoint, LoadOptions, ModelLoader, register_loader, unregister_loader

__all__ = ["Checkpoint", "LoadOptions", "ModelLoader", "register_loader", "unregister_loader"]
