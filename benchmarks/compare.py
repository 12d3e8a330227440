r"""The engine against the alternatives.

All sides have the same weights, run in processes of their own, as a user would run them, and are measured in turn:

* ``engine``: abc-rag, as `load_embedder` gives it
* ``one``: the straightforward port (transformers, peft), one item at a time
* ``padded``: the same in padded batches in the order of arrival
* ``sentence-transformers``: ``encode`` on the exported model
* ``recompute`` (rows with instructions): abc-rag without its vision cache, one call for each instruction
* ``compiled`` (only with ``--sides compiled``): abc-rag with ``EngineSettings(compile=True)``

Before anything is timed, the vectors of all sides are compared. Every round has texts and pictures that no side has
embedded before; no vectors are cached. The image token limits are the published 256 to 1024 for every shape. Where no
side can do with fewer operations (texts and pictures, once each), ``used`` says which share of the machine's rate of
matrix products each side reaches, which bounds what any other could gain.

    python -m benchmarks.compare --shape mini --json results/compare-mini.json

Two more shapes are of other families, against ``encode`` and ``recompute`` only; see `benchmarks._families`. Their
texts have a token for each letter.

    python -m benchmarks.compare --shape embeddinggemma --max-tokens 140 --rounds 3 --pictures 3 --texts 12 \
        --compared 1 --rows "one text" "one picture" images "another instruction"
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from abc_rag import Image, Input, InstructedImage, Text, load_embedder
from abc_rag.bench.bench import matmul_rate
from abc_rag.bench.inputs import QUESTIONS, random_jpeg, random_passage
from abc_rag.bench.shapes import write_random_checkpoint
from abc_rag.embedding.embedder import Embedder
from abc_rag.embedding.engine.local import LocalEmbedder
from abc_rag.embedding.settings import EngineSettings
from abc_rag.models.embedding_gemma.pictures import BUDGETS
from benchmarks._families import FAMILY_SHAPES, Encoder, write_family
from benchmarks._harness import Child, alternate, finish, parser, prepare, ratio, serve, spread

TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}
# Width and height in pixels: thumbnails to photographs, upright and wide.
SIZES = ((224, 224), (320, 240), (480, 640), (640, 480), (800, 600), (1024, 768), (1280, 720), (600, 1000))

PORT = ["one", "padded"]
SIDES = [*PORT, "sentence-transformers", "recompute", "compiled"]
ANOTHER = "another instruction"
"""The row of pictures that each side has just embedded under an instruction, and now embeds under a second one."""
ONCE = ("one text", "one picture", "texts", "images")
"""The rows in which each text and picture needs its own passes, whoever computes them."""
Side = Callable[[Sequence[Input]], np.ndarray]


def main() -> int:
    """Run the benchmark; the exit status is 1 if vectors differ."""
    options = parser(__doc__, shapes=("tiny", "mini", "2b", *FAMILY_SHAPES))
    options.add_argument("--texts", type=int, default=192, help="passages per round")
    options.add_argument("--pictures", type=int, default=8, help="pictures per round")
    options.add_argument("--batch-size", type=int, default=16, help="batch size of padded batches and of encode")
    options.add_argument("--compared", type=int, default=4, help="inputs per row whose vectors are compared")
    options.add_argument("--rows", nargs="*", default=None, help="compare and measure only these rows")
    options.add_argument("--sides", nargs="*", default=SIDES[:-1], choices=SIDES, help="sides beside the engine")
    options.add_argument("--child", nargs=2, default=None, metavar=("SIDE", "FOLDER"), help=argparse.SUPPRESS)
    arguments = options.parse_args()
    prepare(arguments)
    if arguments.quick:
        arguments.texts, arguments.pictures = 6, 2
    rows = make_rows(arguments.texts, arguments.pictures, arguments.seed)
    rows = {name: make for name, make in rows.items() if arguments.rows is None or name in arguments.rows}
    if arguments.child is not None:
        side = open_side(arguments.child[0], Path(arguments.child[1]), arguments)

        def operations(items: Sequence[Input]) -> float:
            embedder = getattr(side, "__self__", None)
            return sum(embedder.family.count_flops(i)[1] for i in items) if isinstance(embedder, LocalEmbedder) else 0.0

        def inputs(row: str, number: int) -> list[Input]:
            if row == "compared":
                return compared(rows, arguments.compared)
            made = rows[row](number)
            if row == ANOTHER:  # the first one is not timed
                side([InstructedImage(item.source, QUESTIONS[1]) for item in made if isinstance(item, InstructedImage)])
            return made

        serve(side, inputs, operations)
        return 0
    with tempfile.TemporaryDirectory(prefix="abc-rag-benchmark-") as made, ExitStack() as stack:
        folder = Path(made)
        if arguments.shape in FAMILY_SHAPES:
            arguments.sides = [side for side in arguments.sides if side not in PORT]
            write_family(arguments.shape, folder / "checkpoint", seed=arguments.seed)
        else:
            write_random_checkpoint(arguments.shape, folder / "checkpoint", **limits(arguments), seed=arguments.seed)
        names = ["engine", *arguments.sides]
        sides = {name: stack.enter_context(Child("compare", [name, made])) for name in names}
        differences = compare_vectors(sides, folder)
        limit = TOLERANCE[arguments.dtype]
        wrong = {name: found for name, found in differences.items() if not found <= limit}
        if wrong:
            print(f"vectors differ by more than {limit:g}: {wrong}", file=sys.stderr)
            return 1
        rate = matmul_rate(arguments.device, getattr(torch, arguments.dtype), seconds=0.01 if arguments.quick else 2.0)
        results = [measure(name, len(make(1)), sides, arguments.rounds, rate) for name, make in rows.items()]
    finish(
        "compare",
        arguments,
        {"tolerance": limit, "differences": differences, "agree": True, "limit": rate, "rows": results},
    )
    return 0


def limits(arguments: Any) -> dict[str, int]:  # noqa: ANN401
    """Minimum and maximum image tokens."""
    return {"min_tokens": arguments.min_tokens, "max_tokens": arguments.max_tokens}


def open_side(name: str, folder: Path, arguments: Any) -> Side:  # noqa: ANN401
    """Load the weights for one side."""
    placed = {**limits(arguments), "device": arguments.device, "dtype": arguments.dtype}
    checkpoint, size = folder / "checkpoint", arguments.batch_size
    model: str | Path = checkpoint
    if arguments.shape in FAMILY_SHAPES:
        gemma = arguments.shape.startswith("embeddinggemma")
        if gemma:  # it was trained with some numbers of image tokens only
            placed["max_tokens"] = max((one for one in BUDGETS if one <= arguments.max_tokens), default=BUDGETS[0])
        if name == "sentence-transformers":
            on = {"device": arguments.device, "dtype": arguments.dtype, "batch_size": size}
            return Encoder(arguments.shape, checkpoint, most=placed["max_tokens"], least=arguments.min_tokens, **on)
        if gemma:
            model = f"embeddinggemma:{checkpoint}"
            del placed["min_tokens"]
        else:
            model = f"qwen3-vl:{checkpoint}"
    if name in PORT:
        from benchmarks._baseline import Port

        port = Port(checkpoint, **{**placed, "dtype": getattr(torch, arguments.dtype)})
        return port.one_at_a_time if name == "one" else partial(port.padded, batch_size=size)
    if name == "sentence-transformers":
        from abc_rag.adapters.sentence_transformers.export import (
            export_sentence_transformers,
            load_sentence_transformer,
        )

        export_sentence_transformers(checkpoint, folder / "export", check=False)
        library = load_sentence_transformer(folder / "export", **placed)
        return lambda items: library.encode(list(items), batch_size=size, show_progress_bar=False)
    if name == "recompute":
        settings = EngineSettings(embedding_cache_bytes=0, vision_cache_bytes=0)
        return partial(one_instruction_at_a_time, load_embedder(model, engine=settings, **placed))
    settings = EngineSettings(embedding_cache_bytes=0, compile=name == "compiled")
    return load_embedder(model, engine=settings, **placed).embed


def one_instruction_at_a_time(embedder: Embedder, items: Sequence[Input]) -> np.ndarray:
    """One call for each instruction, over all pictures."""
    vectors = np.empty((len(items), embedder.dim), dtype=np.float32)
    asked = [item.instruction if isinstance(item, InstructedImage) else "" for item in items]
    for instruction in dict.fromkeys(asked):
        chosen = [n for n, other in enumerate(asked) if other == instruction]
        vectors[chosen] = embedder.embed([items[n] for n in chosen])
    return vectors


def make_rows(texts: int, pictures: int, seed: int) -> dict[str, Callable[[int], list[Input]]]:
    """Row of the table -> function that makes the inputs of a round."""

    def words(number: int) -> list[Input]:
        rng = random.Random(f"{seed} {number}")
        # Most passages are short, as in any collection.
        lengths = [round(5 * 80 ** rng.random()) for _ in range(texts)]
        return [Text(random_passage(rng, length)) for length in lengths]

    def files(row: str, number: int, count: int) -> list[bytes]:
        rng = np.random.default_rng([seed, sum(row.encode()), number])
        order = rng.permutation(np.arange(count) % len(SIZES))
        return [random_jpeg(rng, *SIZES[n]) for n in order]

    def alone(number: int) -> list[Input]:
        return [Image(file) for file in files("images", number, pictures)]

    def instructed(instructions: int) -> Callable[[int], list[Input]]:
        # Fewer pictures for more instructions, so that all rows take about the same time.
        count = max(2, pictures // instructions)
        return lambda number: [
            InstructedImage(file, question)
            for file in files(f"instructed {instructions}", number, count)
            for question in QUESTIONS[:instructions]
        ]

    def mixed(number: int) -> list[Input]:
        found = [*words(number)[: 8 * pictures]]
        found += [Image(file) for file in files("mixed", number, pictures // 2)]
        found += [InstructedImage(file, QUESTIONS[0]) for file in files("mixed too", number, pictures // 2)]
        random.Random(number).shuffle(found)
        return found

    return {
        "one text": lambda number: words(number)[:1],
        "one picture": lambda number: [Image(file) for file in files("one", number, 1)],
        ANOTHER: lambda number: [
            InstructedImage(f, QUESTIONS[0]) for f in files(ANOTHER, number, max(1, pictures // 2))
        ],
        "texts": words,
        "images": alone,
        "1 instruction": instructed(1),
        "4 instructions": instructed(4),
        "16 instructions": instructed(16),
        "all kinds": mixed,
    }


def compared(rows: dict[str, Callable[[int], list[Input]]], first: int) -> list[Input]:
    """The first inputs of every row, shuffled; no measured round has this round's number."""
    items = [item for make in rows.values() for item in make(10**6)[:first]]
    random.Random(0).shuffle(items)
    return items


def compare_vectors(sides: dict[str, Child], folder: Path) -> dict[str, float]:
    """The maximum absolute difference between each side's vectors and the engine's."""
    vectors = {name: side.vectors("compared", 0, folder / f"{name}.npy") for name, side in sides.items()}
    engine = vectors.pop("engine")
    return {name: float(np.abs(found - engine).max()) for name, found in vectors.items()}


def measure(name: str, items: int, sides: dict[str, Child], rounds: int, rate: float) -> dict[str, Any]:
    """One row of the table; ``rate`` is the machine's of matrix products, in operations a second."""
    chosen = {side: child for side, child in sides.items() if side != "recompute" or "instruction" in name}
    seconds = alternate({side: partial(child.seconds, name) for side, child in chosen.items()}, rounds=rounds)
    row = {
        "row": name,
        "items": items,
        "seconds": {side: spread(took) for side, took in seconds.items()},
        "ratios": {side: ratio(took, seconds["engine"]) for side, took in seconds.items() if side != "engine"},
    }
    if name in ONCE:
        flops = np.median([sides["engine"].flops(name, number) for number in range(1, rounds + 1)])
        row["used"] = {side: float(flops / np.median(took) / rate) for side, took in seconds.items()}
    return row


if __name__ == "__main__":
    sys.exit(main())
