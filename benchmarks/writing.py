"""The time of adding records as a store grows, of its journal, and of filters in a search.

Random unit vectors are added in batches to a new embedded store; the time of each further 1,000 records is printed, and
the size on disk. The journal is also timed alone. Then searches are timed, with and without filters.

    python -m benchmarks.writing --records 200000 --dim 192 --json results/writing-192.json
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from abc_rag.store import ChromaStore
from abc_rag.store.chroma.journal import Journal
from abc_rag.types import Modality, Record, Vectors

_THOUSAND = 1000
_JOURNAL_ROUNDS = 5
_PLACES = 200
# Name -> filter and modality of the nth search; the name has the share of the records that pass. Queries
# are near the first half of the clusters, so nothing that passes "far" is near them.
_FILTERS: dict[str, Callable[[int], tuple[Mapping[str, Any] | None, Modality | None]]] = {
    "plain": lambda _: (None, None),
    "modality (50 %)": lambda _: (None, "text"),
    "far (50 %)": lambda _: ({"place": {"$gte": _PLACES // 2}}, None),
    "99.9 %": lambda _: ({"page": {"$ne": 5}}, None),
    "20 %": lambda _: ({"page": {"$lt": 200}}, None),
    "10 %": lambda _: ({"page": {"$lt": 100}}, None),
    "10 %, each another": lambda n: ({"page": {"$gte": 10 * n, "$lt": 10 * n + 100}}, None),
    "5 %": lambda _: ({"page": {"$lt": 100}}, "text"),
    "1 %": lambda _: ({"page": {"$lt": 10}}, None),
    "1 %, each another": lambda n: ({"page": {"$in": list(range(n, n + 10))}}, None),
    "0.1 %": lambda _: ({"page": 5}, None),
    "one": lambda n: ({"abc:source": f"/folder/{n}"}, None),
}


def main() -> int:
    """Run the benchmark."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--records", type=int, default=200_000)
    options.add_argument("--dim", type=int, default=192)
    options.add_argument("--batch", type=int, default=250, help="records in one call of add")
    options.add_argument("--searches", type=int, default=20, help="of each kind")
    options.add_argument("--json", type=Path, help="file for the results")
    arguments = options.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "store")
        with ChromaStore(folder) as store:
            seconds = _written(store, arguments.records, arguments.dim, arguments.batch)
            opened = time.perf_counter()
            searches = _searched(store, arguments.dim, arguments.searches)
        with ChromaStore(folder) as store:
            opened = time.perf_counter() - opened
        sizes = {path.name: path.stat().st_size for path in folder.glob("*.sqlite3")}
        sizes["index"] = sum(path.stat().st_size for path in folder.glob("*-*-*-*-*/*"))
        journal = _journal(Path(scratch), arguments.dim)
    result = {
        "command": "python -m benchmarks.writing " + " ".join(sys.argv[1:]),
        "seconds_per_1000": seconds,
        "journal_seconds_per_1000": journal,
        "bytes": sizes,
        "search_ms": searches,
    }
    fifth = max(1, len(seconds) // 5)
    first, last = (float(np.mean(part)) for part in (seconds[:fifth], seconds[-fifth:]))
    print(f"first fifth {first:.2f} s, last fifth {last:.2f} s per 1,000: {last / first:.2f} times")
    print(f"journal: {journal:.3f} s per 1,000, {sizes['abc-records.sqlite3'] / arguments.records:.0f} bytes a record")
    print(f"on disk: {sizes}")
    for name, milliseconds in searches.items():
        print(f"search, {name}: {milliseconds:.1f} ms, {milliseconds / searches['plain']:.2f} times plain")
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


def _rows(start: int, count: int, dim: int, places: int = _PLACES) -> tuple[list[Record], Vectors]:
    rng = np.random.default_rng(start)
    # In 200 clusters, because vectors of real data are clustered.
    centres = np.random.default_rng(0).standard_normal((_PLACES, dim))
    chosen = rng.integers(0, places, count)
    rows = centres[chosen] + 0.7 * rng.standard_normal((count, dim))
    records = [
        Record(
            f"r{start + i}",
            "text" if i % 2 else "image",
            f"passage {start + i}",
            f"/folder/{start + i}",
            {"page": (start + i) % 1000, "place": int(place)},
        )
        for i, place in enumerate(chosen)
    ]
    return records, (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def _written(store: ChromaStore, records: int, dim: int, batch: int) -> list[float]:
    seconds = []
    for start in range(0, records, _THOUSAND):
        parts = [_rows(start + offset, batch, dim) for offset in range(0, _THOUSAND, batch)]
        began = time.perf_counter()
        for some, rows in parts:
            store.add(some, rows)
        seconds.append(time.perf_counter() - began)
        if (start // _THOUSAND) % max(1, records // _THOUSAND // 20) == 0:
            print(f"{start + _THOUSAND:>8}: {seconds[-1]:.2f} s per 1,000", flush=True)
    return seconds


def _journal(scratch: Path, dim: int) -> float:
    folder = scratch / "journal"
    folder.mkdir()
    journal = Journal(str(folder))
    began = time.perf_counter()
    for round_ in range(_JOURNAL_ROUNDS):
        records, rows = _rows(round_ * _THOUSAND, _THOUSAND, dim)
        for start in range(0, _THOUSAND, 250):
            part = slice(start, start + 250)
            journal.begin("abc", zip(records[part], rows[part], strict=True), [], None)
            journal.done()
    seconds = (time.perf_counter() - began) / _JOURNAL_ROUNDS
    journal.close()
    return seconds


def _searched(store: ChromaStore, dim: int, searches: int) -> dict[str, float]:
    _, queries = _rows(10**9, searches, dim, _PLACES // 2)
    times: dict[str, list[float]] = {name: [] for name in _FILTERS}
    for n, query in enumerate((queries[0], *queries)):
        # Each in turn, so that a busy moment does not count for one of them alone.
        for name, filter_of in _FILTERS.items():
            where, modality = filter_of(n)
            began = time.perf_counter()
            store.search(query, 5, where, modality=modality)
            times[name].append(time.perf_counter() - began)
    for name, seconds in times.items():
        print(f"first search, {name}: {1000 * seconds[0]:.1f} ms")
    return {name: 1000 * float(np.median(seconds[1:])) for name, seconds in times.items()}


if __name__ == "__main__":
    sys.exit(main())
