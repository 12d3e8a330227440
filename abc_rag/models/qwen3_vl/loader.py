"""Checkpoints of Qwen3-VL-Embedding: two on the hub, or a folder as ``qwen3-vl:FOLDER``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from abc_rag.errors import CheckpointError, InputError
from abc_rag.models.config import read_json
from abc_rag.models.hub import fetch, is_folder
from abc_rag.models.loader import Checkpoint, LoadOptions, ModelLoader, Weights, as_folder, token_limits

if TYPE_CHECKING:
    from abc_rag.models.family import Family

__all__ = ["LOADER", "Qwen3VLLoader"]

_LIMITS = (4, 1800)
"""Fewest and most image tokens, of 32x32 pixels, in the authors' code (``MIN_PIXELS`` and ``MAX_PIXELS``)."""


class Qwen3VLLoader(ModelLoader):
    """Qwen3-VL-Embedding's part of `abc_rag.load_embedder`."""

    name = "qwen3-vl"
    models = ("Qwen/Qwen3-VL-Embedding-2B", "Qwen/Qwen3-VL-Embedding-8B")

    def refusal(self, folder: Path) -> str | None:
        """See `ModelLoader.refusal`; a folder of this family is always asked for by its prefix."""
        try:
            found = read_json(folder / "config.json").get("model_type") if (folder / "config.json").is_file() else None
        except CheckpointError:  # said when it is loaded
            found = None
        if found == "qwen3_vl":
            return f"is a Qwen3-VL, which could be many models; if it is Qwen3-VL-Embedding, write 'qwen3-vl:{folder}'"
        return "holds no config.json of a Qwen3-VL"

    def checkpoint(self, model: Any) -> Checkpoint:  # noqa: ANN401
        """See `ModelLoader.checkpoint`."""
        name = str(model)
        folder = None if name in self.models or not name else as_folder(name)
        if folder is not None:
            return _Qwen3VLModel(folder.resolve().name, folder)
        if is_folder(name) or name.count("/") != 1 or not all(name.split("/")):
            raise InputError(f"model 'qwen3-vl:{name[:200]}' is neither a folder nor a hub id (ORGANISATION/NAME)")
        return _Qwen3VLModel(name, None)


class _Qwen3VLModel(Checkpoint):
    def __init__(self, name: str, folder: Path | None) -> None:
        self._name = name
        self._local = folder
        self._folder = folder

    def local_revision(self, weights: Weights, resolution: int | str | None = None) -> str | None:
        return None if self._local is None else _revision(self._local, True, weights)

    def fetch(self, device: str) -> None:
        if self._local is None:
            self._folder = fetch(self._name)

    def build(self, options: LoadOptions) -> Family:
        options.refuse("qwen3-vl", resolution="it is set by min_tokens and max_tokens")
        if self._folder is None:
            self.fetch(str(options.device))
        folder = self._folder
        assert folder is not None
        from abc_rag.models.qwen2_vl.prompts import load_chat_tokenizer
        from abc_rag.models.qwen3_vl.family import Qwen3VLFamily
        from abc_rag.models.qwen3_vl.network import load_network
        from abc_rag.models.qwen3_vl.prompts import Qwen3VLPrompts
        from abc_rag.types import Fingerprint

        first = "cpu" if options.weights != "full" else str(options.device)
        if options.weights != "full":
            from abc_rag.models.quantize import check_device

            check_device(options.weights, str(options.device))
        network = load_network(
            folder,
            attention=options.attention,
            dtype=options.dtype,
            device=first,
        )
        if options.weights != "full":
            from abc_rag.models.quantize import quantize_linears

            quantize_linears(network.language_model.layers, options.weights, str(options.device))
            network.to(options.device)
        network.compiled = options.compiled
        if options.dims is not None and options.dims > network.hidden_size:
            raise InputError(
                f"dims={options.dims} is more than the {network.hidden_size} numbers of a vector of {self._name}; take "
                "fewer"
            )
        tokenizer, _ = load_chat_tokenizer(folder)
        try:
            prompts = Qwen3VLPrompts(tokenizer, image_token_id=network.image_token_id)
        except Exception as error:  # a template raises whatever it likes
            raise CheckpointError(f"{folder}: no usable chat template ({str(error)[:200]})") from error
        limits = token_limits(options.min_tokens, options.max_tokens, defaults=_LIMITS)
        return Qwen3VLFamily(
            network,
            prompts,
            fingerprint=Fingerprint(self._name, _revision(folder, self._local is not None, options.weights), *limits),
            image_limits=options.image_limits,
            dims=options.dims,
            query_instruction=options.query_instruction,
            document_instruction=options.document_instruction,
        )


def _revision(folder: Path, local: bool, weights: Weights) -> str:
    from abc_rag.models.checkpoint import folder_revision

    # A snapshot's folder is named by its commit.
    files = folder_revision(folder) if local else folder.name[:12]
    return files if weights == "full" else f"{files}+{weights}"


LOADER = Qwen3VLLoader()
