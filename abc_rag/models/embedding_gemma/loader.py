"""Checkpoints of EmbeddingGemma 2: one on the hub, or a folder.

Layout of ``google/embeddinggemma-2`` on the hub: config.json, model.safetensors (bfloat16, 744,371,512 parameters,
300 million of them in the audio tower), tokenizer.json, config_sentence_transformers.json (the prompts).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from abc_rag.errors import InputError
from abc_rag.models.folder_model import FolderLoader, FolderModel, model_type_of
from abc_rag.models.loader import LoadOptions

if TYPE_CHECKING:
    from abc_rag.models.family import Family

__all__ = ["LOADER", "EmbeddingGemmaLoader"]

_DEFAULT_BUDGET = 280


class _GemmaModel(FolderModel):
    def build(self, options: LoadOptions) -> Family:
        options.refuse(
            "embeddinggemma",
            resolution="it is set by max_tokens",
            min_tokens="every picture is scaled to max_tokens",
        )
        if options.attention == "flash_attention_2":
            raise InputError("attention='flash_attention_2' has no heads as wide as EmbeddingGemma 2's; leave it out")
        import torch

        if options.dtype == torch.float16:
            raise InputError("EmbeddingGemma 2 exceeds float16's range (its model card); take bfloat16 or float32")
        from abc_rag.models.embedding_gemma.family import GemmaFamily, check_budget
        from abc_rag.models.embedding_gemma.network import load_network
        from abc_rag.models.embedding_gemma.prompts import GemmaPrompts, read_prompts
        from abc_rag.models.placement import Placement
        from abc_rag.models.tokenizer import PlainTokenizer, check_vocabulary, load_tokenizer
        from abc_rag.types import Fingerprint

        budget = check_budget(_DEFAULT_BUDGET if options.max_tokens is None else options.max_tokens)
        folder = self.folder
        named = read_prompts(folder)
        place = Placement.of(options)
        network = load_network(folder, place.before(options.weights))
        place.bring(network, network.language_layers, options.weights)
        network.compiled = options.compiled
        config = network.config
        tokenizer = load_tokenizer(folder)
        check_vocabulary(tokenizer, config.text_config.vocab_size, folder)
        return GemmaFamily(
            network,
            GemmaPrompts(
                PlainTokenizer(tokenizer),
                ends=(config.text_config.bos_token_id, config.text_config.eos_token_id),
                image=(config.boi_token_id, config.image_token_id, config.eoi_token_id),
            ),
            named,
            fingerprint=Fingerprint(self.name, self.revision(options.weights), 1, budget),
            image_limits=options.image_limits,
            dims=options.length_of(network.dim, self.name),
            query_instruction=options.query_instruction,
            document_instruction=options.document_instruction,
        )


class EmbeddingGemmaLoader(FolderLoader):
    """EmbeddingGemma 2's part of `abc_rag.load_embedder`."""

    name = "embeddinggemma"
    model = _GemmaModel
    models = ("google/embeddinggemma-2",)

    def refusal(self, folder: Path) -> str | None:
        """See `ModelLoader.refusal`."""
        known = model_type_of(folder) == "embedding_gemma2"
        return None if known else "holds no config.json of an EmbeddingGemma 2"


LOADER = EmbeddingGemmaLoader()
