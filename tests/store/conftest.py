from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from store_helpers import ROOT, Elsewhere


@pytest.fixture
def elsewhere() -> Iterator[Elsewhere]:
    """Starts Python code in another process; it is killed at the end."""
    started: list[subprocess.Popen[str]] = []

    def start(code: str, *arguments: object) -> subprocess.Popen[str]:
        header = (
            "import sys, numpy as np\nfrom abc_rag.store import ChromaStore\nfrom abc_rag.types import Record\n"
            "def put(store, first, last):\n"
            "    rows = np.random.default_rng(first).standard_normal((last - first, 8))\n"
            "    store.add([Record(f'i{i}', 'text', 'x') for i in range(first, last)], rows)\n"
        )
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", header + code, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": ROOT},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            pipe.close()
