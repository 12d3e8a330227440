"""What there is to index, cut into units that one task reads each."""

from __future__ import annotations

import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abc_rag.errors import InputError, MissingExtraError
from abc_rag.ingest.files import IMAGE_SUFFIXES, TEXT_SUFFIXES, find_files, kind_of_name
from abc_rag.ingest.report import IndexReport
from abc_rag.store.lance.client import import_lance, translated

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

__all__ = ["ARCHIVES", "LANCE", "TABLES", "Unit", "file_system", "units_of"]

Unit = Mapping[str, Any]
"""What one task reads, as plain JSON: ``kind`` is files, objects, tar, parquet or lance."""
ARCHIVES, TABLES, LANCE = (".tar",), (".parquet",), ".lance"
_DOCUMENTS = 8
_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_WEB = re.compile(r"https?://", re.IGNORECASE)
_WILDCARD = re.compile(r"[*?\[]")


def units_of(
    sources: Sequence[str | os.PathLike[str]],
    report: IndexReport,
    *,
    exclude: Sequence[str] = (),
    follow_links: bool = False,
    most: int = 64,
) -> Iterator[Unit]:
    """The units of all sources.

    A name that ends in ``.tar``, ``.parquet`` or ``.lance`` is an archive in WebDataset's form or a table. Any other is
    a file or a folder, on this machine or, with ``PROTOCOL://``, wherever fsspec reads. ``*`` stands for part of a
    name.

    Args:
        sources: What to index.
        report: Receives what was left out.
        exclude: Patterns of what to leave out of local folders, as for `abc_rag.ingest.index_paths`.
        follow_links: Also read what links in local folders point to outside of them.
        most: Files in a unit.

    Raises:
        InputError: A source does not exist, or is of no kind that is read.
        MissingExtraError: fsspec, or its part for an object store, is not installed.
    """
    if isinstance(sources, (str, os.PathLike)):
        raise InputError(f"sources must be a list; got a single {type(sources).__name__}: pass [source]")
    local: list[str] = []
    for source in sources:
        name = os.fspath(source)
        if _WEB.match(name):
            raise InputError(f"{name}: web pages are not indexed on a cluster; put picture URLs into a table")
        if _URL.match(name) or _WILDCARD.search(name) or name.endswith((*ARCHIVES, *TABLES)):
            yield from _elsewhere(name, report, most)
        elif name.rstrip("/").endswith(LANCE):
            yield from _fragments(os.path.abspath(os.path.expanduser(name)))
        else:
            local.append(name)
    if local:
        yield from _local(local, report, exclude, follow_links, most)


def file_system(url: str) -> tuple[AbstractFileSystem, str]:
    """What reads a URL or a local path, and the path within it.

    Raises:
        MissingExtraError: fsspec, or its part for this protocol, is not installed.
        InputError: There is no such protocol.
    """
    try:
        from fsspec.core import url_to_fs
    except ModuleNotFoundError as error:
        raise MissingExtraError.for_module(error, "indexing on a cluster", extra="ray") from error
    try:
        found, path = url_to_fs(os.path.expanduser(url))
    except ImportError as error:
        raise MissingExtraError(f"{url}: fsspec says what it needs: {error}") from error
    except ValueError as error:
        raise InputError(f"{url}: cannot be read ({error}); write a path, file://, s3:// or gs://") from error
    found.invalidate_cache()  # it is the same object for a whole process, which remembers what it has listed
    return found, str(path)


def _local(
    given: Sequence[str], report: IndexReport, exclude: Sequence[str], follow_links: bool, most: int
) -> Iterator[Unit]:
    found = find_files([Path(name) for name in given], report, exclude=exclude, follow_links=follow_links)
    for is_document, count in ((False, most), (True, _DOCUMENTS)):
        files = iter([[str(path), kind] for path, kind in found if (kind == "document") == is_document])
        while some := list(islice(files, count)):
            yield {"kind": "files", "files": some}


def _elsewhere(name: str, report: IndexReport, most: int) -> Iterator[Unit]:
    """Units of what fsspec finds."""
    system, path = file_system(name)
    protocol = "" if not _URL.match(name) else name.partition("://")[0] + "://"

    def url(one: str) -> str:
        return f"{protocol}{system._strip_protocol(one)}" if protocol else one

    try:
        if path.rstrip("/").endswith(LANCE):
            yield from _fragments(url(path.rstrip("/")))
            return
        found = sorted(system.glob(path)) if _WILDCARD.search(path) else [path]
        files: list[str] = []
        for one in found:
            if system.isdir(one):
                files += sorted(system.find(one))
            elif system.exists(one):
                files.append(one)
    except (OSError, ValueError) as error:
        raise InputError(f"{name}: cannot be listed ({error}); check the name and your access") from error
    if not files:
        raise InputError(f"{name}: there is nothing of that name; check it")
    yield from _objects([url(one) for one in files], report, most)


def _objects(urls: Sequence[str], report: IndexReport, most: int) -> Iterator[Unit]:
    plain: list[list[str]] = []
    left_out: Counter[str] = Counter()
    for url in urls:
        kind = kind_of_name(url)
        if url.endswith(ARCHIVES):
            yield {"kind": "tar", "url": url}
        elif url.endswith(TABLES):
            yield from _row_groups(url)
        elif posixpath.basename(url).startswith("."):
            left_out["hidden"] += 1
        elif kind is not None:
            plain.append([url, kind])
        else:
            known = ", ".join([*sorted(IMAGE_SUFFIXES | TEXT_SUFFIXES), *ARCHIVES, *TABLES])
            left_out[f"of another name than {known}"] += 1
    for why, count in left_out.items():
        report.left_out[why] = report.left_out.get(why, 0) + count
    for start in range(0, len(plain), most):
        yield {"kind": "objects", "files": plain[start : start + most]}


def _row_groups(url: str) -> Iterator[Unit]:
    import pyarrow.parquet as pq

    system, path = file_system(url)
    try:
        with system.open(path, "rb") as file:
            groups = pq.ParquetFile(file).num_row_groups
    except (OSError, ValueError) as error:
        raise InputError(f"{url}: cannot be read as Parquet ({error}); check the file") from error
    for group in range(groups):
        yield {"kind": "parquet", "url": url, "group": group}


def _fragments(uri: str) -> Iterator[Unit]:
    lance = import_lance()
    with translated(uri):
        dataset = lance.dataset(uri)
        for fragment in dataset.get_fragments():
            yield {"kind": "lance", "url": uri, "version": dataset.version, "fragment": fragment.fragment_id}
