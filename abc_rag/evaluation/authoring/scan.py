"""Finds the pictures of a folder, each once."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from abc_rag.embedding.progress import progress_bar
from abc_rag.errors import InputError
from abc_rag.evaluation.authoring.dedupe import LookAlikes, Print, print_of
from abc_rag.images.limits import ImageLimits
from abc_rag.images.open import open_image
from abc_rag.ingest.files import IMAGE_SUFFIXES
from abc_rag.training.data.rows import BadRows

__all__ = ["Duplicate", "Picture", "Scan", "path_from", "picture_files", "scan"]

_CHUNK = 32


@dataclass(frozen=True)
class Picture:
    """A picture of the benchmark.

    Attributes:
        image: Path relative to the folder OUT, with ``/``; absolute on another Windows drive.
        sha256: SHA-256 of the file, in hex.
    """

    image: str
    sha256: str


@dataclass(frozen=True)
class Duplicate:
    """A picture that duplicates another.

    Attributes:
        image: The picture that is left out.
        same_as: The picture that is kept.
        how: ``"identical"`` bytes, or ``"similar"`` to the eye.
    """

    image: str
    same_as: str
    how: str


@dataclass(frozen=True)
class Scan:
    """The pictures of a folder.

    Attributes:
        pictures: Kept pictures, in the order of their paths.
        duplicates: Pictures left out.
        looked_at: Number of files examined; not all if a limit was reached.
    """

    pictures: Sequence[Picture]
    duplicates: Sequence[Duplicate]
    looked_at: int


def path_from(out: Path, path: Path) -> str:
    """A path relative to OUT, as the files there have it."""
    try:
        return Path(os.path.relpath(path, out)).as_posix()
    except ValueError:  # another drive
        return path.as_posix()


def picture_files(folder: Path, out: Path, bad: BadRows) -> list[Path]:
    """Files with a picture's suffix in a folder and its subfolders, without hidden ones and those of OUT."""
    found: list[Path] = []

    def unlistable(error: OSError) -> None:
        bad.add(str(error.filename), "folder that cannot be listed", error.strerror or "")

    for place, folders, names in os.walk(folder, onerror=unlistable):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and Path(place, name) != out)
        for name in sorted(names):
            if name.startswith(".") or os.path.splitext(name)[1].lower() not in IMAGE_SUFFIXES:
                continue
            path = Path(place, name)
            try:
                str(path).encode()
            except UnicodeEncodeError:
                bad.add(repr(str(path))[1:-1], "name that is not valid Unicode", "rename it")
                continue
            found.append(path)
    return found


def scan(
    folder: Path,
    out: Path,
    *,
    near: int,
    limit: int | None,
    known: Collection[str],
    limits: ImageLimits,
    bad: BadRows,
    threads: int,
    progress: bool,
) -> Scan:
    """Open every picture, and keep one of each group of duplicates.

    Args:
        folder: The folder, resolved.
        out: The folder OUT, resolved; its own pictures are skipped.
        near: Maximum of 256 bits in which similar pictures may differ; 0 leaves out identical files only.
        limit: Maximum number of pictures to keep; further ones are not examined.
        known: Pictures kept before; they come first, so that no duplicate takes their place.
        limits: Limits for opening pictures.
        bad: Counts the unusable pictures.
        threads: Number of pictures opened at once.
        progress: Show a progress bar.
    """
    files = picture_files(folder, out, bad)
    files.sort(key=lambda path: path_from(out, path) not in known)  # stable: by name within
    pictures: list[Picture] = []
    duplicates: list[Duplicate] = []
    first: dict[str, str] = {}
    alike = LookAlikes(near)
    looked_at = 0
    with progress_bar("looking at pictures", total=len(files), enabled=progress) as bar:
        for path, opened in _opened(files, limits, threads):
            if limit is not None and len(pictures) >= limit:
                break
            bar.advance()
            looked_at += 1
            name = path_from(out, path)
            if isinstance(opened, InputError):
                bad.add(name, "unusable picture", str(opened).removeprefix(f"{path}: "))
                continue
            sha256, look = opened
            same, how = first.get(sha256), "identical"
            if same is None:
                same, how = alike.find(look), "similar"
            if same is not None:
                duplicates.append(Duplicate(name, same, how))
                continue
            first[sha256] = name
            alike.add(name, look)
            pictures.append(Picture(name, sha256))
    return Scan(sorted(pictures, key=lambda picture: picture.image), duplicates, looked_at)


def _opened(
    files: Sequence[Path], limits: ImageLimits, threads: int
) -> Iterator[tuple[Path, tuple[str, Print] | InputError]]:
    """Hash and fingerprint of each file, a few at a time."""

    def look(path: Path) -> tuple[str, Print] | InputError:
        try:
            opened = open_image(path, limits=limits)
        except InputError as error:
            return error
        return opened.sha256, print_of(opened.image)

    with ThreadPoolExecutor(threads, thread_name_prefix="abc-rag-look") as pool:
        for start in range(0, len(files), _CHUNK):
            chunk = files[start : start + _CHUNK]
            yield from zip(chunk, pool.map(look, chunk), strict=True)
