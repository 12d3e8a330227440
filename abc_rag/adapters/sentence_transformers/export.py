"""An ABC checkpoint as a folder that sentence-transformers 6 loads."""

from __future__ import annotations

import gc
import json
import os
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abc_rag.errors import CheckpointError, InputError
from abc_rag.files import new_folder, remove_drafts, write_json
from abc_rag.types import Fingerprint, Image, Input, InstructedImage, Text

if TYPE_CHECKING:
    import numpy as np
    from sentence_transformers import SentenceTransformer

    from abc_rag.embedding.load import ModelName
    from abc_rag.images.limits import ImageLimits
    from abc_rag.models.abc.loader import ABCParts
    from abc_rag.models.loader import Attention, DType

__all__ = ["SentenceTransformersExport", "export_sentence_transformers", "load_sentence_transformer"]

_MODULE = "abc_rag.adapters.sentence_transformers.module.ABCModule"
_MODULES_FILE = "modules.json"
_SETTINGS_FILE = "config_sentence_transformers.json"
_TOLERANCE = 1e-5
_ABANDONED_S = 86_400.0  # an unfinished export this old was left by a process that was killed


@dataclass(frozen=True)
class SentenceTransformersExport:
    """The result of an export.

    Attributes:
        folder: The folder that was written.
        fingerprint: The fingerprint that `abc_rag.load_embedder` gives the folder; that of a local checkpoint is kept.
        difference: Maximum absolute difference from the engine's vectors; None if they were not compared.
    """

    folder: Path
    fingerprint: Fingerprint
    difference: float | None


def export_sentence_transformers(
    model: ModelName,
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    check: bool = True,
    device: str = "auto",
) -> SentenceTransformersExport:
    """Write a checkpoint for sentence-transformers 6; see `load_sentence_transformer`.

    The weights are copied, not converted, so the folder is an ABC checkpoint as well, and an export of a local
    checkpoint keeps its fingerprint. It is written beside ``out`` and then renamed, so ``out`` is never incomplete.

    Args:
        model: As for `abc_rag.load_embedder`: ``"abc-mini"``, a checkpoint folder, ``"abc"`` or an `ABCCheckpoint`;
            the last two may be fetched from the hub.
        out: A folder that does not exist yet, or is empty.
        overwrite: Replace an earlier export in ``out``. Nothing else is ever replaced.
        check: Load the export, and compare its vectors of a text, a picture and a picture with an instruction with
            the engine's. Needs as much memory as the model.
        device: For the check: ``"auto"``, or any torch device.

    Returns:
        The folder, its fingerprint, and the result of the check.

    Raises:
        InputError: There is no such model, or ``out`` holds something else.
        CheckpointError: The checkpoint is incomplete, ``out`` cannot be written, or the vectors differ.
        MissingExtraError: sentence-transformers is not installed.
    """
    _require_library()
    from abc_rag.models.abc.network import ABCSettings
    from abc_rag.models.abc.save import PARTS, copy_parts
    from abc_rag.models.checkpoint import folder_revision

    target = Path(out).expanduser().absolute()
    _require_free(target, overwrite=overwrite)
    parts = _abc_only(model, device)
    folders = dict(zip(PARTS, (parts.base, parts.pretrain, parts.instruct), strict=True))
    settings = ABCSettings.read(parts.settings_in) if parts.settings_in else ABCSettings()
    settings = replace(settings, name=settings.name or parts.name)
    try:
        remove_drafts(target.parent, older_than_s=_ABANDONED_S)
        with new_folder(target, replace=True) as part:
            write_json(part / _MODULES_FILE, [{"idx": 0, "name": "0", "path": "", "type": _MODULE}])
            copy_parts(folders, part)
            settings.write(part)
            write_json(part / _SETTINGS_FILE, _library_settings())
            revision = folder_revision(*(part / name for name in PARTS))
            fingerprint = Fingerprint(settings.name, revision, settings.min_tokens, settings.max_tokens)
            difference = _difference(part, model, device) if check else None
            _write_card(part, target.name, fingerprint, difference)
    except OSError as error:
        raise CheckpointError(f"{target}: cannot be written ({error}); make room, or choose another folder") from error
    return SentenceTransformersExport(target, fingerprint, difference)


def _abc_only(model: ModelName, device: str) -> ABCParts:
    from abc_rag.models.abc.loader import LOADER, abc_parts
    from abc_rag.models.loader import loaders

    prefix = str(model).partition(":")[0] if isinstance(model, str) else ""
    others = [loader for loader in loaders().values() if loader.name != LOADER.name]
    if any(model in loader.models or prefix == loader.name for loader in others):
        raise InputError(f"{model} is no ABC model, and only those are exported; load it with load_embedder")
    return abc_parts(model, device)


def load_sentence_transformer(
    folder: str | os.PathLike[str],
    *,
    device: str = "auto",
    dtype: DType = "float32",
    attention: Attention = "auto",
    min_tokens: int | None = None,
    max_tokens: int | None = None,
    image_limits: ImageLimits | None = None,
) -> SentenceTransformer:
    """Load an export without ``trust_remote_code``, which sentence-transformers wants for other packages' classes.

    Args:
        folder: A folder from `export_sentence_transformers`, or from ``save_pretrained`` of a model loaded by this.
        device: ``"auto"`` (a GPU if there is one), or any torch device.
        dtype: ``"float32"``, ``"bfloat16"`` or ``"float16"``; ``"auto"`` is ``"float32"``.
        attention: As for `abc_rag.load_embedder`.
        min_tokens: Minimum image tokens of a picture; by default, the checkpoint's.
        max_tokens: Maximum image tokens of a picture; by default, the checkpoint's.
        image_limits: Which pictures are accepted, and whether URLs are fetched.

    Returns:
        A ``SentenceTransformer``. Its ``encode`` takes texts, pictures and ``{"image": ..., "text": ...}`` in any mix.

    Raises:
        InputError: The folder is no such export, or an argument is unusable.
        CheckpointError: Files are missing or do not fit.
        MissingExtraError: sentence-transformers is not installed.
    """
    _require_library()
    from sentence_transformers import SentenceTransformer

    from abc_rag.adapters.sentence_transformers.module import ABCModule
    from abc_rag.embedding.load import find_device
    from abc_rag.models.config import read_json

    where = Path(folder).expanduser()
    if not _is_export(where):
        raise InputError(f"{where} is no folder that abc-rag export sentence-transformers has written")
    module = ABCModule.load(
        str(where),
        local_files_only=True,
        model_kwargs={
            "dtype": "float32" if dtype == "auto" else dtype,
            "attn_implementation": attention,
        },
        processor_kwargs={"min_tokens": min_tokens, "max_tokens": max_tokens, "image_limits": image_limits},
    )
    kept = read_json(where / _SETTINGS_FILE)
    return SentenceTransformer(
        modules=[module],
        device=None if device == "auto" else str(find_device(device)),
        prompts=kept.get("prompts"),
        default_prompt_name=kept.get("default_prompt_name"),
        similarity_fn_name=kept.get("similarity_fn_name"),
        truncate_dim=kept.get("truncate_dim"),
        local_files_only=True,
    )


def _require_library() -> None:
    # Before anything is copied: importing the module raises an error that names the missing extra.
    import abc_rag.adapters.sentence_transformers.module  # noqa: F401


def _require_free(folder: Path, *, overwrite: bool) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InputError(f"{folder} is a file; name another folder")
    if not any(folder.iterdir()):
        return
    if not _is_export(folder):
        raise InputError(f"{folder} is not empty, and no earlier export; choose another folder")
    if not overwrite:
        raise InputError(f"{folder} holds an earlier export; choose another folder, or overwrite it with --overwrite")


def _is_export(folder: Path) -> bool:
    try:
        modules = json.loads((folder / _MODULES_FILE).read_text(encoding="utf-8"))
        return [module["type"] for module in modules] == [_MODULE]
    except (OSError, ValueError, TypeError, KeyError):
        return False


def _library_settings() -> dict[str, Any]:
    return {
        "model_type": "SentenceTransformer",
        "__version__": {
            "sentence_transformers": version("sentence-transformers"),
            "transformers": version("transformers"),
            "pytorch": version("torch"),
        },
        # Empty, not missing: no prompt is put before a query or a document.
        "prompts": {"query": "", "document": ""},
        "default_prompt_name": None,
        "similarity_fn_name": "cosine",
    }


def _difference(folder: Path, model: ModelName, device: str) -> float:
    """Maximum absolute difference between the export's vectors and the engine's.

    Raises:
        CheckpointError: The difference is larger than rounding explains.
    """
    import numpy as np
    import PIL.Image
    import torch

    from abc_rag.embedding.load import load_embedder

    picture = PIL.Image.linear_gradient("L").resize((320, 200)).convert("RGB")
    inputs: list[Input] = [Text("two words"), Image(picture), InstructedImage(picture, "What is brighter?")]
    embedder = load_embedder(model, device=device, dtype="float32")
    expected = embedder.embed(inputs)
    del embedder  # only one model at a time, as each may fill the memory
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    exported = load_sentence_transformer(folder, device=device)
    found: np.ndarray[Any, Any] = exported.encode(inputs)
    difference = float(np.abs(found - expected).max())
    if not difference <= _TOLERANCE:  # NaN is refused too
        raise CheckpointError(
            f"the export's vectors differ by {difference:.2g} from the engine's, more than {_TOLERANCE:g}"
        )
    return difference


def _write_card(folder: Path, name: str, fingerprint: Fingerprint, difference: float | None) -> None:
    from transformers import Qwen2VLConfig

    import abc_rag
    from abc_rag.adapters.sentence_transformers.card import model_card
    from abc_rag.models.config import read_json

    config: Any = Qwen2VLConfig.from_dict(read_json(folder / "base" / "config.json"))
    card = model_card(
        fingerprint,
        folder=name,
        dim=config.text_config.hidden_size,
        longest=config.text_config.max_position_embeddings,
        version=abc_rag.__version__,
        difference=difference,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
