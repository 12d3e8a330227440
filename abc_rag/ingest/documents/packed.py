"""Packed documents (ZIP files of XML): what is in them, checked before anything is unpacked."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from abc_rag.errors import InputError
from abc_rag.images.formats import MIME_TYPES, format_of
from abc_rag.ingest.documents.options import DocumentLimits

__all__ = ["check_packed", "has_member", "opened", "parsed_xml", "picture_type"]

_MOST_MEMBERS = 20_000


def has_member(head: bytes, tail: bytes, name: bytes) -> bool:
    """Whether a file is a ZIP file that lists a member."""
    return head.startswith(b"PK\x03\x04") and name in tail


def check_packed(data: bytes, limits: DocumentLimits, xml: tuple[str, ...] = (".xml", ".rels")) -> None:
    """Check the sizes that a ZIP file declares, which bind its reader, and that its XML defines no entities.

    Args:
        data: The file.
        limits: What it may unpack to.
        xml: The ends of the names of those members that are XML without a document type.

    Raises:
        InputError: It is damaged, has too much in it, or has XML that defines a document type.
    """
    with opened(data) as packed:
        members = packed.infolist()
        size = sum(member.file_size for member in members)
        if len(members) > _MOST_MEMBERS or size > limits.max_unpacked:
            limit = f"DocumentLimits.max_unpacked={limits.max_unpacked:,}"
            raise InputError(f"unpacks to {size:,} bytes in {len(members):,} members, more than {limit}; raise it")
        for member in members:
            if member.filename.endswith(xml) and _has_type(packed.read(member)):
                raise InputError(f"defines a document type in {member.filename}, as bombs do; save it anew")


@contextmanager
def opened(data: bytes) -> Iterator[zipfile.ZipFile]:
    """A ZIP file; whatever is wrong with it is an `InputError`."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as packed:
            yield packed
    except InputError:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, OSError) as error:
        raise InputError(f"is damaged and cannot be unpacked ({error}); save it anew") from error


def _has_type(data: bytes) -> bool:
    return any("<!DOCTYPE".encode(encoding) in data for encoding in ("ascii", "utf-16-le", "utf-16-be"))


def parsed_xml(data: bytes) -> Any:  # noqa: ANN401
    """The outer element of a small XML file; nothing is loaded, no entity is replaced.

    Raises:
        InputError: It defines a document type, or is no XML.
    """
    import lxml.etree

    if _has_type(data):
        raise InputError("has XML that defines a document type, as bombs do; save it anew")
    parser = lxml.etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False)
    try:
        return lxml.etree.fromstring(data, parser)
    except (lxml.etree.XMLSyntaxError, ValueError) as error:
        raise InputError(f"has damaged XML ({error}); save it anew") from error


def picture_type(data: bytes) -> str:
    """The type of an embedded picture; empty if it is of no format that is read, such as a drawing."""
    kind = format_of(data[:64])
    return "" if kind is None else MIME_TYPES[kind]
