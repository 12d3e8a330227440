"""One model for many users, over HTTP: embeddings in the forms that the ecosystem speaks, and collections."""

from __future__ import annotations

from abc_rag.server.app import create_app
from abc_rag.server.keys import Keys
from abc_rag.server.logs import start_logs
from abc_rag.server.run import serve
from abc_rag.server.settings import ServerSettings

__all__ = ["Keys", "ServerSettings", "create_app", "serve", "start_logs"]
