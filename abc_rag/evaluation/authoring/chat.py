"""What describes pictures: the seam, and any server that speaks OpenAI's chat completions."""

from __future__ import annotations

import base64
import email.utils
import ipaddress
import json
import logging
import math
import os
import random
import time
import urllib.parse
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from abc_rag.errors import ABCRagError, InputError, MissingExtraError

if TYPE_CHECKING:
    import httpx

__all__ = ["DEFAULT_BASE_URL", "Describer", "OpenAIDescriber", "is_loopback"]

_LOG = logging.getLogger(__name__)
DEFAULT_BASE_URL = "https://api.openai.com/v1"
_DEFAULT_KEY = "OPENAI_API_KEY"
_BUSY = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
_LONGEST_WAIT_S = 120.0
_MOST_BYTES = 4 * 2**20


class Describer(ABC):
    """Asks a chat model about a picture. Called from several threads at once."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The model's name. Answers are kept under it: another model's are never taken for this one's."""

    @abstractmethod
    def describe(self, image: bytes, mime_type: str, prompt: str, schema: Mapping[str, Any]) -> str:
        """Show a picture, and return the model's answer as text.

        Args:
            image: An encoded picture.
            mime_type: Of ``image``: ``"image/jpeg"``.
            prompt: What to ask.
            schema: JSON schema of the answer. A model without structured output may leave it aside: the prompt says
                the same, and answers are checked.

        Raises:
            abc_rag.errors.InputError: This picture cannot be answered for; others may be.
            abc_rag.errors.ABCRagError: No picture can: the key is wrong, or the server is not there.
        """

    def settings(self) -> dict[str, Any]:
        """What is recorded beside the results: no secrets."""
        return {"name": self.name, "type": type(self).__name__}


class _Busy(Exception):
    """A request that may be tried again."""

    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class _Refused(InputError):
    """A request that the server found wrong."""


class OpenAIDescriber(Describer):
    """A vision chat model behind a server that speaks OpenAI's ``chat/completions``, such as vLLM or Ollama.

    Pictures are sent to that server. The answer is asked for as JSON of a schema; a server that refuses that
    (400 or 422) is asked for plain text from then on.

    Args:
        model: The model's name, as the server knows it.
        base_url: Where the server is, with ``/v1`` where it has that; the default is OpenAI itself.
        api_key_env: Environment variable that holds the key. It is read for each request, and neither kept nor
            written anywhere. If not given: ``OPENAI_API_KEY`` for OpenAI itself, and no key for any other server, which
            has no business with it.
        timeout_s: Seconds that one request may take.
        retries: How often a request is sent again after a time-out, a broken connection or a status that says
            that the server is busy (408, 409, 425, 429, 500, 502, 503, 504), after a wait that doubles each time, or
            as long as its ``Retry-After`` says.

    Raises:
        InputError: An argument is of no use.
    """

    def __init__(
        self,
        model: str,
        base_url: str = DEFAULT_BASE_URL,
        api_key_env: str | None = None,
        *,
        timeout_s: float = 120.0,
        retries: int = 4,
    ) -> None:
        if not isinstance(model, str) or not model.strip():
            raise InputError(f"model must be a name that the server knows, not {model!r}")
        if isinstance(timeout_s, bool) or not isinstance(timeout_s, (int, float)) or not 0 < timeout_s < math.inf:
            raise InputError(f"timeout_s must be a finite number of seconds above 0, not {timeout_s!r}")
        if type(retries) is not int or retries < 0:
            raise InputError(f"retries must be an int of at least 0, not {retries!r}")
        self._model = model
        self._base_url = _checked_url(base_url)
        if api_key_env is None and self._base_url == DEFAULT_BASE_URL:
            api_key_env = _DEFAULT_KEY
        self._key_env = api_key_env
        self._timeout_s = float(timeout_s)
        self._retries = retries
        self._structured = True
        self._key()  # a missing key is said at once

    @property
    def name(self) -> str:
        """The model's name."""
        return self._model

    @property
    def base_url(self) -> str:
        """Where pictures are sent."""
        return self._base_url

    def settings(self) -> dict[str, Any]:
        """The model, the server and the name of the key's variable."""
        return super().settings() | {"base_url": self._base_url, "api_key_env": self._key_env}

    def describe(self, image: bytes, mime_type: str, prompt: str, schema: Mapping[str, Any]) -> str:
        """Ask; see `Describer.describe`."""
        uri = f"data:{mime_type};base64,{base64.b64encode(image).decode('ascii')}"
        content = [{"type": "text", "text": prompt}, {"type": "image_url", "image_url": {"url": uri}}]
        request: dict[str, Any] = {"model": self._model, "messages": [{"role": "user", "content": content}]}
        if not self._structured:
            return _text_of(self._send(request))
        kind = {"name": schema.get("title", "Answer"), "strict": True, "schema": dict(schema)}
        try:
            return _text_of(self._send(request | {"response_format": {"type": "json_schema", "json_schema": kind}}))
        except _Refused as refused:
            # Some servers know no response_format. If it is the picture that is wrong, the second try says so again.
            answer = _text_of(self._send(request))
            if self._structured:
                _LOG.warning("%s takes no response_format, so it is asked for JSON in words: %s", self._model, refused)
            self._structured = False
            return answer

    def _key(self) -> str | None:
        if self._key_env is None:
            return None
        key = os.environ.get(self._key_env, "").strip()
        if not key:
            raise InputError(f"${self._key_env} is not set; put the key for {self._base_url} there")
        # Said here, as httpx would repeat the key in its message.
        if not key.isascii() or not key.isprintable():
            raise InputError(f"${self._key_env} holds characters that no key has; set it anew")
        return key

    def _send(self, request: Mapping[str, Any]) -> dict[str, Any]:
        wait, tries = 1.0, 1
        while True:
            try:
                return self._post(request)
            except _Busy as busy:
                # Many threads that were refused together should not come back together.
                pause = wait * random.uniform(0.75, 1.25) if busy.retry_after is None else busy.retry_after
                if tries > self._retries or pause > _LONGEST_WAIT_S:
                    asked = f" (it asks to wait {pause:.0f} s)" if pause > _LONGEST_WAIT_S else ""
                    count = "1 try" if tries == 1 else f"{tries} tries"
                    raise ABCRagError(
                        f"{self._base_url}: no answer after {count}: {busy}{asked}; try again later"
                    ) from busy
            time.sleep(pause)
            wait, tries = min(2 * wait, _LONGEST_WAIT_S), tries + 1

    def _post(self, request: Mapping[str, Any]) -> dict[str, Any]:
        try:
            import httpx
        except ModuleNotFoundError as error:
            raise MissingExtraError.for_module(error, "asking a chat model", extra="evaluate") from error

        key = self._key()
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        # A server on this machine is not to be asked through a proxy, whatever the environment says.
        trust = not is_loopback(self._base_url)
        deadline = time.monotonic() + self._timeout_s
        try:
            with (
                httpx.Client(timeout=self._timeout_s, trust_env=trust, headers=headers) as client,
                client.stream("POST", f"{self._base_url}/chat/completions", json=dict(request)) as response,
            ):
                body = bytearray()
                for chunk in response.iter_bytes():
                    body += chunk
                    if len(body) > _MOST_BYTES:
                        raise InputError(f"{self._base_url}: the answer is larger than {_MOST_BYTES // 2**20} MiB")
                    if time.monotonic() > deadline:
                        raise _Busy(f"no whole answer within {self._timeout_s:g} s")
        except httpx.TimeoutException as error:
            raise _Busy(f"no answer within {self._timeout_s:g} s") from error
        except httpx.RequestError as error:
            raise _Busy(f"{type(error).__name__}: {error}") from error
        except httpx.InvalidURL as error:
            raise ABCRagError(f"base_url cannot be used ({error}); correct it") from error
        return self._read(response, bytes(body), key)

    def _read(self, response: httpx.Response, body: bytes, key: str | None) -> dict[str, Any]:
        status = response.status_code
        if status == 200:
            try:
                value = json.loads(body)
            except ValueError as error:
                raise InputError(f"{self._base_url}: the server's answer is not JSON") from error
            return value if isinstance(value, dict) else {}
        said = body[:2000].decode("utf-8", "replace")
        if key:  # some servers repeat it
            said = said.replace(key, "...")
        message = f"status {status}: {' '.join(_message(said).split())[:300]}"
        if status in _BUSY:
            raise _Busy(message, _retry_after(response.headers.get("Retry-After")))
        if status in (400, 413, 415, 422):
            raise _Refused(f"{self._base_url}: {message}")
        if status in (401, 403):
            where = f"look at ${self._key_env}" if self._key_env else "name the key's variable as api_key_env"
            raise ABCRagError(f"{self._base_url}: {message}; {where}")
        raise ABCRagError(f"{self._base_url}: {message}; look at the base URL and the model's name")


def is_loopback(url: str) -> bool:
    """Whether a URL is of this very machine."""
    host = urllib.parse.urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _checked_url(url: str) -> str:
    # Neither message repeats the URL: it may hold a password.
    try:
        parts = urllib.parse.urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except (ValueError, TypeError, AttributeError):
        usable = False
    if not usable:
        raise InputError("base_url must be an http:// or https:// address, such as http://127.0.0.1:8000/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise InputError("base_url must be without user, password, query and fragment; pass a key through api_key_env")
    return url.rstrip("/").removesuffix("/chat/completions")


def _text_of(answer: Mapping[str, Any]) -> str:
    """The words of the first choice.

    Raises:
        InputError: There are none.
    """
    try:
        choice = answer["choices"][0]
        message = choice["message"]
        content, refusal = message["content"], message.get("refusal")
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise InputError("the server's answer holds no choices[0].message.content") from error
    if refusal:
        raise InputError(f"the model refuses: {' '.join(str(refusal).split())[:200]}")
    if choice.get("finish_reason") == "content_filter":
        raise InputError("the server's content filter held the answer back")
    if not isinstance(content, str):
        raise InputError(f"choices[0].message.content is a {type(content).__name__} instead of text")
    return content


def _message(said: str) -> str:
    try:
        error = json.loads(said)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        return said


def _retry_after(header: str | None) -> float | None:
    """Seconds to wait: a number, or the time until a date."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(header).timestamp() - time.time()
        except ValueError:
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None
