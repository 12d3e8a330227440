"""One store of pictures and passages, as LlamaIndex's vector stores and as an index."""

from abc_rag.errors import MissingExtraError

try:
    from llama_index.vector_stores.abc.base import ABCVectorStore
    from llama_index.vector_stores.abc.index import ABCMultiModalIndex
except ModuleNotFoundError as error:
    raise MissingExtraError.for_module(error, "llama_index.vector_stores.abc", extra="llama-index") from error

__all__ = ["ABCMultiModalIndex", "ABCVectorStore"]
