"""API keys: who may ask, for what, and how often. Only hashes are kept.

A key is ``abc-ID-SECRET``. The secret has 256 random bits, so one SHA-256 is enough: nobody guesses it, with or without
the file. The file is read again when it changes, so a removed key is refused from its next request on.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from filelock import FileLock

from abc_rag.errors import InputError
from abc_rag.files import new_file

__all__ = ["ApiKey", "Keys", "Scope"]

Scope = Literal["read", "write", "admin"]
"""``read``: embed, rerank, search and ask. ``write``: also make collections and add to them. ``admin``: also delete
collections, and read the metrics."""

_TOKEN = re.compile(r"abc-([0-9a-f]{12})-([A-Za-z0-9_-]{43})")
_NAME = re.compile(r"[a-zA-Z0-9](?:[a-zA-Z0-9_-]{0,30}[a-zA-Z0-9])?")
_NOBODY = hashlib.sha256(b"").hexdigest()


@dataclass(frozen=True, kw_only=True)
class ApiKey:
    """A key as it is kept.

    Attributes:
        id: Names it in logs and lists.
        name: What it is for, in the operator's words.
        tenant: Whose it is. Keys of one tenant share collections; another's are invisible.
        scope: What it may do.
        sha256: Hash of its secret.
        per_minute: Maximum requests in a minute; None for no maximum.
        at_once: Maximum requests in progress; None for no maximum.
        created: When it was made, in seconds since 1970.
    """

    id: str
    name: str
    tenant: str
    scope: Scope
    sha256: str
    per_minute: int | None = None
    at_once: int | None = None
    created: float = 0.0


class Keys:
    """The keys in a file.

    Args:
        path: The file; missing means that there are none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._read: tuple[tuple[int, int] | None, dict[str, ApiKey]] = (None, {})

    def all(self) -> list[ApiKey]:
        """Every key.

        Raises:
            InputError: The file is damaged.
        """
        return list(self._current().values())

    def add(
        self,
        name: str,
        *,
        scope: Scope = "read",
        tenant: str = "default",
        per_minute: int | None = None,
        at_once: int | None = None,
    ) -> tuple[ApiKey, str]:
        """Make a key; the second value is the key itself, which is not kept and cannot be shown again.

        Raises:
            InputError: A value is unusable.
        """
        if scope not in get_args(Scope):
            raise InputError(f"scope must be one of {', '.join(get_args(Scope))}, not {scope!r}")
        if not name.strip() or len(name) > 100 or not name.isprintable():
            raise InputError("a key's name is a line of at most 100 characters")
        if not _NAME.fullmatch(tenant):
            raise InputError(f"tenant {tenant[:60]!r}: a name has 1 to 32 characters of [a-zA-Z0-9_-]")
        for what, value in (("per_minute", per_minute), ("at_once", at_once)):
            if value is not None and (type(value) is not int or value < 1):
                raise InputError(f"{what} must be an int of at least 1, not {value!r}")
        secret = secrets.token_urlsafe(32)
        key = ApiKey(
            id=secrets.token_hex(6),
            name=name,
            tenant=tenant,
            scope=scope,
            sha256=hashlib.sha256(secret.encode()).hexdigest(),
            per_minute=per_minute,
            at_once=at_once,
            created=round(time.time(), 3),
        )
        self._change(lambda keys: keys.update({key.id: key}))
        return key, f"abc-{key.id}-{secret}"

    def remove(self, id_: str) -> None:
        """Remove a key.

        Raises:
            InputError: There is none of that id.
        """

        def without(keys: dict[str, ApiKey]) -> None:
            if keys.pop(id_, None) is None:
                raise InputError(f"there is no key {id_[:60]!r}; list them with: abc-rag serve keys list")

        self._change(without)

    def find(self, token: str) -> ApiKey | None:
        """The key that a client sent; None if there is none such. Takes the same time for a wrong id and secret."""
        match = _TOKEN.fullmatch(token)
        key = self._current().get(match[1]) if match else None
        given = hashlib.sha256((match[2] if match else "").encode()).hexdigest()
        same = hmac.compare_digest(given, key.sha256 if key else _NOBODY)
        return key if same and match else None

    def _current(self) -> dict[str, ApiKey]:
        try:
            status = self.path.stat()
        except FileNotFoundError:
            return {}
        stamp = (status.st_mtime_ns, status.st_ino)
        with self._lock:
            if self._read[0] != stamp:
                self._read = (stamp, self._parsed())
            return self._read[1]

    def _parsed(self) -> dict[str, ApiKey]:
        try:
            text = self.path.read_text(encoding="utf-8")
            told = json.loads(text) if text else {"keys": []}
            return {one["id"]: ApiKey(**one) for one in told["keys"]}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{self.path}: the keys cannot be read ({error}); restore or remove the file") from error

    def _change(self, change: object) -> None:
        assert callable(change)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{self.path}.lock", timeout=10):
            # Made first, as a file that is replaced keeps its mode. An empty one has no keys.
            os.close(os.open(self.path, os.O_CREAT | os.O_WRONLY, 0o600))
            keys = self._parsed()
            change(keys)
            with new_file(self.path) as draft:
                draft.write_text(json.dumps({"keys": [asdict(key) for key in keys.values()]}, indent=2) + "\n")
