"""The command ``abc-rag mcp``."""

from __future__ import annotations

from abc_rag.cli.answering import AnsweringFlags
from abc_rag.cli.ask import Asking
from abc_rag.cli.options import EmbedderFlags, KeywordStoreFlags, grouped
from abc_rag.errors import MissingExtraError

__all__ = ["mcp"]


@grouped
def mcp(*, answering: AnsweringFlags, embedding: EmbedderFlags, place: KeywordStoreFlags) -> None:
    """Let an agent search the store: a server of the Model Context Protocol, on standard input and output.

    Its tools are search_pictures, ask and look; the agent is shown pictures as pictures. With --answer, ask answers in
    words; without, it gives the sources.
    """
    try:
        from abc_rag.server.mcp import mcp_server
    except ModuleNotFoundError as error:
        raise MissingExtraError.for_module(error, "abc-rag mcp", extra="mcp") from error
    place.filled().close()
    embedder, generator = answering.open(embedding)
    embedder, store = place.open_for(embedder)
    with store as opened:
        mcp_server(Asking().retriever(embedder, opened, embedding.limits, generator)).run("stdio")
