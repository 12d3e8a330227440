"""Documents such as PDF files for LlamaIndex."""

from abc_rag.errors import MissingExtraError

try:
    from llama_index.readers.abc.base import ABCReader
except ModuleNotFoundError as error:
    raise MissingExtraError.for_module(error, "llama_index.readers.abc", extra="llama-index") from error

__all__ = ["ABCReader"]
