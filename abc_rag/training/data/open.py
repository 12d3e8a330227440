"""Training data by its name."""

from __future__ import annotations

import os
from pathlib import Path

from abc_rag.training.data.sources import CaptionSource, PairsSource

__all__ = ["open_captions", "open_pairs"]


def open_captions(
    data: str | os.PathLike[str],
    *,
    images: Path | None = None,
    negatives: Path | None = None,
    max_bad: int = 100,
    allow_download: bool = False,
) -> CaptionSource:
    """Open pictures with captions.

    Args:
        data: A folder, a JSONL file, or ``"abc-pretraining"``; see the module.
        images: Folder that picture names are relative to; the published data sets need it.
        negatives: What ``abc-rag train mine-negatives`` wrote for ``data``, in place of negatives that it has.
        max_bad: Most unusable rows.
        allow_download: Whether the published data set may be fetched; otherwise it must be in the hub's cache.

    Raises:
        DatasetError: There is nothing to read, nothing usable, or too much that is not.
        MissingExtraError: The `datasets` library is needed and not installed.
    """
    from abc_rag.training.data.folder import FolderCaptions, find_data
    from abc_rag.training.data.hub import HubCaptions, open_table
    from abc_rag.training.data.mined import WithNegatives

    found = find_data(data, captions=True)
    source: FolderCaptions | HubCaptions
    if found.kind == "jsonl":
        source = FolderCaptions(found.path, images=images, max_bad=max_bad)
    else:
        source = HubCaptions(open_table(found, allow_download=allow_download), images=images, max_bad=max_bad)
    return source if negatives is None else WithNegatives(source, negatives)


def open_pairs(
    data: str | os.PathLike[str], *, images: Path | None = None, max_bad: int = 100, allow_download: bool = False
) -> PairsSource:
    """Open pictures with (instruction, phrase) pairs.

    Args:
        data: A folder, a JSONL file, or ``"abc-vg-instruct"``; see the module.
        images: Folder that picture names are relative to; the published data sets need it.
        max_bad: Most unusable rows.
        allow_download: Whether the published data set may be fetched; otherwise it must be in the hub's cache.

    Raises:
        DatasetError: There is nothing to read, nothing usable, or too much that is not.
        MissingExtraError: The `datasets` library is needed and not installed.
    """
    from abc_rag.training.data.folder import FolderPairs, find_data
    from abc_rag.training.data.hub import HubPairs, open_table

    found = find_data(data, captions=False)
    if found.kind == "jsonl":
        return FolderPairs(found.path, images=images, max_bad=max_bad)
    return HubPairs(open_table(found, allow_download=allow_download), images=images, max_bad=max_bad)
