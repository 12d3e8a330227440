"""Waiting for files to change, by watchfiles."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from abc_rag.errors import InputError, MissingExtraError

__all__ = ["changes"]

# How long the first look waits for the watcher to stand, in milliseconds.
_STEP_MS = 500


def changes(
    paths: Sequence[str | os.PathLike[str]],
    *,
    leave_out: Sequence[str | os.PathLike[str]] = (),
    stop: threading.Event | None = None,
) -> Iterator[set[str]]:
    """What changes in files and folders, a moment after each change; many changes at once come together.

    Args:
        paths: Files and folders, watched with their sub-folders.
        leave_out: Folders in which changes do not count, such as a store's.
        stop: Ends the waiting when it is set.

    Yields:
        First an empty set, once nothing can be missed any more: the time for a first look. Then paths that were added,
        changed or removed.

    Raises:
        InputError: A path does not exist, or cannot be watched.
        MissingExtraError: watchfiles is not installed.
    """
    try:
        import watchfiles
    except ImportError as error:
        raise MissingExtraError(f"watching needs watchfiles: pip install 'abc-rag[watch]' ({error})") from error
    if not paths:
        raise InputError("there is nothing to watch: name a file or a folder")
    for path in paths:
        if not os.path.exists(os.path.expanduser(path)):
            raise InputError(f"{os.fspath(path)}: no such file or folder")
    given = {os.path.realpath(os.path.expanduser(path)) for path in paths}
    outside = [os.path.realpath(os.path.expanduser(path)) for path in leave_out]
    # A file that is saved is often another one under its name: its folder is watched.
    folders = {path if os.path.isdir(path) else os.path.dirname(path) for path in given}

    def counts(_: object, path: str) -> bool:
        inside = any(path == one or Path(one) in Path(path).parents for one in given)
        return inside and not any(path == one or Path(one) in Path(path).parents for one in outside)

    is_first = True
    try:
        for found in watchfiles.watch(
            *folders, watch_filter=counts, stop_event=stop, yield_on_timeout=True, rust_timeout=_STEP_MS
        ):
            if found or is_first:
                # What has changed already is part of the first look.
                yield set() if is_first else {path for _, path in found}
            is_first = False
    except OSError as error:  # a system has so many watches
        raise InputError(f"{', '.join(sorted(folders))}: cannot be watched ({error}); watch fewer folders") from error
