"""What smaller vectors cost: bytes a million records, recall and time of a search, for each way of keeping them.

Random clustered unit vectors, as in `benchmarks.lance`, are kept as float32 and as float16, and searched by comparing
with all of them and by each kind of index, whose candidates are always compared by the kept vectors.

    python -m benchmarks.vectors --records 20000 --dim 512
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

from abc_rag.store import LanceStore
from benchmarks.lance import Made, bytes_in, searched, written


def main() -> int:
    """Run the benchmark."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--records", type=int, default=20_000)
    options.add_argument("--dim", type=int, default=512)
    options.add_argument("--queries", type=int, default=30)
    options.add_argument("--kinds", nargs="*", default=["int8", "binary", "pq"], help="also: hnsw")
    arguments = options.parse_args()
    logging.disable(logging.INFO)
    made = Made(arguments.records, arguments.dim)
    queries, truth = made.truth(arguments.queries)
    print("| kept as | index | MB a million: vectors | index | recall@10 | ms | ms of CPU |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |", flush=True)
    for dtype in ("float32", "float16"):
        with tempfile.TemporaryDirectory() as scratch, LanceStore(Path(scratch, "s"), dtype=dtype) as store:
            written(store, made, 10_000)
            store.compact(timedelta(0))
            kept = arguments.dim * (4 if dtype == "float32" else 2)
            beside = bytes_in(Path(scratch, "s", "abc.lance", "data")) / made.count - kept
            for kind in [None, *arguments.kinds]:
                size = 0.0
                if kind is not None:
                    store.build_index(kind)
                    size = sum(one["bytes"] for one in store.indexes() if one["name"] == "vector") / made.count
                found: dict[str, Any] = searched(store, queries, truth, arguments.queries)["plain"]
                print(
                    f"| {dtype} | {kind or 'none'} | {kept:,.0f} | {size:,.0f} | {found['recall']:.3f} "
                    f"| {found['median_ms']:.1f} | {found['cpu_ms']:.1f} |",
                    flush=True,
                )
            print(f"beside its vector, a record takes {beside:.0f} bytes", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
