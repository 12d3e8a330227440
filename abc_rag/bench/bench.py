"""How fast a model is on this machine, how near that is to what the machine can do, and how long a job will take.

The limit is what the machine reaches in one large matrix product, in the model's precision. A rate's share of it is
``operations of the inputs / (seconds * limit)``, where only the matrix products of the inputs count
(`abc_rag.models.family.Family.count_flops`); padding, opening pictures and waiting show up as what is missing to 1.
"""

from __future__ import annotations

import math
import os
import platform
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from abc_rag.bench.inputs import QUESTIONS, random_jpeg, random_passage
from abc_rag.embedding.engine.cores import CoreUse
from abc_rag.embedding.engine.local import LocalEmbedder
from abc_rag.errors import InputError
from abc_rag.models.family import Family
from abc_rag.types import Image, Input, InstructedImage, Text

__all__ = [
    "BenchResult",
    "Latency",
    "Throughput",
    "bench",
    "estimate_seconds",
    "matmul_rate",
    "processor_name",
]

PASSAGES = (12, 100, 512)
"""Tokens of the passages that are measured."""
_CPU_SIDE, _GPU_SIDE = 2048, 8192
# Parts of the time that is given; the rest goes into making pictures.
_MATMUL, _TEXTS, _PICTURES, _LATENCY = 0.05, 0.09, 0.18, 0.06
# Pictures are made and kept on the disk; more would take longer to make than to measure.
_MOST_AT_ONCE = 2000
_FEWEST_QUERIES, _MOST_QUERIES = 8, 400
_PARTS = 3
_TRIAL_WORDS = (8, 64)


@dataclass(frozen=True)
class Throughput:
    """A rate.

    Attributes:
        name: What was embedded.
        items: Number of items in one call.
        seconds: Time of the call, a median.
        tokens: Of one item, in the language model.
        flops: Operations that one item needs; NaN where they are not known for the family.
        limit: What the machine reaches in a matrix product, operations a second.
    """

    name: str
    items: int
    seconds: float
    tokens: int
    flops: float
    limit: float

    @property
    def per_second(self) -> float:
        """Items a second."""
        return self.items / self.seconds

    @property
    def share(self) -> float:
        """Share of the limit, in [0, 1]; NaN where it is not known."""
        return self.per_second * self.flops / self.limit


@dataclass(frozen=True)
class Latency:
    """The time that a single input takes.

    Attributes:
        name: What was embedded.
        count: Number of measurements, each with another input.
        p50_ms: The median, in milliseconds.
        p99_ms: The 99th percentile; with few measurements, nearly the maximum.
    """

    name: str
    count: int
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True)
class BenchResult:
    """What `bench` measured.

    Attributes:
        model: The fingerprint.
        machine: Device, processor, cores, threads, precision, versions.
        limit: What the machine reaches in a matrix product, operations a second.
        throughputs: Passages of each length that the context allows, pictures, pictures with a question.
        latencies: One text, one picture with a question.
        items: Number of items that the estimates are for.
        picture_seconds: Estimated time for `items` pictures.
        passage_seconds: Estimated time for `items` passages of 100 tokens.
        cores: How a CPU's cores see pictures by now; see `LocalEmbedder.cores`.
    """

    model: str
    machine: dict[str, Any]
    limit: float
    throughputs: tuple[Throughput, ...]
    latencies: tuple[Latency, ...]
    items: int
    picture_seconds: float
    passage_seconds: float
    cores: CoreUse | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON; rates and shares included."""
        rows = [
            {**asdict(t), "per_second": t.per_second, "flops": _known(t.flops), "share": _known(t.share)}
            for t in self.throughputs
        ]
        return {**asdict(self), "throughputs": rows}


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def bench(embedder: LocalEmbedder, *, items: int = 100_000, seconds: float = 30.0) -> BenchResult:
    """Measure a model on this machine.

    Args:
        embedder: From `abc_rag.load_embedder`.
        items: For how many items to estimate.
        seconds: About how long to measure. A model that takes longer for one input takes longer here.

    Raises:
        InputError: An argument makes no sense, or the model takes no passages or no pictures.
    """
    if items < 1 or not seconds > 0:
        raise InputError(f"items and seconds must be positive, not {items} and {seconds:g}")
    family = embedder.family
    if not {Text, Image} <= set(family.facts.accepts):
        raise InputError(
            f"{family.facts.fingerprint.model} does not take both texts and pictures, which is what is measured"
        )
    limit = matmul_rate(family.facts.device, family.facts.dtype, seconds=_MATMUL * seconds)
    rng = random.Random(0)
    with tempfile.TemporaryDirectory(prefix="abc-rag-bench-") as folder:
        files = _Pictures(Path(folder))

        def pictures(count: int) -> list[Input]:
            return [Image(path) for path in files.make(count)]

        def questions(count: int) -> list[Input]:
            return [InstructedImage(path, rng.choice(QUESTIONS)) for path in files.make(count)]

        rates = []
        for tokens in PASSAGES:
            passages = _passages(family, rng, tokens)
            if _fits(family, passages):
                rates.append(_throughput(embedder, f"passages of {tokens} tokens", passages, _TEXTS * seconds, limit))
        passage = min(rates, key=lambda rate: abs(rate.tokens - 100))
        picture = _throughput(embedder, "pictures, from JPEG files", pictures, _PICTURES * seconds, limit)
        rates.append(picture)
        asked, alone = ("one picture with a question", questions), ("one picture", pictures)
        if InstructedImage in family.facts.accepts:
            rates.append(_throughput(embedder, "pictures with a question", questions, _PICTURES * seconds, limit))
        latencies = (
            _latency(embedder, "one passage of 12 tokens", _passages(family, rng, PASSAGES[0]), _LATENCY * seconds),
            _latency(embedder, *(asked if InstructedImage in family.facts.accepts else alone), _LATENCY * seconds),
        )
    return BenchResult(
        str(embedder.fingerprint),
        _machine(family.facts.device, family.facts.dtype),
        limit,
        tuple(rates),
        latencies,
        items,
        estimate_seconds(items, picture),
        estimate_seconds(items, passage),
        embedder.cores,
    )


def estimate_seconds(items: int, rate: Throughput) -> float:
    """Seconds that a number of items takes at a measured rate."""
    return items / rate.per_second


def matmul_rate(device: torch.device | str, dtype: torch.dtype, *, seconds: float = 1.0) -> float:
    """Sustained operations per second of a device in one large matrix product.

    On a CPU, the faster of torch's two libraries counts.

    Args:
        device: Any torch device.
        dtype: Of both factors.
        seconds: How long to measure.
    """
    device = torch.device(device)
    side = _CPU_SIDE if device.type == "cpu" else _GPU_SIDE
    with torch.inference_mode():
        left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        products: list[Callable[[], torch.Tensor]] = [lambda: left @ right]
        has_onednn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        if device.type == "cpu" and has_onednn and dtype != torch.float16:
            left_too, right_too = left.to_mkldnn(), right.to_mkldnn()
            products.append(lambda: torch.nn.functional.linear(left_too, right_too))
        return max(_rate(product, 2.0 * side**3, device, seconds / len(products)) for product in products)


def _rate(product: Callable[[], torch.Tensor], flops: float, device: torch.device, seconds: float) -> float:
    """Median over some stretches, so that a turbo of the first moment does not count."""
    product()
    repeats = 1 if device.type == "cpu" else 20
    found: list[float] = []
    end = time.perf_counter() + seconds
    while len(found) < 3 or time.perf_counter() < end:
        _wait_for(device)
        start = time.perf_counter()
        for _ in range(repeats):
            product()
        _wait_for(device)
        found.append(repeats * flops / (time.perf_counter() - start))
    return float(np.median(found))


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


class _Pictures:
    """JPEG files, as many as are asked for, each another one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made = 0

    def make(self, count: int) -> list[Path]:
        numbers = range(self._made, self._made + count)
        self._made += count
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(self._one, numbers))

    def _one(self, number: int) -> Path:
        path = self._folder / f"{number}.jpg"
        path.write_bytes(random_jpeg(np.random.default_rng(number)))
        return path


def _passages(family: Family, rng: random.Random, tokens: int) -> Callable[[int], list[Input]]:
    # What a word costs, and what the prompt around it does, is the tokenizer's business.
    few, many = (family.prepare(Text(random_passage(rng, words))).tokens for words in _TRIAL_WORDS)
    per_word = max(0.1, (many - few) / (_TRIAL_WORDS[1] - _TRIAL_WORDS[0]))
    words = max(1, round((tokens - few) / per_word) + _TRIAL_WORDS[0])
    return lambda count: [Text(random_passage(rng, words)) for _ in range(count)]


def _fits(family: Family, make: Callable[[int], list[Input]]) -> bool:
    """Whether the model reads texts of that length."""
    try:
        family.prepare(make(1)[0])
    except InputError:
        return False
    return True


def _throughput(
    embedder: LocalEmbedder, name: str, make: Callable[[int], list[Input]], seconds: float, limit: float
) -> Throughput:
    tokens, flops = embedder.family.count_flops(make(1)[0])
    count, took = 0, 0.0
    # The first inputs warm up and say how many fill the time.
    for wanted in (1, 4, 16):
        if took < seconds / 8:
            count, took = wanted, _timed(embedder, make(wanted))
    if took < seconds / 2:
        # The median of some parts, as other programs want the machine too.
        count = min(max(count, int(seconds / _PARTS * count / took)), _MOST_AT_ONCE)
        took = float(np.median([_timed(embedder, make(count)) for _ in range(_PARTS)]))
    return Throughput(name, count, took, tokens, flops, limit)


def _latency(embedder: LocalEmbedder, name: str, make: Callable[[int], list[Input]], seconds: float) -> Latency:
    _timed(embedder, make(1))
    took: list[float] = []
    while len(took) < _FEWEST_QUERIES or (sum(took) < seconds and len(took) < _MOST_QUERIES):
        took += [_timed(embedder, [item]) for item in make(8)]
    p50, p99 = np.percentile(np.array(took) * 1000, (50, 99))
    return Latency(name, len(took), float(p50), float(p99))


def _timed(embedder: LocalEmbedder, inputs: Sequence[Input]) -> float:
    start = time.perf_counter()
    embedder.embed(inputs)
    return time.perf_counter() - start


def _machine(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else device.type,
        "dtype": str(dtype).removeprefix("torch."),
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def processor_name() -> str:
    """The processor, as the system names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
