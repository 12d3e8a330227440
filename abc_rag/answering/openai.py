"""A generator behind a server with OpenAI's ``chat/completions``, such as vLLM.

By httpx, which is all that one request and its stream need; OpenAI's own package requires pydantic and jiter besides.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from abc_rag.answering.generator import GenerationRequest, Generator, Outcome
from abc_rag.embedding.endpoint import checked_url, is_loopback, key_in
from abc_rag.embedding.threads import in_thread
from abc_rag.errors import ABCRagError, ContextError, GenerationError, InputError, MissingExtraError
from abc_rag.images.limits import DEFAULT_LIMITS, ImageLimits
from abc_rag.images.share import share_image
from abc_rag.types import Message, Text

if TYPE_CHECKING:
    import httpx

__all__ = ["OpenAIGenerator"]

_MOST_CHARACTERS = 16 * 2**20
_SHOWN = 300


class OpenAIGenerator(Generator):
    """Asks a server. Pictures are sent to it: pixels alone, without what else their files hold.

    Args:
        base_url: Of the server, with ``/v1`` if its paths begin so, such as ``"http://127.0.0.1:8000/v1"``.
        model: The model's name there.
        api_key_env: Environment variable that holds the key. It is read for each request and never stored. None sends
            no key.
        timeout_s: Maximum seconds without a word from the server.
        image_limits: Which pictures are accepted.
        max_side: Maximum pixels of a picture's longer side; a larger one is shrunk before it is sent.

    Raises:
        InputError: An argument is unusable.
        MissingExtraError: httpx is not installed.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key_env: str | None = None,
        timeout_s: float = 120.0,
        image_limits: ImageLimits = DEFAULT_LIMITS,
        max_side: int | None = 1344,
    ) -> None:
        try:
            import httpx  # noqa: F401
        except ModuleNotFoundError as error:
            raise MissingExtraError.for_module(error, "asking a server", extra="generate") from error
        if not isinstance(model, str) or not model.strip():
            raise InputError(f"model must be a name that the server knows, not {model!r}")
        if type(timeout_s) not in (int, float) or not 0 < timeout_s < math.inf:
            raise InputError(f"timeout_s must be a finite number of seconds above 0, not {timeout_s!r}")
        self._url = checked_url(base_url)
        self._model = model
        self._key_env = api_key_env
        self._timeout_s = float(timeout_s)
        self._limits = image_limits
        self._max_side = max_side
        self._headers()  # says at once if the key is missing

    @property
    def model(self) -> str:
        """The model's name."""
        return self._model

    @property
    def scores(self) -> bool:
        """False: the protocol gives no probabilities of given answers."""
        return False

    def _headers(self) -> dict[str, str]:
        key = key_in(self._key_env, self._url)
        return {} if key is None else {"Authorization": f"Bearer {key}"}

    def _client(self) -> dict[str, Any]:
        # A server on this machine is never asked through a proxy, whatever the environment says.
        return {"timeout": self._timeout_s, "trust_env": not is_loopback(self._url), "headers": self._headers()}

    def _body(self, request: GenerationRequest) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._model,
            "messages": [self._turn(message) for message in request.messages],
            "max_tokens": request.max_new_tokens,
            "temperature": request.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if request.stop:
            body["stop"] = list(request.stop)
        if request.seed is not None:
            body["seed"] = request.seed
        if request.schema is not None:
            named = {"name": "answer", "strict": True, "schema": dict(request.schema)}
            body["response_format"] = {"type": "json_schema", "json_schema": named}
        return body

    def _turn(self, message: Message) -> dict[str, Any]:
        if not message.pictures:
            texts = [part.text for part in message.parts if isinstance(part, Text)]
            return {"role": message.role, "content": "".join(texts)}
        content: list[dict[str, Any]] = []
        for part in message.parts:
            if isinstance(part, Text):
                content.append({"type": "text", "text": part.text})
                continue
            data, mime_type = share_image(part.source, limits=self._limits, max_side=self._max_side)
            uri = f"data:{mime_type};base64,{base64.b64encode(data).decode('ascii')}"
            content.append({"type": "image_url", "image_url": {"url": uri}})
        return {"role": message.role, "content": content}

    def _stream(self, request: GenerationRequest) -> Iterator[str | Outcome]:
        import httpx

        body = self._body(request)
        with (
            self._told(),
            httpx.Client(**self._client()) as client,
            client.stream("POST", f"{self._url}/chat/completions", json=body) as response,
        ):
            if response.status_code != 200:
                raise self._refused(response, response.read())
            events = _Events()
            for line in response.iter_lines():
                if piece := events.piece(line):
                    yield piece
            yield events.outcome()

    async def _astream(self, request: GenerationRequest) -> AsyncIterator[str | Outcome]:
        import httpx

        body = await in_thread(self._body, request)
        with self._told():
            async with (
                httpx.AsyncClient(**self._client()) as client,
                client.stream("POST", f"{self._url}/chat/completions", json=body) as response,
            ):
                if response.status_code != 200:
                    raise self._refused(response, await response.aread())
                events = _Events()
                async for line in response.aiter_lines():
                    if piece := events.piece(line):
                        yield piece
                yield events.outcome()

    def _score(self, messages: tuple[Message, ...], answers: tuple[str, ...]) -> list[float]:
        raise InputError(
            "OpenAI's protocol gives no probabilities of given answers; use a generator of "
            "abc_rag.answering.load_generator, or generate with a schema such as {'enum': [...]}"
        )

    @contextmanager
    def _told(self) -> Iterator[None]:
        import httpx

        try:
            yield
        except httpx.TimeoutException as error:
            raise GenerationError(
                f"{self._url}: not a word within {self._timeout_s:g} s; raise timeout_s, or try again later"
            ) from error
        except httpx.InvalidURL as error:
            raise InputError(f"base_url cannot be used ({error}); correct it") from error
        except httpx.HTTPError as error:
            raise GenerationError(
                f"{self._url}: {type(error).__name__}: {error}; check that the server runs, or try again"
            ) from error

    def _refused(self, response: httpx.Response, body: bytes) -> ABCRagError:
        said = body[:2000].decode("utf-8", "replace")
        for secret in self._headers().values():  # some servers repeat it
            said = said.replace(secret.removeprefix("Bearer "), "...")
        message = f"{self._url}: status {response.status_code}: {' '.join(said.split())[:_SHOWN]}"
        # OpenAI's code, and the words of vLLM.
        if response.status_code == 400 and ("context_length_exceeded" in said or "maximum context length" in said):
            return ContextError(f"{message}; give fewer sources, pictures or earlier turns")
        if response.status_code in (400, 413, 415, 422):
            return InputError(f"{message}; change the request")
        if response.status_code in (401, 403):
            return GenerationError(f"{message}; check the key that api_key_env names")
        return GenerationError(f"{message}; check the base URL and the model's name, or try again later")


class _Events:
    """The lines of a stream of server-sent events."""

    def __init__(self) -> None:
        self._finish: str | None = None
        self._usage: dict[str, Any] = {}
        self._length = 0

    def piece(self, line: str) -> str:
        """The text of one line; often none."""
        self._length += len(line)
        if self._length > _MOST_CHARACTERS:
            raise GenerationError(f"the server's answer is larger than {_MOST_CHARACTERS:,} characters")
        data = line.removeprefix("data:").strip()
        if not line.startswith("data:") or data == "[DONE]":
            return ""
        try:
            event = json.loads(data)
            if "error" in event:
                raise GenerationError(f"the server gave up: {str(event['error'])[:_SHOWN]}; try again")
            self._usage = event.get("usage") or self._usage
            if not event.get("choices"):
                return ""
            choice = event["choices"][0]
            self._finish = choice.get("finish_reason") or self._finish
            delta = choice.get("delta") or {}
            content = delta.get("content") or ""
            refusal = delta.get("refusal")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise GenerationError(f"the server's stream is none of OpenAI's protocol: {data[:80]!r}") from error
        if refusal:
            raise GenerationError(f"the model refuses: {str(refusal)[:_SHOWN]}")
        if not isinstance(content, str):
            raise GenerationError(f"the server's stream is none of OpenAI's protocol: {data[:80]!r}")
        return content

    def outcome(self) -> Outcome:
        """How it ended."""
        if self._finish is None:
            raise GenerationError("the server's stream broke off before its end; try again")
        if self._finish not in ("stop", "length"):
            raise GenerationError(f"the answer ended with {self._finish[:40]!r} in place of 'stop'; ask otherwise")
        counts = [self._usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
        prompt, new = (count if type(count) is int else None for count in counts)
        return Outcome("stop" if self._finish == "stop" else "length", prompt, new)
