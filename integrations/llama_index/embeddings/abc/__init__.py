"""ABC embeddings for LlamaIndex."""

from llama_index.embeddings.abc.base import ABCEmbeddings

__all__ = ["ABCEmbeddings"]
