"""Folders and hub ids."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from abc_rag.errors import CheckpointError, InputError

__all__ = ["cached", "fetch", "is_folder", "only_here", "part_folder"]

_ONLY_HERE: ContextVar[bool] = ContextVar("only_here", default=False)


@contextmanager
def only_here() -> Iterator[None]:
    """Within it, `fetch` takes what is in the cache, and asks no hub whether there is something newer."""
    token = _ONLY_HERE.set(True)
    try:
        yield
    finally:
        _ONLY_HERE.reset(token)


def cached(repository: str) -> Path | None:
    """The folder of a hub repository in the cache on this machine, which may be incomplete; None where there is none.

    Uses no network.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, local_files_only=True))
    except (LocalEntryNotFoundError, OSError):
        return None


def is_folder(part: str | os.PathLike[str]) -> bool:
    """Whether a part of an `ABCCheckpoint` is a folder, and no hub id."""
    return not isinstance(part, str) or part.startswith(("/", "./", "../", "~"))


def part_folder(part: str | os.PathLike[str], revision: str | None = None) -> Path:
    """The local folder of a part of an `ABCCheckpoint`; a hub id is fetched if need be.

    Raises:
        InputError: It is no hub id, or a folder with a revision.
        CheckpointError: There is no such folder, or it cannot be fetched.
    """
    if not is_folder(part):
        return fetch(str(part), revision)
    if revision is not None:
        raise InputError(f"{part} is a folder and has no revision {revision!r}")
    folder = Path(part).expanduser()
    if not folder.is_dir():
        raise CheckpointError(f"{part}: no such folder")
    return folder


def fetch(repository: str, revision: str | None = None, *, more: Sequence[str] = ()) -> Path:
    """The local folder of a hub repository. Fetches what is missing, but neither code nor pickles.

    Args:
        repository: ``"ORGANISATION/NAME"``.
        revision: Commit, tag or branch.
        more: Names of further files.

    Raises:
        InputError: It is no hub id.
        CheckpointError: It cannot be fetched.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                repository,
                revision=revision,
                allow_patterns=["*.safetensors", "*.json", "*.txt", "*.jinja", *more],
                local_files_only=_ONLY_HERE.get(),
            )
        )
    except HFValidationError as error:
        raise InputError(f"{repository!r} is not a hub id; write a folder as a pathlib.Path") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"{repository} could not be fetched from the hub ({type(error).__name__}); check the network and the name, "
            "or use model='abc-mini', which needs neither"
        ) from error
