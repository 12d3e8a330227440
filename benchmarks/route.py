"""The path of the data through the code: files, calls, and switches between files.

    python -m benchmarks.route
    python -m benchmarks.route --pairs

Counted on abc-mini, on a CPU, with the model loaded and the pictures' vision features in the cache:

- ``text``: from ``embedder.embed([Text("...")])`` to the vector;
- ``search``: one `Retriever.search` with a second look (instruction-conditioned reranking) at the 24 pictures of
  ``abc-rag demo``, each of which is embedded again under the instruction.

A call is one call event of `sys.setprofile` for a function of `abc_rag`, in any thread: entering a function or a
comprehension, or resuming a generator. Methods that dataclasses generate are not counted, as they are in no file. A
switch is a call whose file differs from that of the previous call in the same thread; all threads are added up. Each
figure is the median of several rounds, as the number of batches varies.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.resources import as_file, files
from pathlib import Path
from types import FrameType
from typing import Any

import abc_rag
from benchmarks._harness import finish

__all__ = ["Route", "Tracer", "main", "measure"]

_ROOT = str(Path(abc_rag.__file__).parent) + "/"
_QUESTION = "show me a photo with a {} background"
_COLOURS = ("red", "blue", "green", "yellow", "purple", "orange", "white", "black", "brown")


@dataclass(frozen=True)
class Route:
    """The counts between a call and its answer.

    Attributes:
        what: ``"text"`` or ``"search"``.
        files: Number of files of `abc_rag` that were called.
        calls: Number of calls.
        switches: Number of calls in another file than the previous call.
    """

    what: str
    files: int
    calls: int
    switches: int


class Tracer:
    """Counts the calls of functions of `abc_rag`, in every thread that starts after it."""

    def __init__(self) -> None:
        self._on = False
        self._calls: dict[int, list[str]] = {}
        threading.setprofile(self._profile)
        sys.setprofile(self._profile)

    def close(self) -> None:
        """Stop counting."""
        sys.setprofile(None)
        threading.setprofile(None)

    def _profile(self, frame: FrameType, event: str, _: Any) -> None:  # noqa: ANN401
        if self._on and event == "call" and frame.f_code.co_filename.startswith(_ROOT):
            file = frame.f_code.co_filename.removeprefix(_ROOT)
            self._calls.setdefault(threading.get_ident(), []).append(file)

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count within the block."""
        self._calls = {}
        self._on = True
        try:
            yield
        finally:
            self._on = False

    def pairs(self) -> Counter[tuple[str, str]]:
        """Switches by (file before, file after)."""
        calls = self._calls.values()
        return Counter(pair for one in calls for pair in itertools.pairwise(one) if pair[0] != pair[1])

    def route(self, what: str) -> Route:
        """The counts of the last block."""
        calls = list(self._calls.values())
        distinct = len({file for one in calls for file in one})
        return Route(what, distinct, sum(map(len, calls)), sum(self.pairs().values()))


def measure(rounds: int = 5) -> tuple[list[Route], dict[str, Counter[tuple[str, str]]]]:
    """Both routes, and the switches of the last round of each.

    Args:
        rounds: Number of rounds.
    """
    from abc_rag import ChromaStore, Retriever, Text, load_embedder
    from abc_rag.ingest.paths import index_paths

    tracer = Tracer()
    embedder = load_embedder("abc-mini", device="cpu")
    pictures = as_file(files("abc_rag.models.bundled").joinpath("demo"))
    try:
        with (
            pictures as demo,
            tempfile.TemporaryDirectory() as folder,
            ChromaStore(folder, fingerprint=embedder.fingerprint) as store,
        ):
            index_paths([demo], embedder, store)
            retriever = Retriever(embedder, store)

            def embed(number: int) -> None:
                embedder.embed([Text(f"a red bicycle with number {number} on it")])

            def search(number: int) -> None:
                retriever.search(_QUESTION.format(_COLOURS[number % len(_COLOURS)]), rerank=True)

            taken = {what: _taken(tracer, what, call, rounds) for what, call in (("text", embed), ("search", search))}
    finally:
        tracer.close()
        embedder.close()
    return [route for route, _ in taken.values()], {what: pairs for what, (_, pairs) in taken.items()}


def _taken(
    tracer: Tracer, what: str, call: Callable[[int], None], rounds: int
) -> tuple[Route, Counter[tuple[str, str]]]:
    call(0)  # loads everything that is loaded only once
    routes = []
    for number in range(1, rounds + 1):
        with tracer.counting():
            call(number)
        routes.append(tracer.route(what))
    middle = {
        name: round(statistics.median(getattr(route, name) for route in routes))
        for name in ("files", "calls", "switches")
    }
    return Route(what, **middle), tracer.pairs()


def main() -> None:
    """Count, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="number of rounds")
    parser.add_argument("--pairs", action="store_true", help="list the pairs of files between which the switches are")
    parser.add_argument("--json", type=Path, default=None, help="file for the results; default: standard output")
    arguments = parser.parse_args()
    routes, pairs = measure(arguments.rounds)
    results: dict[str, Any] = {"routes": [asdict(route) for route in routes]}
    if arguments.pairs:
        results["pairs"] = {
            what: [[*pair, count] for pair, count in found.most_common()] for what, found in pairs.items()
        }
    finish("route", arguments, results)


if __name__ == "__main__":
    main()
