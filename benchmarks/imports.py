"""What importing costs at a start: ``import abc_rag``, loading abc-mini, and a question from the shell.

    python -m benchmarks.imports
    python -m benchmarks.imports --least 20 --json results/imports.json

Each start is a new process under ``python -X importtime``, which itself makes imports slower by about a tenth. For each
package that is imported the table gives its modules, the time spent in its own modules, and the time until it was there
with all that it imports first (cumulative; a package's time is in those of its importers too). The last line is the
wall and CPU time of the same start without ``-X importtime``. Run it on a quiet machine, twice: the first run reads
files that the second finds in memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

__all__ = ["STARTS", "Cost", "costs", "main"]

_MARK = "import time:"
_INDENT = 2
_LOAD = "import abc_rag; abc_rag.load_embedder('abc-mini', device='cpu').embed([abc_rag.Text('a pig')])"
STARTS = {
    "import abc_rag": ["-c", "import abc_rag"],
    'load_embedder("abc-mini"), one text': ["-c", _LOAD],
    "abc-rag ask": ["-m", "abc_rag.cli", "ask", "a pig", "--model", "abc-mini", "--device", "cpu"],
}
"""Name -> arguments of Python."""
_INDEX = ["-m", "abc_rag.cli", "index", ".", "--model", "abc-mini", "--device", "cpu"]


@dataclass(frozen=True)
class Cost:
    """What a package costs at a start.

    Attributes:
        package: Its name.
        modules: Number of its modules that are imported.
        own_ms: Time in these modules, in milliseconds.
        cumulative_ms: Time until they were there, with all that they import first.
    """

    package: str
    modules: int
    own_ms: float
    cumulative_ms: float


def costs(lines: list[str]) -> list[Cost]:
    """Costs by package, the largest first.

    Args:
        lines: Of ``python -X importtime``; a module comes after those that it imports, which are indented more.
    """
    found: dict[str, list[float]] = {}
    above: list[tuple[int, str]] = []
    for own, cumulative, depth, package in reversed(list(_entries(lines))):
        while above and above[-1][0] >= depth:
            above.pop()
        entry = found.setdefault(package, [0, 0.0, 0.0])
        entry[0] += 1
        entry[1] += own / 1000
        if all(name != package for _, name in above):
            entry[2] += cumulative / 1000
        above.append((depth, package))
    made = [Cost(package, int(modules), own, cumulative) for package, (modules, own, cumulative) in found.items()]
    return sorted(made, key=lambda cost: -cost.cumulative_ms)


def _entries(lines: list[str]) -> Iterator[tuple[int, int, int, str]]:
    """Own and cumulative microseconds, depth, and package."""
    for line in lines:
        own, _, rest = line.removeprefix(_MARK).partition("|")
        cumulative, _, name = rest.partition("|")
        if line.startswith(_MARK) and own.strip().isdigit():
            depth = (len(name) - len(name.lstrip())) // _INDENT
            yield int(own), int(cumulative), depth, name.strip().partition(".")[0]


def main() -> int:
    """Run the benchmark."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--least", type=float, default=10.0, help="leave out packages below this, in ms")
    options.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = options.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "notes.md").write_text("The pig rolls in mud.\n", encoding="utf-8")
        _python(_INDEX, folder)
        for name, start in STARTS.items():
            measured = costs(_python(["-X", "importtime", *start], folder).splitlines())
            wall, cpu = _timed(start, folder)
            print(f"\n{name}\n\n| package | modules | own ms | cumulative ms |\n| --- | ---: | ---: | ---: |")
            for one in measured:
                if one.cumulative_ms >= arguments.least:
                    print(f"| {one.package} | {one.modules} | {one.own_ms:.0f} | {one.cumulative_ms:.0f} |")
            print(f"\n{wall:.2f} s wall, {cpu:.2f} s CPU")
            results.append({"start": name, "wall_s": wall, "cpu_s": cpu, "packages": [asdict(one) for one in measured]})
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return 0


def _python(arguments: list[str], folder: str) -> str:
    done = subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"python {' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    return done.stderr


def _timed(start: list[str], folder: str) -> tuple[float, float]:
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    _python(start, folder)
    wall, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    sys.exit(main())
