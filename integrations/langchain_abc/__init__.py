"""LangChain integration of abc-rag."""

from langchain_abc.embeddings import ABCEmbeddings

__all__ = ["ABCEmbeddings"]
