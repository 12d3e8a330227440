"""Chat models that describe pictures: the seam, and servers with OpenAI's chat completions API."""

from __future__ import annotations

import base64
import email.utils
import json
import logging
import math
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from abc_rag.embedding.endpoint import checked_url, is_loopback, key_in
from abc_rag.errors import ABCRagError, InputError, MissingExtraError

if TYPE_CHECKING:
    import httpx

__all__ = ["DEFAULT_BASE_URL", "Describer", "OpenAIDescriber"]

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
        """The model's name. Answers are stored under it, so that those of different models are never mixed."""

    @abstractmethod
    def describe(self, image: bytes, mime_type: str, prompt: str, schema: Mapping[str, Any]) -> str:
        """Show a picture to the model, and return its answer as text.

        Args:
            image: An encoded picture.
            mime_type: MIME type of ``image``, such as ``"image/jpeg"``.
            prompt: The question.
            schema: JSON schema of the answer. A model without structured output may ignore it: the prompt says the
                same, and answers are checked.

        Raises:
            abc_rag.errors.InputError: The model cannot answer for this picture; it may for others.
            abc_rag.errors.ABCRagError: The model cannot answer at all: a wrong key, or no server.
        """

    def settings(self) -> dict[str, Any]:
        """Settings to record with the results; never secrets."""
        return {"name": self.name, "type": type(self).__name__}


class _Busy(Exception):
    """A request that may be repeated."""

    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class _Refused(InputError):
    """A request that the server rejected."""


class OpenAIDescriber(Describer):
    """A vision chat model behind a server with OpenAI's ``chat/completions``, such as vLLM or Ollama.

    Pictures are sent to that server. It is asked for JSON of a schema; a server that refuses this (400 or 422) is asked
    for plain text from then on.

    Args:
        model: The model's name on the server.
        base_url: URL of the server, with ``/v1`` if its paths begin so; the default is OpenAI.
        api_key_env: Environment variable that holds the key. It is read for each request, and never stored. If None,
            ``OPENAI_API_KEY`` for OpenAI, and no key for any other server.
        timeout_s: Maximum seconds per request.
        retries: How often a request is repeated after a timeout, a broken connection or a busy status (408, 409, 425,
            429, 500, 502, 503, 504). The wait doubles each time, unless the server sends ``Retry-After``.

    Raises:
        InputError: An argument is unusable.
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
        self._base_url = checked_url(base_url)
        if api_key_env is None and self._base_url == DEFAULT_BASE_URL:
            api_key_env = _DEFAULT_KEY
        self._key_env = api_key_env
        self._timeout_s = float(timeout_s)
        self._retries = retries
        self._structured = True
        key_in(self._key_env, self._base_url)  # reports a missing key at once

    @property
    def name(self) -> str:
        """The model's name."""
        return self._model

    @property
    def base_url(self) -> str:
        """The URL that pictures are sent to."""
        return self._base_url

    def settings(self) -> dict[str, Any]:
        """The model, the server, and the name of the key's environment variable."""
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
            # Some servers do not know response_format. If the picture is at fault, the second request fails too.
            answer = _text_of(self._send(request))
            if self._structured:
                _LOG.warning(
                    "%s does not support response_format; only the prompt asks for JSON: %s", self._model, refused
                )
            self._structured = False
            return answer

    def _send(self, request: Mapping[str, Any]) -> dict[str, Any]:
        wait, tries = 1.0, 1
        while True:
            try:
                return self._post(request)
            except _Busy as busy:
                # Threads that were refused together should not come back together.
                pause = wait * random.uniform(0.75, 1.25) if busy.retry_after is None else busy.retry_after
                if tries > self._retries or pause > _LONGEST_WAIT_S:
                    asked = f" (the server asks to wait {pause:.0f} s)" if pause > _LONGEST_WAIT_S else ""
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

        key = key_in(self._key_env, self._base_url)
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        # A server on this machine is never asked through a proxy, whatever the environment says.
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
                        raise _Busy(f"no complete answer within {self._timeout_s:g} s")
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
            where = f"check ${self._key_env}" if self._key_env else "name the key's variable in api_key_env"
            raise ABCRagError(f"{self._base_url}: {message}; {where}")
        raise ABCRagError(f"{self._base_url}: {message}; check the base URL and the model's name")


def _text_of(answer: Mapping[str, Any]) -> str:
    """The text of the first choice.

    Raises:
        InputError: There is none.
    """
    try:
        choice = answer["choices"][0]
        message = choice["message"]
        content, refusal = message["content"], message.get("refusal")
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise InputError("the server's answer has no choices[0].message.content") from error
    if refusal:
        raise InputError(f"the model refuses: {' '.join(str(refusal).split())[:200]}")
    if choice.get("finish_reason") == "content_filter":
        raise InputError("the server's content filter withheld the answer")
    if not isinstance(content, str):
        raise InputError(f"choices[0].message.content is {type(content).__name__}, not text")
    return content


def _message(said: str) -> str:
    try:
        error = json.loads(said)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        return said


def _retry_after(header: str | None) -> float | None:
    """Seconds to wait, from a number or a date."""
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
