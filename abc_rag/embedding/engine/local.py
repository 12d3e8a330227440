"""An embedder that computes on this machine.

Inputs of all calls share one queue (`scheduler`). A few threads read, open and tokenise them (`preparation`, with
`processes` for pictures). The thread that owns the network (`model_thread`) computes them in batches (`runner`); with
several devices there is one such thread for each.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from abc_rag.embedding.choose import Choice
from abc_rag.embedding.embedder import UNIT_TOLERANCE, BatchSize, Embedder
from abc_rag.embedding.engine.caches import DiskTier, TensorCache
from abc_rag.embedding.engine.cores import CoreUse
from abc_rag.embedding.engine.model_thread import JOIN_S, ModelThread, release_freed_memory
from abc_rag.embedding.engine.preparation import Preparation
from abc_rag.embedding.engine.runner import BatchReport, Reports, Runner
from abc_rag.embedding.engine.scheduler import Scheduler
from abc_rag.embedding.engine.speech import Speech
from abc_rag.embedding.engine.work import Request
from abc_rag.embedding.progress import progress_bar
from abc_rag.embedding.settings import EngineSettings
from abc_rag.embedding.threads import ForkSafeLock, in_thread
from abc_rag.errors import ABCRagError, InputError
from abc_rag.models.chat import ChatModel
from abc_rag.models.family import Family, FamilyFacts
from abc_rag.types import DataURI, Fingerprint, ImageSource, Input, MaskedImage, Vectors

__all__ = ["CacheState", "EngineState", "LocalEmbedder"]

# A call with at most this many inputs is treated as somebody waiting for an answer.
_SMALL_CALL = 4
# Default budgets by device. On a GPU a few hundred tokens keep the chip busy, and this many hide the time between
# batches. On a CPU a batch of this size stays in the caches.
_TOKENS = {"cpu": 2048, "cuda": 4096}
_PATCHES = {"cpu": 1024, "cuda": 16384}
# How many results may wait for an earlier one, in multiples of `EngineSettings.max_queued`.
_OUT_OF_ORDER = 4


class CacheState(NamedTuple):
    """What a cache was worth.

    Attributes:
        hits: How often something was found.
        misses: How often it was not.
        held_bytes: Memory that it holds.
    """

    hits: int = 0
    misses: int = 0
    held_bytes: int = 0


class EngineState(NamedTuple):
    """The state of an engine.

    Attributes:
        queued: Inputs without a result yet, over all calls.
        vision: The cache of vision features.
        embeddings: The cache of vectors.
    """

    queued: int = 0
    vision: CacheState = CacheState()
    embeddings: CacheState = CacheState()


class _Machine:
    """Threads, processes and caches. It has no reference to its `LocalEmbedder`, which can therefore be collected."""

    def __init__(self, owner: ModelThread, settings: EngineSettings, reports: Reports) -> None:
        families = owner.families()
        self._owner = owner
        self.pid = os.getpid()
        first = families[0]
        kind = first.facts.device.type
        disk = None if settings.cache_folder is None else DiskTier(settings.cache_folder, settings.cache_folder_bytes)
        scope = f"{first.facts.fingerprint} {first.facts.dtype}"
        self.vision = TensorCache(settings.vision_cache_bytes, disk=disk, scope=f"vision {scope}", fits=_are_features)
        self.embeddings = TensorCache(
            settings.embedding_cache_bytes,
            disk=disk if settings.embedding_cache_bytes else None,
            scope=f"vector {scope}",
            fits=partial(_is_vector, dim=first.facts.dim),
        )
        self.scheduler = Scheduler(
            max_batch_tokens=settings.max_batch_tokens or _TOKENS.get(kind, _TOKENS["cpu"]),
            max_wait_s=settings.max_wait_ms / 1000,
            max_queued=settings.max_queued,
            max_queued_bytes=settings.max_queued_bytes,
            alternate=kind == "cpu",
        )
        self.preparation = Preparation(
            first,
            self.scheduler,
            vision=self.vision,
            embeddings=self.embeddings,
            workers=settings.workers or min(8, os.cpu_count() or 1),
            worker_kind=settings.worker_kind,
            timeout_s=settings.picture_timeout_s,
        )
        chat = first.chat
        self.speech = Speech(chat, self.scheduler, settings) if isinstance(chat, ChatModel) else None
        self._runners = [
            Runner(
                family,
                self.scheduler,
                vision=self.vision,
                embeddings=self.embeddings,
                max_batch_patches=settings.max_batch_patches or _PATCHES.get(kind, _PATCHES["cpu"]),
                reports=reports,
                speech=self.speech if family is first else None,
                apart=not settings.compile,
            )
            for family in families
        ]
        self._disk = disk
        self.preparation.start()
        owner.do(self._runners[0].run)
        for runner in self._runners[1:]:
            threading.Thread(target=runner.run, name="abc-rag-model", daemon=True).start()

    @property
    def core_use(self) -> CoreUse | None:
        """See `LocalEmbedder.cores`."""
        cores = self._runners[0].cores
        return None if cores is None else cores.faster.use

    def stop(self) -> None:
        """End all threads and processes. Calls that still wait get an error."""
        if self.pid != os.getpid():
            return  # a forked child has none of them
        self.scheduler.fail_all(ABCRagError("the embedder was closed while it computed; open another one"))
        self.scheduler.stop()
        self.preparation.close()
        self.preparation.join(JOIN_S)
        if self.speech is not None:
            self.speech.stop(ABCRagError("the embedder was closed while it answered; open another one"))
            self.speech.join(JOIN_S)
        if threading.current_thread() is not self._owner:  # an embedder may be garbage-collected in any thread
            for runner in self._runners:
                runner.ended.wait(JOIN_S)
        if self._disk is not None:
            self._disk.close()


def _are_features(tensor: torch.Tensor) -> bool:
    return tensor.ndim == 2 and len(tensor) > 0 and bool(torch.isfinite(tensor).all())


def _is_vector(tensor: torch.Tensor, *, dim: int) -> bool:
    return (
        tensor.shape == (dim,)
        and tensor.dtype == torch.float32
        and abs(float(torch.linalg.vector_norm(tensor)) - 1) < UNIT_TOLERANCE
    )


class LocalEmbedder(Embedder):
    """Embeds with a network in this process, or with several copies of it on several devices.

    The network is loaded on first use. Calls from any number of threads and event loops are computed together, in
    batches, by the thread that owns the network; other threads open pictures meanwhile.

    Args:
        load: Returns the family, or one for each device; called once, on first use.
        settings: Workers, batches and caches.
    """

    def __init__(self, load: Callable[[], Family | list[Family]], settings: EngineSettings | None = None) -> None:
        self._load = load
        self.settings = settings or EngineSettings()
        self._owner: ModelThread | None = None
        self._pid = os.getpid()
        self._loading = ForkSafeLock()
        self._machine: _Machine | None = None
        self._facts: FamilyFacts | None = None
        self._ending: weakref.finalize[[], LocalEmbedder] | None = None
        self._reports = Reports()

    def __copy__(self) -> LocalEmbedder:
        """The embedder itself: it has no state that a copy could change, and the weights are shared."""
        return self

    def __deepcopy__(self, memo: dict[int, object]) -> LocalEmbedder:
        """See `__copy__`."""
        return self

    def __reduce__(self) -> tuple[type[LocalEmbedder], tuple[Callable[[], Family | list[Family]], EngineSettings]]:
        """A pickle holds the settings and no weights; the model is loaded again on first use."""
        return type(self), (self._load, self.settings)

    @property
    def loading(self) -> Callable[[], Family | list[Family]]:
        """What loads it: an `abc_rag.embedding.load.Loading` where `load_embedder` made it."""
        return self._load

    @property
    def choice(self) -> Choice | None:
        """What ``load_embedder("auto")`` chose, and why; None where the model was named."""
        found: Choice | None = getattr(self._load, "choice", None)
        return found

    @property
    def family(self) -> Family:
        """The model family, or the first of several; loads it."""
        return self._loaded().families()[0]

    @property
    def facts(self) -> FamilyFacts:
        """What is fixed once the model is loaded; loads the model."""
        if self._facts is None:
            self._facts = self.family.facts
        return self._facts

    @property
    def dim(self) -> int:
        """Length of a vector; loads the model."""
        return self.facts.dim

    @property
    def fingerprint(self) -> Fingerprint:
        """Model, revision and resolution; loads the model."""
        return self.facts.fingerprint

    @property
    def accepts(self) -> tuple[type, ...]:
        """The input types that the model takes; loads the model."""
        return self.facts.accepts

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles that inputs may have; loads the model."""
        return self.facts.roles

    def grid(self, source: ImageSource) -> tuple[int, int]:
        """Rows and columns of a picture's image tokens; see `Embedder.grid`. Loads the model."""
        if MaskedImage not in self.facts.accepts:
            return super().grid(source)
        return self.family.grid(self.facts.open(source))

    @property
    def worker_pids(self) -> list[int]:
        """Ids of the processes that open pictures."""
        return [] if self._machine is None else self._machine.preparation.processes.pids

    def report_to(self, listener: Callable[[BatchReport], None] | None) -> None:
        """Report every batch to ``listener``, in the model's thread; None ends it."""
        self._reports.listener = listener

    @property
    def state(self) -> EngineState:
        """How much is waiting, and what the caches were worth since the engine started."""
        machine = self._machine
        if machine is None:
            return EngineState()
        caches = (CacheState(one.hits, one.misses, one.held_bytes) for one in (machine.vision, machine.embeddings))
        return EngineState(machine.scheduler.waiting, *caches)

    @property
    def cores(self) -> CoreUse | None:
        """How the cores of a CPU see pictures; None before there were enough to try both ways, and on other devices."""
        return None if self._machine is None else self._machine.core_use

    def forget(self) -> None:
        """Empty the caches in memory."""
        with self._loading:
            if self._machine is not None:
                self._machine.vision.clear()
                self._machine.embeddings.clear()
                if self._machine.speech is not None:
                    self._machine.speech.vision.clear()

    @contextmanager
    def remembering_nothing(self) -> Iterator[None]:
        """Bypass the caches within the block, for measurements."""
        machine = self._running()
        caches = (machine.vision, machine.embeddings)
        for cache in caches:
            cache.pause()
        try:
            yield
        finally:
            for cache in caches:
                cache.resume()

    def close(self) -> None:
        """End threads and worker processes, and empty the caches. The next call starts them again."""
        with self._loading:
            ending, self._ending, self._machine = self._ending, None, None
        if ending is not None:
            ending()
            release_freed_memory()

    def _loaded(self) -> ModelThread:
        with self._loading:
            owner = self._owner
            if owner is None or (self._pid != os.getpid()):
                known = None if owner is None else owner.families()  # a forked child has the weights but not the thread
                owner = ModelThread(partial(_as_list, self._load if known is None else partial(list, known)))
                owner.families()
                self._owner, self._pid = owner, os.getpid()
                weakref.finalize(self, owner.end)
            return owner

    def _running(self) -> _Machine:
        with self._loading:
            if self._machine is None or self._machine.pid != os.getpid():
                self._machine = _Machine(self._loaded(), self.settings, self._reports)
                self._ending = weakref.finalize(self, self._machine.stop)
            return self._machine

    # --- Conversations --------------------------------------------------------------------------------

    def speech(self) -> Speech:
        """The conversations of its base; loads the model.

        Raises:
            InputError: Its adapters are merged.
        """
        found = self._running().speech
        if found is None:
            raise InputError(
                f"{self.fingerprint.model} was loaded with merged adapters, so its base cannot generate; load it with "
                "abc_rag.answering.load_generator, whose .embedder embeds with the same weights"
            )
        return found

    # --- Calls ----------------------------------------------------------------------------------------

    def _embed(self, inputs: Sequence[Input], *, batch_size: BatchSize, progress: bool) -> Vectors:
        distinct, rows = _distinct(inputs)
        vectors = np.empty((len(inputs), self.facts.dim), dtype=np.float32)
        results = self._in_order(iter(distinct), small=len(distinct) <= _SMALL_CALL, batch_size=batch_size)
        shown = progress_bar("embedding", total=len(inputs), enabled=True) if progress else contextlib.nullcontext()
        with shown as bar, contextlib.closing(results):
            for positions, result in zip(rows, results, strict=True):
                vectors[positions] = _vector(result, positions[0])
                if bar is not None:
                    bar.advance(len(positions))
        return vectors

    def _embed_each(self, inputs: Iterator[Input], *, batch_size: BatchSize) -> Iterator[Vectors | ABCRagError]:
        results = self._in_order(inputs, small=False, batch_size=batch_size)
        with contextlib.closing(results):
            for position, result in enumerate(results):
                if not isinstance(result, BaseException) or isinstance(result, ABCRagError):
                    yield result
                else:
                    yield _failed(result, position)

    async def aembed_counted(self, inputs: Iterable[Input], *, batch_size: BatchSize = "auto") -> tuple[Vectors, int]:
        """`aembed`, and how many tokens the model read for it; equal inputs count once, and what a cache had not."""
        items = self._checked(inputs, batch_size)
        if not items:
            return await self.aembed(items), 0
        vectors, tokens = await self._counted(items, batch_size)
        self._check(vectors, len(items), self.dim)
        return vectors, tokens

    async def _aembed(self, inputs: Sequence[Input], *, batch_size: BatchSize) -> Vectors:
        return (await self._counted(inputs, batch_size))[0]

    async def _counted(self, inputs: Sequence[Input], batch_size: BatchSize) -> tuple[Vectors, int]:
        machine = self._machine
        if machine is None or machine.pid != os.getpid():
            machine = await in_thread(self._running)
        distinct, rows = _distinct(inputs)
        vectors = np.empty((len(inputs), self.facts.dim), dtype=np.float32)
        async with _awaited(machine.scheduler, small=len(distinct) <= _SMALL_CALL, batch_size=batch_size) as (
            request,
            changed,
        ):
            submitted = taken = 0
            while taken < len(distinct):
                changed.clear()
                while submitted < len(distinct) and machine.scheduler.has_room(request):
                    machine.scheduler.submit(request, submitted, distinct[submitted])
                    submitted += 1
                for position, result in _taken(machine.scheduler, request).items():
                    vectors[rows[position]] = _vector(result, rows[position][0])
                    taken += 1
                if taken < len(distinct):
                    await changed.wait()
            tokens = request.tokens
        return vectors, tokens

    def _in_order(
        self, inputs: Iterator[Input], *, small: bool, batch_size: BatchSize
    ) -> Generator[Vectors | BaseException]:
        """Results in the order of the inputs. An input is taken from the iterator only when there is room for it."""
        scheduler = self._running().scheduler
        changed = threading.Condition(scheduler.lock)
        max_items = None if batch_size == "auto" else batch_size
        request = scheduler.open(small=small, max_items=max_items, changed=changed.notify_all)
        ahead = _OUT_OF_ORDER * self.settings.max_queued
        waiting: dict[int, Vectors | BaseException] = {}
        submitted = given = 0
        exhausted = False
        try:
            while True:
                while not exhausted and submitted - given < ahead and scheduler.has_room(request):
                    try:
                        item = next(inputs)
                    except StopIteration:
                        exhausted = True
                        break
                    scheduler.submit(request, submitted, item)
                    submitted += 1
                if given in waiting:
                    yield waiting.pop(given)
                    given += 1
                elif exhausted and given == submitted:
                    return
                else:
                    with changed:
                        may_give = not exhausted and submitted - given < ahead
                        if not request.results and not (may_give and scheduler.has_room(request)):
                            # With a timeout, because on Windows Ctrl-C interrupts nothing else.
                            changed.wait(0.5)
                    waiting.update(_taken(scheduler, request))
        finally:
            scheduler.close(request)


def _as_list(load: Callable[[], Family | list[Family]]) -> list[Family]:
    loaded = load()
    return loaded if isinstance(loaded, list) else [loaded]


@asynccontextmanager
async def _awaited(
    scheduler: Scheduler, *, small: bool, batch_size: BatchSize
) -> AsyncIterator[tuple[Request, asyncio.Event]]:
    """A call from an event loop; it ends when the task is cancelled."""
    loop, event = asyncio.get_running_loop(), asyncio.Event()

    def changed() -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(event.set)

    request = scheduler.open(small=small, max_items=None if batch_size == "auto" else batch_size, changed=changed)
    try:
        yield request, event
    finally:
        scheduler.close(request)


def _taken(scheduler: Scheduler, request: Request) -> dict[int, Vectors | BaseException]:
    with scheduler.lock:
        results, request.results = request.results, {}
        return results


def _distinct(inputs: Sequence[Input]) -> tuple[list[Input], list[list[int]]]:
    """Each input once, with its positions. Equal content under two names is detected later, by its hash."""
    if len(inputs) == 1:
        return list(inputs), [[0]]
    positions: dict[object, list[int]] = {}
    for position, item in enumerate(inputs):
        positions.setdefault(_identity(item), []).append(position)
    return [inputs[where[0]] for where in positions.values()], list(positions.values())


def _identity(item: Input) -> object:
    return item.content([_name(source) for source in item.pictures])


def _name(source: ImageSource) -> str:
    if isinstance(source, DataURI):
        return f"data {source.uri}"
    if isinstance(source, (str, os.PathLike)):
        return f"path {os.fsdecode(source)}"
    return f"object {id(source)}"  # URLs, bytes and open pictures are compared by identity


def _vector(result: Vectors | BaseException, position: int) -> Vectors:
    """The vector; an error is raised with the input's position."""
    if not isinstance(result, BaseException):
        return result
    if isinstance(result, InputError):
        raise result.at(position) from result
    if isinstance(result, ABCRagError):
        raise result
    raise _failed(result, position) from result


def _failed(error: BaseException, position: int) -> ABCRagError:
    made = ABCRagError(f"could not be computed ({type(error).__name__}: {error})").at(position)
    made.__cause__ = error
    return made
