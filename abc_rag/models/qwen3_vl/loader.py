"""Checkpoints of Qwen3-VL-Embedding: two on the hub, or a folder as ``qwen3-vl:FOLDER``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from abc_rag.errors import CheckpointError
from abc_rag.models.folder_model import FolderLoader, FolderModel, model_type_of
from abc_rag.models.loader import LoadOptions, token_limits

if TYPE_CHECKING:
    from abc_rag.models.family import Family

__all__ = ["LOADER", "Qwen3VLLoader"]

_LIMITS = (4, 1800)
"""Fewest and most image tokens, of 32x32 pixels, in the authors' code (``MIN_PIXELS`` and ``MAX_PIXELS``)."""


class _Qwen3VLModel(FolderModel):
    def build(self, options: LoadOptions) -> Family:
        options.refuse("qwen3-vl", resolution="it is set by min_tokens and max_tokens")
        from abc_rag.models.placement import Placement
        from abc_rag.models.qwen2_vl.prompts import load_chat_tokenizer
        from abc_rag.models.qwen3_vl.family import Qwen3VLFamily
        from abc_rag.models.qwen3_vl.network import load_network
        from abc_rag.models.qwen3_vl.prompts import Qwen3VLPrompts
        from abc_rag.types import Fingerprint

        folder = self.folder
        place = Placement.of(options)
        network = load_network(folder, place.before(options.weights))
        place.bring(network, network.language_layers, options.weights)
        network.compiled = options.compiled
        tokenizer, _ = load_chat_tokenizer(folder)
        try:
            prompts = Qwen3VLPrompts(tokenizer, image_token_id=network.image_token_id)
        except Exception as error:  # a template raises whatever it likes
            raise CheckpointError(f"{folder}: no usable chat template ({str(error)[:200]})") from error
        limits = token_limits(options.min_tokens, options.max_tokens, defaults=_LIMITS)
        return Qwen3VLFamily(
            network,
            prompts,
            fingerprint=Fingerprint(self.name, self.revision(options.weights), *limits),
            image_limits=options.image_limits,
            dims=options.length_of(network.hidden_size, self.name),
            query_instruction=options.query_instruction,
            document_instruction=options.document_instruction,
        )


class Qwen3VLLoader(FolderLoader):
    """Qwen3-VL-Embedding's part of `abc_rag.load_embedder`."""

    name = "qwen3-vl"
    model = _Qwen3VLModel
    models = ("Qwen/Qwen3-VL-Embedding-2B", "Qwen/Qwen3-VL-Embedding-8B")

    def refusal(self, folder: Path) -> str | None:
        """See `ModelLoader.refusal`; a folder of this family is always asked for by its prefix."""
        if model_type_of(folder) == "qwen3_vl":
            return f"is a Qwen3-VL, which could be many models; if it is Qwen3-VL-Embedding, write 'qwen3-vl:{folder}'"
        return "holds no config.json of a Qwen3-VL"


LOADER = Qwen3VLLoader()
