"""One model that embeds and answers at once: what each costs the other, and the memory of both.

Rows: a question embedded alone, and while an answer of many tokens is generated; tokens per second of an answer alone,
and while a thread indexes passages and pictures with the same weights; the resident memory after loading, for an
embedder and for a generator (whose embedder shares its weights), each in a process of its own.

    python -m benchmarks.answering --shape mini --json results/answering-mini.json
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from abc_rag import Image, Text, load_embedder
from abc_rag.answering import Generator, load_generator
from abc_rag.bench.inputs import QUESTIONS, random_jpeg
from abc_rag.bench.shapes import write_random_checkpoint
from abc_rag.files import new_file, write_json
from abc_rag.models.config import read_json
from abc_rag.types import Message
from benchmarks._harness import finish, parser, prepare, spread
from benchmarks.latency import Background, measure, text
from benchmarks.memory import peak_bytes


def main() -> int:
    """Run the benchmark."""
    options = parser(__doc__, rounds=3)
    options.add_argument("--queries", type=int, default=60, help="questions in each round")
    options.add_argument("--pause-ms", type=float, default=20.0, help="pause between two questions")
    options.add_argument("--tokens", type=int, default=400, help="tokens of an answer")
    options.add_argument("--checkpoint", type=Path, default=None, help="keep the random weights here")
    options.add_argument("--child", choices=("embedder", "generator"), default=None, help=argparse.SUPPRESS)
    arguments = options.parse_args()
    prepare(arguments)
    if arguments.quick:
        arguments.queries, arguments.tokens = min(arguments.queries, 3), min(arguments.tokens, 12)
    if arguments.child is not None:
        print(json.dumps(loaded(arguments.child, arguments)))
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        arguments.checkpoint = arguments.checkpoint or Path(scratch)
        write(arguments)
        memory = {side: in_a_process(side, arguments.checkpoint) for side in ("embedder", "generator")}
        found = beside(arguments)
    finish("answering", arguments, {**found, "memory": memory})
    return 0


def write(arguments: argparse.Namespace) -> None:
    """Random weights that can generate; an answer never ends by itself."""
    folder = arguments.checkpoint
    if not (folder / "abc.json").is_file():
        write_random_checkpoint(
            arguments.shape,
            folder,
            min_tokens=arguments.min_tokens,
            max_tokens=arguments.max_tokens,
            seed=arguments.seed,
        )
        add_output_layer(folder / "base", arguments.seed)
    write_json(folder / "base" / "generation_config.json", {"eos_token_id": [0]})


def add_output_layer(base: Path, seed: int) -> None:
    """Who only embeds needs none, so the weights have none; where it is not that of the embeddings, draw one."""
    config = read_json(base / "config.json")
    if config.get("tie_word_embeddings", config["text_config"].get("tie_word_embeddings")):
        return
    state = load_file(base / "model.safetensors")
    like = state["model.embed_tokens.weight"]
    drawn = torch.empty_like(like).normal_(std=0.02, generator=torch.Generator().manual_seed(seed))
    with new_file(base / "model.safetensors") as draft:
        save_file(state | {"lm_head.weight": drawn}, draft, metadata={"format": "pt"})


def beside(arguments: argparse.Namespace) -> dict[str, Any]:
    """Questions and answers, alone and together, in turn."""
    generator = load_generator(str(arguments.checkpoint), device=arguments.device, dtype=arguments.dtype)
    pause = arguments.pause_ms / 1000
    asked: dict[str, list[float]] = {"alone": [], "beside": []}
    spoken: dict[str, list[float]] = {"alone": [], "beside": []}
    indexed = []
    answer(generator, arguments, 0)
    for number in range(arguments.rounds):
        for name in ("alone", "beside"):
            rng = np.random.default_rng([arguments.seed, number, len(name)])
            with Answering(generator, arguments) if name == "beside" else nullcontext():
                asked[name] += measure(generator.embedder, text, rng, arguments.queries, pause)
            with Background(generator.embedder, number) if name == "beside" else nullcontext() as background:
                done, start = background.count if background else 0, time.perf_counter()
                spoken[name].append(answer(generator, arguments, number))
                if background:
                    indexed.append((background.count - done) / (time.perf_counter() - start))
    return {
        "questions": [
            {"beside": name == "beside", "count": len(took), "p50_ms": float(np.percentile(took, 50)),
             "p99_ms": float(np.percentile(took, 99))}
            for name, took in asked.items()
        ],
        "tokens_per_second": {name: spread(rates) for name, rates in spoken.items()},
        "indexed_per_second": spread(indexed),
    }  # fmt: skip


def answer(generator: Generator, arguments: argparse.Namespace, number: int) -> float:
    """Tokens per second of one answer about a picture."""
    rng = np.random.default_rng([arguments.seed, 7, number])
    message = Message("user", [Image(random_jpeg(rng)), Text(QUESTIONS[number % len(QUESTIONS)])])
    start = time.perf_counter()
    found = generator.generate([message], max_new_tokens=arguments.tokens)
    return (found.outcome.new_tokens or 0) / (time.perf_counter() - start)


class Answering:
    """Answers, one after the other, in a thread while the block runs."""

    def __init__(self, generator: Generator, arguments: argparse.Namespace) -> None:
        self._generator, self._arguments = generator, arguments
        self._begun, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="answers", daemon=True)

    def __enter__(self) -> None:
        """Wait for the first word."""
        self._thread.start()
        self._begun.wait()

    def __exit__(self, *_: object) -> None:
        """End the answer at its next token."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        message = Message("user", [Text("Tell a long story.")])
        try:
            while not self._ended.is_set():
                with self._generator.generate([message], max_new_tokens=self._arguments.tokens, stream=True) as pieces:
                    for _ in pieces:
                        self._begun.set()
                        if self._ended.is_set():
                            break
        finally:
            self._begun.set()


def in_a_process(side: str, checkpoint: Path) -> dict[str, int]:
    """Memory after loading, in a child with the same options."""
    command = [sys.executable, "-m", "benchmarks.answering", *sys.argv[1:], "--checkpoint", str(checkpoint)]
    done = subprocess.run([*command, "--child", side], check=True, capture_output=True, text=True)
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def loaded(side: str, arguments: argparse.Namespace) -> dict[str, int]:
    """Resident memory before and after loading, and the peak. Each side has embedded; the generator has spoken."""
    options = {"device": arguments.device, "dtype": arguments.dtype}
    before = resident_bytes()
    if side == "embedder":
        load_embedder(str(arguments.checkpoint), **options).embed([Text("loaded")])
    else:
        generator = load_generator(str(arguments.checkpoint), **options)
        generator.embedder.embed([Text("loaded")])
        generator.generate([Message("user", [Text("loaded")])], max_new_tokens=2)
    return {"before_bytes": before, "after_bytes": resident_bytes(), "peak_bytes": peak_bytes()}


def resident_bytes() -> int:
    """Memory of this process, in bytes; weights that stay mapped from their file count."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) * 1024


if __name__ == "__main__":
    sys.exit(main())
