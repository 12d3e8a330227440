"""The time of adding records as a store grows, and of its journal. For filters see `benchmarks.filters`.

Random unit vectors are added in batches to a new embedded store; the time of each further 1,000 records is printed, and
the size on disk. The journal is also timed alone.

    python -m benchmarks.writing --records 200000 --dim 192 --json results/writing-192.json
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from abc_rag.store import ChromaStore, Store
from abc_rag.store.chroma.journal import Journal
from abc_rag.types import Record, Vectors

_THOUSAND = 1000
_JOURNAL_ROUNDS = 5
PLACES = 200


def main() -> int:
    """Run the benchmark."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--records", type=int, default=200_000)
    options.add_argument("--dim", type=int, default=192)
    options.add_argument("--batch", type=int, default=250, help="records in one call of add")
    options.add_argument("--json", type=Path, help="file for the results")
    arguments = options.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "store")
        with ChromaStore(folder) as store:
            seconds = written(store, arguments.records, arguments.dim, arguments.batch)
        sizes = {path.name: path.stat().st_size for path in folder.glob("*.sqlite3")}
        sizes["index"] = sum(path.stat().st_size for path in folder.glob("*-*-*-*-*/*"))
        journal = _journal(Path(scratch), arguments.dim)
    result = {
        "command": "python -m benchmarks.writing " + " ".join(sys.argv[1:]),
        "seconds_per_1000": seconds,
        "journal_seconds_per_1000": journal,
        "bytes": sizes,
    }
    fifth = max(1, len(seconds) // 5)
    first, last = (float(np.mean(part)) for part in (seconds[:fifth], seconds[-fifth:]))
    print(f"first fifth {first:.2f} s, last fifth {last:.2f} s per 1,000: {last / first:.2f} times")
    print(f"journal: {journal:.3f} s per 1,000, {sizes['abc-records.sqlite3'] / arguments.records:.0f} bytes a record")
    print(f"on disk: {sizes}")
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


def rows_of(start: int, count: int, dim: int, places: int = PLACES) -> tuple[list[Record], Vectors]:
    """Records from a number on, and their vectors, in the first ``places`` of 200 clusters."""
    rng = np.random.default_rng(start)
    # In 200 clusters, because vectors of real data are clustered.
    centres = np.random.default_rng(0).standard_normal((PLACES, dim))
    chosen = rng.integers(0, places, count)
    rows = centres[chosen] + 0.7 * rng.standard_normal((count, dim))
    records = [
        Record(
            f"r{start + i}",
            "text" if i % 2 else "image",
            f"passage {start + i}",
            f"/folder/{start + i}",
            {"page": (start + i) % 1000, "place": int(place), "price": int(place) + (start + i) / 2**24},
        )
        for i, place in enumerate(chosen)
    ]
    return records, (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def written(store: Store, records: int, dim: int, batch: int) -> list[float]:
    """Add records; return the seconds of each further 1,000."""
    seconds = []
    for start in range(0, records, _THOUSAND):
        parts = [rows_of(start + offset, batch, dim) for offset in range(0, _THOUSAND, batch)]
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
        records, rows = rows_of(round_ * _THOUSAND, _THOUSAND, dim)
        for start in range(0, _THOUSAND, 250):
            part = slice(start, start + 250)
            journal.begin("abc", zip(records[part], rows[part], strict=True), [], None)
            journal.done()
    seconds = (time.perf_counter() - began) / _JOURNAL_ROUNDS
    journal.close()
    return seconds


if __name__ == "__main__":
    sys.exit(main())
