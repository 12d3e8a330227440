"""The items of one unit: records without vectors, and the bytes of pictures. A bad one costs only itself."""

from __future__ import annotations

import hashlib
import json
import posixpath
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any

from abc_rag.embedding.ahead import named
from abc_rag.errors import ABCRagError, ImageFetchError, InputError
from abc_rag.images.limits import refuse
from abc_rag.images.open import mime_type_of
from abc_rag.images.read import read_bytes
from abc_rag.ingest.cluster.options import Reading
from abc_rag.ingest.cluster.sources import Unit, file_system
from abc_rag.ingest.documents.open import OpenDocument
from abc_rag.ingest.documents.process import DocumentProcess
from abc_rag.ingest.files import IMAGE_SUFFIXES, TEXT_SUFFIXES
from abc_rag.ingest.passages import passages_in, passages_of
from abc_rag.store.lance.client import import_lance
from abc_rag.store.records import checked_records, filterable, image_id, text_id
from abc_rag.types import URL, MetadataValue, Record, SourceType

__all__ = ["Failure", "Item", "items_of"]

_MOST_TEXT = 20 * 2**20 + 1
_ROWS = 64
_BLOCK = 512


@dataclass(frozen=True)
class Failure:
    """What cannot be used.

    Attributes:
        place: Where it is.
        reason: What is wrong with it.
    """

    place: str
    reason: str


@dataclass(frozen=True)
class Item:
    """What may get vectors.

    Attributes:
        place: Where it was found, which nothing else has.
        record: What is stored.
        data: Of a picture, its bytes.
        keep: Whether a copy is kept.
    """

    place: str
    record: Record
    data: bytes = field(default=b"", repr=False)
    keep: bool = False


def items_of(unit: Unit, reading: Reading) -> Iterator[Item | Failure]:
    """The items of a unit, always in the same order."""
    readers = {"files": _files, "objects": _objects, "tar": _tar, "parquet": _parquet, "lance": _lance}
    yield from readers[unit["kind"]](unit, reading)


def _failure(error: ABCRagError, place: str) -> Failure:
    return Failure(place, str(named(error, place)).removeprefix(f"{place}: "))


def _picture(
    data: bytes,
    place: str,
    reading: Reading,
    *,
    source: str = "",
    source_type: SourceType = "path",
    text: str = "",
    metadata: Mapping[str, MetadataValue] | None = None,
) -> Item | Failure:
    sha256 = hashlib.sha256(data).hexdigest()
    try:
        mime_type = mime_type_of(data, limits=reading.limits, name=place)
        (record,) = checked_records(
            [
                Record(
                    image_id(sha256, text, metadata),
                    "image",
                    text=text,
                    source=source,
                    metadata=metadata or {},
                    source_type=source_type,
                    sha256=sha256,
                    mime_type=mime_type,
                )
            ]
        )
    except InputError as error:
        return _failure(error, place)
    return Item(place, record, data, keep=not source and reading.keep)


def _passages(texts: list[str], place: str, source: str, source_type: SourceType = "path") -> Iterator[Item]:
    for text in dict.fromkeys(texts):
        record = Record(text_id(text), "text", text=text, source=source, source_type=source_type)
        yield Item(f"{place}#{record.id}", record)


def _files(unit: Unit, reading: Reading) -> Iterator[Item | Failure]:
    with DocumentProcess() as process:
        for path, kind in unit["files"]:
            try:
                path.encode()
                if kind == "document":
                    yield from _document(path, reading, process)
                elif kind == "text":
                    yield from _passages(passages_of(Path(path)), path, path)
                elif kind == "image":
                    yield _picture(read_bytes(path, limits=reading.limits), path, reading, source=path)
                else:
                    yield Failure(path, "files of this kind are not indexed; leave it out")
            except UnicodeEncodeError:
                yield Failure(repr(path), "its name is not valid Unicode; rename it")
            except InputError as error:
                yield _failure(error, path)


def _document(path: str, reading: Reading, process: DocumentProcess) -> Iterator[Item | Failure]:
    document = OpenDocument.of(Path(path), reading.documents)
    for chunk in document.chunks(process):
        for made in chunk:
            yield Item(f"{path}#{made.record.id}", made.record, made.data, keep=bool(made.data))
    for unread in document.unread:
        yield Failure(path if unread.page is None else f"{path}, p. {unread.page}", unread.reason)


def _objects(unit: Unit, reading: Reading) -> Iterator[Item | Failure]:
    for url, kind in unit["files"]:
        try:
            is_picture = kind == "image"
            system, path = file_system(url)
            with system.open(path, "rb") as file:
                data = _limited(file, url, reading) if is_picture else file.read(_MOST_TEXT)
            # What lies on this machine can be opened again by its path.
            local = system.protocol in ("file", ("file", "local"))
            source, source_type = (path, "path") if local else (url, "url")
            if is_picture:
                yield _picture(data, url, reading, source=source, source_type=source_type)  # type: ignore[arg-type]
            else:
                yield from _passages(passages_in(data, url), url, source, source_type)  # type: ignore[arg-type]
        except InputError as error:
            yield _failure(error, url)
        except (OSError, ValueError) as error:
            yield Failure(url, f"cannot be read ({error}); check your access")


def _limited(file: IO[bytes], name: str, reading: Reading) -> bytes:
    most = reading.limits.max_bytes
    data = file.read(most + 1)
    if len(data) > most:
        refuse(name, f"more than {most:,} bytes", "max_bytes", reading.limits)
    if not data:
        raise ImageFetchError(name, "is empty (0 bytes); pass a picture's encoded bytes")
    return data


def _tar(unit: Unit, reading: Reading) -> Iterator[Item | Failure]:
    """WebDataset: members that follow each other and differ only in what stands behind the first dot are a sample."""
    url = unit["url"]
    system, path = file_system(url)
    key, sample = None, _Sample(url, reading)
    try:
        with system.open(path, "rb") as opened, tarfile.open(fileobj=opened, mode="r|") as archive:
            for member in archive:
                if not member.isfile():
                    continue
                folder, name = posixpath.split(member.name)
                stem, _, suffix = name.partition(".")
                if (folder, stem) != key:
                    yield from sample.items()
                    key, sample = (folder, stem), _Sample(url, reading)
                file = archive.extractfile(member)
                assert file is not None  # it is a file
                sample.add(member.name, suffix.lower(), member.size, file)
            yield from sample.items()
        size = system.size(path) or 0
        # tarfile takes whatever follows for the end.
        if system.cat_file(path, start=max(0, size - _BLOCK), end=size).strip(b"\0"):
            raise EOFError("it is cut short")
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        yield Failure(url, f"cannot be read to its end ({error}); write the archive anew")


class _Sample:
    """Members of an archive that belong together."""

    def __init__(self, url: str, reading: Reading) -> None:
        self._url = url
        self._reading = reading
        self._pictures: list[tuple[str, bytes | InputError]] = []
        self._text = ""
        self._metadata: dict[str, MetadataValue] = {}
        self._failures: list[Failure] = []

    def add(self, name: str, suffix: str, size: int, file: IO[bytes]) -> None:
        last = "." + suffix.rpartition(".")[2]
        place = f"{self._url}#{name}"
        try:
            if last in IMAGE_SUFFIXES:
                self._pictures.append((place, _limited(file, place, self._reading)))
            elif last in TEXT_SUFFIXES or last == ".json":
                if size >= _MOST_TEXT:
                    raise InputError(f"{place}: larger than 20 MiB; leave it out")
                text = file.read().decode("utf-8-sig")
                if last == ".json":
                    told = json.loads(text)
                    if not isinstance(told, dict):
                        raise InputError(f"{place}: no JSON object; write one, or leave it out")
                    self._metadata |= _chosen(told, self._reading)
                else:
                    self._text = text.strip()
        except InputError as error:
            self._failures.append(_failure(error, place))
        except (ValueError, RecursionError) as error:
            self._failures.append(Failure(place, f"cannot be read ({error}); write it anew"))

    def items(self) -> Iterator[Item | Failure]:
        yield from self._failures
        for place, data in self._pictures:
            yield _picture(data, place, self._reading, text=self._text, metadata=self._metadata)  # type: ignore[arg-type]


def _chosen(row: Mapping[str, Any], reading: Reading) -> dict[str, MetadataValue]:
    found = {name: filterable(row[name]) for name in reading.columns.metadata if row.get(name) is not None}
    return {name: value for name, value in found.items() if value is not None}


def _parquet(unit: Unit, reading: Reading) -> Iterator[Item | Failure]:
    import pyarrow.parquet as pq

    url, group = unit["url"], unit["group"]
    system, path = file_system(url)
    try:
        with system.open(path, "rb") as opened, closing(pq.ParquetFile(opened)) as table:
            first = sum(table.metadata.row_group(before).num_rows for before in range(group))
            _require_columns(table.schema_arrow.names, url, reading)
            wanted = partial(table.iter_batches, batch_size=_ROWS, row_groups=[group])
            for batch in wanted(columns=_wanted(reading)):
                yield from _rows(batch.to_pylist(), f"{url}#", first, reading)
                first += batch.num_rows
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        yield Failure(f"{url}#row group {group}", f"cannot be read ({error}); write the file anew")


def _lance(unit: Unit, reading: Reading) -> Iterator[Item | Failure]:
    lance = import_lance()
    url, number = unit["url"], unit["fragment"]
    dataset = lance.dataset(url, version=unit["version"])
    _require_columns(dataset.schema.names, url, reading)
    first = 0
    try:
        for batch in dataset.get_fragment(number).to_batches(columns=_wanted(reading), batch_size=_ROWS):
            yield from _rows(batch.to_pylist(), f"{url}#{number}/", first, reading)
            first += batch.num_rows
    except (OSError, ValueError) as error:
        yield Failure(f"{url}#{number}/{first}", f"cannot be read ({error}); write the table anew")


def _wanted(reading: Reading) -> list[str]:
    columns = reading.columns
    return list(dict.fromkeys([columns.image, *([columns.text] if columns.text else []), *columns.metadata]))


def _require_columns(names: list[str], url: str, reading: Reading) -> None:
    missing = [name for name in _wanted(reading) if name not in names]
    if missing:
        raise InputError(
            f"{url}: it has no column {', '.join(map(repr, missing))}; it has {', '.join(names)}: name those that are "
            "meant (--image-column, --text-column, --metadata-column)"
        )


def _rows(rows: list[dict[str, Any]], place: str, first: int, reading: Reading) -> Iterator[Item | Failure]:
    columns = reading.columns
    for number, row in enumerate(rows, first):
        here = f"{place}{number}"
        text = row[columns.text] if columns.text else None
        value = row[columns.image]
        value = value.get("bytes") if isinstance(value, dict) else value
        url = value if isinstance(value, str) else ""
        try:
            if not isinstance(value, (bytes, str)):
                raise InputError(f"{here}: no picture in column {columns.image!r}, but {type(value).__name__}; fill it")
            data = read_bytes(URL(url) if url else value, limits=reading.limits)
            yield _picture(
                data,
                here,
                reading,
                source=url,
                source_type="url" if url else "path",
                text=text if isinstance(text, str) else "",
                metadata=_chosen(row, reading),
            )
        except InputError as error:
            yield _failure(error, here)
