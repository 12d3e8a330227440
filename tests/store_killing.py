"""A writer that is killed while Chroma writes its index files, again and again; the next one goes on.

Used by the tests with few kills, and by hand with many::

    python tests/store_killing.py 50
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from store_helpers import ROOT

from abc_rag.store import ChromaStore
from abc_rag.store.chroma import collections
from abc_rag.types import Record

_DIM = 16
_WRITER = """
import sys
import numpy as np
from abc_rag.store import ChromaStore
from abc_rag.types import Record
from store_killing import write_often
write_often()
folder, first, size = sys.stdin.readline().split()
store = ChromaStore(folder, lock_timeout_s=60)
number = int(first)
print("open", flush=True)
while True:
    rows = np.random.default_rng(number).standard_normal((int(size), 16))
    ids = [f"r{number}-{i}" for i in range(int(size))]
    store.add([Record(id_, "image", f"round{number:04}", f"{id_}.png", {"number": number}) for id_ in ids], rows)
    store.add_facets(ids[:2], "what is on the left?", -rows[:2])
    store.delete(ids[-1:])
    print(number, flush=True)
    number += 1
"""
_SIZE = 5


def write_often() -> None:
    """Let Chroma write its files every few records."""
    collections._LEAST_BETWEEN, collections._GROWTH = 10, 10**9


def _writer() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _WRITER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([ROOT, str(Path(__file__).parent)])},
    )


def _changed(folder: Path) -> list[tuple[str, int, int]]:
    found = []
    for path in folder.glob("*-*-*-*-*/*"):
        try:
            status = path.stat()
        except OSError:
            continue
        found.append((str(path), status.st_size, status.st_mtime_ns))
    return sorted(found)


def kill_while_writing(folder: Path, kills: int, seed: int = 0) -> tuple[int, int, list[str]]:
    """Kill writers at the moments at which index files change.

    Args:
        folder: A new store's directory.
        kills: How many.
        seed: Of the choice of moments.

    Returns:
        How many rounds were acknowledged, how many kills met changing index files, and what was wrong afterwards.
    """
    rng = np.random.default_rng(seed)
    acknowledged, met, wrong = [], 0, []
    number = 0
    waiting = _writer()
    for _ in range(kills):
        writer, waiting = waiting, _writer()  # the next one imports what it needs meanwhile
        assert writer.stdin is not None
        assert writer.stdout is not None
        writer.stdin.write(f"{folder} {number} {_SIZE}\n")
        writer.stdin.flush()
        assert writer.stdout.readline() == "open\n"
        before = _changed(folder)
        wanted, seen = int(rng.integers(1, 41)), 0
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            now = _changed(folder)
            if now != before:
                before, seen = now, seen + 1
                if seen >= wanted:
                    met += 1
                    break
        time.sleep(float(rng.uniform(0, 0.003)))
        writer.send_signal(signal.SIGKILL)
        acknowledged += [int(line) for line in writer.stdout.read().split()]
        writer.wait()
        for pipe in (writer.stdin, writer.stdout):
            pipe.close()
        # The round that was cut short may be there or not, so the next writer does not repeat it.
        number = max(acknowledged, default=-1) + 2 if not acknowledged or number <= acknowledged[-1] else number + 1
        wrong += _problems(folder, acknowledged)
    waiting.kill()
    waiting.wait()
    for pipe in (waiting.stdin, waiting.stdout):
        if pipe is not None:
            pipe.close()
    return len(acknowledged), met, wrong


def _problems(folder: Path, acknowledged: list[int]) -> list[str]:
    with ChromaStore(folder, lock_timeout_s=60) as store:
        wrong = list(store.check())
        ids = list(store.ids())
        if len(ids) != len(set(ids)) or len(ids) != store.count():
            wrong.append(f"{len(ids)} ids, {len(set(ids))} different, {store.count()} counted")
        expected = {f"r{number}-{i}": (number, i) for number in acknowledged for i in range(_SIZE - 1)}
        rows = {number: np.random.default_rng(number).standard_normal((_SIZE, _DIM)) for number in acknowledged}
        found = {record.id: record for record in store.get(list(expected))}
        facets = store.facet_names(list(expected))
        hits = store.search_many([rows[number][i] for number, i in expected.values()], 1) if expected else []
        for (id_, (number, i)), best in zip(expected.items(), hits, strict=True):
            if found.get(id_) != Record(id_, "image", f"round{number:04}", f"{id_}.png", {"number": number}):
                wrong.append(f"{id_} is lost")
            elif best[0].id != id_ or best[0].score < 0.9999:
                wrong.append(f"{id_} is not found by its own vector")
            elif i < 2 and facets.get(id_) != {"what is on the left?"}:
                wrong.append(f"{id_} has lost its facet")
        for number in acknowledged:
            named = sorted(hit.id for hit in store.search_words(f"round{number:04}", 10))
            if named != sorted(f"r{number}-{i}" for i in range(_SIZE - 1)):
                wrong.append(f"the words of round {number} find {named}")
        deleted = store.has([f"r{number}-{_SIZE - 1}" for number in acknowledged])
        wrong += [f"{id_} is back" for id_ in sorted(deleted)]
    return wrong


if __name__ == "__main__":
    write_often()
    with tempfile.TemporaryDirectory() as scratch:
        rounds, hit, bad = kill_while_writing(Path(scratch, "store"), int(sys.argv[1]))
    print(f"{rounds} rounds acknowledged, {hit} kills while index files changed, {len(bad)} problems")
    print("\n".join(bad))
    sys.exit(bool(bad))
