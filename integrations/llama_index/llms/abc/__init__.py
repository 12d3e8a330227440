"""A language model that sees, for LlamaIndex."""

from abc_rag.errors import MissingExtraError

try:
    from llama_index.llms.abc.base import ABCLLM
    from llama_index.llms.abc.synthesizer import ABCSynthesizer
except ModuleNotFoundError as error:
    raise MissingExtraError.for_module(error, "llama_index.llms.abc", extra="llama-index") from error

__all__ = ["ABCLLM", "ABCSynthesizer"]
