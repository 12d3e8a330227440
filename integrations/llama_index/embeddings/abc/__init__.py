"""ABC embeddings for LlamaIndex."""

from abc_rag.errors import MissingExtraError

try:
    from llama_index.embeddings.abc.base import ABCEmbeddings
except ModuleNotFoundError as error:
    raise MissingExtraError.for_module(error, "llama_index.embeddings.abc", extra="llama-index") from error

__all__ = ["ABCEmbeddings"]
