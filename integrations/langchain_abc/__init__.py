"""LangChain integration of abc-rag."""

from abc_rag.errors import MissingExtraError

try:
    from langchain_abc.chat import ChatABC
    from langchain_abc.content import cited_documents, to_content_blocks
    from langchain_abc.describers import chat_model_describer
    from langchain_abc.embeddings import ABCEmbeddings
    from langchain_abc.loaders import ABCLoader
    from langchain_abc.prompts import answering_messages
    from langchain_abc.retrievers import InstructionRetriever
    from langchain_abc.rewriters import chat_model_rewriter
    from langchain_abc.tools import retriever_tool
    from langchain_abc.vectorstores import ABCVectorStore
except ModuleNotFoundError as error:
    raise MissingExtraError.for_module(error, "langchain_abc", extra="langchain") from error

__all__ = [
    "ABCEmbeddings",
    "ABCLoader",
    "ABCVectorStore",
    "ChatABC",
    "InstructionRetriever",
    "answering_messages",
    "chat_model_describer",
    "chat_model_rewriter",
    "cited_documents",
    "retriever_tool",
    "to_content_blocks",
]
