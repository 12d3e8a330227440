"""Where indexing on a cluster meets its first limit: the real pipeline, with engines that sleep as a model computes.

Archives of small pictures go through `abc_rag.ingest.cluster.index_on_cluster` on a Ray of this machine, on loopback.
An engine sleeps for each picture as long as a GPU would take, and gives a vector of the published model's width. Told
for each rate: how many pictures a second came out, which share of the time engines were busy, and the CPU time of a
picture in the processes of which there is one (the driver, which commits; the ledger, which knows every id) and in
those that more machines share (reading, engines without their model, writing; Ray's own start included).

    python -m benchmarks.cluster --pictures 2000 --engines 2 --rates 20 100 0
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import logging
import os
import sys
import tarfile
import tempfile
import threading
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image

from abc_rag.embedding.embedder import BatchSize
from abc_rag.embedding.fake import FakeEmbedder
from abc_rag.ingest.cluster import Engines, index_on_cluster
from abc_rag.types import Input, Vectors

_SHARDS = 8


class Sleeping(FakeEmbedder):
    """Takes as long as a model would, and notes when.

    Args:
        dim: Length of a vector.
        rate: Pictures a second; 0 for no wait.
        notes: Folder for the notes.
    """

    def __init__(self, dim: int, rate: float, notes: Path) -> None:
        super().__init__(dim)
        self.rate = rate
        self.notes = notes

    def _embed(self, inputs: Sequence[Input], *, batch_size: BatchSize, progress: bool) -> Vectors:
        begun = time.time()
        rows = []
        for one in inputs:
            seed = hashlib.sha256(one.pictures[0]).digest()[:8]  # type: ignore[arg-type]
            rows.append(np.random.default_rng(int.from_bytes(seed, "big")).standard_normal(self.dim, np.float32))
        vectors: Vectors = np.stack(rows)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        if self.rate:
            time.sleep(max(0.0, len(inputs) / self.rate - (time.time() - begun)))
        with (self.notes / str(os.getpid())).open("a") as file:
            file.write(f"{begun} {time.time()}\n")
        return vectors


def shards(folder: Path, pictures: int, side: int) -> list[Path]:
    """Archives of noisy JPEG pictures."""
    folder.mkdir()
    noise = np.random.default_rng(0)
    made = []
    for number in range(_SHARDS):
        made.append(folder / f"{number:03}.tar")
        with tarfile.open(made[-1], "w") as archive:
            for picture in range(number, pictures, _SHARDS):
                data = io.BytesIO()
                PIL.Image.fromarray(noise.integers(0, 256, (side, side, 3), np.uint8)).save(data, "JPEG")
                info = tarfile.TarInfo(f"{picture:08}.jpg")
                info.size = data.tell()
                data.seek(0)
                archive.addfile(info, data)
    return made


class Spent:
    """CPU time of the driver, the ledger and the workers, also of those that end meanwhile."""

    def __init__(self) -> None:
        import psutil

        self._own = psutil.Process()
        self._of: dict[int, tuple[str, float]] = {}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._look()
        self._before = dict(self._of)
        self._thread.start()

    def _watch(self) -> None:
        while not self._end.wait(0.5):
            self._look()

    def _look(self) -> None:
        import psutil

        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                title = " ".join(process.cmdline())
                own = process == self._own
                if own or title.startswith("ray::"):
                    kind = "driver" if own else "ledger" if "Ledger" in title else "workers"
                    self._of[process.pid] = kind, sum(process.cpu_times()[:2])

    def stop(self) -> dict[str, float]:
        """Seconds of each kind since the start."""
        self._end.set()
        self._thread.join()
        found = dict.fromkeys(("driver", "ledger", "workers"), 0.0)
        for pid, (kind, seconds) in self._of.items():
            found[kind] += seconds - self._before.get(pid, ("", 0.0))[1]
        return found


def measured(sources: Sequence[Path], rate: float, arguments: argparse.Namespace) -> str:
    """One line of the table."""
    engines = Engines(least=arguments.engines, most=arguments.engines, cpus=0.25, reader_cpus=0.25)
    with tempfile.TemporaryDirectory() as scratch:
        notes = Path(scratch, "notes")
        notes.mkdir()
        begun, spent = time.time(), Spent()
        report = index_on_cluster(
            [str(path) for path in sources],
            Sleeping(arguments.dim, rate, notes),
            f"lance://{scratch}/lake",
            engines=engines,
            dtype="float16",
            commit_rows=arguments.commit_rows,
        )
        each = {kind: f"{1000 * seconds / report.added:.2f}" for kind, seconds in spent.stop().items()}
        calls = [tuple(map(float, line.split())) for file in notes.iterdir() for line in file.read_text().splitlines()]
    first, last = min(call[0] for call in calls), max(call[1] for call in calls)
    busy = sum(end - start for start, end in calls) / (arguments.engines * (last - first))
    return (
        f"| {rate or 'none'} | {report.added / (last - first):.1f} | {busy:.0%} | {each['driver']} | {each['ledger']} "
        f"| {each['workers']} | {time.time() - begun:.0f} |"
    )


def main() -> int:
    """Run the simulation."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--pictures", type=int, default=2000)
    options.add_argument("--side", type=int, default=64, help="of a picture, in pixels")
    options.add_argument("--dim", type=int, default=3584)
    options.add_argument("--engines", type=int, default=2)
    options.add_argument("--rates", type=float, nargs="*", default=[20, 100, 0], help="pictures a second; 0: no wait")
    options.add_argument("--commit-rows", type=int, default=512)
    options.add_argument("--address", help="of a cluster; without, one is started on this machine, on loopback")
    arguments = options.parse_args()
    logging.disable(logging.INFO)
    warnings.simplefilter("ignore")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    quiet = {"log_to_driver": False, "_node_ip_address": "127.0.0.1"}
    if arguments.address is None:
        cpus = arguments.engines + 1
        ray.init("local", num_cpus=cpus, object_store_memory=200 * 2**20, include_dashboard=False, **quiet)
    else:
        ray.init(arguments.address, log_to_driver=False)
    try:
        print("| engine, pictures/s | out, pictures/s | engines busy | ms of CPU: driver | ledger | workers | s |")
        print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |", flush=True)
        with tempfile.TemporaryDirectory() as scratch:
            sources = shards(Path(scratch, "in"), arguments.pictures, arguments.side)
            for rate in arguments.rates:
                print(measured(sources, rate, arguments), flush=True)
    finally:
        ray.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
