"""What smaller vectors cost: bytes a million records, recall and time of a search, for each way of keeping them.

Random clustered unit vectors, as in `benchmarks.lance`, are kept as float32 and as float16, and searched by comparing
with all of them and by each kind of index, whose candidates are always compared by the kept vectors.

    python -m benchmarks.vectors --records 20000 --dim 512

With vectors that ``abc-rag evaluate scale --pictures 4000 --out FOLDER`` has made, stores of fewer dimensions (PCA) are
compared with the whole one instead. Held-out pictures are the queries, plain and under an instruction:

    python -m benchmarks.vectors --reduced FOLDER/scale-4000.npz
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np

from abc_rag.search import rescored
from abc_rag.store import LanceStore, fit_projection, reduce_store
from abc_rag.types import Record
from benchmarks.lance import Made, bytes_in, searched, written

_HELD_OUT = 200


def main() -> int:
    """Run the benchmark."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--records", type=int, default=20_000)
    options.add_argument("--dim", type=int, default=512)
    options.add_argument("--queries", type=int, default=30)
    options.add_argument("--kinds", nargs="*", default=["int8", "binary", "pq"], help="also: hnsw")
    options.add_argument("--reduced", type=Path, help="vectors to reduce")
    arguments = options.parse_args()
    logging.disable(logging.INFO)
    if arguments.reduced is not None:
        return reduced(arguments.reduced)
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


def reduced(file: Path) -> int:
    """Print recall at fewer dimensions: of the shorter vectors alone, and with candidates compared by whole ones."""
    with np.load(file, allow_pickle=False) as kept:
        rows, model = kept["plain"], str(kept["model"])
        asked = {"plain": rows, "instruction": kept["side"]}
    count, dim = len(rows) - _HELD_OUT, rows.shape[1]
    with tempfile.TemporaryDirectory() as scratch, LanceStore(Path(scratch, "s"), fingerprint=model) as whole:
        whole.add([Record(f"p{i}", "image") for i in range(count)], rows[:count])
        print("| dimensions | bytes of a vector | queries | recall@10 | with 50 candidates compared by whole vectors |")
        print("| ---: | ---: | --- | ---: | ---: |")
        for dims in (dim // 2, dim // 3, dim // 4):
            projection = fit_projection(whole, dims)
            with LanceStore(Path(scratch, str(dims)), fingerprint=projection.fingerprint) as short:
                reduce_store(whole, short, projection)
                for name, vectors in asked.items():
                    queries = vectors[count:]
                    right = [{hit.id for hit in found} for found in whole.search_many(queries, 10)]
                    alone = short.search_many(projection(queries), 10)
                    again = [rescored(short, whole, query, 10) for query in queries]
                    recalls = [
                        np.mean(
                            [len({hit.id for hit in hits} & ids) / 10 for hits, ids in zip(found, right, strict=True)]
                        )
                        for found in (alone, again)
                    ]
                    print(
                        f"| {dims} of {dim} | {4 * dims} | {name} | {recalls[0]:.3f} | {recalls[1]:.3f} |", flush=True
                    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
