"""What a model's own processor is told beside its inputs: prompts, limits of pictures, and to cut nothing."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any

from torch import nn

from abc_rag.errors import InputError
from abc_rag.models.loader import LoadOptions, token_limits
from abc_rag.models.sentence_transformers.library import SentenceTransformer, StaticEmbedding

__all__ = ["UNLIMITED", "longest_text", "processing_of", "prompts_of"]

UNLIMITED = (1, 1)
"""The limits of a fingerprint where the processor keeps its own."""
_DOCUMENTS = ("document", "passage", "corpus")  # where the library looks for a document's prompt
_BUCKETS = ("text", "common", "chat_template")  # where the library looks for a truncation


def prompts_of(model: SentenceTransformer, options: LoadOptions) -> dict[str, str | None]:
    """The prompt of each role, those of ``encode_query`` and ``encode_document`` and the model's other ones by name."""
    own: dict[str, str | None] = dict(model.prompts)
    default = own.get(model.default_prompt_name) if model.default_prompt_name else None
    document = next((own[name] for name in _DOCUMENTS if name in own), default)
    if options.query_instruction is not None:
        own["query"] = options.query_instruction
    if options.document_instruction is not None:
        document = options.document_instruction
    return {**own, "query": own.get("query", default), "document": document}


def processing_of(first: nn.Module, least: int | None, most: int | None) -> tuple[dict[str, Any], tuple[int, int]]:
    """Keywords for ``preprocess``, and the limits of a picture's tokens.

    Args:
        first: The model's first module.
        least: Fewest image tokens, or None for the processor's own.
        most: Most image tokens, or None.

    Raises:
        InputError: The model's processor has no such limits.
    """
    if isinstance(first, StaticEmbedding):
        _refuse_limits(least, most)
        return {}, UNLIMITED
    told = getattr(first, "processing_kwargs", None) or {}
    buckets = [name for name in _BUCKETS if name == "text" or "truncation" in told.get(name, {})]
    found: dict[str, dict[str, Any]] = {name: {"truncation": False} for name in buckets}
    config = getattr(first, "config", None)
    if str(getattr(config, "model_type", "")).startswith("siglip"):
        # Trained so: its text tower reads its last position, whatever stands there.
        text: Any = getattr(config, "text_config", None)
        found["text"] |= {"padding": "max_length", "max_length": text.max_position_embeddings}
    image, limits = _image_limits(getattr(first, "processor", None), least, most)
    if image:
        found["image"] = image
    return {"processing_kwargs": found}, limits


def _image_limits(processor: Any, least: int | None, most: int | None) -> tuple[dict[str, Any], tuple[int, int]]:  # noqa: ANN401
    if least is None and most is None:
        return {}, UNLIMITED
    images = getattr(processor, "image_processor", processor)
    size, patch, merge = (getattr(images, name, None) for name in ("size", "patch_size", "merge_size"))
    areas = [_entry(size, name) for name in ("shortest_edge", "longest_edge")]
    if isinstance(patch, int) and isinstance(merge, int) and all(isinstance(area, int) for area in areas):
        # Qwen's processors and their like: both are areas in pixels.
        area = (patch * merge) ** 2
        own = (max(1, int(areas[0]) // area), max(1, int(areas[1]) // area))
        fewest, largest = token_limits(least, most, defaults=own)
        return {"size": {"shortest_edge": fewest * area, "longest_edge": largest * area}}, (fewest, largest)
    for name in ("max_soft_tokens", "max_num_patches"):
        if hasattr(images, name):
            if least is not None:
                raise InputError(
                    f"min_tokens={least} is not available: this model's processor has {name} and no minimum; leave "
                    "min_tokens out"
                )
            assert most is not None
            return {name: most}, (1, most)
    _refuse_limits(least, most)
    return {}, UNLIMITED


def _entry(size: Any, name: str) -> Any:  # noqa: ANN401
    return size.get(name) if isinstance(size, dict) else getattr(size, name, None)


def _refuse_limits(least: int | None, most: int | None) -> None:
    for name, value in (("min_tokens", least), ("max_tokens", most)):
        if value is not None:
            raise InputError(
                f"{name}={value} is not available for family 'sentence-transformers': this model's processor has no "
                "such limit; change the size in its files, or take another model"
            )


def longest_text(first: nn.Module) -> int | None:
    """Most tokens that a model reads, or None."""
    words: Any = getattr(first, "config", None)
    with suppress(AttributeError, ValueError):  # none, or one with several texts
        words = words.get_text_config()
    limits = [getattr(first, "max_seq_length", None), getattr(words, "max_position_embeddings", None)]
    told = getattr(first, "processing_kwargs", None) or {}
    limits += [told.get(name, {}).get("max_length") for name in _BUCKETS]
    known = [limit for limit in limits if isinstance(limit, (int, float)) and 0 < limit < math.inf]
    return int(min(known)) if known else None
