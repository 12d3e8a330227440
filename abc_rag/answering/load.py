"""`load_generator`: finds a model by name, folder or URL, and returns its generator."""

from __future__ import annotations

from typing import TYPE_CHECKING, overload

from abc_rag.embedding.load import open_embedder
from abc_rag.embedding.options import EmbedderOptions, ModelName
from abc_rag.errors import InputError
from abc_rag.types import URL

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from abc_rag.answering.generator import Generator
    from abc_rag.answering.local import LocalGenerator
    from abc_rag.answering.openai import OpenAIGenerator
    from abc_rag.embedding.options import EmbedderKeywords

__all__ = ["load_generator"]


@overload
def load_generator(model: URL, *, served: str) -> OpenAIGenerator: ...


@overload
def load_generator(model: ModelName | None = None, **options: Unpack[EmbedderKeywords]) -> LocalGenerator: ...


def load_generator(
    model: ModelName | URL | None = None, *, served: str | None = None, **options: Unpack[EmbedderKeywords]
) -> Generator:
    """A generator, and with it an embedder of the same weights; or one that asks a server.

    ABC, and VLM2Vec's adapters on Qwen2-VL, are adapters on a vision chat model. Loaded so, they lie beside it, and it
    answers as it was published: one set of weights finds and answers.

    Args:
        model: As for `abc_rag.load_embedder`: ``"abc"``, a folder, an `abc_rag.ABCCheckpoint`, ``"vlm2vec:..."``. If
            not given: the environment variable ``ABC_RAG_MODEL``, else ``"abc"``. Or an `abc_rag.URL`: of a server with
            OpenAI's protocol, see `OpenAIGenerator`.
        served: With a URL, the model's name on the server.
        **options: As for `abc_rag.load_embedder`. Pictures of conversations have the same limits as the embedder's.

    Returns:
        A generator. Where it computes here, its ``embedder`` embeds; the weights are loaded on first use.

    Raises:
        InputError: An option is unusable, there is no such model, or it cannot generate.
        CheckpointError: On first use, if files are missing or do not fit, such as the base's output layer.
        MissingExtraError: A server is to be asked, and httpx is not installed.
    """
    if isinstance(model, URL):
        if served is None or options:
            raise InputError("a server is asked with load_generator(URL(...), served='MODEL') and no other option")
        from abc_rag.answering.openai import OpenAIGenerator

        return OpenAIGenerator(model.url, served)
    if served is not None:
        raise InputError("served is the name of a model on a server; give its address as abc_rag.URL(...)")
    if isinstance(model, str) and model.startswith(("http://", "https://")):
        raise InputError(f"model {model[:200]!r} is a str; wrap the address of a server as abc_rag.URL(...)")
    from abc_rag.answering.local import LocalGenerator

    return LocalGenerator(open_embedder(model, EmbedderOptions(**options), adapters="beside"))
