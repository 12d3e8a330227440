"""Pictures from anywhere into a store: `abc_rag.ingest.index_images`."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import PIL.Image

from abc_rag._facets import _check_instruction
from abc_rag._progress import progress_bar
from abc_rag.embedder import Embedder, Vectors
from abc_rag.errors import InputError, PartialIndexError
from abc_rag.images import DEFAULT_LIMITS, ImageLimits, OpenedImage, describe_source, open_image, read_bytes
from abc_rag.store import ChromaStore, image_id
from abc_rag.types import URL, DataURI, Image, ImageSource, InstructedImage, MetadataValue, Record, SourceType

__all__ = ["checked_facets", "index_images", "store_facets"]

# What is opened, embedded and stored together.
_MOST_ITEMS = 64
_MOST_PIXELS = 64_000_000


@dataclass
class _Picture:
    """One picture of a call, on its way into the store."""

    position: int
    record: Record
    opened: OpenedImage


@dataclass
class _Call:
    """What was asked for, and what has come of it."""

    embedder: Embedder
    store: ChromaStore
    limits: ImageLimits
    keep: bool
    facets: list[str]
    ids: Sequence[str] | None
    captions: Sequence[str] | None
    metadatas: Sequence[Mapping[str, MetadataValue]] | None
    stored: list[str | None] = field(default_factory=list)
    failed: list[tuple[int, InputError]] = field(default_factory=list)


def checked_facets(facets: Sequence[str]) -> list[str]:
    """Each facet once.

    Raises:
        InputError: ``facets`` is a single str, or one of them is blank.
    """
    if isinstance(facets, str):
        raise InputError("facets must be a list; got a single str: pass [facet]")
    for facet in facets:
        _check_instruction(facet)
    return list(dict.fromkeys(facets))


def store_facets(store: ChromaStore, facets: Sequence[tuple[str, str]], vectors: Vectors) -> None:
    """Store one vector for each (id, instruction), those of one instruction together."""
    for facet in dict.fromkeys(facet for _, facet in facets):
        chosen = [i for i, (_, asked) in enumerate(facets) if asked == facet]
        store.add_facets([facets[i][0] for i in chosen], facet, vectors[chosen])


def index_images(
    images: Iterable[ImageSource],
    embedder: Embedder,
    store: ChromaStore,
    *,
    ids: Sequence[str] | None = None,
    captions: Sequence[str] | None = None,
    metadatas: Sequence[Mapping[str, MetadataValue]] | None = None,
    facets: Sequence[str] = (),
    keep: bool = False,
    limits: ImageLimits = DEFAULT_LIMITS,
    progress: bool = False,
) -> list[str]:
    """Embed and store pictures from any source, a few at a time.

    A path or a URL is stored as a reference: the picture stays where it is. Bytes, data URIs and PIL images have no
    place to refer to, so without ``keep`` they can be found but not shown or looked at again.

    Args:
        images: Paths, `URL`, `DataURI`, bytes or PIL images.
        embedder: Makes the vectors.
        store: Receives them; must be of the same model.
        ids: One id a picture. If not given: `abc_rag.store.image_id` of its content, so that equal pictures are one
            record, with the caption and metadata of the last.
        captions: One text a picture, stored beside it. It is not embedded.
        metadatas: One mapping a picture.
        facets: Instructions under which each picture gets a further vector; see `ChromaStore.add_facets`.
        keep: Copy the pictures into the store's own folder and refer to the copies; see `ChromaStore.keep_picture`.
            A PIL image is kept as PNG.
        limits: Which pictures are accepted, and whether URLs are fetched.
        progress: Show a progress bar with rate and time left.

    Returns:
        The ids, in order. A picture that is stored already under its id is not embedded again.

    Raises:
        PartialIndexError: Some pictures could not be used; all others are stored.
        InputError: The lists differ in length, or a facet is blank; nothing is stored.
    """
    if isinstance(images, (str, bytes, os.PathLike, URL, DataURI, PIL.Image.Image)) or not isinstance(images, Iterable):
        raise InputError(f"images must be a list; got a single {type(images).__name__}: pass [image]")
    sources = list(images)
    for name, values in (("ids", ids), ("captions", captions), ("metadatas", metadatas)):
        if isinstance(values, str):
            raise InputError(f"{name} must be a list; got a single str: pass [{name[:-1]}]")
        if values is not None and len(values) != len(sources):
            raise InputError(f"{len(sources)} images but {len(values)} {name}; give one for each")
    call = _Call(embedder, store, limits, keep, checked_facets(facets), ids, captions, metadatas)
    call.stored = [None] * len(sources)
    with progress_bar("indexing", total=len(sources), enabled=progress) as bar:
        for group in _groups(sources, call):
            _store(group, call)
            bar.advance(len(group))
    if call.failed:
        raise PartialIndexError(call.stored, sorted(call.failed, key=lambda pair: pair[0]))
    return [id_ for id_ in call.stored if id_ is not None]


def _groups(sources: Sequence[ImageSource], call: _Call) -> Iterator[list[_Picture]]:
    group: list[_Picture] = []
    pixels = 0
    for position, source in enumerate(sources):
        try:
            picture = _opened(position, source, call)
        except InputError as error:
            call.failed.append((position, error))
            continue
        size = picture.opened.size[0] * picture.opened.size[1]
        if group and (len(group) >= _MOST_ITEMS or pixels + size > _MOST_PIXELS):
            yield group
            group, pixels = [], 0
        group.append(picture)
        pixels += size
    if group:
        yield group


def _opened(position: int, source: ImageSource, call: _Call) -> _Picture:
    name = describe_source(source)
    if isinstance(source, PIL.Image.Image):
        data, opened = None, open_image(source, limits=call.limits)
        sha256, mime_type = opened.sha256, ""
        if call.keep:
            encoded = io.BytesIO()
            opened.image.save(encoded, "PNG")
            data, mime_type = encoded.getvalue(), "image/png"
            sha256 = hashlib.sha256(data).hexdigest()
    else:
        data = read_bytes(source, limits=call.limits)
        opened = open_image(data, limits=call.limits, name=name)
        sha256, mime_type = opened.sha256, opened.mime_type or ""
    place, source_type = _place(source)
    if call.keep and data is not None:
        place, source_type = call.store.keep_picture(data, mime_type), "path"
    record = Record(
        image_id(sha256) if call.ids is None else call.ids[position],
        "image",
        text="" if call.captions is None else call.captions[position],
        source=place,
        metadata={} if call.metadatas is None else call.metadatas[position],
        source_type=source_type,
        sha256=sha256,
        mime_type=mime_type,
    )
    return _Picture(position, record, opened)


def _place(source: ImageSource) -> tuple[str, SourceType]:
    if isinstance(source, URL):
        return source.url, "url"
    if isinstance(source, (str, os.PathLike)):
        # Absolute, so that it means the same wherever the store is opened from.
        return os.path.abspath(os.fsdecode(source)), "path"
    return "", "path"


def _store(group: Sequence[_Picture], call: _Call) -> None:
    """Store a group; where that fails, one by one, so that a bad picture costs nothing but itself."""
    try:
        _store_together(group, call)
    except InputError as error:
        if len(group) == 1:
            call.failed.append((group[0].position, error))
            return
        for picture in group:
            _store([picture], call)


def _store_together(group: Sequence[_Picture], call: _Call) -> None:
    store = call.store
    hashes = {record.id: record.sha256 for record in store.get([p.record.id for p in group])}
    stored = [hashes.get(p.record.id) == p.record.sha256 for p in group]
    known = store.vectors(p.record.id for p, is_stored in zip(group, stored, strict=True) if is_stored)
    # Equal pictures are embedded once.
    new = {p.record.sha256: p for p, is_stored in zip(group, stored, strict=True) if not is_stored}
    vectors = dict(zip(new, call.embedder.embed([Image(p.opened.image) for p in new.values()]), strict=True))
    rows: list[Vectors] = [
        known[p.record.id] if is_stored else vectors[p.record.sha256]
        for p, is_stored in zip(group, stored, strict=True)
    ]
    # Of pictures with one id the last is the one that is stored.
    last = {p.record.id: (p, is_stored) for p, is_stored in zip(group, stored, strict=True)}
    have = store.facet_names(id_ for id_, (_, is_stored) in last.items() if is_stored) if call.facets else {}
    lacks = [(p, facet) for p, _ in last.values() for facet in call.facets if facet not in have.get(p.record.id, ())]
    # All that can go wrong with a picture before any of it is stored.
    facets = call.embedder.embed([InstructedImage(p.opened.image, facet) for p, facet in lacks])
    store.add([p.record for p in group], rows)
    store_facets(store, [(p.record.id, facet) for p, facet in lacks], facets)
    for picture in group:
        call.stored[picture.position] = picture.record.id
