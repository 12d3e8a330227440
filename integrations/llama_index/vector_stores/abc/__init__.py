"""One Chroma collection of pictures and passages, as LlamaIndex's vector stores and as an index."""

from llama_index.vector_stores.abc.base import ABCVectorStore
from llama_index.vector_stores.abc.index import ABCMultiModalIndex

__all__ = ["ABCMultiModalIndex", "ABCVectorStore"]
