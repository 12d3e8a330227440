"""Loading a model of sentence-transformers: from its folder, whole, and without any code of its own."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from abc_rag.errors import ABCRagError, CheckpointError, MissingExtraError
from abc_rag.models.loader import LoadOptions
from abc_rag.models.sentence_transformers.family import STFamily
from abc_rag.models.sentence_transformers.library import (
    Router,
    SentenceTransformer,
    StaticEmbedding,
    Transformer,
    first_line,
    unusable,
)
from abc_rag.types import Fingerprint

__all__ = ["load_family"]

_SHOWN = 5


def load_family(folder: Path, options: LoadOptions, fingerprint: Fingerprint) -> STFamily:
    """Load a model from its folder, from nowhere else, and without any code of its own.

    Raises:
        CheckpointError: It cannot be loaded.
        MissingExtraError: It needs a package that is not installed.
    """
    if options.attention == "flash_attention_2" and importlib.util.find_spec("flash_attn") is None:
        # transformers would fetch a kernel from the hub instead.
        raise MissingExtraError(
            "attention='flash_attention_2' needs flash-attention: pip install flash-attn, or leave attention='auto'"
        )
    try:
        model = _loaded(folder, options)
    except ABCRagError:
        raise
    except ImportError as error:
        raise unusable(error) from error
    except Exception as error:
        if "torchvision" in str(error):
            raise unusable(error) from error
        raise CheckpointError(
            f"{folder}: sentence-transformers cannot load it ({first_line(error)}); check that it is a whole model in "
            "safetensors that needs no code of its own"
        ) from error
    if not (folder / "modules.json").is_file() and len(model) > 1:
        raise CheckpointError(
            f"{folder} has no modules.json, so how its tokens become one vector would have to be guessed; save it from "
            "a SentenceTransformer with the pooling that it was trained with"
        )
    if not isinstance(model[0], (Transformer, Router, StaticEmbedding)):
        raise CheckpointError(f"{folder} begins with a {type(model[0]).__name__} module, which abc-rag does not know")
    if isinstance(model[0], Transformer):
        model[0].unpad_inputs = False  # with flash attention the library would put a batch into one row
    model.eval()
    model.requires_grad_(False)
    family = STFamily(model, fingerprint=fingerprint, options=options)
    _check_all_loaded(family, folder)
    return family


def _loaded(folder: Path, options: LoadOptions) -> SentenceTransformer:
    def load(attention: str) -> SentenceTransformer:
        return SentenceTransformer(
            str(folder),
            device=str(options.device),
            local_files_only=True,
            trust_remote_code=False,
            # Always named: left to the model's files, it could be a kernel that is fetched from somewhere.
            model_kwargs={"dtype": options.dtype, "attn_implementation": attention, "use_safetensors": True},
        )

    try:
        model = load(options.attention)
    except ValueError as error:
        if options.attention != "sdpa" or "scaled_dot_product_attention" not in str(error):
            raise
        model = load("eager")  # a network that has no other
    # Of others the library follows dtype, and keeps in float32 what has to stay so.
    return model.to(options.dtype) if isinstance(model[0], StaticEmbedding) else model


def _check_all_loaded(family: STFamily, folder: Path) -> None:
    """Refuse a model with parameters that no file held: transformers fills them with random numbers.

    Those that no vector depends on may be missing, such as a pooler that is not used.

    Raises:
        CheckpointError: Vectors depend on such a parameter; the message names it.
    """
    random: dict[str, nn.Parameter] = {}
    for part in family.model.modules():
        if isinstance(part, PreTrainedModel):
            # transformers marks what came out of a file.
            marks = {name: getattr(p, "_is_hf_initialized", False) for name, p in part.named_parameters()}
            if any(marks.values()):
                random |= {name: part.get_parameter(name) for name, mark in marks.items() if not mark}
    if not random:
        return
    probes = [family.prepare(item, pictures) for item, pictures in family.probes()]
    before = [family.forward([one]) for one in probes]
    used = []
    for name, parameter in random.items():
        kept = parameter.detach().clone()
        with torch.no_grad():
            parameter.copy_(kept + 1 + torch.rand_like(kept))
        after = [family.forward([one]) for one in probes]
        with torch.no_grad():
            parameter.copy_(kept)
        if not all(torch.equal(one, other) for one, other in zip(before, after, strict=True)):
            used.append(name)
    if used:
        more = " ..." if len(used) > _SHOWN else ""
        raise CheckpointError(
            f"{folder}: {len(used)} tensor(s) missing, which would be random: {', '.join(used[:_SHOWN])}{more}; fetch "
            "the whole model again"
        )
