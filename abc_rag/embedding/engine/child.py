"""A plain child process that runs one of our modules and talks over pipes.

Nothing of the caller's program is imported again, nothing is forked, nothing is pickled.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from typing import Any

from abc_rag.embedding.engine.worker import read_exactly, write_message

__all__ = ["Child"]

# A child imports from the parent's path. The working folder and environment variables have no influence.
_PROGRAM = """
import sys, json, importlib
sys.path[:] = json.loads(sys.argv[1])
importlib.import_module(sys.argv[2]).main()
"""


class Child:
    """A process, used by one thread at a time.

    Args:
        module: Its ``main`` is called; it reads from file 0 and writes to file 1, both with the functions of
            `abc_rag.embedding.engine.worker`.

    Raises:
        OSError: It cannot be started.
    """

    def __init__(self, module: str) -> None:
        path = json.dumps([os.path.abspath(entry) for entry in sys.path])
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-c", _PROGRAM, path, module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout
        self.started = False

    @property
    def pid(self) -> int:
        """Its id."""
        return self._process.pid

    def ask(self, header: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytearray]:
        """Raises EOFError or OSError if the process has ended."""
        self.send(header, data)
        return self.receive()

    def send(self, header: dict[str, Any], data: bytes) -> None:
        """Raises OSError if the process has ended."""
        write_message(_Whole(self._requests), header, data)

    def receive(self, most_bytes: int | None = None) -> tuple[dict[str, Any], bytearray]:
        """Raises EOFError or OSError if the process has ended, or says more than ``most_bytes`` at a time."""
        return read_exactly(self._answers, most_bytes)

    def kill(self) -> None:
        """End the process; whoever waits for its answer gets EOFError."""
        with contextlib.suppress(OSError):
            self._process.kill()

    def end(self) -> int:
        """End the process, close its pipes, and return its exit status."""
        self.kill()
        status = self._process.wait()
        for pipe in (self._requests, self._answers):
            with contextlib.suppress(OSError):
                pipe.close()
        return status


class _Whole:
    """An unbuffered pipe whose writes are complete."""

    def __init__(self, pipe: Any) -> None:  # noqa: ANN401
        self._pipe = pipe

    def write(self, data: Any) -> None:  # noqa: ANN401
        view = memoryview(data)
        while view.nbytes:
            view = view[self._pipe.write(view) :]

    def flush(self) -> None:
        """Nothing is buffered."""
