"""The command ``abc-rag bench``."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, cast

import typer

from abc_rag.cli.options import JsonOption, ModelFlags, grouped
from abc_rag.cli.output import print_json, print_table, say
from abc_rag.errors import InputError

if TYPE_CHECKING:
    from abc_rag.bench.bench import BenchResult
    from abc_rag.embedding.engine.local import LocalEmbedder
    from abc_rag.embedding.options import EmbedderKeywords
    from abc_rag.models.loader import DType

__all__ = ["bench"]

_DTYPES = ("auto", "float32", "bfloat16", "float16")


@grouped
def bench(
    *,
    model: ModelFlags,
    shape: Annotated[
        str | None, typer.Option(help="tiny, mini, 2b or 7b: random weights of this size instead of a model.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    items: Annotated[int, typer.Option(min=1, help="Estimate the time for this many items.")] = 100_000,
    seconds: Annotated[float, typer.Option(min=0.1, help="Approximate time to measure for.")] = 30.0,
    as_json: JsonOption = False,
) -> None:
    """Measure a model on this machine: throughput, its share of the hardware limit, and latency."""
    from abc_rag.bench.bench import bench as measure

    if dtype not in _DTYPES:
        raise InputError(f"--dtype takes {', '.join(_DTYPES)}, not {dtype!r}")
    if model.model is not None and shape is not None:
        raise InputError("give --model or --shape, not both")
    embedder = _opened(model, shape, cast("DType", dtype))
    result = measure(embedder, items=items, seconds=seconds)
    if as_json:
        print_json(result.to_dict())
    else:
        _show(result)


def _opened(model: ModelFlags, shape: str | None, dtype: DType) -> LocalEmbedder:
    from abc_rag.embedding.load import find_device, load_embedder

    if shape is None:
        keywords: EmbedderKeywords = {**model.keywords(), "dtype": dtype}
        return cast("LocalEmbedder", load_embedder(model.model, **keywords))
    if model.resolution is not None:
        raise InputError("--resolution is a model's, not a --shape's; give --min-tokens and --max-tokens")
    from abc_rag.bench.shapes import random_family, shape_config
    from abc_rag.embedding.engine.local import LocalEmbedder

    shape_config(shape)
    # One limit alone must not contradict the other's default.
    least = min(256, model.max_tokens or 256) if model.min_tokens is None else model.min_tokens
    most = max(1024, least) if model.max_tokens is None else model.max_tokens
    if least < 1 or least > most:
        raise InputError(f"--min-tokens and --max-tokens must be positive and in order, not {least} and {most}")
    found = str(find_device(model.device))
    return LocalEmbedder(lambda: random_family(shape, device=found, dtype=dtype, min_tokens=least, max_tokens=most))


def _show(result: BenchResult) -> None:
    machine = result.machine
    say(f"{result.model} on {machine['device']} ({machine['processor']}, {machine['threads']} threads)")
    say(f"limit: {operations_of(result.limit)} in a matrix product in {machine['dtype']}")
    rates = [
        (one.name, one.tokens, f"{one.per_second:,.4g}", "?" if math.isnan(one.share) else f"{100 * one.share:.0f} %")
        for one in result.throughputs
    ]
    print_table(["", "tokens each", "a second", "share of the limit"], rates)
    queries = [(one.name, f"{one.p50_ms:,.3g}", f"{one.p99_ms:,.3g}", one.count) for one in result.latencies]
    print_table(["", "median ms", "99 % within ms", "measured"], queries)
    if (use := result.cores) is not None:
        chosen = "each core sees its own" if use.apart else "all cores see one after the other"
        say(f"pictures: {chosen}; cores of their own are {use.gain:.2f} times as fast")
    say(
        f"{result.items:,} pictures: about {duration_of(result.picture_seconds)}; "
        f"{result.items:,} passages of 100 tokens: about {duration_of(result.passage_seconds)}"
    )


def operations_of(rate: float) -> str:
    return f"{rate / 1e12:,.3g} TFLOP/s" if rate >= 1e12 else f"{rate / 1e9:,.3g} GFLOP/s"


def duration_of(seconds: float) -> str:
    """A duration in the unit that a person would use."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.3g} {unit}"
    return f"{seconds:,.2g} seconds"
