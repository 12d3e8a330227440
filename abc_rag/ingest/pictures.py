"""Pictures from any source into a store."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace

import PIL.Image

from abc_rag.embedding.ahead import Part, embedded, named
from abc_rag.embedding.embedder import Embedder
from abc_rag.embedding.progress import progress_bar
from abc_rag.embedding.projected import projected_by
from abc_rag.errors import ABCRagError, InputError, PartialIndexError
from abc_rag.images.limits import DEFAULT_LIMITS, ImageLimits
from abc_rag.images.open import content_hash, mime_type_of, open_image
from abc_rag.images.read import describe_source, read_bytes
from abc_rag.ingest.facets import checked_facets, store_facets
from abc_rag.store.base import Store
from abc_rag.store.projection import kept_projection
from abc_rag.store.records import image_id
from abc_rag.types import (
    URL,
    DataURI,
    Image,
    ImageSource,
    Input,
    InstructedImage,
    MetadataValue,
    Record,
    SourceType,
    Vectors,
)

__all__ = ["index_images"]

# Pictures that are stored together, and the maximum of their bytes.
_MOST_ITEMS = 64
_MOST_BYTES = 64 * 2**20


@dataclass
class _Picture:
    """One picture of a call, until it is stored.

    Attributes:
        position: Its position in the call.
        record: What is stored.
        source: What the embedder gets: its bytes, or an open picture.
        known: Its vector, if it is stored already.
        lacks: The facets that have to be embedded.
    """

    position: int
    record: Record
    source: bytes | PIL.Image.Image
    known: Vectors | None = None
    lacks: Sequence[str] = ()

    @property
    def held(self) -> int:
        """Bytes; an open picture is the caller's."""
        return len(self.source) if isinstance(self.source, bytes) else 0

    def wanted(self) -> dict[tuple[str, str | None], Input]:
        """Inputs by content and instruction, as equal pictures are embedded once."""
        found: dict[tuple[str, str | None], Input] = {}
        if self.known is None:
            found[self.record.sha256, None] = Image(self.source)
        for facet in self.lacks:
            found[self.record.sha256, facet] = InstructedImage(self.source, facet)
        return found


@dataclass
class _Group(Part):
    """Pictures that are stored together."""

    pictures: Sequence[_Picture]
    keys: Sequence[tuple[str, str | None]]


@dataclass
class _Call:
    """The arguments of a call, and its results."""

    sources: Sequence[ImageSource]
    store: Store
    limits: ImageLimits
    keep: bool
    facets: list[str]
    ids: Sequence[str] | None
    captions: Sequence[str] | None
    metadatas: Sequence[Mapping[str, MetadataValue]] | None
    stored: list[str | None] = field(default_factory=list)
    failed: list[tuple[int, InputError]] = field(default_factory=list)
    in_flight: set[str] = field(default_factory=set)


def index_images(
    images: Iterable[ImageSource],
    embedder: Embedder,
    store: Store,
    *,
    ids: Sequence[str] | None = None,
    captions: Sequence[str] | None = None,
    metadatas: Sequence[Mapping[str, MetadataValue]] | None = None,
    facets: Sequence[str] = (),
    keep: bool = False,
    limits: ImageLimits = DEFAULT_LIMITS,
    progress: bool = False,
) -> list[str]:
    """Embed and store pictures from any source, a few at a time; the next ones are embedded while some are stored.

    A path or a URL is stored as a reference: the picture stays where it is. Bytes, data URIs and PIL images have no
    place to refer to, so without ``keep`` they can be found, but not shown or reranked.

    Args:
        images: Paths, `URL`, `DataURI`, bytes or PIL images.
        embedder: Makes the vectors.
        store: Receives them; must be of the same model, or reduced from its vectors: then these are projected, too.
        ids: One id per picture. If not given: `abc_rag.store.image_id` of its content, caption and metadata. So equal
            pictures are one record only where these are equal too; that record has the last one's source.
        captions: One text per picture, stored beside it. It is not embedded.
        metadatas: One mapping per picture.
        facets: Instructions under which each picture gets a further vector; see `abc_rag.store.Store.add_facets`.
        keep: Copy the pictures into the store's own folder and refer to the copies; see
            `abc_rag.store.Store.keep_picture`. A PIL image is kept as PNG.
        limits: Which pictures are accepted, and whether URLs are fetched. The embedder's own limits hold as well.
        progress: Show a progress bar with rate and time left.

    Returns:
        The ids, in order. A picture that is stored already under its id is not embedded again.

    Raises:
        PartialIndexError: Some pictures could not be used; all others are stored.
        InputError: The lists differ in length, or a facet is blank; nothing is stored.
        FingerprintMismatchError: The store was reduced from vectors of another model.
    """
    if isinstance(images, (str, bytes, os.PathLike, URL, DataURI, PIL.Image.Image)) or not isinstance(images, Iterable):
        raise InputError(f"images must be a list; got a single {type(images).__name__}: pass [image]")
    embedder = projected_by(embedder, kept_projection(store))
    sources = list(images)
    for name, values in (("ids", ids), ("captions", captions), ("metadatas", metadatas)):
        if isinstance(values, str):
            raise InputError(f"{name} must be a list; got a single str: pass [{name[:-1]}]")
        if values is not None and len(values) != len(sources):
            raise InputError(f"{len(sources)} images but {len(values)} {name}; give one for each")
    if not keep:
        store.roots.add(source for source in sources if isinstance(source, (str, os.PathLike)))
    call = _Call(sources, store, limits, keep, checked_facets(facets, embedder), ids, captions, metadatas)
    call.stored = [None] * len(sources)
    with progress_bar("indexing", total=len(sources), enabled=progress) as bar:
        with closing(embedded(embedder, _groups(sources, call))) as groups:
            for group, results in groups:
                _store(group, results, call)
                bar.advance(len(group.pictures))
    if call.failed:
        raise PartialIndexError(call.stored, sorted(call.failed, key=lambda pair: pair[0]))
    return [id_ for id_ in call.stored if id_ is not None]


def _groups(sources: Sequence[ImageSource], call: _Call) -> Iterator[_Group | None]:
    read: list[_Picture] = []
    for position, source in enumerate(sources):
        try:
            picture = _read(position, source, call)
        except InputError as error:
            call.failed.append((position, error))
            continue
        if read and (len(read) >= _MOST_ITEMS or sum(p.held for p in read) + picture.held > _MOST_BYTES):
            yield from _grouped(read, call)
            read = []
        read.append(picture)
    if read:
        yield from _grouped(read, call)


def _read(position: int, source: ImageSource, call: _Call) -> _Picture:
    given: bytes | PIL.Image.Image
    if isinstance(source, PIL.Image.Image) and not call.keep:
        given, sha256, mime_type = source, content_hash(source, limits=call.limits), ""
    else:
        if isinstance(source, PIL.Image.Image):
            encoded = io.BytesIO()
            open_image(source, limits=call.limits).image.save(encoded, "PNG")
            given, mime_type = encoded.getvalue(), "image/png"
        else:
            given = read_bytes(source, limits=call.limits)
            mime_type = mime_type_of(given, limits=call.limits, name=describe_source(source))
        sha256 = hashlib.sha256(given).hexdigest()
    place, source_type = _place(source)
    caption = "" if call.captions is None else call.captions[position]
    metadata = {} if call.metadatas is None else call.metadatas[position]
    record = Record(
        image_id(sha256, caption, metadata) if call.ids is None else call.ids[position],
        "image",
        text=caption,
        source=place,
        metadata=metadata,
        source_type=source_type,
        sha256=sha256,
        mime_type=mime_type,
    )
    return _Picture(position, record, given)


def _grouped(pictures: Sequence[_Picture], call: _Call) -> Iterator[_Group | None]:
    """A group, looked up in the store once nothing that is in flight can change the answer."""
    if not call.in_flight.isdisjoint(p.record.id for p in pictures if isinstance(p.record.id, str)):
        yield None
    fine = _each_or_all(pictures, lambda some: _look_up(some, call), call)
    wanted: dict[tuple[str, str | None], Input] = {}
    for picture in fine:
        wanted |= picture.wanted()
    call.in_flight.update(picture.record.id for picture in fine)
    yield _Group(list(wanted.values()), sum(p.held for p in fine), fine, list(wanted))


def _look_up(pictures: Sequence[_Picture], call: _Call) -> None:
    hashes = {record.id: record.sha256 for record in call.store.get([p.record.id for p in pictures])}
    stored = [p for p in pictures if hashes.get(p.record.id) == p.record.sha256]
    vectors = call.store.vectors([p.record.id for p in stored])
    have = call.store.facet_names([p.record.id for p in stored]) if call.facets else {}
    for picture in pictures:
        picture.lacks = call.facets
    for picture in stored:
        picture.known = vectors[picture.record.id]
        picture.lacks = [facet for facet in call.facets if facet not in have.get(picture.record.id, ())]


def _each_or_all(
    pictures: Sequence[_Picture], use: Callable[[Sequence[_Picture]], None], call: _Call
) -> Sequence[_Picture]:
    """Use all at once; if the store refuses, one by one, so that a bad record costs only itself. Those it took."""
    try:
        if pictures:
            use(pictures)
    except InputError:
        taken = []
        for picture in pictures:
            try:
                use([picture])
                taken.append(picture)
            except InputError as error:
                call.failed.append((picture.position, error))
        return taken
    return pictures


def _place(source: ImageSource) -> tuple[str, SourceType]:
    if isinstance(source, URL):
        return source.url, "url"
    if isinstance(source, (str, os.PathLike)):
        # Absolute, so that it means the same wherever the store is opened from.
        return os.path.abspath(os.fsdecode(source)), "path"
    return "", "path"


def _store(group: _Group, results: Sequence[Vectors | ABCRagError], call: _Call) -> None:
    """Store the pictures whose vectors are complete."""
    found = dict(zip(group.keys, results, strict=True))
    fine = []
    for picture in group.pictures:
        error = next((r for key in picture.wanted() if isinstance(r := found[key], ABCRagError)), None)
        if error is None:
            fine.append(picture)
        else:
            call.failed.append((picture.position, named(error, describe_source(call.sources[picture.position]))))
    vectors = {key: result for key, result in found.items() if not isinstance(result, ABCRagError)}
    stored = _each_or_all(fine, lambda some: _store_together(some, vectors, call), call)
    for picture in stored:
        call.stored[picture.position] = picture.record.id
    call.in_flight.difference_update(picture.record.id for picture in group.pictures)


def _store_together(
    pictures: Sequence[_Picture], vectors: Mapping[tuple[str, str | None], Vectors], call: _Call
) -> None:
    records = [_kept(p, call.store) if call.keep else p.record for p in pictures]
    call.store.add(records, [vectors[p.record.sha256, None] if p.known is None else p.known for p in pictures])
    # Of pictures with one id the last is the one that is stored.
    last = {p.record.id: p for p in pictures}
    store_facets(
        call.store,
        {(id_, facet): vectors[p.record.sha256, facet] for id_, p in last.items() for facet in p.lacks},
    )


def _kept(picture: _Picture, store: Store) -> Record:
    assert isinstance(picture.source, bytes)
    return replace(
        picture.record, source=store.keep_picture(picture.source, picture.record.mime_type), source_type="path"
    )
