"""Folders and files into a store: what is stored already is not embedded again, and one bad file costs only itself."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path

from abc_rag.embedding.ahead import embedded
from abc_rag.embedding.embedder import Embedder
from abc_rag.embedding.progress import progress_bar
from abc_rag.embedding.projected import projected_by
from abc_rag.errors import ABCRagError, InputError
from abc_rag.images.limits import DEFAULT_LIMITS, ImageLimits
from abc_rag.images.open import mime_type_of
from abc_rag.images.read import read_bytes
from abc_rag.ingest.documents.carried import Carried
from abc_rag.ingest.documents.open import OpenDocument, noted_reading
from abc_rag.ingest.documents.options import DEFAULT_OPTIONS, DocumentOptions
from abc_rag.ingest.documents.readers import READERS
from abc_rag.ingest.documents.records import Made, is_part, moved
from abc_rag.ingest.facets import checked_facets
from abc_rag.ingest.files import IMAGE_SUFFIXES, TEXT_SUFFIXES, Found, find_files, kind_of_name
from abc_rag.ingest.notes import FileNotes
from abc_rag.ingest.ondisk import OnDisk
from abc_rag.ingest.passages import passages_of
from abc_rag.ingest.report import IndexReport
from abc_rag.ingest.run import Item, Run
from abc_rag.ingest.words import has_been_read, lacks_words, read_words, unread_in
from abc_rag.store.base import Store
from abc_rag.store.projection import kept_projection
from abc_rag.store.records import image_id, text_id
from abc_rag.types import URL, Image, Input, InstructedImage, Record, Text

__all__ = ["index_paths"]

# Files that are read and looked up together, and the bytes of pictures that they may have.
_CHUNK = 64
_MOST_BYTES = 64 * 2**20
_PAGE = 256
_RECORDS = 1000  # looked up together


def index_paths(
    paths: Sequence[str | os.PathLike[str] | URL],
    embedder: Embedder,
    store: Store,
    *,
    facets: Sequence[str] = (),
    exclude: Sequence[str] = (),
    follow_links: bool = False,
    prune: bool = False,
    prune_most: float = 0.5,
    verify: bool = False,
    limits: ImageLimits = DEFAULT_LIMITS,
    documents: DocumentOptions = DEFAULT_OPTIONS,
    progress: bool = False,
) -> IndexReport:
    """Embed and store the pictures, passages and documents of files and folders.

    Pictures and documents are recognised by their content, whatever their names; ``.txt`` and ``.md`` files are cut
    into paragraphs. Of a document, its pages are stored as pictures, and its figures and passages with their places
    (`abc_rag.Record.document`, ``page``, ``box``); pictures of pages and figures are kept in the store's folder.
    Both are identified by their content, so a second run embeds nothing again, and a run that was cut short goes on
    where it stopped: what is finished is stored every few seconds. What several files hold is stored once, under one
    of them. A file whose content has changed since takes the place of what was stored from it before, except what
    another file of this run holds. What came from a file that can no longer be used stays, and, unless ``prune`` is
    set, what came from one that is gone.

    A file that has the size and the time of change that it had when it was read last is not opened again, unless
    ``verify`` is set: what was in it is noted beside the store (`abc_rag.store.Store.notes_file`). A file that changed
    only a moment before it was read is read once more by the next run.

    Left out, and counted in the report: hidden files and folders, thumbnails and recycle bins of network storage,
    stores and the copies that they keep, links that lead out of ``paths``, what ``exclude`` and ``.abcignore`` files
    name, and files of other kinds.

    Args:
        paths: Files, folders that are searched with their sub-folders, and the URLs of web pages and other documents,
            which are fetched where ``documents.allow_web`` is set.
        embedder: Makes the vectors.
        store: Receives them; must be of the same model, or reduced from its vectors: then these are projected, too.
        facets: Instructions under which each picture gets a further vector, such as ``"what is on the left?"``.
            A search takes the best of a picture's vectors. Pictures stored before get those that they lack.
        exclude: Patterns of what to leave out of the folders, in the syntax of ``.gitignore``.
        follow_links: Also read what links in the folders point to outside all of ``paths``.
        prune: Remove what came from files of the given folders that are gone.
        prune_most: Maximum share of a folder's indexed files that may be gone, in [0, 1]: the folders of a disk that is
            not connected look as if all had been deleted.
        verify: Read every file, whatever its size and time of change say.
        limits: Which pictures are accepted. The embedder's own limits hold as well.
        documents: How documents are read, and what one may cost.
        progress: Show a progress bar with rate and time left.

    Returns:
        What was done, with every file that failed.

    Raises:
        InputError: A path does not exist, a facet is blank, a pattern is malformed, or ``prune`` would remove more
            than ``prune_most``, or everything of a folder that has become empty. Nothing is changed.
        FingerprintMismatchError: The store was reduced from vectors of another model.
    """
    embedder = projected_by(embedder, kept_projection(store))
    report = IndexReport()
    paths, urls = _without_urls(paths)
    chosen = checked_facets(facets, embedder)
    with FileNotes(store.notes_file, trust=not verify) as notes:
        files = find_files(paths, report, exclude=exclude, follow_links=follow_links, noted=notes.kind)
    store.roots.add(paths)
    if follow_links:
        store.roots.add(found.path for found in files if os.path.realpath(found.path) != str(found.path))
    with (
        progress_bar("indexing", total=len(files) + len(urls), enabled=progress) as bar,
        FileNotes(store.notes_file, trust=not verify) as notes,
        closing(Run(store, limits, chosen, report, bar, notes, options=documents)) as run,
    ):
        _look_up(run)
        orphans = _orphans(paths, files, prune_most, run) if prune else OnDisk()
        with run.process, closing(embedded(embedder, _items(files, urls, run))) as items:
            try:
                for item, results in items:
                    run.finish(item, results)
                    bar.advance(item.files)
            finally:
                # After an interrupt, too: what is embedded need not be embedded again. Nothing is begun meanwhile.
                try:
                    items.close()
                finally:
                    run.commit()
        # Only now that all new content is safe, and that it is known which file holds what: a run that dies before
        # leaves too much, never too little, and the next one tidies up.
        _move(run)
        run.stale.put(orphans.pairs())
        failed = {path for path, _ in report.failed}
        # What cannot be read of a document has its page behind its name.
        named = failed | {path.rpartition(", p. ")[0] for path in failed}
        places = {name: place for place, found in enumerate(files) if (name := str(found.path)) in named}
        report.failed.sort(key=lambda one: places.get(one[0], places.get(one[0].rpartition(", p. ")[0], -1)))
        gone = (old for old, path in run.stale.pairs() if old not in run.seen and path not in failed)
        while page := list(islice(gone, _PAGE)):
            report.removed += store.delete(page)
        notes.forget(orphans.distinct())
    return report


def _without_urls(
    given: Sequence[str | os.PathLike[str] | URL],
) -> tuple[Sequence[str | os.PathLike[str]], list[URL]]:
    if isinstance(given, (str, os.PathLike)):
        raise InputError(f"paths must be a list; got a single {type(given).__name__}: pass [path]")
    paths = [path for path in given if not isinstance(path, URL)]
    return paths, list(dict.fromkeys(path for path in given if isinstance(path, URL)))


def _orphans(paths: Iterable[str | os.PathLike[str]], files: Sequence[Found], most: float, run: Run) -> OnDisk:
    """Id -> file, of what came from files that were in one of the given folders and are gone."""
    orphans = OnDisk()
    for given in paths:
        if not os.path.isdir(folder := Path(os.path.realpath(os.path.expanduser(given)))):
            continue
        known, gone = 0, OnDisk()
        for source in run.known.distinct():
            if folder in Path(source).parents:
                known += 1
                if not os.path.lexists(source):
                    gone[source] = ""
        if len(gone) and not any(folder in found.path.parents for found in files):
            raise InputError(
                f"{folder}: has become empty, and {len(gone):,} files in it are indexed; is its disk connected? "
                "Nothing was removed"
            )
        if len(gone) > most * known:
            raise InputError(
                f"{folder}: {len(gone):,} of {known:,} indexed files are gone, more than prune_most={most:g} of "
                "them; is a disk not connected? Nothing was removed; to remove them, pass prune_most=1"
            )
        for source in gone:
            orphans.put((id_, source) for id_ in run.known.keys_of(source))
        gone.close()
    return orphans


def _look_up(run: Run) -> None:
    records = run.store.records()
    while page := list(islice(records, _RECORDS)):
        parts = [record for record in page if is_part(record)]
        for record in parts:
            run.documents.note(record)
        run.sources.put((r.id, r.document if is_part(r) else r.source) for r in page)
        run.known.put((record.id, record.document) for record in parts)
        run.worded.put((record.id, "") for record in page if has_been_read(record))
        # Records that a caller made, with ids of their own or about a file of another kind, are left alone.
        run.known.put((r.id, r.source) for r in page if not is_part(r) and _made_here(r))


def _made_here(record: Record) -> bool:
    made = (
        record.id == text_id(record.text)
        if record.modality == "text"
        else re.fullmatch("image-[0-9a-f]{32}", record.id) is not None and os.path.isabs(record.source)
    )
    # A picture may have any name, but that of a text.
    return made and (kind_of_name(record.source) or "image") == record.modality


def _items(files: Sequence[Found], urls: Sequence[URL], run: Run) -> Iterator[Item | None]:
    """What has to be embedded, read as it is asked for."""
    for count, items in _chunks([found for found in files if found.kind != "document"], run):
        if not run.in_flight.isdisjoint(items):
            yield None  # what is stored is known only after these
            run.commit()
        lacking = _lacking({id_: item for id_, item in items.items() if id_ not in run.seen}, run)
        embedded_now = [item for item in lacking if item.inputs]
        run.in_flight.update(item.record.id for item in embedded_now)
        if embedded_now:
            embedded_now[-1].files = count
        else:
            run.bar.advance(count)
        for item in lacking:
            if lacks_words(item.record, run):
                read_words(item, run)
            if item.inputs:
                yield item
    for path, kind in files:
        if kind == "document":
            yield from _parts(path, run)
            run.bar.advance(1)
    for url in urls:
        yield from _parts(url, run)
        run.bar.advance(1)


def _parts(path: Path | URL, run: Run) -> Iterator[Item]:
    """What has to be embedded of a document."""
    name = path.url if isinstance(path, URL) else str(path)
    noted = run.notes.ids(name, "document")
    if noted and run.has(noted[0], noted_reading(noted, run.options)):
        _unchanged(name, noted[0], run)
        return
    before = run.notes.before(name)
    try:
        document = OpenDocument.of(path, run.options)
    except ABCRagError as error:
        run.report.failed.append((name, str(error).removeprefix(f"{name}: ")))
        return
    sha256 = document.sha256
    run.notes.put(name, "document", before, [sha256, document.reader.name])
    if run.has(sha256, document.reading):
        _unchanged(name, sha256, run)
    else:
        stored, ids = run.documents.ids(sha256), set[str]()
        before_it_changed = Carried(run.store, run.known.keys_of(name) - stored)
        try:
            for chunk in document.chunks(run.process):
                before_it_changed.carry(chunk)
                ids.update(made.record.id for made in chunk)
                yield from _lacking_of(name, chunk, run)
        except InputError as error:
            run.fail(error, name)
            return
        # What an earlier run could read of a page stays.
        ids |= run.documents.on(sha256, {unread.page for unread in document.unread})
        for unread in document.unread:
            page = "" if unread.page is None else f", p. {unread.page}"
            run.report.failed.append((name + page, unread.reason))
        if document.last is not None and document.last.record.id in stored:
            run.closed.append(document.last.record)
        run.read.add(sha256)
        _replaced(name, ids, run)


def _unchanged(name: str, sha256: str, run: Run) -> None:
    """A document that is stored. Equal documents are one, under the first of their names."""
    ids = run.documents.ids(sha256)
    if sha256 not in run.read:
        run.report.unchanged += len(ids)
        run.seen.put((id_, name) for id_ in ids)
    run.read.add(sha256)
    _replaced(name, ids, run)


def _lacking_of(name: str, chunk: Sequence[Made], run: Run) -> list[Item]:
    """Those parts of a document that are not stored, or not with all facets; pictures are kept from here on."""
    items = {made.record.id: Item([], len(made.data), made.record, [name], made.data) for made in chunk}
    lacking = _lacking(items, run)
    for item in lacking:
        # A store on a server may have no folder for pictures: there they can be found, but not shown.
        if item.is_new and item.data and run.store.keeps_pictures:
            item.record = replace(item.record, source=run.store.keep_picture(item.data, item.record.mime_type))
    return lacking


def _chunks(files: Sequence[Found], run: Run) -> Iterator[tuple[int, dict[str, Item]]]:
    """Some files, and what is in them."""
    count = held = 0
    items: dict[str, Item] = {}
    for path, kind in _changed(files, run):
        if count and (count >= _CHUNK or held >= _MOST_BYTES):
            yield count, items
            count, held, items = 0, 0, {}
        count += 1
        before = run.notes.before(str(path))
        try:
            found, data = _records_of(path, kind, run.limits)
        except InputError as error:
            run.fail(error, path)
            continue
        run.notes.put(str(path), str(kind), before, [record.id for record in found])
        held += len(data)
        for record in found:
            items.setdefault(record.id, Item([], len(data), record, [], data)).paths.append(path)
        _replaced(path, {record.id for record in found}, run)
    if count:
        yield count, items


def _changed(files: Sequence[Found], run: Run) -> Iterator[Found]:
    """The files that have to be read; what is known to be in the others, and complete, has been found with them."""
    for start in range(0, len(files), _CHUNK):
        part = files[start : start + _CHUNK]
        noted = {str(found.path): run.notes.ids(str(found.path), str(found.kind)) for found in part}
        ids = {id_ for some in noted.values() for id_ in some or ()}
        complete = run.store.has(ids) if ids else set()
        if run.facets and complete:
            have = run.store.facet_names(complete)
            lacking = {id_ for id_ in complete if not set(run.facets) <= have.get(id_, set())}
            complete -= {record.id for record in run.store.get(lacking) if record.modality == "image"}
        complete -= unread_in(part, noted, run)
        for found in part:
            name = str(found.path)
            inside = noted[name]
            if inside is None or not complete.issuperset(inside):
                yield found
                continue
            new = [id_ for id_ in dict.fromkeys(inside) if id_ not in run.seen]
            run.report.unchanged += len(new)
            run.seen.put((id_, name) for id_ in new)
            _replaced(found.path, set(inside), run)
            run.bar.advance(1)


def _replaced(path: Path | str, ids: set[str], run: Run) -> None:
    """What came from a file and is not in it any more is stale."""
    run.stale.put((old, str(path)) for old in run.known.keys_of(str(path)) - ids)


def _records_of(path: Path, kind: str | None, limits: ImageLimits) -> tuple[list[Record], bytes]:
    """What a file holds; with the bytes of a picture."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{path}: its name is not valid Unicode; rename it") from error
    if kind == "image":
        data = read_bytes(path, limits=limits)
        sha256 = hashlib.sha256(data).hexdigest()
        return [Record(image_id(sha256), "image", source=str(path), sha256=sha256)], data
    if kind == "text":
        passages = dict.fromkeys(passages_of(path))
        return [Record(text_id(text), "text", text=text, source=str(path)) for text in passages], b""
    known = ", ".join([*sorted(IMAGE_SUFFIXES | TEXT_SUFFIXES), *(reader.name for reader in READERS)])
    raise InputError(f"{path}: files of this kind are not indexed; these are: {known}")


def _lacking(items: Mapping[str, Item], run: Run) -> list[Item]:
    """Those that are not stored, or not with all facets, or of which words have to be read."""
    stored = run.store.has(items)
    run.report.unchanged += len(stored)
    run.seen.put((known, str(items[known].paths[0])) for known in items if known in stored)
    pictures = [item for item in items.values() if item.record.modality == "image"]
    have = run.store.facet_names([p.record.id for p in pictures if p.record.id in stored]) if run.facets else {}
    for picture in pictures:
        picture.lacks = [facet for facet in run.facets if facet not in have.get(picture.record.id, ())]
    lacking = []
    for id_, item in items.items():
        item.is_new = id_ not in stored
        if not item.is_new and not item.lacks and not lacks_words(item.record, run):
            continue
        own: list[Input] = [Text(item.record.text)] if item.is_new else []
        if item.record.modality == "image":
            try:
                mime_type = mime_type_of(item.data, limits=run.limits, name=str(item.paths[0]))
            except InputError as error:
                run.fail(error, *item.paths)
                continue
            item.record = replace(item.record, mime_type=mime_type)
            own = [Image(item.data)] if item.is_new else []
        item.inputs = [*own, *(InstructedImage(item.data, facet) for facet in item.lacks)]
        lacking.append(item)
    return lacking


def _move(run: Run) -> None:
    """Stored content whose file is gone, or holds something else now, gets the path at which it was found."""
    found = (
        id_
        for id_, path in run.seen.pairs()
        if (source := run.sources.get(id_, path)) != path
        # What is no absolute path is the caller's own word, such as a URL.
        and (id_ in run.stale or (os.path.isabs(source) and not os.path.exists(source)))
    )
    while page := list(islice(found, _PAGE)):
        vectors = run.store.vectors(page)
        records = run.store.get(page)
        run.store.add([moved(r, run.seen[r.id]) for r in records], [vectors[r.id] for r in records])
    # Only now is all of these documents stored.
    for last in run.closed:
        stored = run.store.get([last.id])
        if stored and dict(stored[0].metadata) != {**last.metadata, "document": stored[0].document}:
            closed = replace(stored[0], metadata={**last.metadata, "document": stored[0].document})
            run.store.add([closed], [run.store.vectors([last.id])[last.id]])
