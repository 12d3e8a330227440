"""Reading, hashing, opening and tokenising inputs, beside the model, by a few threads and the processes they direct."""

from __future__ import annotations

import hashlib
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import PIL.Image

from abc_rag.embedder import Vectors
from abc_rag.engine._caches import TensorCache
from abc_rag.engine._processes import PictureProcesses, too_long
from abc_rag.engine._scheduler import Scheduler, Ticket, Work
from abc_rag.engine._watchdog import Watchdog
from abc_rag.engine.settings import WorkerKind
from abc_rag.errors import ImageFormatError
from abc_rag.images import content_hash, describe_source, read_bytes
from abc_rag.models.family import Family, Picture
from abc_rag.types import URL, Image, ImageSource, Input, InstructedImage, Text

__all__ = ["Preparation"]

Settled = list[tuple["Work | Ticket", "Vectors | BaseException"]]


class _Slot:
    """What one thread is at, so that another can take over if it never comes back."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.thread = threading.current_thread()
        self.at: Work | Ticket | None = None
        self.opening: str | None = None
        self.steps = 0
        self.abandoned = False


class Preparation:
    """Threads that take tickets from the scheduler and give it works.

    Args:
        family: Whose prompts and pictures.
        scheduler: Where tickets come from and works go to.
        vision: Features that are known already.
        embeddings: Vectors that are known already.
        workers: How many threads.
        worker_kind: Where pictures are opened.
        timeout_s: Seconds for one picture.
    """

    def __init__(
        self,
        family: Family,
        scheduler: Scheduler,
        *,
        vision: TensorCache,
        embeddings: TensorCache,
        workers: int,
        worker_kind: WorkerKind,
        timeout_s: float,
    ) -> None:
        self._family = family
        self._scheduler = scheduler
        self._vision = vision
        self._embeddings = embeddings
        self._timeout_s = timeout_s
        self._kind = worker_kind
        self._workers = workers
        self._watchdog = Watchdog()
        self.processes = PictureProcesses(family.recipe, family.image_limits, timeout_s, self._watchdog)
        self._pictures: weakref.WeakValueDictionary[str, Picture] = weakref.WeakValueDictionary()
        self._opening: dict[str, list[tuple[Input, Work]]] = {}
        self._lock = threading.Lock()
        self._threads: set[threading.Thread] = set()

    def start(self) -> None:
        """Start the threads."""
        for _ in range(self._workers):
            self._start_one()

    def close(self) -> None:
        """End the processes; the threads end when the scheduler stops."""
        self.processes.close()

    def join(self, seconds: float) -> None:
        """Wait for the threads, but for those that were left behind with a picture."""
        until = time.monotonic() + seconds
        with self._lock:
            threads = list(self._threads)
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, until - time.monotonic()))

    def _start_one(self) -> None:
        thread = threading.Thread(target=self._run, name="abc-rag-prepare", daemon=True)
        with self._lock:
            self._threads.add(thread)
        thread.start()

    def _run(self) -> None:
        slot = _Slot()
        while (tickets := self._scheduler.next_tickets()) is not None:
            self._prepare_all(tickets, slot)
            if slot.abandoned:
                return  # another thread has taken this one's place
            del tickets  # a thread that waits holds on to no picture

    def _prepare_all(self, tickets: list[Ticket], slot: _Slot) -> None:
        works: list[Work] = []
        settled: Settled = []
        for ticket in tickets:
            self._prepare(ticket, slot, works, settled)
        with slot.lock:
            if slot.abandoned:
                return
            slot.at, slot.opening = None, None
        self._scheduler.prepared(works, settled)

    def _prepare(self, ticket: Ticket, slot: _Slot, works: list[Work], settled: Settled) -> None:
        item = ticket.item
        slot.at = ticket
        try:
            if isinstance(item, Text):
                data, digest = None, ""
                key = b"t" + hashlib.sha256(item.text.encode("utf-8", "surrogatepass")).digest()
            else:
                self._scheduler.wait_for_bytes()
                # Fetching a URL has a limit of its own.
                with nullcontext() if isinstance(item.source, URL) else self._limited(item.source, slot):
                    data, digest = self._read(item.source)
                instruction = item.instruction if isinstance(item, InstructedImage) else None
                told = "" if instruction is None else f"\0{instruction}"
                key = b"i" + hashlib.sha256((digest + told).encode("utf-8", "surrogatepass")).digest()
        except BaseException as error:  # libraries in other languages raise those too
            settled.append((ticket, error))
            return
        with slot.lock:
            if slot.abandoned:
                return  # it has failed; nobody would end what is claimed now
            work = self._scheduler.claim(ticket, key)
            if work is None:
                return
            slot.at = work
        try:
            known = self._embeddings.get(key.hex()) if self._embeddings.in_use else None
            if known is not None:
                settled.append((work, known.numpy().copy()))
            elif isinstance(item, Text):
                self._finish([(item, work)], None, works, settled)
            else:
                self._with_picture(item, work, data, digest, slot, works, settled, small=ticket.request.small)
        except BaseException as error:
            settled.append((work, error))

    def _read(self, source: ImageSource) -> tuple[bytes | None, str]:
        limits = self._family.image_limits
        if isinstance(source, PIL.Image.Image):
            return None, content_hash(source, limits=limits)
        data = read_bytes(source, limits=limits)
        return data, hashlib.sha256(data).hexdigest()

    def _finish(
        self, waiting: list[tuple[Input, Work]], picture: Picture | None, works: list[Work], settled: Settled
    ) -> None:
        for item, work in waiting:
            try:
                work.prepared = self._family.prepare(item, picture)
                works.append(work)
            except BaseException as error:
                settled.append((work, error))

    def _with_picture(
        self,
        item: Image | InstructedImage,
        work: Work,
        data: bytes | None,
        digest: str,
        slot: _Slot,
        works: list[Work],
        settled: Settled,
        *,
        small: bool,
    ) -> None:
        """Finish a work with its picture; one that another thread is opening is finished there."""
        with self._lock:
            picture = self._pictures.get(digest)
            if picture is None:
                if digest in self._opening:
                    self._opening[digest].append((item, work))
                    return
                self._opening[digest] = [(item, work)]
                slot.opening = digest
        if picture is not None:
            self._finish([(item, work)], picture, works, settled)
            return
        try:
            features = self._vision.get(digest) if self._vision.in_use else None
            if features is None:
                opened = self._opened(item.source, data, slot, small=small)
                picture = Picture(digest, self._family.picture_tokens(opened), opened)
                work.held_bytes = int(opened.nbytes)
            else:
                picture = Picture(digest, len(features), features=features)
        except BaseException as error:
            settled.extend((other, error) for _, other in self._end_opening(digest, None))
            return
        self._finish(self._end_opening(digest, picture), picture, works, settled)

    def _end_opening(self, digest: str, picture: Picture | None) -> list[tuple[Input, Work]]:
        """Who waits for a picture; none if it has been given up."""
        with self._lock:
            waiting = self._opening.pop(digest, [])
            if picture is not None and waiting:
                self._pictures[digest] = picture
            return waiting

    def _opened(self, source: ImageSource, data: bytes | None, slot: _Slot, *, small: bool) -> Any:  # noqa: ANN401
        name = describe_source(source)
        elsewhere = self._kind == "process" or (self._kind == "auto" and not small and self._workers > 2)
        if elsewhere and data is not None and self.processes.usable:
            return self.processes.open(data, name)
        with self._limited(source, slot):
            return self._family.recipe.open(
                source if data is None else data, limits=self._family.image_limits, name=name
            )

    @contextmanager
    def _limited(self, source: ImageSource, slot: _Slot) -> Iterator[None]:
        with slot.lock:
            slot.steps += 1
            step = slot.steps
        try:
            with self._watchdog.limit(self._timeout_s, lambda: self._abandon(slot, step, describe_source(source))):
                yield
        finally:
            with slot.lock:
                slot.steps += 1

    def _abandon(self, slot: _Slot, step: int, name: str) -> None:
        """A thread cannot be ended: leave it behind with its picture, and go on with another one."""
        error = ImageFormatError(name, too_long(self._timeout_s))
        with slot.lock:
            if slot.steps != step:
                return  # it has ended just now
            slot.abandoned = True
            left, opening = slot.at, slot.opening
        with self._lock:
            self._threads.discard(slot.thread)
        self._start_one()
        lost: list[Work | Ticket] = [] if left is None else [left]
        if opening is not None:
            lost += [work for _, work in self._end_opening(opening, None) if work is not left]
        self._scheduler.prepared([], [(one, error) for one in lost])
