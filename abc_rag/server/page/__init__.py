"""The page that browsers show: files without data of their own, which ask the API as any other client does."""

from __future__ import annotations

from abc_rag.server.page.routes import page_routes

__all__ = ["page_routes"]
