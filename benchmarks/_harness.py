"""Shared parts of the benchmarks: options, alternating rounds, medians with their spread, and the results file."""

from __future__ import annotations

import argparse
import atexit
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from abc_rag.bench.bench import processor_name
from abc_rag.bench.shapes import SHAPES
from benchmarks.state import state

Inputs = TypeVar("Inputs")

_ANSWER = "answer: "
# Copies memory until its parent is gone.
_NEIGHBOUR = """
import os, sys
import numpy as np
one, other = np.ones(1 << 25), np.ones(1 << 25)
while os.getppid() == int(sys.argv[1]):
    np.copyto(one, other)
"""
_LIBRARIES = ("abc-rag", "torch", "transformers", "peft", "sentence-transformers", "numpy", "pillow")


def parser(
    description: str | None, *, shapes: Sequence[str] = tuple(SHAPES), rounds: int = 5
) -> argparse.ArgumentParser:
    """The options of every benchmark."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--shape", choices=shapes, default="mini", help="size of the network (random weights)")
    made.add_argument("--device", default="cpu", help="any torch device")
    made.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    made.add_argument("--min-tokens", type=int, default=256, help="minimum image tokens of a picture")
    made.add_argument("--max-tokens", type=int, default=1024, help="maximum image tokens of a picture")
    made.add_argument("--rounds", type=int, default=rounds, help="number of rounds")
    made.add_argument("--threads", type=int, default=None, help="torch's threads; default: all cores")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--cores", default=None, help="run on these cores only, such as 0,1; default: wherever it may")
    made.add_argument("--neighbour", action="store_true", help="another process keeps the memory busy meanwhile")
    made.add_argument("--quick", action="store_true", help="tiny sizes, for the tests; the figures mean nothing")
    made.add_argument("--json", type=Path, default=None, help="file for the results; default: standard output")
    return made


def prepare(arguments: argparse.Namespace) -> None:
    """Set the cores and the number of threads, start the neighbour, and keep libraries from printing."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    if arguments.cores is not None:
        os.sched_setaffinity(0, {int(core) for core in arguments.cores.split(",")})
    torch.set_num_threads(arguments.threads or len(os.sched_getaffinity(0)))
    if arguments.neighbour and "--child" not in sys.argv:
        busy = subprocess.Popen([sys.executable, "-c", _NEIGHBOUR, str(os.getpid())])
        atexit.register(busy.kill)
    if arguments.quick:
        arguments.rounds = min(arguments.rounds, 2)
        arguments.min_tokens, arguments.max_tokens = min(arguments.min_tokens, 4), min(arguments.max_tokens, 16)


def alternate(sides: Mapping[str, Callable[[int], float]], *, rounds: int) -> dict[str, list[float]]:
    """Seconds of each side in each round.

    Each round has new inputs, the same for all sides, and starts with another side, so that neither caches nor other
    programs favour one of them. The first round is a warm-up and does not count.

    Args:
        sides: Name -> function of a round's number that runs the round and returns its seconds.
        rounds: Number of rounds.
    """
    names = list(sides)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds + 1):
        first = number % len(names)
        for name in [*names[first:], *names[:first]]:
            took = sides[name](number)
            if number > 0:
                seconds[name].append(took)
    return seconds


def timed(call: Callable[[Inputs], object], make: Callable[[int], Inputs]) -> Callable[[int], float]:
    """A side for `alternate` that runs in this process. Making the inputs is not timed."""

    def measure(number: int) -> float:
        inputs = make(number)
        start = time.perf_counter()
        call(inputs)
        return time.perf_counter() - start

    return measure


class Child:
    """A side in a process of its own, as a user would run it: the threads of one library would slow down another's.

    Args:
        benchmark: The module to run, with the options of this process.
        arguments: The arguments after ``--child``.
    """

    def __init__(self, benchmark: str, arguments: Sequence[str]) -> None:
        command = [sys.executable, "-m", f"benchmarks.{benchmark}", *sys.argv[1:], "--child", *arguments]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        # All sides load at the same time; measuring starts when each has answered.

    def __enter__(self) -> Child:
        """Return this side, when its process is started."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    def seconds(self, row: str, number: int) -> float:
        """Seconds for the inputs of one round."""
        return float(self._ask({"row": row, "number": number})["seconds"])

    def flops(self, row: str, number: int) -> float:
        """Operations of the matrix products that the inputs of one round need; 0 where the side does not count."""
        return float(self._ask({"row": row, "number": number, "flops": True})["flops"])

    def vectors(self, row: str, number: int, file: Path) -> npt.NDArray[np.float32]:
        """The vectors of one round's inputs, passed through ``file``."""
        self._ask({"row": row, "number": number, "file": str(file)})
        found: npt.NDArray[np.float32] = np.load(file, allow_pickle=False)
        return found

    def _ask(self, asked: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        # Libraries may print to the same stream.
        for line in self._process.stdout:
            if line.startswith(_ANSWER):
                answer: dict[str, Any] = json.loads(line.removeprefix(_ANSWER))
                return answer
        raise SystemExit(f"a side has failed (exit status {self._process.wait()})")


def serve(
    side: Callable[[Inputs], npt.NDArray[np.float32]],
    make: Callable[[str, int], Inputs],
    flops: Callable[[Inputs], float] = lambda _: 0.0,
) -> None:
    """The main loop of a `Child`: answer until standard input ends."""
    for line in sys.stdin:
        asked = json.loads(line)
        inputs = make(asked["row"], asked["number"])
        if "flops" in asked:
            print(_ANSWER + json.dumps({"flops": flops(inputs)}), flush=True)
            continue
        start = time.perf_counter()
        vectors = side(inputs)
        answer = {"seconds": time.perf_counter() - start}
        if "file" in asked:
            np.save(asked["file"], vectors, allow_pickle=False)
        print(_ANSWER + json.dumps(answer), flush=True)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, quartiles and extremes."""
    low, first, middle, third, high = np.percentile(np.array(values), (0, 25, 50, 75, 100)).tolist()
    return {"median": middle, "q1": first, "q3": third, "min": low, "max": high}


def ratio(other: Sequence[float], ours: Sequence[float]) -> dict[str, float]:
    """The speedup of ``ours``: the ratio of the medians, and the spread of the rounds' ratios."""
    paired = spread([theirs / own for theirs, own in zip(other, ours, strict=True)])
    return {**paired, "median": float(np.median(other) / np.median(ours))}


def machine(*, measured: bool = True) -> dict[str, Any]:
    """The machine, its state if it is to be measured, and the versions behind the figures."""
    found: dict[str, Any] = {
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
    }
    if measured:
        found["state"] = state()
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    for library in _LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            found[library] = None
    return found


def finish(benchmark: str, arguments: argparse.Namespace, results: Mapping[str, Any]) -> None:
    """Write the results, and everything that is needed to repeat the run."""
    options = {name: str(v) if isinstance(v, Path) else v for name, v in vars(arguments).items()}
    document = {
        "benchmark": benchmark,
        "command": f"python -m benchmarks.{benchmark} {' '.join(sys.argv[1:])}".strip(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "options": options,
        "machine": machine(measured=not getattr(arguments, "quick", False)),
        **results,
    }
    text = json.dumps(document, indent=2) + "\n"
    if arguments.json is None:
        print(text, end="")
        return
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(text, encoding="utf-8")
