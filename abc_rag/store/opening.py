"""Where a store is, as one text: a folder, ``lance://...``, an object store, or the URL of a Chroma server."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from abc_rag.errors import InputError

if TYPE_CHECKING:
    from abc_rag.store.base import Store
    from abc_rag.types import Fingerprint

__all__ = ["holds_store", "marks_store", "open_store"]

LANCE = "lance://"
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+)://", re.IGNORECASE)
_SERVERS = ("http", "https")
_OBJECTS = ("s3", "gs", "az")
_DATASET = ".lance"
_CHROMA = "chroma.sqlite3"


def open_store(
    place: str | os.PathLike[str],
    *,
    collection: str = "abc",
    fingerprint: Fingerprint | str | None = None,
    headers: Mapping[str, str] | None = None,
    keywords: str | os.PathLike[str] | None = None,
    shards: int | None = None,
) -> Store:
    """Open the store that a text names.

    - ``"lance://FOLDER"``: `abc_rag.store.LanceStore` in a folder.
    - ``"s3://BUCKET/FOLDER"``, ``"gs://..."``, ``"az://..."``: `abc_rag.store.LanceStore` on an object store.
    - ``"http://..."``, ``"https://..."``: `abc_rag.ChromaStore` on a server.
    - A folder that holds Lance datasets: `abc_rag.store.LanceStore`.
    - Any other folder: `abc_rag.ChromaStore`, made if missing.

    Args:
        place: As above; what is no str is a folder.
        collection: Name of the collection.
        fingerprint: Whose vectors go in and out; None opens whatever there is.
        headers: For a Chroma server.
        keywords: Folder on this machine for the keyword index, where the store is not on this machine.
        shards: Of how many collections a new store on a Chroma server is; None opens one as it was made.

    Raises:
        InputError: There is no such kind of place, ``headers``, ``keywords`` or ``shards`` are not for it, or the store
            was made with other ``shards``.
        StoreError: As the store says.
    """
    kind, rest = _kind(place)
    if headers is not None and kind != "server":
        raise InputError("headers are for a Chroma server: give its http:// or https:// URL")
    if shards is not None and kind != "server":
        raise InputError(f"{rest}: shards are for a Chroma server; leave them out, or give its http:// or https:// URL")
    if kind == "server":
        from abc_rag.store.chroma.store import ChromaStore

        return ChromaStore(
            url=rest,
            collection=collection,
            fingerprint=fingerprint,
            headers=headers,
            keywords=keywords,
            shards=shards,
        )
    if kind == "lance":
        from abc_rag.store.lance.store import LanceStore

        return LanceStore(rest, collection=collection, fingerprint=fingerprint, keywords=keywords)
    from abc_rag.store.chroma.store import ChromaStore

    if keywords is not None:
        raise InputError(f"{rest}: a folder has its keyword index in itself; leave keywords out")
    return ChromaStore(rest, collection=collection, fingerprint=fingerprint)


def holds_store(place: str | os.PathLike[str]) -> bool:
    """Whether there is a store already; of servers and object stores, this says yes without asking them."""
    # Opening would make one, even in a folder of pictures.
    kind, rest = _kind(place)
    if kind == "server" or (kind == "lance" and _SCHEME.match(rest)):
        return True
    return _holds_lance(rest) if kind == "lance" else os.path.isfile(os.path.join(rest, _CHROMA))


def marks_store(name: str) -> bool:
    """Whether a file or folder of this name makes the folder that it is in a store."""
    return name == _CHROMA or name.endswith(_DATASET)


def _kind(place: str | os.PathLike[str]) -> tuple[str, str]:
    """``"server"``, ``"lance"`` or ``"chroma"``, and what its class takes."""
    text = os.fspath(place)
    if not isinstance(text, str) or not text:
        raise InputError(f"a store's place is a folder or a URL, not {place!r}")
    found = _SCHEME.match(text) if isinstance(place, str) else None
    if found is None:
        return ("lance" if _holds_lance(text) else "chroma"), text
    scheme = found[1].lower()
    if scheme in _SERVERS:
        return "server", text
    if scheme == "lance":
        rest = text[len(LANCE) :]
        if not rest:
            raise InputError(f"{text!r} names no folder; write lance://FOLDER")
        return "lance", rest
    if scheme in _OBJECTS:
        return "lance", text
    raise InputError(
        f"{text!r}: there is no store of kind {scheme!r}; write a folder, lance://FOLDER, s3://BUCKET/FOLDER "
        "(or gs, az), or the http:// URL of a Chroma server"
    )


def _holds_lance(folder: str) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(entry.name.endswith(_DATASET) and entry.is_dir() for entry in entries)
    except OSError:
        return False
