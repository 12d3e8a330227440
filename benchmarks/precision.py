"""Accuracy, memory and time of each precision against float32: ``python -m benchmarks.precision --json out.json``.

There are two checkpoints. The tests' fixture has random weights, so its rounding errors are largest. abc-mini also
shows how many answers change and how long a call takes. The time is that of a second call on the same inputs: pictures
are opened and resized again, but their vision features are cached.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from abc_rag import Image, InstructedImage, Text, load_embedder
from abc_rag.embedding.engine.local import LocalEmbedder
from abc_rag.errors import InputError
from abc_rag.models.abc.family import ABCFamily
from abc_rag.scenes.drawing import render
from abc_rag.scenes.questions import questions
from abc_rag.scenes.world import held_out_scenes, phrases
from abc_rag.types import Input, Vectors

FIXTURE = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "abc"
DTYPES = ("float32", "bfloat16", "float16")
WEIGHTS = ("full", "int8", "int4")
SEED = 20_261
# Qwen2-VL-7B with ABC's head: the matrices of the language model's 28 layers, and everything else.
PUBLISHED_LAYERS, PUBLISHED_REST = 6_525_288_448, 1_250_000_000
BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "int8": 1 + 4 / 64, "int4": 0.5 + 4 / 64}


@dataclass
class Row:
    """One precision on one checkpoint. Cosines and coordinates are compared with float32 on the same device."""

    checkpoint: str
    dtype: str
    weights: str
    worst_coordinate: float
    mean_cosine: float
    worst_cosine: float
    weight_bytes: int
    seconds: float | None = None
    time_of_float32: float | None = None
    right: float | None = None
    changed_answers: int | None = None
    questions: int | None = None


def fixture_inputs() -> list[Input]:
    """Every single input of the fixture."""
    inputs: list[Input] = []
    for case in json.loads((FIXTURE / "cases.json").read_text(encoding="utf-8"))["single"]:
        if case["kind"] == "text":
            inputs.append(Text(case["text"]))
        elif case["kind"] == "image":
            inputs.append(Image(FIXTURE / case["image"]))
        else:
            inputs.append(InstructedImage(FIXTURE / case["image"], case["text"]))
    return inputs


def mini_inputs(scenes: int) -> tuple[list[Input], list[int]]:
    """All phrases of abc-mini's world, then questions on held-out scenes; and the right phrase of each question."""
    answers = phrases()
    rng = random.Random(SEED)
    inputs: list[Input] = [Text(phrase) for phrase in answers]
    right: list[int] = []
    for scene in held_out_scenes(1000, seed=SEED)[:scenes]:
        picture = render(scene)
        for question in questions(scene, rng):
            inputs.append(InstructedImage(picture, question.instruction))
            right.append(answers.index(question.answer))
    return inputs, right


def measure(
    checkpoint: str | Path, inputs: Sequence[Input], device: str, dtype: str, weights: str, repeats: int
) -> tuple[Vectors, int, float]:
    """Vectors, bytes of weights, and the time of the fastest of several calls."""
    embedder = load_embedder(checkpoint, device=device, dtype=dtype, weights=weights)  # type: ignore[arg-type]
    assert isinstance(embedder, LocalEmbedder)
    vectors = embedder.embed(inputs)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        embedder.embed(inputs)
        seconds.append(time.perf_counter() - start)
    assert isinstance(embedder.family, ABCFamily)
    network = embedder.family.network
    size = sum(tensor.nbytes for tensor in (*network.parameters(), *network.buffers()))
    return vectors, size, min(seconds, default=0.0)


def rows_of(
    checkpoint: str | Path, inputs: Sequence[Input], right: Sequence[int], device: str, repeats: int
) -> list[Row]:
    """Measure every precision. Those that are unavailable on this machine are reported and skipped."""
    rows: list[Row] = []
    reference, _, base = measure(checkpoint, inputs, device, "float32", "full", repeats)
    answers = _answers(reference, len(right))
    for weights in WEIGHTS:
        for dtype in DTYPES:
            try:
                vectors, size, seconds = measure(checkpoint, inputs, device, dtype, weights, repeats)
            except (InputError, ImportError) as error:
                print(f"{dtype}, {weights}: {error}")
                continue
            cosines = (vectors * reference).sum(axis=1)
            row = Row(
                "abc-mini" if len(right) else "fixture",
                dtype,
                weights,
                worst_coordinate=float(np.abs(vectors - reference).max()),
                mean_cosine=float(cosines.mean()),
                worst_cosine=float(cosines.min()),
                weight_bytes=size,
            )
            if len(right):
                row.seconds, row.time_of_float32 = seconds, seconds / base
                given = _answers(vectors, len(right))
                row.right = float((given == np.array(right)).mean())
                row.changed_answers = int((given != answers).sum())
                row.questions = len(right)
            rows.append(row)
    return rows


def _answers(vectors: Vectors, questions: int) -> np.ndarray[Any, Any]:
    phrases_end = len(vectors) - questions
    answers: np.ndarray[Any, Any] = (vectors[phrases_end:] @ vectors[:phrases_end].T).argmax(axis=1)
    return answers


def published_gb(dtype: str, weights: str) -> float:
    """Memory of the 7B model's weights, computed from its sizes."""
    layers = BYTES[dtype if weights == "full" else weights]
    return (PUBLISHED_LAYERS * layers + PUBLISHED_REST * BYTES[dtype]) / 1e9


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.checkpoint,
        row.weights,
        row.dtype,
        f"{row.worst_coordinate:.1e}",
        f"{row.mean_cosine:.5f}",
        f"{row.worst_cosine:.5f}",
        "" if row.right is None else f"{100 * row.right:.1f}",
        "" if row.changed_answers is None else f"{row.changed_answers} of {row.questions}",
        f"{row.weight_bytes / 1e6:.1f}",
        f"{published_gb(row.dtype, row.weights):.1f}",
        "" if row.time_of_float32 is None else f"{row.time_of_float32:.2f}",
    )


def markdown(rows: Sequence[Row]) -> str:
    """The table of the README."""
    names = "checkpoint | weights | dtype | worst coordinate | cosine, mean | cosine, worst | right % | changed answers"
    lines = [f"| {names} | weights MB | 7B, GB (computed) | time |", "| --- | --- | ---" + " | ---:" * 8 + " |"]
    return "\n".join([*lines, *("| " + " | ".join(_cells(row)) + " |" for row in rows)])


def main() -> None:
    """Measure, print the table, write JSON."""
    parser = argparse.ArgumentParser(description="Accuracy, memory and time of each precision against float32.")
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ...")
    parser.add_argument("--scenes", type=int, default=200, help="held-out scenes for abc-mini, at most 1000")
    parser.add_argument("--repeats", type=int, default=3, help="timed calls; the fastest counts")
    arguments = parser.parse_args()
    if not 1 <= arguments.scenes <= 1000 or arguments.repeats < 1:
        parser.error("--scenes takes 1 to 1000, --repeats at least 1")
    inputs, right = mini_inputs(arguments.scenes)
    rows = rows_of(FIXTURE, fixture_inputs(), [], arguments.device, 0)
    rows += rows_of("abc-mini", inputs, right, arguments.device, arguments.repeats)
    print(markdown(rows))
    if arguments.json is not None:
        found = {
            "arguments": {"device": arguments.device, "scenes": arguments.scenes, "repeats": arguments.repeats},
            "device": torch.cuda.get_device_name() if "cuda" in arguments.device else platform.processor(),
            "threads": torch.get_num_threads(),
            "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
            "rows": [asdict(row) for row in rows],
        }
        arguments.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
