"""What the benchmarks share: options, rounds that alternate, medians with spread, and the file of results."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from abc_rag.bench import processor_name
from abc_rag.models.shapes import SHAPES

Inputs = TypeVar("Inputs")

_LIBRARIES = ("abc-rag", "torch", "transformers", "peft", "sentence-transformers", "numpy", "pillow")


def parser(
    description: str | None, *, shapes: Sequence[str] = tuple(SHAPES), rounds: int = 5
) -> argparse.ArgumentParser:
    """Options that all benchmarks have."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--shape", choices=shapes, default="mini", help="size of the network (random weights)")
    made.add_argument("--device", default="cpu", help="any torch device")
    made.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    made.add_argument("--min-tokens", type=int, default=256, help="fewest image tokens of a picture")
    made.add_argument("--max-tokens", type=int, default=1024, help="most image tokens of a picture")
    made.add_argument("--rounds", type=int, default=rounds, help="how often each side is measured")
    made.add_argument("--threads", type=int, default=None, help="of torch; all cores if not given")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--quick", action="store_true", help="sizes so small that the figures mean nothing")
    made.add_argument("--json", type=Path, default=None, help="write the results here; standard output if not given")
    return made


def prepare(arguments: argparse.Namespace) -> None:
    """Threads, and no other output than the results."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.set_num_threads(arguments.threads or os.cpu_count() or 1)
    if arguments.quick:
        arguments.rounds = min(arguments.rounds, 2)
        arguments.min_tokens, arguments.max_tokens = min(arguments.min_tokens, 4), min(arguments.max_tokens, 16)


def alternate(
    sides: Mapping[str, Callable[[Inputs], object]], make: Callable[[int], Inputs], *, rounds: int
) -> dict[str, list[float]]:
    """Seconds of every side in every round.

    Each round has inputs of its own, the same for all sides, and begins with another side, so that neither what
    remains from before nor what the machine does meanwhile favours one of them. A round that is not counted goes first.

    Args:
        sides: What to measure, by name.
        make: Makes the inputs of a round from its number.
        rounds: How many.
    """
    names = list(sides)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds + 1):
        inputs = make(number)
        first = number % len(names)
        for name in [*names[first:], *names[:first]]:
            start = time.perf_counter()
            sides[name](inputs)
            took = time.perf_counter() - start
            if number > 0:
                seconds[name].append(took)
    return seconds


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, quartiles and extremes."""
    low, first, middle, third, high = np.percentile(np.array(values), (0, 25, 50, 75, 100)).tolist()
    return {"median": middle, "q1": first, "q3": third, "min": low, "max": high}


def ratio(other: Sequence[float], ours: Sequence[float]) -> dict[str, float]:
    """How many times faster ``ours`` is: the ratio of the medians, and the spread of the ratios within the rounds."""
    paired = spread([theirs / own for theirs, own in zip(other, ours, strict=True)])
    return {**paired, "median": float(np.median(other) / np.median(ours))}


def machine() -> dict[str, Any]:
    """What the figures were measured on, and with."""
    found: dict[str, Any] = {
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    for library in _LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            found[library] = None
    return found


def finish(benchmark: str, arguments: argparse.Namespace, results: Mapping[str, Any]) -> None:
    """Write what was measured, with everything that is needed to measure it again."""
    options = {name: str(v) if isinstance(v, Path) else v for name, v in vars(arguments).items()}
    document = {
        "benchmark": benchmark,
        "command": f"python -m benchmarks.{benchmark} {' '.join(sys.argv[1:])}".strip(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "options": options,
        "machine": machine(),
        **results,
    }
    text = json.dumps(document, indent=2) + "\n"
    if arguments.json is None:
        print(text, end="")
        return
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(text, encoding="utf-8")
