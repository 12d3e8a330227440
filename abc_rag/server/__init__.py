"""One model for many users, over HTTP: embeddings in the forms that the ecosystem speaks, and collections."""

from __future__ import annotations

from abc_rag.server.app import create_app
from abc_rag.server.background import BackgroundServer
from abc_rag.server.keys import ApiKey, Keys
from abc_rag.server.logs import json_logs
from abc_rag.server.run import serve
from abc_rag.server.settings import ServerSettings
from abc_rag.server.stores import chroma

__all__ = ["ApiKey", "BackgroundServer", "Keys", "ServerSettings", "chroma", "create_app", "json_logs", "serve"]
