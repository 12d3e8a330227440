"""Opens training data by name or path."""

from __future__ import annotations

import os
from pathlib import Path

from abc_rag.training.data.folder import FolderCaptions, FolderPairs, find_data
from abc_rag.training.data.hub import HubCaptions, HubPairs, open_table
from abc_rag.training.data.mined import WithNegatives
from abc_rag.training.data.sources import CaptionSource, PairsSource

__all__ = ["open_captions", "open_pairs"]


def open_captions(
    data: str | os.PathLike[str],
    *,
    images: str | os.PathLike[str] | None = None,
    negatives: str | os.PathLike[str] | None = None,
    max_bad: int = 100,
    allow_download: bool = False,
) -> CaptionSource:
    """Open pictures with captions.

    Args:
        data: A folder, a JSONL file, or ``"abc-pretraining"``; see `abc_rag.training.data.sources`.
        images: Folder that picture names are relative to; the published data sets need it.
        negatives: A file of ``abc-rag train mine-negatives`` for ``data``; replaces negatives that ``data`` has.
        max_bad: Maximum number of unusable rows.
        allow_download: Fetch a published data set from the hub; without it, the data must be in the hub's cache.

    Raises:
        DatasetError: There are no data, no usable rows, or too many unusable ones.
        MissingExtraError: The `datasets` library is needed but not installed.
    """
    found, folder = find_data(data, captions=True), None if images is None else Path(images)
    source: FolderCaptions | HubCaptions
    if found.kind == "jsonl":
        source = FolderCaptions(found.path, images=folder, max_bad=max_bad)
    else:
        source = HubCaptions(open_table(found, allow_download=allow_download), images=folder, max_bad=max_bad)
    return source if negatives is None else WithNegatives(source, Path(negatives))


def open_pairs(
    data: str | os.PathLike[str],
    *,
    images: str | os.PathLike[str] | None = None,
    max_bad: int = 100,
    allow_download: bool = False,
) -> PairsSource:
    """Open pictures with (instruction, phrase) pairs.

    Args:
        data: A folder, a JSONL file, or ``"abc-vg-instruct"``; see `abc_rag.training.data.sources`.
        images: Folder that picture names are relative to; the published data sets need it.
        max_bad: Maximum number of unusable rows.
        allow_download: Fetch a published data set from the hub; without it, the data must be in the hub's cache.

    Raises:
        DatasetError: There are no data, no usable rows, or too many unusable ones.
        MissingExtraError: The `datasets` library is needed but not installed.
    """
    found, folder = find_data(data, captions=False), None if images is None else Path(images)
    if found.kind == "jsonl":
        return FolderPairs(found.path, images=folder, max_bad=max_bad)
    return HubPairs(open_table(found, allow_download=allow_download), images=folder, max_bad=max_bad)
