"""`load_embedder`: finds a model by name or folder and returns its embedder."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from abc_rag.embedding.choose import Choice, choose_model
from abc_rag.embedding.endpoint import OPENAI, is_address
from abc_rag.embedding.options import (
    EmbedderKeywords,
    EmbedderOptions,
    ModelName,
    keywords_of,
    model_as_json,
    model_from_json,
    shows_options,
)
from abc_rag.errors import InputError
from abc_rag.models.abc.loader import ABCCheckpoint
from abc_rag.models.hub import only_here
from abc_rag.models.loader import AUTO, GENERATING, Adapters, Attention, DType, Weights, find_checkpoint

if TYPE_CHECKING:
    import torch
    from typing_extensions import Unpack

    from abc_rag.embedding.embedder import Embedder
    from abc_rag.embedding.engine.local import LocalEmbedder
    from abc_rag.models.family import Family

__all__ = [
    "ABCCheckpoint",
    "Attention",
    "DType",
    "Loading",
    "ModelName",
    "Weights",
    "choose_for",
    "default_model",
    "find_device",
    "load_embedder",
    "loading_of",
    "local_revision",
    "open_embedder",
]

_LOG = logging.getLogger(__name__)


def default_model() -> str:
    """The model that is loaded when none is named: the environment variable ``ABC_RAG_MODEL``, else ``"abc"``."""
    return os.environ.get("ABC_RAG_MODEL") or "abc"


@shows_options(EmbedderOptions)
def load_embedder(
    model: ModelName | None = None, *, download: bool = False, **options: Unpack[EmbedderKeywords]
) -> Embedder:
    """An embedder for a model. The weights are loaded on first use.

    Args:
        model: ``"abc-mini"`` (the small checkpoint in this package); ``"abc"`` (the published 7B model, fetched from
            the hub on first use); a folder with ``base/``, ``pretrain/`` and ``instruct/``, or one that
            ``abc-rag train instruct`` wrote; or an `ABCCheckpoint`. For VLM2Vec: ``"TIGER-Lab/VLM2Vec-Qwen2VL-2B"``,
            ``"TIGER-Lab/VLM2Vec-Qwen2VL-7B"``, ``"TIGER-Lab/VLM2Vec-Full"``, ``"TIGER-Lab/VLM2Vec-LoRA"``,
            ``"vlm2vec:ORGANISATION/NAME"`` for another one on the hub, or a folder (`abc_rag.models.vlm2vec.family`).
            ``"Qwen/Qwen3-VL-Embedding-2B"`` or ``"-8B"``, ``"google/embeddinggemma-2"``, or a folder of theirs.
            ``"st:NAME"`` for a model of sentence-transformers, by hub id or folder. A folder's files say which family
            it belongs to; where they do not, put the family before it: ``"vlm2vec:FOLDER"``.
            ``"auto"`` is the best of some for this machine; see ``download``.
            ``"http://HOST:8000"`` for the model of a server that ``abc-rag serve`` started
            (`abc_rag.embedding.remote`), ``"openai:http://HOST:8000/v1#MODEL"`` for one of another server that has
            OpenAI's ``/embeddings`` (`abc_rag.embedding.openai`).
            If not given: the environment variable ``ABC_RAG_MODEL``, else ``"abc"``.
        **options: As below; they are the fields of `abc_rag.embedding.options.EmbedderOptions`.

    Keyword Args:
        device: ``"auto"`` (a CUDA GPU, else Apple's, else the CPU), any torch device, or ``"cuda:*"``: all GPUs, each
            with its own copy of the weights.
        dtype: ``"auto"`` is bfloat16 on CUDA and float32 elsewhere. All three work on both. float16 is slow on a CPU,
            and some models exceed its range, which raises an error.
        min_tokens: Minimum image tokens (of 28x28 pixels) of a picture after resizing. The default is the
            checkpoint's: 256 for ABC, 9 for abc-mini.
        max_tokens: Maximum image tokens; 1024 for ABC, 9 for abc-mini. More tokens show more detail and cost more
            time.
        resolution: Another family's own measure of resolution. VLM2Vec on Qwen2-VL: ``"low"``, ``"mid"`` or
            ``"high"``, a fixed square of 128, 672 or 1344 pixels as in the published evaluation (``"high"``), in place
            of the limits.
            VLM2Vec on Phi-3.5-vision: the maximum number of crops, by default 4.
        dims: Length of a vector, for models that were trained to be cut to several (Matryoshka); the rest is scaled to
            unit length again. The fingerprint says which.
        query_instruction: What a query (``Text(question, role="query")``) is told in place of the family's own prompt;
            for VLM2Vec one of ``abc_rag.models.vlm2vec.TASK_INSTRUCTIONS``. Retrievers and ``embed_query`` embed
            queries. The fingerprint says which. Families that read queries and documents alike take none.
        document_instruction: The same for documents, which everything is that has no other role.
        attention: ``"auto"`` is torch's own kernels (``"sdpa"``); or ``"eager"``, or ``"flash_attention_2"`` where
            that package is installed.
        weights: ``"int8"`` or ``"int4"`` keeps the language model's matrices in 8 or 4 bits, on a CPU or a CUDA GPU;
            they are multiplied in ``dtype``. This saves memory, not time. The vectors differ from those of full
            weights, and the fingerprint says so. Loading still needs memory for the full model once, on the CPU. Needs
            the extra ``quantized``.
        background: A colour behind transparent pixels, such as ``"white"``. If not given, transparency is dropped, as
            published: a clear pixel has whatever colour is stored under it, often black. The fingerprint says which.
        depth: ``"scaled"`` maps the range of 16-bit, 32-bit and floating-point greys to 8 bits; ``"published"`` drops
            or clips the rest. The fingerprint says which. See `abc_rag.images.Rendering`.
        image_limits: Which pictures are accepted, and whether URLs are fetched.
        engine: Workers, batches and caches; see `abc_rag.EngineSettings`.
        download: For ``"auto"``: whether it may choose a model that has to be fetched. If not, it chooses among those
            that are here, and asks no hub. Names of other models are fetched when they are first used.

    Returns:
        An `Embedder`. Its ``choice`` says what ``"auto"`` chose, and why; so does a line in the log.

    Raises:
        InputError: An argument is unusable, or there is no such folder.
        MissingExtraError: ``weights`` needs a package that is not installed.
        CheckpointError: On first use, if files are missing or do not fit.
    """
    chosen = EmbedderOptions(**options)
    if isinstance(name := default_model() if model is None else model, str) and is_address(name):
        return _remote(name, chosen)
    return open_embedder(model, chosen, download=download)


def _remote(address: str, options: EmbedderOptions) -> Embedder:
    """An embedder on a server, whose operator chose all options but those of reading pictures."""
    from abc_rag.images.limits import ImageLimits

    asked, own = replace(options, image_limits=None), EmbedderOptions()
    if fixed := [key for key, value in keywords_of(asked).items() if value != getattr(own, key)]:
        raise InputError(
            f"{', '.join(fixed)} cannot be set for a model on a server; start the server with it, and leave it out here"
        )
    limits = options.image_limits or ImageLimits()
    if address.lower().startswith(OPENAI):
        from abc_rag.embedding.openai import OpenAIEmbedder

        url, _, name = address[len(OPENAI) :].partition("#")
        return OpenAIEmbedder(url, name, image_limits=limits)
    from abc_rag.embedding.remote import RemoteEmbedder

    return RemoteEmbedder(address, image_limits=limits)


def open_embedder(
    model: ModelName | None = None,
    options: EmbedderOptions | None = None,
    *,
    adapters: Adapters = "merged",
    download: bool = False,
) -> LocalEmbedder:
    """`load_embedder` with its options as one value.

    Args:
        model: See there.
        options: See there.
        adapters: ``"beside"`` keeps the base unmerged, so that the same weights can generate too
            (`abc_rag.answering.load_generator`). The vectors are the same up to rounding; each takes a little longer.
        download: See there.

    Raises:
        InputError: As there; or the model cannot generate, or is on a server.
        MissingExtraError: ``weights`` needs a package that is not installed.
    """
    model = default_model() if model is None else model
    options = options or EmbedderOptions()
    if isinstance(model, str) and is_address(model):
        raise InputError(f"model {model[:200]!r} is on a server, and is needed here; use load_embedder")
    choice = choose_for(options.device, download=download) if model == AUTO else None
    if choice is not None:
        _LOG.warning("%s", choice)
        model = choice.model
    checkpoint = find_checkpoint(model)
    if adapters == "beside" and not checkpoint.generates:
        raise InputError(f"model {str(model)[:200]!r} cannot generate; {GENERATING}")
    if options.weights != "full":
        import abc_rag.models.quantize  # noqa: F401  (says now if the extra is missing, not after a download)

    from abc_rag.embedding.engine.local import LocalEmbedder

    return LocalEmbedder(Loading(model, options, adapters, choice), options.settings)


@dataclass(frozen=True)
class Loading:
    """Loads what `load_embedder` was asked for; a value, so that an embedder is pickled as its settings.

    Attributes:
        model: See `load_embedder`.
        options: See there.
        adapters: See `open_embedder`.
    """

    model: ModelName
    options: EmbedderOptions
    adapters: Adapters = "merged"
    choice: Choice | None = None

    def __reduce__(self) -> tuple[type[Loading], tuple[ModelName, EmbedderOptions, Adapters, Choice | None]]:
        # Another process may have another working folder.
        return Loading, (model_from_json(model_as_json(self.model)), self.options, self.adapters, self.choice)

    def __call__(self) -> list[Family]:
        """The model on every device; fetches it if need be."""
        if self.choice is not None and self.choice.here:
            with only_here():
                return self._build()
        return self._build()

    def _build(self) -> list[Family]:
        checkpoint = find_checkpoint(self.model)
        checkpoint.fetch(self.options.device)
        asked = (replace(self.options.on(one), adapters=self.adapters) for one in _devices(self.options.device))
        built = (checkpoint.build(one) for one in asked)
        return [_as_asked(family, self.options) for family in built]


def loading_of(embedder: Embedder) -> Loading:
    """What an embedder was loaded from.

    Raises:
        InputError: `load_embedder` did not make it.
    """
    loading = getattr(embedder, "loading", None)
    if not isinstance(loading, Loading):
        raise InputError(
            f"{type(embedder).__name__} was not made by load_embedder or load_generator; pass one of theirs"
        )
    return loading


def local_revision(model: ModelName, **options: Unpack[EmbedderKeywords]) -> str | None:
    """The revision that the model's fingerprint will have, if all its files are local; None where the hub decides.

    Reads the files' hashes; loads and fetches nothing.

    Args:
        model: As for `load_embedder`.
        **options: As for `load_embedder`.

    Raises:
        InputError: There is no such model, or an option is unusable.
        CheckpointError: A folder of an `ABCCheckpoint` is missing.
    """
    chosen = EmbedderOptions(**options)
    if model == AUTO:
        model = choose_for(chosen.device).model
    if isinstance(model, str) and is_address(model):
        return None
    revision = find_checkpoint(model).local_revision(chosen.weights, chosen.resolution)
    return None if revision is None else chosen.revision_of(revision)


def _as_asked(family: Family, options: EmbedderOptions) -> Family:
    """The family with the caller's rendering of pictures, and a fingerprint that names what changes vectors.

    Raises:
        InputError: An option had no effect on the family: no family may ignore one.
    """
    facts = family.facts
    for name, found in (
        ("dims", facts.dim),
        ("query_instruction", facts.query_instruction),
        ("document_instruction", facts.document_instruction),
    ):
        if getattr(options, name) not in (None, found):
            raise InputError(
                f"{name}={getattr(options, name)!r} is not available for {facts.fingerprint.model}; leave it out"
            )
    fingerprint = replace(facts.fingerprint, revision=options.revision_of(facts.fingerprint.revision))
    family.facts = replace(facts, rendering=options.rendering, fingerprint=fingerprint)
    if family.chat is not None:
        family.chat.facts = family.facts
    return family


def _devices(device: str) -> list[torch.device]:
    """One device, or with ``"cuda:*"`` all GPUs."""
    import torch

    if device != "cuda:*":
        return [find_device(device)]
    count = torch.cuda.device_count()
    if not count:
        raise InputError("device 'cuda:*' cannot be used here (there is no CUDA GPU); use 'auto' or 'cpu'")
    return [find_device(f"cuda:{index}") for index in range(count)]


def choose_for(device: str, *, download: bool = False) -> Choice:
    """What ``"auto"`` means on a device; see `choose_model`.

    Raises:
        InputError: The device cannot be used.
    """
    return choose_model(_devices(device)[0], download=download)


def find_device(device: str) -> torch.device:
    """The device of that name; ``"auto"`` is the best one here.

    Raises:
        InputError: It cannot be used.
    """
    import torch

    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {device!r} cannot be used here ({str(error).splitlines()[0]})") from error
    return found
