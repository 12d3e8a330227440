"""Processes that open pictures: they keep this interpreter free, and a hang or a crash costs one picture.

They are plain children (`abc_rag.embedding.engine.child`) that run `abc_rag.embedding.engine.worker`.
"""

from __future__ import annotations

import dataclasses
import sys
import threading
from typing import Any

import numpy as np

import abc_rag.errors
from abc_rag.embedding.engine.child import Child
from abc_rag.embedding.engine.watchdog import Watchdog
from abc_rag.embedding.engine.worker import limits_as_json, recipe_as_json
from abc_rag.errors import ABCRagError, ImageError, ImageFormatError
from abc_rag.models.family import FamilyFacts

__all__ = ["PictureProcesses", "too_long"]

_START_S = 60.0
_WORKER = "abc_rag.embedding.engine.worker"


class PictureProcesses:
    """Processes that open pictures, as many as there are threads that ask at the same time.

    Args:
        facts: How pictures are opened, and which are accepted.
        timeout_s: Maximum seconds for one picture.
        watchdog: Kills a process that takes longer.
    """

    def __init__(self, facts: FamilyFacts, timeout_s: float, watchdog: Watchdog) -> None:
        self._recipe = facts.recipe
        self._told = {
            "recipe": recipe_as_json(facts.recipe),
            "limits": limits_as_json(facts.image_limits),
            "rendering": dataclasses.asdict(facts.rendering),
        }
        self._timeout_s = timeout_s
        self._watchdog = watchdog
        self._idle: list[Child] = []
        self._all: set[Child] = set()
        self._lock = threading.Lock()
        self._usable: bool | None = None
        self._closed = False

    @property
    def usable(self) -> bool:
        """Whether processes can be started here and can import the recipe; tried once."""
        with self._lock:
            if self._usable is None:
                self._usable = self._try()
            return self._usable

    @property
    def pids(self) -> list[int]:
        """Ids of all processes."""
        with self._lock:
            return [child.pid for child in self._all]

    def _try(self) -> bool:
        if not sys.executable:
            return False
        try:
            child = Child(_WORKER)
        except OSError:
            return False
        self._all.add(child)
        try:
            answer = self._start(child)
        except (EOFError, OSError):
            answer = {}
        if issubclass(getattr(abc_rag.errors, answer.get("error") or "-", type), ABCRagError):
            self._idle.append(child)
            return True
        self._all.discard(child)
        child.end()
        return False

    def _start(self, child: Child) -> dict[str, Any]:
        """Wait until a child has imported its modules, which does not count as a picture's time."""
        with self._watchdog.limit(_START_S, child.kill):
            # A working child answers with an error of ours, as this is no picture.
            answer, _ = child.ask({**self._told, "name": "a trial"}, b"no picture")
        child.started = True
        return answer

    def open(self, data: bytes, name: str) -> Any:  # noqa: ANN401  (what the recipe says)
        """Open a picture.

        Args:
            data: Its encoded bytes.
            name: For messages.

        Raises:
            ImageFormatError: The picture takes too long, or has ended two processes.
            InputError: The picture cannot be used.
        """
        for attempt in (1, 2):
            child = self._taken(new=attempt == 2)
            overdue = threading.Event()

            def end(child: Child = child, overdue: threading.Event = overdue) -> None:
                overdue.set()
                child.kill()

            try:
                if not child.started:
                    self._start(child)
                with self._watchdog.limit(self._timeout_s, end):
                    answer, payload = child.ask({**self._told, "name": name}, data)
            except (EOFError, OSError):
                status = self._gone(child)
                if overdue.is_set():
                    raise ImageFormatError(name, too_long(self._timeout_s)) from None
                if attempt == 2:
                    reason = f"ends the process that opens it (exit status {status}); save it anew, or leave it out"
                    raise ImageFormatError(name, reason) from None
                continue  # something else may have killed the process
            except BaseException:
                self._gone(child)
                raise
            if overdue.is_set():  # killed right after its answer
                self._gone(child)
            else:
                with self._lock:
                    if not self._closed:
                        self._idle.append(child)
            return self._opened(answer, payload)
        raise AssertionError("unreachable")

    def close(self) -> None:
        """End all processes. Calls that wait for one get an error."""
        with self._lock:
            self._closed = True
            children, self._all, self._idle = list(self._all), set(), []
        for child in children:
            child.end()

    def _taken(self, *, new: bool) -> Child:
        with self._lock:
            if self._closed:
                raise ABCRagError("the embedder was closed while it opened pictures; open another one")
            # Something else may have killed all idle processes. If a new one dies, the picture is the cause.
            if self._idle and not new:
                return self._idle.pop()
            child = Child(_WORKER)
            self._all.add(child)
            return child

    def _gone(self, child: Child) -> int:
        with self._lock:
            self._all.discard(child)
        return child.end()

    def _opened(self, answer: dict[str, Any], payload: bytearray) -> Any:  # noqa: ANN401
        if "error" in answer:
            raise _error(answer)
        fields: dict[str, Any] = dict(answer["numbers"])
        at = 0
        for field, told in answer["arrays"].items():
            dtype = np.dtype(told["dtype"])
            count = int(np.prod(told["shape"], dtype=np.int64))
            fields[field] = np.frombuffer(payload, dtype, count, at).reshape(told["shape"])
            at += count * dtype.itemsize
        return self._recipe.opens(**fields)


def too_long(seconds: float) -> str:
    """The message about a picture that takes too long."""
    return f"takes more than {seconds:g} s to open; save it anew, or raise EngineSettings.picture_timeout_s"


def _error(answer: dict[str, Any]) -> ABCRagError:
    made: Any = getattr(abc_rag.errors, answer["error"], None) if answer["error"] else None
    if made is None:
        return ABCRagError(f"a picture could not be opened in another process ({answer['message']})")
    told = [answer["source"]] if issubclass(made, ImageError) else []
    error: ABCRagError = made(*told, answer["message"])
    return error
