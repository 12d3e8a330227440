"""The pictures of a folder, each once."""

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
        image: Its path from the folder OUT, with ``/``; absolute where there is none, as on another Windows drive.
        sha256: Hex hash of the file's bytes.
    """

    image: str
    sha256: str


@dataclass(frozen=True)
class Duplicate:
    """A picture that is left out for another one.

    Attributes:
        image: The one that is left out.
        same_as: The one that is kept.
        how: ``"identical"`` bytes, or ``"similar"`` to the eye.
    """

    image: str
    same_as: str
    how: str


@dataclass(frozen=True)
class Scan:
    """What a folder holds.

    Attributes:
        pictures: What is kept, in the order of their paths.
        duplicates: What is left out.
        looked_at: Files that were opened or tried; fewer than there are where a limit was reached.
    """

    pictures: Sequence[Picture]
    duplicates: Sequence[Duplicate]
    looked_at: int


def path_from(out: Path, path: Path) -> str:
    """How a file in OUT refers to a path."""
    try:
        return Path(os.path.relpath(path, out)).as_posix()
    except ValueError:  # another drive
        return path.as_posix()


def picture_files(folder: Path, out: Path, bad: BadRows) -> list[Path]:
    """The files in a folder and its sub-folders that are pictures by their names, without hidden ones and OUT's own."""
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
    """Open every picture, and keep one of each.

    Args:
        folder: Where to look; resolved.
        out: Left out; resolved. Paths are given from there.
        near: Most of 256 bits in which near-identical pictures may differ; 0 leaves out identical files only.
        limit: Most pictures to keep; the rest is not looked at.
        known: Pictures that were kept before: they come first, so that no later look-alike takes their place.
        limits: Which pictures are opened.
        bad: Where the unusable ones are counted.
        threads: How many are opened at once.
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
    """Hash and print of each, a few at a time."""

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
