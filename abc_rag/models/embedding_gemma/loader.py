"""Checkpoints of EmbeddingGemma 2: one on the hub, or a folder.

Layout of ``google/embeddinggemma-2`` on the hub: config.json, model.safetensors (bfloat16, 744,371,512 parameters,
300 million of them in the audio tower), tokenizer.json, config_sentence_transformers.json (the prompts).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from abc_rag.errors import CheckpointError, InputError
from abc_rag.models.config import read_json
from abc_rag.models.hub import fetch, is_folder
from abc_rag.models.loader import Checkpoint, LoadOptions, ModelLoader, Weights, as_folder

if TYPE_CHECKING:
    from abc_rag.models.family import Family

__all__ = ["LOADER", "EmbeddingGemmaLoader"]

_DEFAULT_BUDGET = 280


class EmbeddingGemmaLoader(ModelLoader):
    """EmbeddingGemma 2's part of `abc_rag.load_embedder`."""

    name = "embeddinggemma"
    models = ("google/embeddinggemma-2",)

    def refusal(self, folder: Path) -> str | None:
        """See `ModelLoader.refusal`."""
        try:
            found = read_json(folder / "config.json").get("model_type") if (folder / "config.json").is_file() else None
        except CheckpointError:  # said when it is loaded
            found = None
        return None if found == "embedding_gemma2" else "holds no config.json of an EmbeddingGemma 2"

    def checkpoint(self, model: Any) -> Checkpoint:  # noqa: ANN401
        """See `ModelLoader.checkpoint`."""
        name = str(model)
        folder = None if name in self.models or not name else as_folder(name)
        if folder is not None:
            return _GemmaModel(folder.resolve().name, folder)
        if is_folder(name) or name.count("/") != 1 or not all(name.split("/")):
            raise InputError(
                f"model 'embeddinggemma:{name[:200]}' is neither a folder nor a hub id (ORGANISATION/NAME); check it"
            )
        return _GemmaModel(name, None)


class _GemmaModel(Checkpoint):
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
        if self._folder is None:
            self.fetch(str(options.device))
        folder = self._folder
        assert folder is not None
        from abc_rag.models.embedding_gemma.family import GemmaFamily, check_budget
        from abc_rag.models.embedding_gemma.network import load_network
        from abc_rag.models.embedding_gemma.prompts import GemmaPrompts, read_prompts
        from abc_rag.models.tokenizer import PlainTokenizer, check_vocabulary, load_tokenizer
        from abc_rag.types import Fingerprint

        budget = check_budget(_DEFAULT_BUDGET if options.max_tokens is None else options.max_tokens)
        named = read_prompts(folder)
        first = "cpu" if options.weights != "full" else str(options.device)
        if options.weights != "full":
            from abc_rag.models.quantize import check_device

            check_device(options.weights, str(options.device))
        network = load_network(folder, attention=options.attention, dtype=options.dtype, device=first)
        if options.weights != "full":
            from abc_rag.models.quantize import quantize_linears

            quantize_linears(network.language_model.layers, options.weights, str(options.device))
            network.to(options.device)
        network.compiled = options.compiled
        if options.dims is not None and options.dims > network.dim:
            raise InputError(
                f"dims={options.dims} is more than the {network.dim} numbers of a vector of {self._name}; take fewer"
            )
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
            fingerprint=Fingerprint(self._name, _revision(folder, self._local is not None, options.weights), 1, budget),
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


LOADER = EmbeddingGemmaLoader()
