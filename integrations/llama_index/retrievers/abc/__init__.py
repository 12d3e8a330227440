"""Retrieval under an instruction for LlamaIndex."""

from abc_rag.errors import MissingExtraError

try:
    from llama_index.retrievers.abc.base import InstructionRetriever
    from llama_index.retrievers.abc.rewriter import llm_rewriter
except ModuleNotFoundError as error:
    raise MissingExtraError.for_module(error, "llama_index.retrievers.abc", extra="llama-index") from error

__all__ = ["InstructionRetriever", "llm_rewriter"]
