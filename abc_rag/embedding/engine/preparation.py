"""Reads, hashes, opens and tokenises inputs in a few threads, and in the processes that these direct."""

from __future__ import annotations

import hashlib
import math
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import PIL.Image

from abc_rag.embedding.engine.caches import TensorCache
from abc_rag.embedding.engine.processes import PictureProcesses, too_long
from abc_rag.embedding.engine.scheduler import Scheduler
from abc_rag.embedding.engine.watchdog import Watchdog
from abc_rag.embedding.engine.work import Item, Ticket, Work
from abc_rag.embedding.settings import WorkerKind
from abc_rag.errors import ImageFormatError
from abc_rag.images.open import content_hash
from abc_rag.images.read import describe_source, read_bytes
from abc_rag.models.family import Picture, VisionModel
from abc_rag.types import URL, ImageSource, Vectors

__all__ = ["Preparation"]


@dataclass(frozen=True)
class _Read:
    """A picture's encoded bytes, if it has any, and the hash of its content."""

    source: ImageSource
    data: bytes | None
    digest: str


class _Slot:
    """What a thread is working on, so that another can take over if it hangs."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.thread = threading.current_thread()
        self.at: Work | Ticket | None = None
        self.opening: str | None = None
        self.steps = 0
        self.abandoned = False


@dataclass
class _Batch:
    """What a thread makes of some tickets: works for the model, and tickets or works that are settled already."""

    slot: _Slot
    small: bool = False
    works: list[Work] = field(default_factory=list)
    settled: list[tuple[Work | Ticket, Vectors | BaseException]] = field(default_factory=list)


class Preparation:
    """Threads that turn the scheduler's tickets into works.

    Args:
        family: Opens pictures and makes prompts.
        scheduler: Hands out tickets and takes works.
        vision: Cache of vision features.
        embeddings: Cache of vectors.
        workers: Number of threads.
        worker_kind: Whether pictures are opened in processes.
        timeout_s: Maximum seconds for one picture. A thread that takes longer is abandoned and replaced, a process
            killed.
    """

    def __init__(
        self,
        family: VisionModel,
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
        self.processes = PictureProcesses(family.facts, timeout_s, self._watchdog)
        self._pictures: weakref.WeakValueDictionary[str, Picture] = weakref.WeakValueDictionary()
        self._opening: dict[str, list[tuple[Item, Work]]] = {}
        self._lock = threading.Lock()
        self._threads: set[threading.Thread] = set()

    def start(self) -> None:
        """Start the threads."""
        for _ in range(self._workers):
            self._start_one()

    def close(self) -> None:
        """End the processes and the watchdog; the threads end when the scheduler stops."""
        self.processes.close()
        self._watchdog.close()

    def join(self, seconds: float) -> None:
        """Wait for the threads, except for those that were abandoned."""
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
                return  # another thread has replaced this one
            del tickets  # a waiting thread keeps no picture alive

    def _prepare_all(self, tickets: list[Ticket], slot: _Slot) -> None:
        batch = _Batch(slot)
        for ticket in tickets:
            self._prepare(ticket, batch)
        with slot.lock:
            if slot.abandoned:
                return
            slot.at, slot.opening = None, None
        self._scheduler.prepared(batch.works, batch.settled)

    def _prepare(self, ticket: Ticket, batch: _Batch) -> None:
        item, slot = ticket.item, batch.slot
        slot.at, batch.small = ticket, ticket.request.small
        try:
            read, digests = [], []
            for source in item.pictures:
                read.append(one := self._read_limited(source, slot))
                digests.append(one.digest)
            content = item.content(digests)
            key = hashlib.sha256(content.encode("utf-8", "surrogatepass")).digest()
        except BaseException as error:  # native libraries raise those too
            batch.settled.append((ticket, error))
            return
        with slot.lock:
            if slot.abandoned:
                return  # the ticket has failed already; nobody would finish work that is claimed now
            work = self._scheduler.claim(ticket, key)
            if work is None:
                return
            slot.at = work
        try:
            known = self._embeddings.get(key.hex()) if self._embeddings.in_use else None
            if known is not None:
                batch.settled.append((work, known.numpy().copy()))
            elif not read:
                self._finish([(item, work)], None, batch)
            elif len(read) == 1:
                self._with_picture(item, work, read[0], batch)
            else:
                self._with_pictures(item, work, read, batch)
        except BaseException as error:
            batch.settled.append((work, error))

    def _read_limited(self, source: ImageSource, slot: _Slot) -> _Read:
        # Fetching a URL has a limit of its own, and bytes need no reading.
        with nullcontext() if isinstance(source, (URL, bytes)) else self._limited(source, slot):
            limits = self._family.facts.image_limits
            if isinstance(source, PIL.Image.Image):
                return _Read(source, None, content_hash(source, limits=limits))
            data = read_bytes(source, limits=limits)
            return _Read(source, data, hashlib.sha256(data).hexdigest())

    def _finish(self, waiting: list[tuple[Item, Work]], pictures: list[Picture] | None, batch: _Batch) -> None:
        for item, work in waiting:
            try:
                work.prepared = prepared = self._family.prepare(item, pictures)
                work.tokens = len(prepared.input_ids)
                batch.works.append(work)
            except BaseException as error:
                batch.settled.append((work, error))

    def _with_picture(self, item: Item, work: Work, read: _Read, batch: _Batch) -> None:
        """Finish an input with one picture. If another thread is opening that picture, it finishes the input."""
        with self._lock:
            picture = self._pictures.get(read.digest)
            if picture is None:
                if read.digest in self._opening:
                    self._opening[read.digest].append((item, work))
                    return
                self._opening[read.digest] = [(item, work)]
                batch.slot.opening = read.digest
        if picture is not None:
            self._finish([(item, work)], [picture], batch)
            return
        try:
            picture = self._seen_or_opened(read, work, batch)
            with self._lock:  # an input with several pictures may have opened it in the meantime
                picture = self._shared(read.digest, picture, work)
        except BaseException as error:
            batch.settled.extend((other, error) for _, other in self._end_opening(read.digest, None))
            return
        self._finish(self._end_opening(read.digest, picture), [picture], batch)

    def _with_pictures(self, item: Item, work: Work, read: list[_Read], batch: _Batch) -> None:
        """Finish an input with several pictures. It does not wait for pictures that other threads are opening."""
        found: dict[str, Picture] = {}
        for one in read:
            if one.digest in found:
                continue
            with self._lock:
                picture = self._pictures.get(one.digest)
            found[one.digest] = picture or self._seen_or_opened(one, work, batch)
        with self._lock:
            for digest, picture in found.items():
                found[digest] = self._shared(digest, picture, work)
        self._finish([(item, work)], [found[one.digest] for one in read], batch)

    def _seen_or_opened(self, read: _Read, work: Work, batch: _Batch) -> Picture:
        features = self._vision.get(read.digest) if self._vision.in_use else None
        if features is not None:
            return Picture(read.digest, math.prod(features.shape[:-1]), features=features)
        opened = self._opened(read, batch)
        work.held_bytes += int(opened.nbytes)
        return Picture(read.digest, self._family.picture_tokens(opened), opened)

    def _end_opening(self, digest: str, picture: Picture | None) -> list[tuple[Item, Work]]:
        """The works that wait for a picture; none if it was given up."""
        with self._lock:
            waiting = self._opening.pop(digest, [])
            if picture is not None and waiting:
                self._pictures[digest] = picture
            return waiting

    def _shared(self, digest: str, picture: Picture, work: Work) -> Picture:
        """The first picture with this content, if it is still in use. Called under the lock."""
        first = self._pictures.setdefault(digest, picture)
        if first is not picture and picture.opened is not None:
            work.held_bytes -= int(picture.opened.nbytes)
        return first

    def _opened(self, read: _Read, batch: _Batch) -> Any:  # noqa: ANN401
        source, data, name = read.source, read.data, describe_source(read.source)
        elsewhere = self._kind == "process" or (self._kind == "auto" and not batch.small and self._workers > 2)
        if elsewhere and data is not None and self.processes.usable:
            return self.processes.open(data, name)
        with self._limited(source, batch.slot):
            return self._family.facts.open(source if data is None else data, name=name)

    @contextmanager
    def _limited(self, source: ImageSource, slot: _Slot) -> Iterator[None]:
        with slot.lock:
            if slot.abandoned:  # with an earlier picture of the same input, whose error was delivered
                raise ImageFormatError(describe_source(source), too_long(self._timeout_s))
            slot.steps += 1
            step = slot.steps
        try:
            with self._watchdog.limit(self._timeout_s, lambda: self._abandon(slot, step, describe_source(source))):
                yield
        finally:
            with slot.lock:
                slot.steps += 1

    def _abandon(self, slot: _Slot, step: int, name: str) -> None:
        """Replace a thread that hangs: a thread cannot be killed."""
        error = ImageFormatError(name, too_long(self._timeout_s))
        with slot.lock:
            if slot.steps != step or slot.abandoned:
                return  # it has just finished
            slot.abandoned = True
            left, opening = slot.at, slot.opening
        with self._lock:
            self._threads.discard(slot.thread)
        self._start_one()
        lost: list[Work | Ticket] = [] if left is None else [left]
        if opening is not None:
            lost += [work for _, work in self._end_opening(opening, None) if work is not left]
        self._scheduler.prepared([], [(one, error) for one in lost])
