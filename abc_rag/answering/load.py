"""`load_generator`: finds a model by name, folder or URL, and returns its generator."""

from __future__ import annotations

from typing import TYPE_CHECKING

from abc_rag.embedding.load import open_embedder
from abc_rag.embedding.options import EmbedderOptions, ModelName
from abc_rag.errors import InputError

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from abc_rag.answering.local import LocalGenerator
    from abc_rag.embedding.options import EmbedderKeywords

__all__ = ["load_generator"]


def load_generator(model: ModelName | None = None, **options: Unpack[EmbedderKeywords]) -> LocalGenerator:
    """A generator, and with it an embedder of the same weights.

    ABC, and VLM2Vec's adapters on Qwen2-VL, are adapters on a vision chat model. Loaded so, they lie beside it, and it
    answers as it was published: one set of weights finds and answers.

    Args:
        model: As for `abc_rag.load_embedder`: ``"abc"``, a folder, an `abc_rag.ABCCheckpoint`, ``"vlm2vec:..."``. If
            not given: the environment variable ``ABC_RAG_MODEL``, else ``"abc"``.
        **options: As for `abc_rag.load_embedder`. Pictures of conversations have the same limits as the embedder's.

    Returns:
        A generator; its ``embedder`` embeds. The weights are loaded on first use.

    Raises:
        InputError: An option is unusable, there is no such model, or it cannot generate.
        CheckpointError: On first use, if files are missing or do not fit, such as the base's output layer.
    """
    if isinstance(model, str) and model.startswith(("http://", "https://")):
        raise InputError(f"model {model[:200]!r} is a URL, not a model's name or folder")
    from abc_rag.answering.local import LocalGenerator

    return LocalGenerator(open_embedder(model, EmbedderOptions(**options), adapters="beside"))
