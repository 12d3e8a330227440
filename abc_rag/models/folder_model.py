"""What families share whose checkpoints are one folder, or one repository on the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from abc_rag.errors import CheckpointError, InputError
from abc_rag.models.config import read_json
from abc_rag.models.hub import fetch, is_folder
from abc_rag.models.loader import Checkpoint, ModelLoader, Weights, as_folder

__all__ = ["FolderLoader", "FolderModel", "model_type_of", "read_or_empty"]


def read_or_empty(file: Path) -> dict[str, Any]:
    """A JSON object, or an empty one: loading the file raises the error about it."""
    try:
        return read_json(file)
    except CheckpointError:
        return {}


def model_type_of(folder: Path) -> str:
    """The ``model_type`` of a folder's config.json; empty where it cannot be read."""
    return str(read_or_empty(folder / "config.json").get("model_type", ""))


class FolderModel(Checkpoint):
    """A folder, or a repository that is fetched into one.

    Args:
        name: ``ORGANISATION/NAME``, for a repository.
        folder: The folder; None for a repository.
    """

    def __init__(self, name: str, folder: Path | None) -> None:
        self.name = name if folder is None else folder.resolve().name
        self._local = self._folder = folder

    def local_revision(self, weights: Weights, resolution: int | str | None = None) -> str | None:
        """See `Checkpoint.local_revision`."""
        return None if self._local is None else self.revision(weights)

    def fetch(self, device: str) -> None:
        """See `Checkpoint.fetch`."""
        if self._local is None:
            self._folder = fetch(self.name)

    @property
    def folder(self) -> Path:
        """Where the files are; they are fetched if need be."""
        if self._folder is None:
            self._folder = fetch(self.name)
        return self._folder

    def revision(self, weights: Weights = "full") -> str:
        """What identifies the files, and rounded weights."""
        from abc_rag.models.checkpoint import folder_revision

        # A snapshot's folder is named by its commit.
        files = self.folder.name[:12] if self._local is None else folder_revision(*self.counted_folders())
        return files if weights == "full" else f"{files}+{weights}"

    def counted_folders(self) -> list[Path]:
        """The folders whose files make the revision."""
        return [self.folder]


class FolderLoader(ModelLoader):
    """A family of `FolderModel` checkpoints."""

    model: ClassVar[type[FolderModel]]
    """The family's own kind."""

    def checkpoint(self, model: Any) -> FolderModel:  # noqa: ANN401
        """See `ModelLoader.checkpoint`."""
        name = str(model)
        folder = None if name in self.models or not name else as_folder(name)
        if folder is None and (is_folder(name) or name.count("/") != 1 or not all(name.split("/"))):
            raise InputError(
                f"model '{self.name}:{name[:200]}' is neither a folder nor a hub id; a hub id has two parts, "
                f"as in '{self.name}:ORGANISATION/NAME'"
            )
        return self.model(name, folder)
