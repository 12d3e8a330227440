"""Folders and files into a store: what is there already is not embedded again, and one bad file costs only itself."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

from abc_rag.embedding.ahead import Part, embedded, named
from abc_rag.embedding.embedder import Embedder
from abc_rag.embedding.progress import progress_bar
from abc_rag.errors import ABCRagError, InputError
from abc_rag.images.limits import DEFAULT_LIMITS, ImageLimits
from abc_rag.images.open import mime_type_of
from abc_rag.images.read import read_bytes
from abc_rag.ingest.files import IMAGE_SUFFIXES, TEXT_SUFFIXES, _files, _modality
from abc_rag.ingest.passages import passages_of
from abc_rag.ingest.pictures import checked_facets, index_images, store_facets
from abc_rag.ingest.report import IndexReport
from abc_rag.store.base import image_id, text_id
from abc_rag.store.chroma.store import ChromaStore
from abc_rag.types import Image, Input, InstructedImage, Record, Text, Vectors

__all__ = ["index_images", "index_paths"]

# Files looked at together, and the bytes of pictures that they may have.
_CHUNK = 64
_MOST_BYTES = 64 * 2**20
# Vectors that are stored together: an interrupted run loses few more.
_MOST_ITEMS = 256
_PAGE = 256


@dataclass
class _Item:
    """A picture or a passage, and the files that hold it.

    Attributes:
        record: What is stored of it.
        paths: The files.
        data: Of a picture: its bytes.
        is_new: It is not stored yet.
        lacks: Of a picture: the facets that it gets.
    """

    record: Record
    paths: list[Path]
    data: bytes
    is_new: bool = True
    lacks: Sequence[str] = ()

    def inputs(self) -> list[Input]:
        own: Input = Text(self.record.text) if self.record.modality == "text" else Image(self.data)
        return [*([own] if self.is_new else []), *(InstructedImage(self.data, facet) for facet in self.lacks)]


@dataclass
class _Group(Part):
    """What is stored together, and how many files are done then."""

    items: Sequence[_Item]
    files: int = 0


@dataclass
class _Run:
    """What a run needs to know from its first file to its last.

    Attributes:
        sources: Id -> where the store says that it came from, at the start.
        known: File -> ids that were made from it before.
        seen: Id -> the first file in which it was found now; only what is stored.
        stale: Ids that are no longer in the file they came from -> that file.
        flying: Ids of what is being embedded.
    """

    store: ChromaStore
    limits: ImageLimits
    facets: Sequence[str]
    report: IndexReport
    sources: dict[str, str] = field(default_factory=dict)
    known: dict[str, set[str]] = field(default_factory=dict)
    seen: dict[str, str] = field(default_factory=dict)
    stale: dict[str, str] = field(default_factory=dict)
    flying: set[str] = field(default_factory=set)

    def fail(self, error: ABCRagError, *paths: Path) -> None:
        reason = str(named(error, str(paths[0]))).removeprefix(f"{paths[0]}: ")
        self.report.failed += [(str(path), reason) for path in paths]


def index_paths(
    paths: Sequence[str | os.PathLike[str]],
    embedder: Embedder,
    store: ChromaStore,
    *,
    facets: Sequence[str] = (),
    prune: bool = False,
    limits: ImageLimits = DEFAULT_LIMITS,
    progress: bool = False,
) -> IndexReport:
    """Embed and store the pictures and passages of files and folders.

    Pictures are known by their content, passages (paragraphs of ``.txt`` and ``.md`` files) by theirs, so a second
    run embeds nothing again and a run that was cut short goes on where it stopped. What several files hold is
    stored once, under one of them. A file whose content has changed since takes the place of what was stored
    from it before, except what another file of this run holds. What came from a file that can no longer be used stays,
    and, unless ``prune`` is set, what came from one that is gone.

    Args:
        paths: Files, and folders that are searched with their sub-folders (hidden ones left out).
        embedder: Makes the vectors.
        store: Receives them; must be of the same model.
        facets: Instructions under which each picture gets a further vector, such as ``"what is on the left?"``.
            A search takes the best of a picture's vectors. Pictures stored before get those that they lack.
        prune: Remove what came from files of the given folders that are gone. Folders that are not there at the time,
            such as those of a disk that is not connected, look just like that.
        limits: Which pictures are accepted. The embedder's own limits hold as well.
        progress: Show a progress bar with rate and time left.

    Returns:
        What was done, with every file that failed.

    Raises:
        InputError: A path does not exist, or a facet is blank.
    """
    run = _Run(store, limits, checked_facets(facets, embedder), IndexReport())
    files = _files(paths, run.report)
    _look_up(run)
    with (
        progress_bar("indexing", total=len(files), enabled=progress) as bar,
        closing(embedded(embedder, _groups(files, run))) as groups,
    ):
        for group, results in groups:
            _store(group, results, run)
            bar.advance(group.files)
    places = {str(path): place for place, path in enumerate(files)}
    run.report.failed.sort(key=lambda failure: places.get(failure[0], -1))
    # Only now that all new content is safe, and that it is known which file holds what: a run that dies before
    # leaves too much, never too little, and the next one tidies up.
    _move(run)
    if prune:
        run.stale.update(_orphans(paths, run))
    failed = {path for path, _ in run.report.failed}
    run.report.removed = store.delete(
        [old for old, path in run.stale.items() if old not in run.seen and path not in failed]
    )
    return run.report


def _orphans(paths: Iterable[str | os.PathLike[str]], run: _Run) -> Iterator[tuple[str, str]]:
    """(id, file) of what came from files that were in one of the given folders and are gone."""
    folders = [Path(os.path.realpath(path)) for given in paths if os.path.isdir(path := os.path.expanduser(given))]
    for source, ids in run.known.items():
        if any(folder in Path(source).parents for folder in folders) and not os.path.lexists(source):
            yield from ((id_, source) for id_ in ids)


def _look_up(run: _Run) -> None:
    for record in run.store.records():
        run.sources[record.id] = record.source
        # Records that a caller made, with ids of their own or about a file of another kind, are left alone.
        made_here = (
            record.id == text_id(record.text)
            if record.modality == "text"
            else re.fullmatch("image-[0-9a-f]{32}", record.id) is not None
        )
        if made_here and _modality(record.source) == record.modality:
            run.known.setdefault(record.source, set()).add(record.id)


def _groups(files: Sequence[Path], run: _Run) -> Iterator[_Group | None]:
    """What has to be embedded, read as it is asked for."""
    for chunk, items in _chunks(files, run):
        if not run.flying.isdisjoint(items):
            yield None  # what is stored is known only after these
        lacking = _lacking({id_: item for id_, item in items.items() if id_ not in run.seen}, run)
        run.flying.update(item.record.id for item in lacking)
        inputs: list[Input] = []
        some: list[_Item] = []
        for item in lacking:
            wanted = item.inputs()
            if some and len(inputs) + len(wanted) > _MOST_ITEMS:
                yield _Group(inputs, sum(len(one.data) for one in some), some)
                inputs, some = [], []
            inputs += wanted
            some.append(item)
        yield _Group(inputs, sum(len(one.data) for one in some), some, files=chunk)


def _chunks(files: Sequence[Path], run: _Run) -> Iterator[tuple[int, dict[str, _Item]]]:
    """Some files, and what is in them."""
    count = held = 0
    items: dict[str, _Item] = {}
    for path in files:
        if count and (count >= _CHUNK or held >= _MOST_BYTES):
            yield count, items
            count, held, items = 0, 0, {}
        count += 1
        try:
            found, data = _records_of(path, run.limits)
        except InputError as error:
            run.fail(error, path)
            continue
        held += len(data)
        for record in found:
            items.setdefault(record.id, _Item(record, [], data)).paths.append(path)
        gone = run.known.get(str(path), set()) - {record.id for record in found}
        run.stale.update((old, str(path)) for old in gone)
    if count:
        yield count, items


def _records_of(path: Path, limits: ImageLimits) -> tuple[list[Record], bytes]:
    """What a file holds; with the bytes of a picture."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{path}: its name is not valid Unicode; rename it") from error
    kind = _modality(path)
    if kind == "image":
        data = read_bytes(path, limits=limits)
        sha256 = hashlib.sha256(data).hexdigest()
        return [Record(image_id(sha256), "image", source=str(path), sha256=sha256)], data
    if kind == "text":
        passages = dict.fromkeys(passages_of(path))
        return [Record(text_id(text), "text", text=text, source=str(path)) for text in passages], b""
    known = ", ".join(sorted(IMAGE_SUFFIXES | TEXT_SUFFIXES))
    raise InputError(f"{path}: files of this kind are not indexed; these are: {known}")


def _lacking(items: Mapping[str, _Item], run: _Run) -> list[_Item]:
    """Those that are not stored, or not with all facets."""
    stored = run.store.has(items)
    run.report.unchanged += len(stored)
    run.seen.update((known, items[known].record.source) for known in items if known in stored)
    pictures = [item for item in items.values() if item.record.modality == "image"]
    have = run.store.facet_names([p.record.id for p in pictures if p.record.id in stored]) if run.facets else {}
    for picture in pictures:
        picture.lacks = [facet for facet in run.facets if facet not in have.get(picture.record.id, ())]
    lacking = []
    for id_, item in items.items():
        item.is_new = id_ not in stored
        if not item.is_new and not item.lacks:
            continue
        if item.record.modality == "image":
            try:
                mime_type = mime_type_of(item.data, limits=run.limits, name=str(item.paths[0]))
            except InputError as error:
                run.fail(error, *item.paths)
                continue
            item.record = replace(item.record, mime_type=mime_type)
        lacking.append(item)
    return lacking


def _store(group: _Group, results: Sequence[Vectors | ABCRagError], run: _Run) -> None:
    """Store what could be embedded; of a picture's facets, all or none."""
    records: list[Record] = []
    vectors: list[Vectors] = []
    facets: dict[tuple[str, str], Vectors] = {}
    rest = iter(results)
    for item in group.items:
        given = [next(rest) for _ in item.inputs()]
        found = [result for result in given if not isinstance(result, ABCRagError)]
        if item.is_new and not isinstance(given[0], ABCRagError):
            records.append(item.record)
            vectors.append(given[0])
        if len(found) == len(given):
            own = found[-len(item.lacks) :] if item.lacks else []
            facets.update(zip(((item.record.id, facet) for facet in item.lacks), own, strict=True))
        else:
            run.fail(next(result for result in given if isinstance(result, ABCRagError)), *item.paths)
    if records:
        run.store.add(records, vectors)
    run.report.added += len(records)
    run.seen.update((record.id, record.source) for record in records)
    store_facets(run.store, facets)
    run.report.facets += len(facets)
    run.flying.difference_update(item.record.id for item in group.items)


def _move(run: _Run) -> None:
    """Stored content whose file is gone, or holds something else now, gets the path at which it was found."""
    moved = [
        found
        for found, path in run.seen.items()
        if (source := run.sources.get(found, path)) != path
        # What is no absolute path is the caller's own word, such as a URL.
        and (found in run.stale or (os.path.isabs(source) and not os.path.exists(source)))
    ]
    for start in range(0, len(moved), _PAGE):
        page = moved[start : start + _PAGE]
        vectors = run.store.vectors(page)
        records = run.store.get(page)
        run.store.add([replace(r, source=run.seen[r.id]) for r in records], [vectors[r.id] for r in records])
