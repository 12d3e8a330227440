"""Print results as Markdown tables, for ``benchmarks/README.md``.

python -m benchmarks.tables results/*.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Result = dict[str, Any]


def main() -> int:
    """Print the tables of results files, each below a line with its command."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("files", nargs="+", type=Path)
    for file in options.parse_args().files:
        print(render(json.loads(file.read_text(encoding="utf-8"))), end="\n\n")
    return 0


def render(result: Result) -> str:
    """The tables of one file.

    Raises:
        ValueError: The benchmark is unknown.
    """
    name = result.get("benchmark")
    if name not in _TABLES:
        raise ValueError(f"{name!r} is none of {', '.join(_TABLES)}")
    return "\n\n".join([_heading(result), *_TABLES[name](result)])


def _heading(result: Result) -> str:
    options, machine = result["options"], result["machine"]
    if "shape" not in options:  # its figures do not depend on the machine
        return f"**{result['benchmark']}** ({result['date'][:10]}): `{result['command']}`"
    chip = machine.get("gpu") if options["device"].startswith("cuda") else machine["processor"]
    facts = [
        f"{chip}, {machine['threads']} of {machine['cores']} cores",
        f"{options['dtype']}, {options['min_tokens']} to {options['max_tokens']} image tokens",
        f"torch {machine['torch']}, transformers {machine['transformers']}",
        result["date"][:10],
    ]
    return f"**{result['benchmark']}, {options['shape']}** ({'; '.join(facts)}): `{result['command']}`"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _number(value: float) -> str:
    """Three significant digits, without exponents."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _spread(value: dict[str, float]) -> str:
    return f"{_number(value['median'])} ({_number(value['q1'])} to {_number(value['q3'])})"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _compare(result: Result) -> list[str]:
    sides = ("one", "padded", "sentence-transformers", "recompute", "compiled")
    rows = [
        [
            row["row"],
            str(row["items"]),
            _number(row["items"] / row["seconds"]["engine"]["median"]),
            *[_spread(row["ratios"][side]) if side in row["ratios"] else "" for side in sides],
        ]
        for row in result["rows"]
    ]
    columns = ["", "items", "abc-rag, items/s", "x one at a time", "x padded batches", "x sentence-transformers"]
    worst = max(result["differences"].values())
    return [
        _table([*columns, "x recomputing", "x compiled"], rows),
        f"Maximum absolute difference between the vectors of all sides: {worst:.0e}.",
    ]


def _preprocess(result: Result) -> list[str]:
    cases = [
        [
            f"{case['tokens']} tokens, {case['source']}",
            *[_number(1000 * case["seconds_each"][side]["median"]) for side in ("engine", "normalise", "stock")],
            _spread(case["ratio"]),
            _spread(case["ratio_with_normalise"]),
            "yes" if case["identical"] else "no",
        ]
        for case in result["cases"]
    ]
    columns = ["", "abc-rag, ms", "normalising, ms", "stock, ms", "ratio", "ratio with normalising", "identical"]
    workers = list(result["scaling"][0]["workers"])
    scaling = [
        [
            f"{case['tokens']} tokens",
            *[
                f"{_number(case['workers'][n]['per_second'])} ({_number(case['workers'][n]['ratio']['median'])} x)"
                for n in workers
            ],
        ]
        for case in result["scaling"]
    ]
    return [_table(columns, cases), _table(["JPEG files/s", *[f"{n} workers" for n in workers]], scaling)]


def _memory(result: Result) -> list[str]:
    rows = [
        [
            kind["kind"],
            f"{run['count']:,}",
            _number(run["before_bytes"] / 2**20),
            _number(run["peak_bytes"] / 2**20),
            f"{100 * (run['peak_bytes'] / kind['runs'][0]['peak_bytes'] - 1):+.1f} %",
            _number(run["count"] / run["seconds"]),
        ]
        for kind in result["kinds"]
        for run in kind["runs"]
    ]
    return [_table(["", "inputs", "loaded, MiB", "peak, MiB", "against the first", "inputs/s"], rows)]


def _gpu(result: Result) -> list[str]:
    rows = [
        [
            row["row"],
            _spread(row["per_second"]),
            _percent(row["utilisation"]),
            "" if row["while_busy"] is None else _percent(row["while_busy"]),
            *[
                _percent(row["timeline"]["shares"][share])
                for share in ("busy", "waiting_for_preparation", "waiting_otherwise")
            ],
        ]
        for row in result["rows"]
    ]
    columns = ["", "items/s", "utilisation", "while busy", "busy", "waits for preparation", "waits otherwise"]
    return [_table(columns, rows), f"Limit: {result['limit'] / 1e12:.3g} TFLOP/s in a matrix product."]


def _latency(result: Result) -> list[str]:
    rows = [
        [
            row["query"] + (", beside an index run" if row["beside_index_run"] else ", alone"),
            str(row["count"]),
            _number(row["p50_ms"]),
            _number(row["p99_ms"]),
            _number(row["indexed_per_second"]) if row["beside_index_run"] else "",
        ]
        for row in result["rows"]
    ]
    return [_table(["", "queries", "p50, ms", "p99, ms", "indexed meanwhile, inputs/s"], rows)]


def _answering(result: Result) -> list[str]:
    asked = [
        [
            "a question" + (", while an answer is generated" if row["beside"] else ", alone"),
            f"{_number(row['p50_ms'])} ms (p99 {_number(row['p99_ms'])})",
        ]
        for row in result["questions"]
    ]
    rates = [
        [
            f"an answer, {name} an index run" if name == "beside" else "an answer, alone",
            f"{_number(one['median'])} tokens/s",
        ]
        for name, one in result["tokens_per_second"].items()
    ]
    indexed = [["indexed meanwhile", f"{_number(result['indexed_per_second']['median'])} inputs/s"]]
    memory = [
        [f"memory of an {side}" if side == "embedder" else f"memory of a {side} and its embedder",
         f"{(one['after_bytes'] - one['before_bytes']) / 1e9:.2f} GB"]
        for side, one in result["memory"].items()
    ]  # fmt: skip
    return [_table(["", ""], [*asked, *rates, *indexed, *memory])]


def _route(result: Result) -> list[str]:
    rows = [[one["what"], *(f"{one[name]:,}" for name in ("files", "calls", "switches"))] for one in result["routes"]]
    return [_table(["", "files", "calls", "switches"], rows)]


def _serve(result: Result) -> list[str]:
    def shown(value: float | dict[str, float]) -> str:
        return _spread(value) if isinstance(value, dict) else _number(value)

    return [
        _table([row["what"], ""], [[name, shown(value)] for name, value in row.items() if name != "what"])
        for row in result["rows"]
    ]


def _wordings(result: Result) -> list[str]:
    aspects = list(result["paths"][0]["by_aspect"])
    rows = [
        [path["name"], *(f"{100 * share:.1f}" for share in (path["recall_at_1"], *path["by_aspect"].values()))]
        for path in result["paths"]
    ]
    return [_table(["R@1 %", "all", *aspects], rows)]


_TABLES: dict[str, Callable[[Result], list[str]]] = {
    "compare": _compare,
    "preprocess": _preprocess,
    "memory": _memory,
    "gpu": _gpu,
    "latency": _latency,
    "answering": _answering,
    "route": _route,
    "serve": _serve,
    "wordings": _wordings,
}


if __name__ == "__main__":
    raise SystemExit(main())
