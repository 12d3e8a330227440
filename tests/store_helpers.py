"""Records, vectors and other processes for the tests of stores."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np

import abc_rag
from abc_rag.store import Store, fit_projection, open_store, reduce_store
from abc_rag.types import Fingerprint, Record

Elsewhere = Callable[..., "subprocess.Popen[str]"]

ROOT = str(Path(next(iter(abc_rag.__path__))).parent)
ONE = Fingerprint("abc", "one", 4, 64)
TWO = Fingerprint("abc", "two", 4, 64)
NO_TELEMETRY = {"anonymized_telemetry": False}


def unit(*values: float) -> np.ndarray:
    return np.array(values) / np.linalg.norm(values)


def vectors(n: int, dim: int = 8, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((n, dim))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def texts(n: int, prefix: str = "t") -> list[Record]:
    return [Record(f"{prefix}{i:05}", "text", f"passage {i}", metadata={"page": i}) for i in range(n)]


def reduced(whole: Store, place: Path, dims: int, collection: str = "abc") -> Path:
    """A folder with the same in fewer dimensions."""
    projection = fit_projection(whole, dims)
    with open_store(place, collection=collection, fingerprint=projection.fingerprint) as short:
        reduce_store(whole, short, projection)
    return place


def finish(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, ""), err
    return out


HOLD = "store = ChromaStore(sys.argv[1], hold_s=3600); put(store, 0, 20); print('held', flush=True); sys.stdin.read()"
