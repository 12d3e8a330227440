"""A Lance store of many records, its searches with and without an index, and Chroma beside it.

Random clustered unit vectors are written into a new store in batches. Then every kind of index is built in turn, and
searches are timed, with and without filters, and compared with what comparing with all vectors finds. Queries lie in
the clusters; each filter holds for a share of all records, wherever they lie.

    python -m benchmarks.lance --records 1000000 --dim 512 --json results/lance.json
    python -m benchmarks.lance --records 50000 --dim 512 --kinds binary int8 pq --chroma
    python -m benchmarks.lance --records 100000 --dim 512 --dtype float16
"""

from __future__ import annotations

import argparse
import json
import logging
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from abc_rag.store import ChromaStore, LanceStore, Store
from abc_rag.types import Record, Vectors

_CLUSTERS = 2000
_SPREAD = 1.0  # the length of what is added to a centre, which has length 1
_K = 10
_FILTERS: dict[str, dict[str, Any] | None] = {
    "plain": None,
    "10 %": {"page": {"$lt": 100}},
    "1 %": {"page": {"$lt": 10}},
    "0.1 %": {"page": 5},
}


def main() -> int:
    """Run the benchmark."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--records", type=int, default=200_000)
    options.add_argument("--dim", type=int, default=512)
    options.add_argument("--batch", type=int, default=10_000, help="records in one call of add")
    options.add_argument("--queries", type=int, default=50)
    options.add_argument("--dtype", choices=("float32", "float16"), default="float32")
    options.add_argument("--kinds", nargs="*", default=["binary"], help="int8, binary, pq, hnsw")
    options.add_argument("--chroma", action="store_true", help="the same in an embedded Chroma store")
    options.add_argument("--json", type=Path, help="file for the results")
    arguments = options.parse_args()
    logging.disable(logging.INFO)
    made = Made(arguments.records, arguments.dim)
    count = arguments.queries
    queries, truth = made.truth(count)
    result: dict[str, Any] = {"command": "python -m benchmarks.lance " + " ".join(sys.argv[1:])}
    with tempfile.TemporaryDirectory() as scratch:
        if arguments.chroma:
            with ChromaStore(Path(scratch, "chroma")) as store:
                seconds = written(store, made, 1000)
                result["chroma"] = {"write_s": seconds, "bytes": bytes_in(Path(scratch, "chroma")) / made.count}
                result["chroma"] |= {"search": searched(store, queries, truth, count), "peak_gb": _peak()}
            _show("Chroma", result["chroma"])
        folder = Path(scratch, "lance")
        with LanceStore(folder, dtype=arguments.dtype) as store:
            seconds = written(store, made, arguments.batch)
            store.compact(timedelta(0))
            data = bytes_in(folder / "abc.lance" / "data") / made.count
            result["lance"] = {"write_s": seconds, "bytes": data, "peak_gb": _peak()}
            _show("Lance, no index", result["lance"] | {"search": searched(store, queries, truth, min(3, count))})
            for kind in arguments.kinds:
                began = time.perf_counter()
                store.build_index(kind)
                row = {"index_s": time.perf_counter() - began}
                row["index_bytes"] = (
                    sum(one["bytes"] for one in store.indexes() if one["name"] == "vector") / made.count
                )
                row |= {"search": searched(store, queries, truth, count), "peak_gb": _peak()}
                result[kind] = row
                _show(f"Lance, {kind}", row)
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


class Made:
    """Records and vectors that are made anew whenever they are asked for, so that they need no memory.

    Args:
        count: How many.
        dim: Length of a vector.
    """

    def __init__(self, count: int, dim: int) -> None:
        self.count = count
        self._centres = _unit(np.random.default_rng(0).standard_normal((_CLUSTERS, dim)).astype(np.float32))

    def vectors(self, seed: int, count: int) -> Vectors:
        """Vectors in the clusters."""
        rng = np.random.default_rng(seed)
        rows = self._centres[rng.integers(0, _CLUSTERS, count)]
        noise = rng.standard_normal(rows.shape, dtype=np.float32) * np.float32(_SPREAD / rows.shape[1] ** 0.5)
        return _unit(rows + noise)

    def parts(self, size: int) -> Iterator[tuple[int, Vectors]]:
        """All vectors, ``size`` at a time, each with the number of its first; the same for every size that divides."""
        for start in range(0, self.count, size):
            small = [self.vectors(1 + at, min(1000, self.count - at)) for at in range(start, start + size, 1000)
                     if at < self.count]  # fmt: skip
            yield start, np.concatenate(small)

    def truth(self, count: int) -> tuple[Vectors, dict[str, list[set[str]]]]:
        """Queries, and the ids of the nearest records of each that pass each filter, by comparing with all."""
        queries = self.vectors(10**9, count)
        best: dict[str, list[list[tuple[float, int]]]] = {name: [[] for _ in queries] for name in _FILTERS}
        for start, rows in self.parts(10_000):
            scores = queries @ rows.T
            numbers = np.arange(start, start + len(rows))
            for name, where in _FILTERS.items():
                kept = np.flatnonzero(_passes(where, numbers))
                for number, row in enumerate(scores[:, kept]):
                    top = np.argsort(-row)[:_K]
                    new = [(float(-row[i]), int(numbers[kept[i]])) for i in top]
                    best[name][number] = sorted([*best[name][number], *new])[:_K]
        return queries, {
            name: [{f"r{number}" for _, number in found} for found in rankings] for name, rankings in best.items()
        }


def _unit(rows: Vectors) -> Vectors:
    made: Vectors = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return made


def _page(number: int) -> int:
    return (number * 7919) % 1000


def written(store: Store, made: Made, size: int) -> float:
    """Write everything; return the seconds that the store took."""
    seconds = 0.0
    for start, rows in made.parts(size):
        records = [
            Record(f"r{i}", "image", "", f"/pictures/{i}.jpg", {"page": _page(i)})
            for i in range(start, start + len(rows))
        ]
        began = time.perf_counter()
        store.add(records, rows)
        seconds += time.perf_counter() - began
    return seconds


def searched(
    store: Store, queries: Vectors, truth: dict[str, list[set[str]]], count: int
) -> dict[str, dict[str, float]]:
    """Search for the first queries under each filter: medians of milliseconds, and the recall."""
    found = {}
    for name, where in _FILTERS.items():
        store.search(queries[0], _K, where)
        seconds, cpu, right = [], [], 0
        for query, expected in zip(queries[:count], truth[name][:count], strict=True):
            began, worked = time.perf_counter(), time.process_time()
            hits = store.search(query, _K, where)
            seconds.append(time.perf_counter() - began)
            cpu.append(time.process_time() - worked)
            right += len({hit.id for hit in hits} & expected)
        milliseconds = {"median_ms": 1000 * float(np.median(seconds)), "cpu_ms": 1000 * float(np.median(cpu))}
        found[name] = {**milliseconds, "recall": right / (_K * count)}
    return found


def _passes(where: dict[str, Any] | None, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    if where is None:
        return np.ones(len(numbers), bool)
    pages = (numbers * 7919) % 1000
    wanted = where["page"]
    passing: npt.NDArray[np.bool_] = pages == wanted if isinstance(wanted, int) else pages < wanted["$lt"]
    return passing


def bytes_in(folder: Path) -> int:
    """The bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def _show(title: str, row: dict[str, Any]) -> None:
    figures = ", ".join(f"{name} {value:.4g}" for name, value in row.items() if isinstance(value, float))
    print(f"{title}: {figures}", flush=True)
    for name, search in row.get("search", {}).items():
        took = f"{search['median_ms']:8.1f} ms ({search['cpu_ms']:.1f} of CPU)"
        print(f"    {name:>6}: {took}, recall@{_K} {search['recall']:.3f}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
