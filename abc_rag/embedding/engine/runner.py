"""Computes batch after batch with one network, and survives errors in any of them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, wait
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from abc_rag.embedding.engine.caches import TensorCache
from abc_rag.embedding.engine.cores import Cores, shares
from abc_rag.embedding.engine.model_thread import one_thread
from abc_rag.embedding.engine.scheduler import Scheduler
from abc_rag.embedding.engine.speech import Speech
from abc_rag.embedding.engine.work import Work
from abc_rag.errors import ABCRagError, InputError
from abc_rag.models.family import Family, Picture
from abc_rag.types import Vectors

__all__ = ["BatchReport", "Reports", "Runner", "is_out_of_memory"]

# A batch of at most this many tokens runs on one core of a CPU: waking other threads for each small step takes several
# times as long as the step.
_ALONE = 128
# A batch of several small calls runs on one core up to this many tokens times the square of the vector's length: the
# callers, and the event loop that serves them, need another one.
_SHARED = 2**25

logger = logging.getLogger("abc_rag")


@dataclass(frozen=True)
class BatchReport:
    """Where the time of one batch went. Times are those of `time.perf_counter`, in seconds.

    Attributes:
        kind: The kind of its inputs, as the family names it.
        items: Number of inputs.
        tokens: Number of tokens in the language model.
        patches: Number of patches that the vision tower saw for it.
        waited_from: When the model began to wait for work.
        begun: When the batch was handed to the device.
        ended: When its vectors were on the CPU.
        device: The device that computed it.
    """

    kind: str
    items: int
    tokens: int
    patches: int
    waited_from: float
    begun: float
    ended: float
    device: str


class Reports:
    """The listener to batches. Separate from the embedder, so that no thread keeps the embedder alive."""

    listener: Callable[[BatchReport], None] | None = None


@dataclass
class _Launched:
    works: list[Work]
    rows: torch.Tensor
    copied: Any
    patches: int
    waited_from: float
    begun: float


class Runner:
    """Computes the scheduler's batches with one network, in one thread.

    Args:
        family: The network.
        scheduler: The source of works.
        vision: Cache of vision features.
        embeddings: Cache of vectors.
        max_batch_patches: Patch budget of one pass of the vision tower.
        reports: Its listener gets a `BatchReport` after each batch.
        speech: Conversations that the same network answers, or None.
        apart: Whether the cores of a CPU may have pictures of their own, where the network allows it.

    Attributes:
        cores: Where a CPU's cores can have pictures of their own, from the start of `run`.
    """

    def __init__(
        self,
        family: Family,
        scheduler: Scheduler,
        *,
        vision: TensorCache,
        embeddings: TensorCache,
        max_batch_patches: int,
        reports: Reports,
        speech: Speech | None = None,
        apart: bool = True,
    ) -> None:
        self._family = family
        self._on_cpu = family.facts.device.type == "cpu"
        self._scheduler = scheduler
        self._vision = vision
        self._embeddings = embeddings
        self._max_batch_patches = max_batch_patches
        self._reports = reports
        self._speech = speech
        self._apart = apart and self._on_cpu and family.concurrent
        self._warned = False
        self._in_between = False
        # Pictures that other cores are just seeing: what will be their features, and which of them.
        self._seeing: dict[str, tuple[Future[list[torch.Tensor]], int]] = {}
        self.cores: Cores | None = None
        self.ended = threading.Event()

    def run(self) -> None:
        """Compute until the scheduler stops."""
        try:
            if self._family.facts.device.type == "cuda":
                torch.cuda.set_device(self._family.facts.device)
            if self._apart and torch.get_num_threads() > 1:
                self.cores = Cores(torch.get_num_threads(), self._scheduler.wake)
            self._run()
        except BaseException as error:
            # No call may wait for a thread that has ended.
            logger.exception("the model's thread has failed")
            failed = ABCRagError(f"the model's thread has failed ({type(error).__name__}: {error}); close the embedder")
            failed.__cause__ = error
            self._scheduler.fail_all(failed)
            self._end_speech(failed)
        finally:
            self._end_speech(ABCRagError("the embedder was closed while it answered; open another one"))
            if self.cores is not None:
                self.cores.close()
            self.ended.set()

    def _end_speech(self, error: ABCRagError) -> None:
        if self._speech is not None:
            self._speech.fail(error)

    def _run(self) -> None:
        before: _Launched | None = None
        waited_from = time.perf_counter()
        speech, spoken = self._speech, 0.0
        while True:
            works = self._scheduler.next_batch(
                wait=before is None, until=None if speech is None else speech.busy, patience_s=spoken
            )
            if works is None:
                if before is not None:
                    self._finish(before)
                return
            begun = time.perf_counter()
            launched = self._launch(works, waited_from) if works else None
            # The device computes this batch while the vectors of the previous one are delivered.
            if before is not None:
                self._finish(before)
            before = launched
            if before is not None and (before.copied is None or (speech is not None and speech.busy())):
                self._finish(before)
                before = None
            # A waiting thread keeps no batch in memory.
            del works, launched
            if speech is not None:
                # As much time for answers as the batch took; a small call waits for one token at most.
                spoken = speech.speak(time.perf_counter() - begun, self._scheduler.has_small)
            waited_from = time.perf_counter()

    def _launch(self, works: list[Work], waited_from: float) -> _Launched | None:
        begun = time.perf_counter()
        try:
            works, patches = self._see(works)
            if not works:
                return None
            alone = self._on_cpu and (bool(self._seeing) or (not patches and self._is_brief(works)))
            with one_thread() if alone else nullcontext():
                rows = self._family.forward([work.prepared for work in works if work.prepared is not None])
            copied = None
            if rows.device.type == "cuda":
                # Only a copy into pinned memory runs beside the next batch.
                rows = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True).copy_(rows, non_blocking=True)
                copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
                copied.record()
            return _Launched(works, rows, copied, patches, waited_from, begun)
        except BaseException as error:  # native libraries raise those too
            self._recover(works, error)
            return None

    def _is_brief(self, works: list[Work]) -> bool:
        """Whether a batch without new pictures is computed on one core."""
        tokens = sum(work.tokens for work in works)
        if tokens <= _ALONE:
            return True
        callers = {ticket.request for work in works for ticket in work.tickets}
        return tokens * self._family.facts.dim**2 <= _SHARED and len(callers) > 1 and all(one.small for one in callers)

    def _finish(self, launched: _Launched) -> None:
        works = launched.works
        try:
            if launched.copied is not None:
                launched.copied.synchronize()
            # Copied, so that no vector keeps its whole batch in memory.
            rows = [row.clone() for row in launched.rows.cpu().float()]
            if len(rows) != len(works):
                raise ABCRagError(f"{type(self._family).__name__} gave {len(rows)} vectors for {len(works)} inputs")
        except Exception as error:
            self._recover(works, error)
            return
        ended = time.perf_counter()
        if self._embeddings.in_use:
            for work, row in zip(works, rows, strict=True):
                self._embeddings.put(work.key.hex(), row.clone())  # a caller may change its vector
        results: list[tuple[Work, Vectors | BaseException]] = [
            (work, row.numpy()) for work, row in zip(works, rows, strict=True)
        ]
        kind = works[0].prepared.kind if works[0].prepared is not None else ""
        tokens = sum(work.tokens for work in works)
        for work in works:
            # A waiting thread may keep the input alive; it must not keep the picture alive as well.
            work.prepared = None
        self._scheduler.done(results)
        if (listener := self._reports.listener) is None:
            return
        device = str(self._family.facts.device)
        report = BatchReport(
            kind, len(works), tokens, launched.patches, launched.waited_from, launched.begun, ended, device
        )
        try:
            listener(report)
        except Exception:
            logger.exception("the listener to batches has failed")

    # --- Pictures -------------------------------------------------------------------------------------

    def _see(self, works: list[Work]) -> tuple[list[Work], int]:
        """Run the vision tower on unseen pictures; return the works that can go on, and the number of patches."""
        unseen = self._unseen(works)
        patches = sum(picture.opened.patches for picture in unseen)
        if self.cores is None or self._in_between or any(work.small for work in works):
            failed = self._see_all(unseen)
        else:
            failed = self._see_many(unseen, self.cores)
        if any(work.held_bytes for work in works):
            self._scheduler.seen(works)
        if not failed:
            return works, patches
        lost = [
            (work, next(failed[id(picture)] for picture in _pictures(work) if id(picture) in failed))
            for work in works
            if any(id(picture) in failed for picture in _pictures(work))
        ]
        self._scheduler.done(list(lost))
        gone = {id(work) for work, _ in lost}
        return [work for work in works if id(work) not in gone], patches

    def _unseen(self, works: list[Work]) -> list[Picture]:
        """Pictures whose features are needed and not known."""
        unseen: dict[int, Picture] = {}
        for work in works:
            for picture in _pictures(work):
                if picture.features is None:
                    # An earlier batch may have seen the same picture since this one was opened.
                    picture.features = self._vision.get(picture.key) if self._vision.in_use else None
                    if picture.features is None:
                        unseen[id(picture)] = picture
        return list(unseen.values())

    def _see_many(self, pictures: list[Picture], cores: Cores) -> dict[int, BaseException]:
        """See the pictures of a large call in whichever way is faster."""
        ahead: list[Work] = []
        apart = bool(pictures) and cores.faster.apart()
        if apart:
            # The pictures of one batch are too few to keep all cores busy to the end.
            ahead = self._scheduler.ahead()
        known = {id(picture) for picture in pictures}
        wanted = pictures + [picture for picture in self._unseen(ahead) if id(picture) not in known]
        size = float(sum(_cost(picture) for picture in wanted))
        begun = time.perf_counter()
        failed = self._see_apart(wanted, cores) if apart else self._see_all(wanted)
        if len(wanted) >= cores.count:
            cores.faster.done(apart=apart, size=size, seconds=time.perf_counter() - begun)
        if ahead:
            self._scheduler.seen([w for w in ahead if all(picture.features is not None for picture in _pictures(w))])
        return {number: error for number, error in failed.items() if number in known}

    def _see_apart(self, pictures: list[Picture], cores: Cores) -> dict[int, BaseException]:
        """Each core sees pictures of its own, while this thread computes small calls."""
        sizes = [picture.opened.patches for picture in pictures]
        groups = [[pictures[at] for at in part] for part in shares(sizes, cores.count, most=self._max_batch_patches)]
        futures = cores.start([partial(self._family.see, [picture.opened for picture in group]) for group in groups])
        for group, future in zip(groups, futures, strict=True):
            self._seeing |= {picture.key: (future, at) for at, picture in enumerate(group)}
        try:
            while not all(future.done() for future in futures):
                self._compute_small(until=lambda: all(future.done() for future in futures))
                if self._scheduler.stopped:
                    for future in futures:
                        future.cancel()
                    wait(futures)
        finally:
            self._seeing.clear()
        left: list[Picture] = []
        for group, future in zip(groups, futures, strict=True):
            if future.cancelled() or future.exception() is not None:
                left += group
            else:
                for picture, seen in zip(group, future.result(), strict=True):
                    self._know(picture, seen)
        # What has failed, or was wanted at once by a small call, is seen anew: then it is known which picture failed.
        return self._see_all(left)

    def _from_others(self, picture: Picture) -> torch.Tensor | None:
        """Features of a picture that another core is just seeing."""
        future, at = self._seeing.get(picture.key, (None, 0))
        if future is None or future.cancel():
            return None
        try:
            return future.result()[at]
        except (Exception, CancelledError):  # whoever waits for the picture will see it anew, and find out
            return None

    def _know(self, picture: Picture, features: torch.Tensor) -> None:
        picture.features, picture.opened = features, None
        if self._vision.in_use:
            self._vision.put(picture.key, features)

    def _see_all(self, pictures: list[Picture]) -> dict[int, BaseException]:
        failed: dict[int, BaseException] = {}
        at = 0
        while at < len(pictures) and not self._scheduler.stopped:
            if pictures[at].features is None and (seen := self._from_others(pictures[at])) is not None:
                pictures[at].features, pictures[at].opened = seen, None
            if pictures[at].features is not None:  # a small call in between needed it too
                at += 1
                continue
            group = [pictures[at]]
            patches = group[0].opened.patches
            for picture in pictures[at + 1 :]:
                if picture.features is not None or patches + picture.opened.patches > self._max_batch_patches:
                    break
                group.append(picture)
                patches += picture.opened.patches
            try:
                with one_thread() if self._seeing else nullcontext():
                    features = self._family.see([picture.opened for picture in group])
            except Exception as error:
                if len(group) == 1:
                    failed[id(group[0])] = self._out_of_memory(error) if is_out_of_memory(error) else error
                    at += 1
                elif is_out_of_memory(error):
                    self._max_batch_patches = max(1, patches // 2)
                    self._free(f"max_batch_patches={self._max_batch_patches}")
                else:  # find out which picture failed
                    for picture in group:
                        failed |= self._see_all([picture])
                    at += len(group)
                continue
            for picture, found in zip(group, features, strict=True):
                self._know(picture, found)
            at += len(group)
            if at < len(pictures):
                self._compute_small()
        # Nobody waits for what is left where all threads shall end.
        closed = ABCRagError("the embedder was closed while it computed; open another one")
        return failed | {id(picture): closed for picture in pictures[at:]}

    def _compute_small(self, until: Callable[[], bool] | None = None) -> None:
        """Compute a small call now, before the remaining pictures of another call's batch.

        Args:
            until: Wait for one while this is false.
        """
        if self._in_between:
            return
        self._in_between = True
        try:
            if works := self._scheduler.next_small(until=until):
                launched = self._launch(works, time.perf_counter())
                if launched is not None:
                    self._finish(launched)
        finally:
            self._in_between = False

    # --- What goes wrong ------------------------------------------------------------------------------

    def _recover(self, works: list[Work], error: BaseException) -> None:
        if is_out_of_memory(error):
            if len(works) > 1:
                tokens = max(1, sum(work.tokens for work in works) // 2)
                self._scheduler.max_batch_tokens = min(self._scheduler.max_batch_tokens, tokens)
                self._free(f"max_batch_tokens={self._scheduler.max_batch_tokens}")
                self._scheduler.put_back(works)
                return
            self._free("")
            error = self._out_of_memory(error)
        if len(works) == 1:
            self._scheduler.done([(works[0], error)])
            return
        # One input is to blame. Computed one by one, it fails alone.
        for work in works:
            launched = self._launch([work], time.perf_counter())
            if launched is not None:
                self._finish(launched)

    def _out_of_memory(self, error: BaseException) -> InputError:
        made = InputError(
            f"does not fit into the memory of {self._family.facts.device} even by itself; use fewer image tokens "
            "(max_tokens), a shorter text, a smaller dtype, or weights='int8'"
        )
        made.__cause__ = error
        return made

    def _free(self, smaller: str) -> None:
        self._vision.clear()
        if self._family.facts.device.type == "cuda":
            torch.cuda.empty_cache()
        if smaller and not self._warned:
            self._warned = True
            logger.warning(
                "out of memory on %s: going on with smaller batches (%s, EngineSettings sets it for good)",
                self._family.facts.device,
                smaller,
            )


def _pictures(work: Work) -> tuple[Picture, ...]:
    return work.prepared.pictures if work.prepared is not None else ()


def _cost(picture: Picture) -> float:
    """What seeing a picture costs: layers take as long as it is large, and attention grows with the square."""
    patches: int = picture.opened.patches
    return patches + patches**2 / 4096


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of any device is exhausted."""
    if isinstance(error, ABCRagError):
        return False
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    said = str(error)
    return isinstance(error, RuntimeError) and ("out of memory" in said or "can't allocate memory" in said)
