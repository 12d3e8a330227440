"""The queues of the engine: inputs of many calls on their way to the model, each distinct content computed once.

An input is a `Ticket` of a `Request` (one call). Tickets of equal content share one `Work`, which is first prepared,
then ready, then computed. Everything here happens under one lock and takes microseconds; pictures are opened and
batches computed elsewhere.
"""

from __future__ import annotations

import copy
import threading
import time
from collections import deque
from collections.abc import Callable

from abc_rag.embedding.engine.work import Item, Request, Ticket, Work
from abc_rag.errors import ImageError
from abc_rag.images.read import describe_source
from abc_rag.types import Vectors

__all__ = ["Scheduler"]

# Maximum inputs of small calls in one batch. A small call may submit as many without waiting for room.
_SMALL = 8
# Texts that a thread takes at once: preparing a text takes little longer than handing it over.
_TEXTS = 32
# How many batches' worth of work is sorted by length.
_AHEAD = 4
# A model that alternates with preparation waits this long for several batches' worth of work.
_PHASE_S = 1.0


class Scheduler:
    """The queues from calls to preparation, and from preparation to the model.

    Args:
        max_batch_tokens: Token budget of a batch.
        max_wait_s: How long the model waits for a batch to fill while inputs are being prepared.
        max_queued: Maximum inputs in the queues, over all calls.
        max_queued_bytes: Maximum bytes of opened pictures.
        alternate: Prepare the inputs of large calls only while the model waits. On a CPU both need all cores, and every
            step of the model ends with its slowest core, so overlapping them is slower than alternating.
        beside: Another scheduler of the same model: its lock is shared, and what is ready here wakes the model too.
    """

    def __init__(
        self,
        *,
        max_batch_tokens: int,
        max_wait_s: float,
        max_queued: int,
        max_queued_bytes: int,
        alternate: bool = False,
        beside: Scheduler | None = None,
    ) -> None:
        self.lock: threading.RLock = threading.RLock() if beside is None else beside.lock
        self.max_batch_tokens = max_batch_tokens
        self._max_wait_s = max_wait_s
        self._max_queued = max_queued
        self._max_queued_bytes = max_queued_bytes
        self._to_prepare: tuple[deque[Ticket], deque[Ticket]] = (deque(), deque())
        self._preparing = 0
        self._in_flight: dict[bytes, Work] = {}
        self._ready: dict[str, list[Work]] = {}
        self._ready_tokens: dict[str, int] = {}
        self._waiting = 0
        self._held_bytes = 0
        self._requests: set[Request] = set()
        self._for_preparation = threading.Condition(self.lock)
        self._for_model: threading.Condition = threading.Condition(self.lock) if beside is None else beside._for_model
        self._last_was_small = False
        self._alternate = alternate
        self._draining = False
        self._stopped = False
        self._failure: BaseException | None = None

    # --- Calls ----------------------------------------------------------------------------------------

    def open(self, *, small: bool, max_items: int | None, changed: Callable[[], None]) -> Request:
        """Begin a call."""
        request = Request(small, max_items, changed)
        with self.lock:
            self._requests.add(request)
        return request

    @property
    def waiting(self) -> int:
        """How many inputs have no result yet, over all calls."""
        return self._waiting

    def has_room(self, request: Request) -> bool:
        """Whether a call may submit another input now."""
        return self._waiting < self._max_queued or request.waiting < (_SMALL if request.small else 1)

    def submit(self, request: Request, position: int, item: Item) -> None:
        """Submit an input. Its result arrives in ``request.results``."""
        with self.lock:
            request.waiting += 1
            self._waiting += 1
            if self._failure is not None:
                self._deliver(Ticket(request, position, item), self._failure)
                return
            self._to_prepare[0 if request.small else 1].append(Ticket(request, position, item))
            self._for_preparation.notify()

    def close(self, request: Request) -> None:
        """End a call. Inputs without a result are not computed, unless another call needs them too."""
        with self.lock:
            request.closed = True
            self._requests.discard(request)
            self._waiting -= request.waiting
            request.waiting = 0
            for line in self._to_prepare:
                if any(ticket.request is request for ticket in line):
                    kept = [ticket for ticket in line if ticket.request is not request]
                    line.clear()
                    line.extend(kept)
            self._say_room()

    @property
    def stopped(self) -> bool:
        """Whether all threads shall end."""
        return self._stopped

    def stop(self) -> None:
        """Wake all threads and make them end."""
        with self.lock:
            self._stopped = True
            for condition in (self._for_preparation, self._for_model):
                condition.notify_all()

    def fail_all(self, error: BaseException) -> None:
        """Give an error to every waiting call, and to every later one."""
        with self.lock:
            self._failure = error
            works = list(self._in_flight.values())
            tickets = [ticket for line in self._to_prepare for ticket in line]
            for line in self._to_prepare:
                line.clear()
            for work in works:
                self._leave_ready(work)
                self._settle(work, error)
            for ticket in tickets:
                self._deliver(ticket, error)
            self._tell({ticket.request for ticket in tickets} | {t.request for work in works for t in work.tickets})

    # --- Preparation ----------------------------------------------------------------------------------

    def next_tickets(self) -> list[Ticket] | None:
        """Wait for inputs to prepare: one with a picture, if there is room for it, or several texts; None to stop."""
        with self.lock:
            while not self._stopped:
                full = self._held_bytes >= self._max_queued_bytes
                for line in self._to_prepare[: 1 if self._draining else 2]:
                    if line and not (full and line[0].item.pictures):
                        taken = [line.popleft()]
                        while line and not (taken[0].item.pictures or line[0].item.pictures) and len(taken) < _TEXTS:
                            taken.append(line.popleft())
                        self._preparing += 1
                        return taken
                self._for_preparation.wait()
            return None

    def claim(self, ticket: Ticket, key: bytes) -> Work | None:
        """A new work if the ticket is the first with its content; otherwise None, and it joins the first one."""
        with self.lock:
            known = self._in_flight.get(key)
            if known is not None:
                known.tickets.append(ticket)
                known.small = known.small or ticket.request.small
                return None
            work = self._in_flight[key] = Work(key, [ticket], small=ticket.request.small)
            return work

    def prepared(self, works: list[Work], settled: list[tuple[Work | Ticket, Vectors | BaseException]]) -> None:
        """Hand over works that can be computed, and results that are known already or failed."""
        now = time.monotonic()
        with self.lock:
            self._preparing -= 1
            told = set()
            for one, result in settled:
                tickets = one.tickets if isinstance(one, Work) else [one]
                told |= {ticket.request for ticket in tickets}
                if isinstance(one, Work):
                    one.held_bytes = 0  # never counted, as it ends before it is queued
                    self._settle(one, result)
                else:
                    self._deliver(one, result)
            for work in works:
                if work.prepared is None or self._in_flight.get(work.key) is not work:
                    continue  # it has failed in the meantime
                work.since = now
                self._held_bytes += work.held_bytes
                self._ready.setdefault(work.prepared.kind, []).append(work)
                self._ready_tokens[work.prepared.kind] = self._ready_tokens.get(work.prepared.kind, 0) + work.tokens
            self._tell(told)
            if self._failure is not None:
                self.fail_all(self._failure)  # these were in preparation when the others failed
            self._for_model.notify_all()

    # --- The model ------------------------------------------------------------------------------------

    def has_ready(self) -> bool:
        """Whether a batch could be computed now or soon."""
        with self.lock:
            return any(self._ready.values())

    def has_small(self) -> bool:
        """Whether a small call has an input that could be computed now."""
        with self.lock:
            return any(work.small for works in self._ready.values() for work in works)

    def next_batch(
        self, *, wait: bool = True, until: Callable[[], bool] | None = None, patience_s: float = 0.0
    ) -> list[Work] | None:
        """Wait for a batch of one kind; None to stop. Without ``wait``, an empty list if there is none.

        Args:
            wait: Whether to wait.
            until: Wait only while this is false; it is asked under the lock.
            patience_s: Wait up to this long even so, where this scheduler alternates and inputs are being prepared:
                they are prepared slowly while the model computes something else.
        """
        patient_until = time.monotonic() + patience_s
        with self.lock:
            while not self._stopped:
                left = self._left()
                if left is None or left > 0:
                    if not wait:
                        return []
                    if until is not None and until():
                        rest = patient_until - time.monotonic() if self._alternate and self._comes() else 0.0
                        if rest <= 0:
                            return []
                        left = rest if left is None else min(left, rest)
                    self._for_model.wait(left)
                elif batch := self._take():
                    return batch
            return None

    def next_small(self, *, until: Callable[[], bool] | None = None) -> list[Work]:
        """Works of small calls to compute between two parts of a batch, of one kind; often none.

        Args:
            until: Wait for one while this is false; it is asked under the lock, again after every `wake`.
        """
        with self.lock:
            while until is not None and not (until() or self.has_small() or self._stopped):
                self._for_model.wait()
            small = [work for works in self._ready.values() for work in works if work.small and _is_wanted(work)]
            kind = small[0].prepared.kind if small and small[0].prepared is not None else None
            return [] if kind is None else self._remove(kind, [w for w in small if w in self._ready[kind]][:_SMALL])

    def wake(self) -> None:
        """Make who waits for work ask again what it waits for."""
        with self.lock:
            self._for_model.notify_all()

    def ahead(self) -> list[Work]:
        """Several batches' worth of works that are next in line; they stay there."""
        with self.lock:
            found, tokens = [], 0
            for work in (work for works in self._ready.values() for work in works):
                if tokens >= _AHEAD * self.max_batch_tokens:
                    break
                found.append(work)
                tokens += work.tokens
            return found

    def _left(self) -> float | None:
        """Seconds until a batch should be computed, 0 or less for now; None while nothing is ready."""
        ready = [works for works in self._ready.values() if works]
        if self._draining and not ready:
            self._draining = False
            self._for_preparation.notify_all()
        if not ready:
            return None
        max_wait, phase = self._max_wait_s, 1
        if self._alternate and not any(work.small for works in ready for work in works):
            max_wait, phase = max(max_wait, _PHASE_S), _AHEAD
        full = any(tokens >= phase * self.max_batch_tokens for tokens in self._ready_tokens.values())
        full = full or self._held_bytes >= self._max_queued_bytes  # nothing more can be prepared
        if self._draining or full or not self._comes():
            return 0.0
        return min(works[0].since for works in ready) + max_wait - time.monotonic()

    def _comes(self) -> bool:
        """Whether inputs are being prepared."""
        return bool(self._preparing or any(self._to_prepare[: 1 if self._draining else 2]))

    def _take(self) -> list[Work]:
        self._draining = self._alternate
        self._drop_unwanted()
        kinds = [kind for kind, works in self._ready.items() if works]
        if not kinds:
            return []
        small = [kind for kind in kinds if any(work.small for work in self._ready[kind])]
        # Small calls go first, but every other batch begins with the work that has waited longest.
        first = bool(small) and not self._last_was_small
        kind = min(small if first else kinds, key=lambda k: self._ready[k][0].since)
        works = self._ready[kind]
        chosen = [work for work in works if work.small][:_SMALL] if small and kind in small else []
        if chosen and not first:
            chosen = [works[0], *(work for work in chosen if work is not works[0])]
        self._last_was_small = first and (len(kinds) > 1 or len(chosen) < len(works))
        chosen += self._longest(works, set(chosen))
        batch: list[Work] = []
        tokens, most = 0, None
        for work in chosen:
            limits = [t.request.max_items for t in work.tickets if t.request.max_items is not None]
            tightest = min([*limits, *([] if most is None else [most])], default=None)
            if batch and (
                tokens + work.tokens > self.max_batch_tokens or (tightest is not None and len(batch) >= tightest)
            ):
                continue
            batch.append(work)
            tokens += work.tokens
            most = tightest
        return self._remove(kind, batch)

    def _remove(self, kind: str, batch: list[Work]) -> list[Work]:
        taken = set(batch)
        self._ready[kind] = [work for work in self._ready[kind] if work not in taken]
        self._ready_tokens[kind] -= sum(work.tokens for work in batch)
        return batch

    def _longest(self, works: list[Work], but: set[Work]) -> list[Work]:
        """The oldest work, then the longest of those that have waited almost as long."""
        near, tokens = [], 0
        for work in works:
            if work not in but:
                near.append(work)
                tokens += work.tokens
                if tokens >= _AHEAD * self.max_batch_tokens:
                    break
        return near[:1] + sorted(near[1:], key=lambda work: -work.tokens)

    def _drop_unwanted(self) -> None:
        for kind, works in self._ready.items():
            if all(map(_is_wanted, works)):
                continue
            for work in works:
                if not _is_wanted(work):
                    self._ready_tokens[kind] -= work.tokens
                    self._forget(work)
            self._ready[kind] = [work for work in works if _is_wanted(work)]

    def put_back(self, works: list[Work]) -> None:
        """Put works back at the front of the queue."""
        with self.lock:
            for work in reversed(works):
                if self._in_flight.get(work.key) is work and work.prepared is not None:
                    self._ready.setdefault(work.prepared.kind, []).insert(0, work)
                    kind = work.prepared.kind
                    self._ready_tokens[kind] = self._ready_tokens.get(kind, 0) + work.tokens
            self._for_model.notify_all()

    def done(self, results: list[tuple[Work, Vectors | BaseException]]) -> None:
        """Deliver results to every call that waits for them."""
        with self.lock:
            told = {ticket.request for work, _ in results for ticket in work.tickets}
            for work, result in results:
                self._settle(work, result)
            self._tell(told)

    def seen(self, works: list[Work]) -> None:
        """Take back the bytes of works whose pictures the vision tower has seen."""
        with self.lock:
            for work in works:
                self._held_bytes -= work.held_bytes
                work.held_bytes = 0
            self._for_preparation.notify_all()

    # --- Under the lock -------------------------------------------------------------------------------

    def _settle(self, work: Work, result: Vectors | BaseException) -> None:
        if self._in_flight.get(work.key) is not work:
            return  # it has failed in the meantime
        self._forget(work)
        for number, ticket in enumerate(work.tickets):
            ticket.request.tokens += work.tokens
            # Each caller may change its vector.
            self._deliver(ticket, result if isinstance(result, BaseException) or number == 0 else result.copy())

    def _forget(self, work: Work) -> None:
        if self._in_flight.get(work.key) is work:
            del self._in_flight[work.key]
        if work.held_bytes:
            self._held_bytes -= work.held_bytes
            work.held_bytes = 0
            self._for_preparation.notify_all()

    def _leave_ready(self, work: Work) -> None:
        if work.prepared is not None and work in self._ready.get(work.prepared.kind, ()):
            self._ready[work.prepared.kind].remove(work)
            self._ready_tokens[work.prepared.kind] -= work.tokens

    def _deliver(self, ticket: Ticket, result: Vectors | BaseException) -> None:
        request = ticket.request
        if request.closed:
            return
        request.waiting -= 1
        self._waiting -= 1
        # An error raised in several threads would collect all their tracebacks.
        request.results[ticket.position] = _copied(result, ticket.item) if isinstance(result, BaseException) else result

    def _tell(self, told: set[Request]) -> None:
        for request in told:
            request.changed()
        self._say_room(told)

    def _say_room(self, told: set[Request] | None = None) -> None:
        if self._waiting < self._max_queued:
            for request in self._requests:
                if request not in (told or ()):
                    request.changed()


def _is_wanted(work: Work) -> bool:
    """Whether any open call still needs it."""
    return any(not ticket.request.closed for ticket in work.tickets)


def _copied(error: BaseException, item: Item) -> BaseException:
    try:
        if isinstance(error, ImageError) and len(item.pictures) == 1:
            # Found for one of several names of the same content.
            return type(error)(describe_source(item.pictures[0]), error.reason)
        return copy.copy(error)
    except Exception:  # it cannot be rebuilt from its arguments
        return error
