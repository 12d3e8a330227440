"""What a filter adds to a search: each in turn with a plain search, in one process, so that a busy machine slows both.

"Cold" filters have another bound or value in each search, "warm" ones are the same again. A row has the medians of both
sides and the ratio of these. Vectors are clustered, and queries lie in the first half of the clusters: nothing that a
"far" filter lets through is near them. An existing store of this benchmark is used again.

    python -m benchmarks.filters --records 50000 --store /tmp/filters-50000 --json results/filters.json
    python -m benchmarks.filters --records 200000 --store lance:///tmp/filters-lance
    python -m benchmarks.filters --records 50000 --store http://127.0.0.1:8000
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from abc_rag.store import LanceStore, Store, open_store
from abc_rag.types import Modality
from benchmarks.writing import PLACES, rows_of, written

_HALF = PLACES // 2
_BATCH = 1000
_FIRST = 3  # searches of each kind that are not counted
# Name -> filter and modality of the nth search.
_FILTERS: dict[str, Callable[[int], tuple[Mapping[str, Any] | None, Modality | None]]] = {
    "modality (50 %), warm": lambda _: (None, "text"),
    "far, 50 %, warm": lambda _: ({"place": {"$gte": _HALF}}, None),
    "far, 50 %, cold": lambda n: ({"price": {"$gte": _HALF + 0.013 * n}}, None),
    "far, one of many, cold": lambda n: ({"place": {"$in": list(range(_HALF + n % 7, PLACES - n % 43))}}, None),
    "50 %, cold": lambda n: ({"page": {"$gte": 500 + 0.01 * n}}, None),
    "10 %, warm": lambda _: ({"page": {"$lt": 100}}, None),
    "10 %, cold": lambda n: ({"page": {"$gte": 10 * (n % 90), "$lt": 10 * (n % 90) + 100}}, None),
    "5 %, two parts, warm": lambda _: ({"page": {"$lt": 100}}, "text"),
    "1 %, warm": lambda _: ({"page": {"$lt": 10}}, None),
    "1 %, cold": lambda n: ({"page": {"$in": list(range(n % 990, n % 990 + 10))}}, None),
    "0.1 %, cold": lambda n: ({"page": n % 1000}, None),
    "one record, cold": lambda n: ({"abc:source": f"/folder/{n}"}, None),
}


def main() -> int:
    """Run the benchmark."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--store", required=True, help="as for the command line; made and filled if it is empty")
    options.add_argument("--records", type=int, default=50_000)
    options.add_argument("--dim", type=int, default=192)
    options.add_argument("--searches", type=int, default=20, help="of each kind")
    options.add_argument("--json", type=Path, help="file for the results")
    arguments = options.parse_args()
    with open_store(arguments.store) as store:
        if store.count() == 0:
            written(store, arguments.records, arguments.dim, _BATCH)
            if isinstance(store, LanceStore):
                store.build_index()
        if (store.count(), store.dim) != (arguments.records, arguments.dim):
            raise SystemExit(f"{arguments.store}: {store.count()} records of {store.dim} dimensions: use another place")
        rows = {name: _measured(store, filter_of, arguments.searches) for name, filter_of in _FILTERS.items()}
    print(f"| {arguments.records} records | plain, ms | filter, ms | ratio | first, ms |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, row in rows.items():
        print(f"| {name} | {row['plain']:.1f} | {row['filter']:.1f} | {row['ratio']:.2f} | {row['first']:.1f} |")
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        result = {"command": "python -m benchmarks.filters " + " ".join(sys.argv[1:]), "filters": rows}
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


def _measured(
    store: Store, filter_of: Callable[[int], tuple[Mapping[str, Any] | None, Modality | None]], searches: int
) -> dict[str, float]:
    """Milliseconds of plain and filtered searches in turn: medians, their ratio, and the first one with a filter."""
    assert store.dim is not None
    _, queries = rows_of(10**9, 2 * (searches + _FIRST), store.dim, _HALF)
    plain, filtered = [], []
    for n in range(searches + _FIRST):
        where, modality = filter_of(n)
        began = time.perf_counter()
        store.search(queries[2 * n], 5)
        between = time.perf_counter()
        store.search(queries[2 * n + 1], 5, where, modality=modality)
        plain.append(1000 * (between - began))
        filtered.append(1000 * (time.perf_counter() - between))
    medians = float(np.median(plain[_FIRST:])), float(np.median(filtered[_FIRST:]))
    return {"plain": medians[0], "filter": medians[1], "ratio": medians[1] / medians[0], "first": filtered[0]}


if __name__ == "__main__":
    sys.exit(main())
