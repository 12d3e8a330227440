"""Pictures that clients send ahead of their requests, by content: each is sent once."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import threading
from collections import OrderedDict
from pathlib import Path

from abc_rag.errors import InputError
from abc_rag.files import write

__all__ = ["Blobs", "checked_sha256"]

_SHA256 = re.compile("[0-9a-f]{64}")


def checked_sha256(value: str) -> str:
    """A hash in 64 small hexadecimal digits, so that it can name a file.

    Raises:
        InputError: It is none.
    """
    if not _SHA256.fullmatch(value):
        raise InputError("a picture is named by its SHA-256: 64 small hexadecimal digits")
    return value


class Blobs:
    """A cache of bytes on disk. The least recently used go first; a client that misses one sends it again.

    A tenant sees its own only: that a hash is known would tell what others have.

    Args:
        folder: Where they are; emptied at the start.
        most_bytes: Maximum of all together.
    """

    def __init__(self, folder: Path, most_bytes: int) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self._folder = folder
        self._most_bytes = most_bytes
        self._sizes: OrderedDict[tuple[str, str], int] = OrderedDict()
        self._held = 0
        self._lock = threading.Lock()

    def has(self, tenant: str, sha256: str) -> bool:
        """Whether a picture is there; it counts as used."""
        with self._lock:
            found = (tenant, sha256) in self._sizes
            if found:
                self._sizes.move_to_end((tenant, sha256))
            return found

    def read(self, tenant: str, sha256: str) -> bytes | None:
        """The bytes of a picture; None if they are not there."""
        if not self.has(tenant, sha256):
            return None
        try:
            return self._path(tenant, sha256).read_bytes()
        except FileNotFoundError:  # removed a moment ago
            return None

    def put(self, tenant: str, sha256: str, data: bytes) -> bool:
        """Keep bytes; whether they are new.

        Raises:
            InputError: They have another hash, or are more than the cache may hold.
        """
        found = hashlib.sha256(data).hexdigest()
        if found != checked_sha256(sha256):
            raise InputError(f"the bytes have the SHA-256 {found}, not {sha256}; send them under that name")
        if len(data) > self._most_bytes:
            raise InputError(f"{len(data):,} bytes are more than the server keeps; send a smaller picture")
        if self.has(tenant, sha256):
            return False
        path = self._path(tenant, sha256)
        path.parent.mkdir(exist_ok=True)
        write(path, data, durable=False)
        with self._lock:
            if (tenant, sha256) in self._sizes:
                return False
            self._sizes[tenant, sha256] = len(data)
            self._held += len(data)
            while self._held > self._most_bytes:
                (owner, old), size = self._sizes.popitem(last=False)
                self._held -= size
                self._path(owner, old).unlink(missing_ok=True)
        return True

    def close(self) -> None:
        """Remove all."""
        with self._lock:
            self._sizes.clear()
            self._held = 0
        shutil.rmtree(self._folder, ignore_errors=True)

    def _path(self, tenant: str, sha256: str) -> Path:
        # A tenant's name is no file name.
        return self._folder / hashlib.sha256(os.fsencode(tenant)).hexdigest()[:16] / sha256
