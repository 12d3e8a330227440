"""Retrieval under an instruction for LlamaIndex."""

from llama_index.retrievers.abc.base import InstructionRetriever
from llama_index.retrievers.abc.rewriter import llm_rewriter

__all__ = ["InstructionRetriever", "llm_rewriter"]
