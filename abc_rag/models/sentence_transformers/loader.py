"""Models of sentence-transformers 6, for texts or for texts and pictures: ``st:ORGANISATION/NAME`` or ``st:FOLDER``."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abc_rag.errors import CheckpointError, MissingExtraError
from abc_rag.models.config import Config, check_json, part_file, read_json, shown
from abc_rag.models.folder_model import FolderLoader, FolderModel
from abc_rag.models.loader import LoadOptions

if TYPE_CHECKING:
    from abc_rag.models.family import Family

__all__ = ["LOADER", "SentenceTransformersLoader"]

_MODULES = "modules.json"
_SETTINGS = "config_sentence_transformers.json"
_OWN = "sentence_transformers."
_EXPORT = "abc_rag."
_LAYERS = re.compile(r"(?:^|_)(?:num|n)_(?:\w+_)?layers?$|^(?:depth|n_layer|num_layers|num_blocks)$")
_SIZES = re.compile(r"^(?:vocab_size|hidden_size|intermediate_size|d_model)$")
_PICKLES = ("pytorch_model*.bin", "adapter_model*.bin")


class _STModel(FolderModel):
    def counted_folders(self) -> list[Path]:
        """See `FolderModel.counted_folders`."""
        return [self.folder, *_subfolders(self.folder)]

    def build(self, options: LoadOptions) -> Family:
        options.refuse(
            "sentence-transformers",
            resolution="its own processor resizes pictures; set max_tokens, or change the size in its files",
            weights="its weights are used as they are; take dtype='bfloat16' to save memory",
            compiled="leave EngineSettings.compile off",
        )
        folder = self.folder
        _check_files(folder)
        from abc_rag.models.sentence_transformers.load import load_family
        from abc_rag.types import Fingerprint

        return load_family(folder, options, Fingerprint(f"st:{self.name}", self.revision(), 1, 1))


class SentenceTransformersLoader(FolderLoader):
    """The part of sentence-transformers in `abc_rag.load_embedder`."""

    name = "st"
    model = _STModel

    def refusal(self, folder: Path) -> str | None:
        """See `ModelLoader.refusal`; a model of this family is always asked for by its prefix."""
        if (folder / _MODULES).is_file():
            return f"holds a {_MODULES}; to load it through sentence-transformers, write 'st:{folder}'"
        return f"holds no {_MODULES}; models of sentence-transformers are asked for as 'st:FOLDER'"

    def checkpoint(self, model: Any) -> FolderModel:  # noqa: ANN401
        """See `ModelLoader.checkpoint`."""
        found = super().checkpoint(model)
        _require_library()  # now, not after a download
        return found


def _require_library() -> None:
    try:
        found = importlib.util.find_spec("sentence_transformers") is not None
    except ValueError:  # what stands in its place is no package
        found = False
    if not found:
        raise MissingExtraError(
            "sentence-transformers 6 is not installed; install it with: pip install 'abc-rag[sentence-transformers]'"
        )


def _check_files(folder: Path) -> None:
    """Refuse what the library would load otherwise than it was meant, with pickles, or with code of its own.

    Raises:
        CheckpointError: It is such a model.
    """
    settings = Config.read(folder / _SETTINGS) if (folder / _SETTINGS).is_file() else Config({}, folder)
    kind = settings.values.get("model_type")
    if kind not in (None, "SentenceTransformer"):
        raise CheckpointError(
            f"{folder} is a {str(kind)[:60]}, which gives no vectors of one length; take a SentenceTransformer"
        )
    for place in [folder, *_subfolders(folder)]:
        if (place / "adapter_config.json").is_file():
            raise CheckpointError(
                f"{place} holds an adapter, whose base would have to be guessed; merge it into the base with "
                "merge_and_unload(), save the whole model, and load that"
            )
        pickles = sorted(file.name for pattern in _PICKLES for file in place.glob(pattern))
        # By the names that the library looks for: anything else beside a pickle would not keep it from being read.
        if pickles and not any(place.glob("model*.safetensors")):
            raise CheckpointError(f"{place / pickles[0]} is a pickle and is never read; convert it to safetensors")
        _check_sizes(place)
    for type_name in _module_types(folder):
        if type_name.startswith(_EXPORT):
            raise CheckpointError(f"{folder} is an ABC checkpoint; load it without the 'st:' before its name")
        if not type_name.startswith(_OWN):
            raise CheckpointError(
                f"{folder} needs code that is not part of sentence-transformers ({type_name[:80]}), and abc-rag never "
                "runs a model's own code; take another model"
            )


def _check_sizes(place: Path) -> None:
    """Refuse JSON beyond all limits, files elsewhere, and sizes that no tensor has, before the library builds anything.

    Raises:
        CheckpointError: One of them is there; the message names it.
    """
    from abc_rag.models.checkpoint import stored_tensors

    for file in place.iterdir():
        if part_file(place, file.name).is_file() and file.suffix == ".json":
            check_json(file)
    config = place / "config.json"
    if not config.is_file() or not any(place.glob("model*.safetensors*")):
        return
    stored = stored_tensors(place, "model")
    widest = max((size for shape in stored.shapes.values() for size in shape), default=0)
    waiting: list[tuple[str, Any]] = [("", read_json(config))]
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.items()
        elif isinstance(value, int) and _LAYERS.search(name):
            stored.check_layers(config, name, value)
        elif isinstance(value, int) and _SIZES.search(name) and value > widest:
            raise CheckpointError(f"{config}: {name} is {shown(value)}, but no tensor is wider than {widest:,}")


def _module_types(folder: Path) -> list[str]:
    file = folder / _MODULES
    if not file.is_file():
        return []  # a model of transformers as it is
    try:
        modules = check_json(file)
        for module in modules:
            where = str(module.get("path", ""))
            if (
                Path(where).is_absolute()
                or ".." in Path(where).parts
                or not (folder / where).resolve().is_relative_to(folder.resolve())
            ):
                raise CheckpointError(f"{file}: names a module in {shown(where)}, outside the model")
        return [str(module["type"]) for module in modules]
    except (AttributeError, TypeError, KeyError) as error:
        raise CheckpointError(f"{file} lists no modules ({type(error).__name__}); fetch it again") from error


def _subfolders(folder: Path) -> list[Path]:
    found = (place for place in folder.rglob("*") if place.is_dir())
    return sorted(place for place in found if not any(p.startswith(".") for p in place.relative_to(folder).parts))


LOADER = SentenceTransformersLoader()
