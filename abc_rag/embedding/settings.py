"""Settings of the engine: workers, batches, caches."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Literal

from abc_rag.errors import InputError

__all__ = ["EngineSettings", "WorkerKind"]

WorkerKind = Literal["auto", "thread", "process"]


@dataclass(frozen=True)
class EngineSettings:
    """How a `LocalEmbedder` schedules, caches and prepares. No setting changes a vector beyond rounding.

    Attributes:
        workers: Number of threads or processes that open and resize pictures; None is one for each core, at most 8.
        worker_kind: ``"process"`` opens pictures in other processes, which leave this one's interpreter free and are
            killed when a decoder hangs; ``"thread"`` opens them in this one; ``"auto"`` uses processes for a call with
            many pictures where there are cores to spare.
        picture_timeout_s: Maximum seconds for opening one picture, in a process or a thread. A thread that takes longer
            is abandoned with its picture and replaced. (Fetching a URL has a limit of its own.)
        max_batch_tokens: Maximum tokens of a batch in the language model; None chooses by device. A longer input is a
            batch by itself.
        max_batch_patches: Maximum patches (14x14 pixels, four to an image token) in one pass of the vision tower; None
            chooses by device.
        max_wait_ms: How long the model waits, in milliseconds, for a batch to fill while inputs are being prepared.
        max_queued: Maximum inputs in the queue ahead of the model, over all calls.
        max_queued_bytes: Maximum bytes of opened pictures in the queue.
        vision_cache_bytes: Memory for vision features, keyed by the content of the picture; 0 keeps none.
        embedding_cache_bytes: Memory for finished vectors, keyed by content and instruction; 0 keeps none.
        cache_folder: A folder in which both caches are also kept on disk; None keeps nothing on disk.
        cache_folder_bytes: Maximum bytes in that folder; the least recently used entries are removed.
        compile: Run the layers through ``torch.compile``. It needs a C++ compiler on a CPU, and a minute for the first
            batches.

    Raises:
        InputError: A setting is unusable.
    """

    workers: int | None = None
    worker_kind: WorkerKind = "auto"
    picture_timeout_s: float = 60.0
    max_batch_tokens: int | None = None
    max_batch_patches: int | None = None
    max_wait_ms: float = 5.0
    max_queued: int = 512
    max_queued_bytes: int = 256 * 2**20
    vision_cache_bytes: int = 512 * 2**20
    embedding_cache_bytes: int = 0
    cache_folder: str | os.PathLike[str] | None = None
    cache_folder_bytes: int = 10 * 2**30
    compile: bool = False

    def __post_init__(self) -> None:
        """Checks every setting."""
        for name, least in (
            *(
                ("workers", 1),
                ("max_batch_tokens", 1),
                ("max_batch_patches", 1),
                ("max_queued", 1),
                ("max_queued_bytes", 1),
            ),
            *(("vision_cache_bytes", 0), ("embedding_cache_bytes", 0), ("cache_folder_bytes", 0)),
        ):
            value = getattr(self, name)
            optional = name in ("workers", "max_batch_tokens", "max_batch_patches")
            if not (value is None and optional) and (type(value) is not int or value < least):
                raise InputError(f"EngineSettings.{name} must be an int of at least {least}, not {value!r}")
        for name, low in (("picture_timeout_s", 0.001), ("max_wait_ms", 0.0)):
            value = getattr(self, name)
            if type(value) not in (int, float) or not low <= value < math.inf:
                raise InputError(f"EngineSettings.{name} must be a number of at least {low:g}, not {value!r}")
        if self.worker_kind not in ("auto", "thread", "process"):
            raise InputError(f"EngineSettings.worker_kind must be auto, thread or process, not {self.worker_kind!r}")
        if not isinstance(self.cache_folder, (str, os.PathLike, type(None))):
            raise InputError(f"EngineSettings.cache_folder must be a path or None, not {self.cache_folder!r}")
        if type(self.compile) is not bool:
            raise InputError(f"EngineSettings.compile must be True or False, not {self.compile!r}")
