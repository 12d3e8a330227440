"""Folders and files into a store: what is there already is not embedded again, and one bad file costs only itself."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from abc_rag._progress import progress_bar
from abc_rag.embedder import Embedder, Vectors
from abc_rag.errors import InputError
from abc_rag.images import DEFAULT_LIMITS, ImageLimits, OpenedImage, content_hash, open_image
from abc_rag.store import ChromaStore, image_id, text_id
from abc_rag.types import Image, Input, Record, Text

__all__ = ["IMAGE_SUFFIXES", "TEXT_SUFFIXES", "IndexReport", "index_paths", "passages_of"]

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
TEXT_SUFFIXES = frozenset({".md", ".txt"})
_CHUNK = 64
_MAX_TEXT_BYTES = 20 * 2**20


@dataclass
class IndexReport:
    """What an index run did.

    Attributes:
        added: Pictures and passages that were embedded and stored.
        unchanged: Those that were stored already.
        removed: Stored ones whose file now holds something else.
        failed: (file, reason) of each file that could not be used.
    """

    added: int = 0
    unchanged: int = 0
    removed: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class _Item:
    record: Record
    path: Path
    text: str | None


def index_paths(
    paths: Sequence[str | os.PathLike[str]],
    embedder: Embedder,
    store: ChromaStore,
    *,
    limits: ImageLimits = DEFAULT_LIMITS,
    progress: bool = False,
) -> IndexReport:
    """Embed and store the pictures and passages of files and folders.

    Pictures are known by their content, passages (paragraphs of ``.txt`` and ``.md`` files) by theirs, so a second
    run embeds nothing again and a run that was cut short goes on where it stopped. A file whose
    content has changed since takes the place of what was stored from it before.

    Args:
        paths: Files, and folders that are searched with their sub-folders (hidden ones left out).
        embedder: Makes the vectors.
        store: Receives them; must be of the same model.
        limits: Which pictures are accepted.
        progress: Show a progress bar with rate and time left.

    Returns:
        What was done, with every file that failed.

    Raises:
        InputError: A path does not exist.
    """
    files = _files(paths)
    report = IndexReport()
    known = _ids_by_source(store)
    with progress_bar("indexing", total=len(files), enabled=progress) as bar:
        for chunk in _chunks(files, _CHUNK):
            _index_chunk(chunk, embedder, store, limits, known, report)
            bar.advance(len(chunk))
    return report


def _files(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Every file to index, once each, in a fixed order."""
    found: dict[Path, None] = {}
    for given in paths:
        path = Path(given).expanduser()
        if path.is_dir():
            for folder, folders, names in os.walk(path):
                folders[:] = sorted(f for f in folders if not f.startswith("."))
                for name in sorted(names):
                    file = Path(folder, name)
                    if not name.startswith(".") and file.suffix.lower() in IMAGE_SUFFIXES | TEXT_SUFFIXES:
                        found[file.resolve()] = None
        elif path.exists():
            found[path.resolve()] = None
        else:
            raise InputError(f"{path}: no such file or folder")
    return list(found)


def _ids_by_source(store: ChromaStore) -> dict[str, set[str]]:
    known: dict[str, set[str]] = {}
    for record in store.records():
        if record.source:
            known.setdefault(record.source, set()).add(record.id)
    return known


def _chunks(files: Sequence[Path], size: int) -> Iterator[Sequence[Path]]:
    for start in range(0, len(files), size):
        yield files[start : start + size]


def _index_chunk(
    files: Sequence[Path],
    embedder: Embedder,
    store: ChromaStore,
    limits: ImageLimits,
    known: dict[str, set[str]],
    report: IndexReport,
) -> None:
    items: dict[str, _Item] = {}
    stale: dict[str, str] = {}
    for path in files:
        try:
            found = _items_of(path, limits)
        except InputError as error:
            report.failed.append((str(path), _reason(error, path)))
            continue
        for item in found:
            items.setdefault(item.record.id, item)
        now = {item.record.id for item in found}
        stale.update((old, str(path)) for old in known.get(str(path), set()) - now)
    stored = store.has(items)
    report.unchanged += len(stored)
    _move(items, stored, store)
    new = [item for name, item in items.items() if name not in stored]
    records, vectors = _embed_each(new, embedder, limits, report)
    if records:
        store.add(records, vectors)
        report.added += len(records)
    # Only after the new content is safe: a run that dies in between leaves both, never neither.
    failed = {path for path, _ in report.failed}
    report.removed += store.delete([old for old, path in stale.items() if old not in items and path not in failed])


def _items_of(path: Path, limits: ImageLimits) -> list[_Item]:
    suffix = path.suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        name = image_id(content_hash(path, limits=limits))
        return [_Item(Record(name, "image", source=str(path)), path, None)]
    if suffix in TEXT_SUFFIXES:
        return [
            _Item(Record(text_id(text), "text", text=text, source=str(path)), path, text)
            for text in dict.fromkeys(passages_of(path))
        ]
    known = ", ".join(sorted(IMAGE_SUFFIXES | TEXT_SUFFIXES))
    raise InputError(f"{path}: files of this kind are not indexed; these are: {known}")


def passages_of(path: Path) -> list[str]:
    """The paragraphs of a UTF-8 text file.

    Raises:
        InputError: It cannot be read, is larger than 20 MiB, or is not UTF-8.
    """
    try:
        if path.stat().st_size > _MAX_TEXT_BYTES:
            raise InputError(f"{path}: larger than {_MAX_TEXT_BYTES // 2**20} MiB; split it")
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); convert it") from error
    except OSError as error:
        raise InputError(f"{path}: not readable ({error.strerror})") from error
    paragraphs = ("\n".join(lines) for lines in _paragraphs(text))
    return [p for p in paragraphs if p]


def _paragraphs(text: str) -> Iterator[list[str]]:
    lines: list[str] = []
    for line in [*text.splitlines(), ""]:
        if line.strip():
            lines.append(line.strip())
        elif lines:
            yield lines
            lines = []


def _move(items: dict[str, _Item], stored: set[str], store: ChromaStore) -> None:
    """Give a stored picture or passage whose file is gone the path at which it was now found."""
    moved = [
        record
        for record in store.get(sorted(stored))
        if record.source and record.source != items[record.id].record.source and not Path(record.source).exists()
    ]
    if not moved:
        return
    vectors = store.vectors([record.id for record in moved])
    renewed = [
        Record(r.id, r.modality, text=r.text, source=items[r.id].record.source, metadata=r.metadata) for r in moved
    ]
    store.add(renewed, [vectors[record.id] for record in moved])


def _embed_each(
    items: Sequence[_Item], embedder: Embedder, limits: ImageLimits, report: IndexReport
) -> tuple[list[Record], list[Vectors]]:
    """Embed together; where that fails, one by one, so that a bad item costs nothing but itself."""
    usable: list[tuple[_Item, Input]] = []
    for item in items:
        try:
            usable.append((item, Text(item.text) if item.text is not None else Image(_opened(item, limits).image)))
        except InputError as error:
            report.failed.append((str(item.path), _reason(error, item.path)))
    if not usable:
        return [], []
    try:
        return [item.record for item, _ in usable], list(embedder.embed([one for _, one in usable]))
    except InputError:
        records, vectors = [], []
        for item, one in usable:
            try:
                vectors.append(embedder.embed([one])[0])
                records.append(item.record)
            except InputError as error:
                report.failed.append((str(item.path), _reason(error, item.path)))
        return records, vectors


def _opened(item: _Item, limits: ImageLimits) -> OpenedImage:
    opened = open_image(item.path, limits=limits)
    if image_id(opened.sha256) != item.record.id:
        raise InputError(f"{item.path}: changed while it was read; index it again")
    return opened


def _reason(error: InputError, path: Path) -> str:
    return str(error).removeprefix(f"{path}: ")
