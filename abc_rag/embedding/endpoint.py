"""Where a server is, and the key for it."""

from __future__ import annotations

import ipaddress
import os
import urllib.parse

from abc_rag.errors import InputError

__all__ = ["OPENAI", "checked_url", "is_address", "is_loopback", "key_in"]

OPENAI = "openai:"
"""Before the address of a server whose embeddings are asked for by OpenAI's protocol."""


def checked_url(url: str) -> str:
    """The base URL without what stands behind it. Messages do not repeat it: it may hold a password.

    Raises:
        InputError: It is no URL of a server, or has more than scheme, host, port and path.
    """
    try:
        parts = urllib.parse.urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except (ValueError, TypeError, AttributeError):
        usable = False
    if not usable:
        raise InputError("base_url must be an http:// or https:// address, such as http://127.0.0.1:8000/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise InputError("base_url must have no user, password, query or fragment; pass a key through api_key_env")
    return url.rstrip("/").removesuffix("/chat/completions")


def is_address(model: str) -> bool:
    """Whether the name of a model is the address of a server that has it."""
    return model.lower().removeprefix(OPENAI).startswith(("http://", "https://"))


def is_loopback(url: str) -> bool:
    """Whether a URL points to this machine. Such a server is never asked through a proxy."""
    host = urllib.parse.urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def key_in(variable: str | None, url: str) -> str | None:
    """The key that an environment variable holds for a server; None without a variable.

    Raises:
        InputError: It is not set, or holds what no key is.
    """
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise InputError(f"${variable} is not set; set it to the key for {url}")
    # Checked here, as httpx would repeat the key in its message.
    if not key.isascii() or not key.isprintable():
        raise InputError(f"${variable} holds characters that no key has; correct it")
    return key
