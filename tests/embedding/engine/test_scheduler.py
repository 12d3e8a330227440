"""Who is computed when, with whom and for whom: on the scheduler itself, and through an embedder with a toy family."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import logging
import random
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from helpers import run_script
from toy_family import LONG, Toy, pictures, png, wait_until, words
from toy_pictures import ToyPictures

from abc_rag import Image, Input, InstructedImage, Interleaved, Text, load_embedder
from abc_rag.embedding.engine.local import LocalEmbedder
from abc_rag.embedding.engine.scheduler import Scheduler
from abc_rag.embedding.engine.work import Request, Ticket, Work
from abc_rag.embedding.settings import EngineSettings
from abc_rag.errors import ABCRagError, ImageError, InputError
from abc_rag.models.family import Prepared

# --- The scheduler ----------------------------------------------------------------------------------------


class Line:
    """A scheduler, and what a preparation without threads would do for it."""

    def __init__(self, max_batch_tokens: int = 10, **settings: Any) -> None:
        self.scheduler = Scheduler(
            max_batch_tokens=max_batch_tokens,
            **{"max_wait_s": 0.0, "max_queued": 100, "max_queued_bytes": 1000, **settings},
        )
        self.told = 0

    def call(self, *, small: bool = False, max_items: int | None = None) -> Request:
        def changed() -> None:
            self.told += 1

        return self.scheduler.open(small=small, max_items=max_items, changed=changed)

    def ready(self, request: Request, *tokens: int, kind: str = "text", held_bytes: int = 0) -> list[Work]:
        """Give inputs and prepare them."""
        works = []
        for count in tokens:
            position = request.waiting
            self.scheduler.submit(request, position, Text(f"{id(request)} {position}"))
            (ticket,) = self.scheduler.next_tickets() or []
            work = self.scheduler.claim(ticket, f"{id(request)} {position} {kind}".encode())
            assert work is not None
            work.prepared = Prepared(kind, np.zeros(count, dtype=np.int64))
            work.tokens = count
            work.held_bytes = held_bytes
            self.scheduler.prepared([work], [])
            works.append(work)
        return works

    def batch(self) -> list[int]:
        """The lengths of the next one."""
        return [work.tokens for work in self.scheduler.next_batch(wait=False) or []]

    def batches(self) -> list[list[int]]:
        return list(iter(self.batch, []))


def test_the_oldest_and_then_the_longest_within_the_budget() -> None:
    line = Line(10)
    line.ready(line.call(), 1, 2, 9, 3, 8)
    assert line.batches() == [[1, 9], [2, 8], [3]]


def test_what_is_longer_than_the_budget_is_alone() -> None:
    line = Line(10)
    line.ready(line.call(), 4, 25, 6, 10, 11)
    assert sorted(line.batches()) == [[4, 6], [10], [11], [25]]


@pytest.mark.parametrize("seed", range(5))
def test_any_mix_keeps_to_the_budgets_and_loses_nothing(seed: int) -> None:
    rng = random.Random(seed)
    line = Line(20)
    calls = [line.call(small=small, max_items=items) for small, items in ((False, None), (True, None), (False, 3))]
    works = []
    for _ in range(120):
        works += line.ready(rng.choice(calls), rng.randint(1, 25), kind=rng.choice(["text", "image"]))
    given: list[Work] = []
    while batch := line.scheduler.next_batch(wait=False):
        given += batch
        assert len({work.prepared.kind for work in batch if work.prepared}) == 1
        assert sum(work.tokens for work in batch) <= 20 or len(batch) == 1
        if any(ticket.request is calls[2] for work in batch for ticket in work.tickets):
            assert len(batch) <= 3
        line.scheduler.done([(work, np.zeros(1, dtype=np.float32)) for work in batch])
    assert {id(work) for work in given} == {id(work) for work in works}
    assert len(given) == len(works)
    assert [call.waiting for call in calls] == [0, 0, 0]
    assert sum(len(call.results) for call in calls) == 120


def test_a_calls_batch_size_is_kept() -> None:
    line = Line(100)
    line.ready(line.call(max_items=2), 1, 1, 1, 1, 1)
    line.ready(line.call(), 1, 1, 1)
    batches = line.batches()
    assert [length for batch in batches for length in batch] == [1] * 8
    assert all(len(batch) <= 2 for batch in batches[:3])


def test_small_calls_go_first_and_share_the_batch() -> None:
    line = Line(10)
    line.ready(line.call(), 5, 5, 5, 5)
    line.ready(line.call(small=True), 2)
    line.ready(line.call(small=True), 1)
    assert line.batches() == [[2, 1, 5], [5, 5], [5]]


def test_small_calls_of_another_kind_go_first_every_other_time() -> None:
    line = Line(10)
    line.ready(line.call(), *[10] * 3, kind="image")
    small = line.call(small=True)
    line.ready(small, *[10] * 3)
    kinds = []
    while batch := line.scheduler.next_batch(wait=False):
        kinds.append(batch[0].prepared.kind if batch[0].prepared else "")
    assert kinds == ["text", "image"] * 3


@pytest.mark.parametrize("kind", ["text", "image"])
def test_endless_small_calls_do_not_starve_a_large_one(kind: str) -> None:
    line = Line(10)
    large = line.ready(line.call(), *[5] * 4, kind=kind)
    left = {id(work) for work in large}
    for _ in range(10):
        line.ready(line.call(small=True), *[2] * 5)
        batch = line.scheduler.next_batch(wait=False)
        assert batch
        left -= {id(work) for work in batch}
        if not left:
            break
    assert not left


def test_equal_content_is_one_work_for_all_who_wait() -> None:
    line = Line()
    one, other = line.call(), line.call(small=True)
    for request in (one, other):
        line.scheduler.submit(request, 7, Text("a"))
    tickets = [*(line.scheduler.next_tickets() or []), *(line.scheduler.next_tickets() or [])]
    works = [line.scheduler.claim(ticket, b"a") for ticket in tickets]
    assert works[0] is not None
    assert works[1] is None
    works[0].prepared, works[0].tokens = Prepared("text", np.zeros(3, dtype=np.int64)), 3
    line.scheduler.prepared([works[0]], [])
    line.scheduler.prepared([], [])
    assert line.batch() == [3]
    line.scheduler.done([(works[0], np.ones(1, dtype=np.float32))])
    assert list(one.results) == list(other.results) == [7]
    assert line.told >= 2


def test_what_nobody_wants_any_more_is_dropped() -> None:
    line = Line(3)
    gone, stays = line.call(), line.call()
    line.ready(gone, 3, 3)
    line.ready(stays, 2)
    line.scheduler.submit(gone, 9, Text("not begun"))
    line.scheduler.close(gone)
    assert line.batches() == [[2]]
    assert line.scheduler.has_room(stays)
    assert gone.results == {}


def test_room_is_for_all_calls_together_but_everybody_gets_on() -> None:
    line = Line(max_queued=3)
    bulk, small, other = line.call(), line.call(small=True), line.call()
    line.ready(bulk, 1, 1, 1)
    assert not line.scheduler.has_room(bulk)
    assert line.scheduler.has_room(other)  # it has none on its way
    line.ready(other, 1)
    assert not line.scheduler.has_room(other)
    assert line.scheduler.has_room(small)
    line.ready(small, *[1] * 8)
    assert not line.scheduler.has_room(small)
    told = line.told
    line.scheduler.close(bulk)
    line.scheduler.close(small)
    assert line.told > told
    assert line.scheduler.has_room(other)


def test_a_picture_waits_for_bytes_and_texts_pass_it() -> None:
    line = Line(max_queued_bytes=100)
    call = line.call()
    (work,) = line.ready(call, 1, held_bytes=100)
    line.scheduler.submit(call, 1, Image("a.png"))
    line.scheduler.submit(line.call(small=True), 0, Text("a"))
    assert [ticket.item for ticket in line.scheduler.next_tickets() or []] == [Text("a")]
    taken: list[Ticket] = []
    thread = threading.Thread(target=lambda: taken.extend(line.scheduler.next_tickets() or []))
    thread.start()
    thread.join(0.05)
    assert not taken
    line.scheduler.seen([work])
    thread.join(LONG)
    assert [ticket.item for ticket in taken] == [Image("a.png")]


def test_what_failed_or_stopped_gives_everybody_an_error() -> None:
    line = Line()
    request = line.call()
    line.ready(request, 1, 1)
    line.scheduler.submit(request, 2, Text("not begun"))
    line.scheduler.submit(request, 3, Text("in somebody's hands"))
    in_hands = line.scheduler.next_tickets() or []
    line.scheduler.submit(request, 5, Text("in the line"))
    line.scheduler.fail_all(ABCRagError("closed"))
    line.scheduler.stop()
    assert set(request.results) == {0, 1, 5}
    works = [line.scheduler.claim(ticket, str(ticket.position).encode()) for ticket in in_hands]
    assert [ticket.position for ticket in in_hands] == [2, 3]
    for work in works:
        assert work is not None
        work.prepared = Prepared("text", np.zeros(1, dtype=np.int64))
    line.scheduler.prepared([work for work in works if work is not None], [])
    line.scheduler.submit(request, 4, Text("too late"))
    assert set(request.results) == {0, 1, 2, 3, 4, 5}
    assert request.waiting == 0
    assert all(str(result) == "closed" for result in request.results.values())
    assert line.scheduler.next_batch() is None
    assert line.scheduler.next_tickets() is None


def test_a_result_that_comes_twice_counts_once() -> None:
    line = Line()
    request = line.call()
    works = line.ready(request, 1)
    line.batch()
    line.scheduler.done([(works[0], ABCRagError("first"))])
    line.scheduler.done([(works[0], ABCRagError("second"))])
    assert request.waiting == 0
    assert str(request.results[0]) == "first"


@contextmanager
def held(toy: Toy, threads: int) -> Iterator[ThreadPoolExecutor]:
    """Threads for calls, with the network held up until its gate is opened, or the block fails."""
    toy.gate.clear()
    with ThreadPoolExecutor(threads) as pool:
        try:
            yield pool
        finally:
            toy.gate.set()


# --- Through an embedder ----------------------------------------------------------------------------------


@pytest.fixture
def toy() -> Toy:
    return Toy()


@pytest.fixture
def opened(toy: Toy) -> Iterator[Callable[..., LocalEmbedder]]:
    """Opens embedders of the toy family, and closes them."""
    made: list[LocalEmbedder] = []

    def opened(*families: Toy, **settings: Any) -> LocalEmbedder:
        made.append(LocalEmbedder(lambda: list(families or [toy]), EngineSettings(**{"workers": 2, **settings})))
        return made[-1]

    yield opened
    for family in [toy, *(family for one in made for family in one._loaded().families())]:
        family.gate.set()  # type: ignore[attr-defined]
    for one in made:
        one.close()


def mixed(count: int, seed: int = 0) -> list[Input]:
    """Inputs of all kinds and lengths, some of them twice."""
    rng = random.Random(seed)
    made: list[Input] = []
    for number in range(count):
        width, height = rng.randint(1, 9), rng.randint(1, 9)
        made.append(
            rng.choice(
                [
                    Text(words(rng.randint(1, 9), f"t{number}")),
                    Image(png(width, height)),
                    InstructedImage(png(width, height), words(rng.randint(1, 3), f"i{rng.randint(0, 5)}")),
                    Interleaved([Text(f"l{number}"), *(Image(png(width + n, 2)) for n in range(rng.randint(0, 3)))]),
                ]
            )
        )
    return made


@pytest.mark.parametrize("batch_size", ["auto", 1, 3])
def test_order_is_restored_and_budgets_are_apart(toy: Toy, opened: Any, batch_size: Any) -> None:
    embedder = opened(max_batch_tokens=12, max_batch_patches=10)
    inputs = mixed(200)
    np.testing.assert_array_equal(embedder.embed(inputs, batch_size=batch_size), toy.expected(inputs))
    assert all(len({one.kind for one in batch}) == 1 for batch in toy.batches)
    assert all(sum(one.tokens for one in batch) <= 12 or len(batch) == 1 for batch in toy.batches)
    assert all(sum(one.patches for one in group) <= 10 or len(group) == 1 for group in toy.seen)
    assert batch_size == "auto" or max(map(len, toy.batches)) <= batch_size
    if batch_size == "auto":
        assert max(map(len, toy.batches)) > 1
        assert max(map(len, toy.seen)) > 1
    assert len(toy.threads) == 1


def test_equal_inputs_are_computed_once_whatever_they_are_called(toy: Toy, opened: Any, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(3))
    inputs = [Text("a"), Image(png(3)), Image(tmp_path / "a.png"), Text("a"), InstructedImage(png(3), "a"), Text("b")]
    vectors = opened().embed(inputs * 3)
    np.testing.assert_array_equal(vectors, toy.expected(inputs * 3))
    assert sum(map(len, toy.batches)) == 4
    assert sum(map(len, toy.seen)) == 1


def test_calls_at_the_same_time_share_what_they_have_in_common(toy: Toy, opened: Any) -> None:
    embedder = opened()
    inputs = [Text(f"t {number}") for number in range(4)]
    with held(toy, 8) as pool:
        calls = [pool.submit(embedder.embed, random.Random(seed).sample(inputs, 4)) for seed in range(8)]
        scheduler = embedder._running().scheduler
        wait_until(lambda: scheduler._waiting == 32 and not any(scheduler._to_prepare) and not scheduler._preparing)
        toy.gate.set()
        for seed, call in enumerate(calls):
            expected = toy.expected(random.Random(seed).sample(inputs, 4))
            np.testing.assert_array_equal(call.result(LONG), expected)
    assert sum(map(len, toy.batches)) == 4


def test_single_texts_of_many_threads_share_batches(toy: Toy, opened: Any) -> None:
    embedder = opened()
    with held(toy, 30) as pool:
        first = pool.submit(embedder.embed, [Text("first")])
        assert toy.busy.wait(LONG)
        calls = [pool.submit(embedder.embed, [Text(f"t {number}")]) for number in range(29)]
        scheduler = embedder._running().scheduler
        wait_until(lambda: sum(map(len, scheduler._ready.values())) == 29)
        toy.gate.set()
        first.result(LONG)
        for number, call in enumerate(calls):
            np.testing.assert_array_equal(call.result(LONG), toy.expected([Text(f"t {number}")]))
    assert len(toy.batches) == 2
    assert len(toy.batches[1]) == 29


def test_several_small_calls_leave_a_core_to_their_callers(toy: Toy, opened: Any) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        embedder = opened()
        embedder.embed([Text(words(150, "one caller has all cores"))])
    finally:
        torch.set_num_threads(before)
    toy.busy.clear()
    with held(toy, 21) as pool:
        calls = [pool.submit(embedder.embed, [Text("first")])]
        assert toy.busy.wait(LONG)
        calls += [pool.submit(embedder.embed, [Text(words(10, f"t{number}"))]) for number in range(20)]
        scheduler = embedder._running().scheduler
        wait_until(lambda: sum(map(len, scheduler._ready.values())) == 20)
        toy.gate.set()
        for call in calls:
            call.result(LONG)
    assert toy.cores == [3, 1, 1]
    assert sum(one.tokens for one in toy.batches[2]) > 150
    embedder.embed([Text(words(150, "and then again"))])
    assert toy.cores[3:] == [3]


# -- failures --


def test_one_bad_input_fails_alone_among_many_threads(toy: Toy, opened: Any) -> None:
    toy.failing["bad"] = ValueError("the network does not like it")
    embedder = opened()
    with held(toy, 12) as pool:
        first = pool.submit(embedder.embed, [Text("first")])
        assert toy.busy.wait(LONG)
        calls = [pool.submit(embedder.embed, [Text("bad" if n == 5 else f"t {n}")]) for n in range(11)]
        wait_until(lambda: sum(map(len, embedder._running().scheduler._ready.values())) == 11)
        toy.gate.set()
        first.result(LONG)
        for number, call in enumerate(calls):
            if number == 5:
                with pytest.raises(ABCRagError, match=r"input 0: could not be computed .*does not like it"):
                    call.result(LONG)
            else:
                np.testing.assert_array_equal(call.result(LONG), toy.expected([Text(f"t {number}")]))
    assert len(toy.batches[1]) == 11


class Odd(Exception):
    """Cannot be made anew from its message."""

    def __init__(self, one: str, other: str) -> None:
        super().__init__(f"{one} and {other}")


class Panic(BaseException):
    """Such as a library in another language raises."""


@pytest.mark.parametrize(
    "error", [ValueError("odd"), Odd("odd", "strange"), Panic("odd")], ids=lambda e: type(e).__name__
)
@pytest.mark.parametrize("where", ["failing", "unprepared"])
def test_whatever_is_raised_reaches_its_caller_and_nobody_else(
    toy: Toy, opened: Any, where: str, error: BaseException
) -> None:
    getattr(toy, where)["bad"] = error
    embedder = opened()
    inputs = [Text(f"t {number}") for number in range(20)]
    inputs[7] = Text("bad")
    found = list(embedder.embed_iter(inputs, return_errors=True))
    assert isinstance(found[7], ABCRagError)
    assert "input 7" in str(found[7])
    assert "odd" in str(found[7])
    good = [number for number in range(20) if number != 7]
    np.testing.assert_array_equal([found[n] for n in good], toy.expected([inputs[n] for n in good]))
    np.testing.assert_array_equal(embedder.embed(inputs[:5]), toy.expected(inputs[:5]))


def test_a_picture_that_cannot_be_seen_fails_alone(toy: Toy, opened: Any) -> None:
    toy.blind.add(5)
    inputs = pictures(3, 4, 5, 6, 7)
    found = list(opened().embed_iter(inputs, return_errors=True))
    assert isinstance(found[2], ABCRagError)
    assert "input 2" in str(found[2])
    good = [0, 1, 3, 4]
    np.testing.assert_array_equal([found[n] for n in good], toy.expected([inputs[n] for n in good]))


def test_several_pictures_of_one_input_are_opened_and_seen_once(toy: Toy, opened: Any, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(3))
    inputs = [
        Interleaved([Image(png(3)), Text("then"), Image(png(4))]),
        Interleaved([Image(tmp_path / "a.png"), Text("then"), Image(png(4))]),  # the same by another name
        Interleaved([Image(png(4)), Text("then"), Image(png(3))]),
        Interleaved([Image(png(3)), Image(png(3)), Text("then")]),
        Image(png(4)),
    ]
    embedder = opened()
    np.testing.assert_array_equal(embedder.embed(inputs * 2), toy.expected(inputs * 2))
    assert sum(map(len, toy.batches)) == 4
    assert sorted(one.patches for group in toy.seen for one in group) == [3, 4]
    np.testing.assert_array_equal(embedder.embed(inputs[::-1]), toy.expected(inputs[::-1]))
    assert sum(map(len, toy.seen)) == 2


def test_one_of_several_pictures_that_is_bad_costs_its_input_alone(toy: Toy, opened: Any) -> None:
    toy.blind.add(5)
    inputs = [
        Interleaved([Image(png(3)), Image(b"not a picture")]),
        Interleaved([Image(png(3)), Image(png(5))]),
        Interleaved([Image(png(3)), Image(png(4))]),
        Image(png(3)),
    ]
    embedder = opened(vision_cache_bytes=0)
    found = list(embedder.embed_iter(inputs, return_errors=True))
    assert isinstance(found[0], ImageError)
    assert isinstance(found[1], ABCRagError)
    np.testing.assert_array_equal(found[2:], toy.expected(inputs[2:]))
    assert embedder._running().scheduler._held_bytes == 0


class Gated(ToyPictures):
    """Pictures that are 7 or 8 wide are opened when a test says so."""

    def __init__(self) -> None:
        super().__init__(False)
        object.__setattr__(self, "gates", {7: threading.Event(), 8: threading.Event()})
        object.__setattr__(self, "begun", [])

    def open(self, source: Any, *, limits: Any, name: str | None = None) -> Any:
        opened = super().open(source, limits=limits, name=name)
        if opened.patches in self.gates:  # type: ignore[attr-defined]
            self.begun.append(opened.patches)  # type: ignore[attr-defined]
            assert self.gates[opened.patches].wait(LONG)  # type: ignore[attr-defined]
        return opened


def test_an_input_that_hangs_with_its_first_picture_is_given_up_once(toy: Toy, opened: Any) -> None:
    gated = Gated()
    toy.facts = dataclasses.replace(toy.facts, recipe=gated)
    embedder = opened(workers=1, worker_kind="thread", picture_timeout_s=2.0)
    before = set(threading.enumerate())
    (error,) = embedder.embed_iter([Interleaved([Image(png(7)), Image(png(8))])], return_errors=True)
    assert isinstance(error, ImageError)
    started = {t for t in set(threading.enumerate()) - before if t.name == "abc-rag-prepare"}
    assert len(started) == 2  # the one that hangs, and the one that took its place
    gated.gates[7].set()  # type: ignore[attr-defined]
    # The thread that was left behind ends without a look at the second.
    wait_until(lambda: sum(thread.is_alive() for thread in started) == 1)
    assert gated.begun == [7]  # type: ignore[attr-defined]
    np.testing.assert_array_equal(embedder.embed([Text("a")]), toy.expected([Text("a")]))
    assert embedder._running().scheduler._preparing == 0


def test_errors_are_the_callers_own(toy: Toy, opened: Any) -> None:
    toy.unprepared["bad"] = InputError("is no good")
    embedder = opened()
    for position in (0, 3):
        with pytest.raises(InputError, match=f"^input {position}: is no good$"):
            embedder.embed([*[Text("fine")] * position, Text("bad")])


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("MPS backend out of memory (allocated 3 GB)"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        MemoryError(),
    ],
    ids=["cuda", "mps", "cpu", "python"],
)
def test_out_of_memory_halves_the_batches_and_says_so_once(
    toy: Toy, opened: Any, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    toy.max_batch_tokens, toy.max_batch_patches, toy.no_memory = 9, 7, lambda: error
    inputs = [Text(words(1 + number % 9, f"t{number}")) for number in range(60)] + pictures(*range(1, 8))
    with caplog.at_level(logging.WARNING, "abc_rag"):
        embedder = opened(max_batch_tokens=100, max_batch_patches=100)
        np.testing.assert_array_equal(embedder.embed(inputs), toy.expected(inputs))
        failed = [batch for batch in toy.batches if sum(one.tokens for one in batch) > 9]
        assert 1 <= len(failed) <= 8
        np.testing.assert_array_equal(embedder.embed(inputs[::-1]), toy.expected(inputs[::-1]))
    (record,) = caplog.records
    assert "out of memory on cpu: going on with smaller batches (max_" in record.getMessage()
    # Each of the second call's batches fitted.
    assert len([batch for batch in toy.batches if sum(one.tokens for one in batch) > 9]) == len(failed)


def test_what_does_not_fit_by_itself_is_named_and_costs_the_others_nothing(toy: Toy, opened: Any) -> None:
    toy.max_batch_tokens, toy.max_batch_patches = 9, 7
    inputs = [Text(words(3)), Text(words(10)), *pictures(5, 8, 6), Text(words(2))]
    found = list(opened(max_batch_tokens=100, max_batch_patches=100).embed_iter(inputs, return_errors=True))
    for position in (1, 3):
        assert isinstance(found[position], InputError)
        assert str(found[position]).startswith(f"input {position}: does not fit into the memory of cpu even by itself")
    good = [0, 2, 4, 5]
    np.testing.assert_array_equal([found[n] for n in good], toy.expected([inputs[n] for n in good]))


def test_a_listener_that_fails_stops_nobody(toy: Toy, opened: Any, caplog: pytest.LogCaptureFixture) -> None:
    embedder = opened()

    def listener(report: Any) -> None:
        raise ValueError("the listener's own")

    embedder.report_to(listener)
    for text in ("a", "b"):
        np.testing.assert_array_equal(embedder.embed([Text(text)]), toy.expected([Text(text)]))
    assert "the listener's own" in caplog.text


def test_batches_are_reported(toy: Toy, opened: Any) -> None:
    embedder, reports = opened(), []
    embedder.report_to(reports.append)
    embedder.embed([Text("a b"), Text("c"), *pictures(4, 5)])
    embedder.close()  # waits for what is being reported
    assert sum(report.items for report in reports) == 4
    assert sum(report.tokens for report in reports) == 5
    assert sum(report.patches for report in reports) == 9
    assert {report.kind for report in reports} == {"text", "image"}
    assert all(report.waited_from <= report.begun <= report.ended for report in reports)


# -- turns --


def test_a_small_call_goes_before_a_running_large_one(toy: Toy, opened: Any) -> None:
    embedder = opened(max_batch_tokens=10)
    bulk = [Text(words(5, f"b{number}")) for number in range(100)]
    with held(toy, 2) as pool:
        large = pool.submit(embedder.embed, bulk)
        assert toy.busy.wait(LONG)
        small = pool.submit(embedder.embed, [Text("small")])
        scheduler = embedder._running().scheduler
        wait_until(lambda: any(work.small for works in scheduler._ready.values() for work in works))
        toy.gate.set()
        small.result(LONG)
        np.testing.assert_array_equal(large.result(LONG), toy.expected(bulk))
    at = next(number for number, said in enumerate(toy.said()) if "small" in said)
    assert at == 1


def test_a_large_call_ends_beside_endless_small_ones(toy: Toy, opened: Any) -> None:
    embedder = opened(max_batch_tokens=4)
    over = threading.Event()

    def ask(thread: int) -> int:
        asked = 0
        while not over.is_set():
            embedder.embed([Text(f"s{thread} {asked}"), Text(f"s{thread} {asked} x")])
            asked += 1
        return asked

    with ThreadPoolExecutor(5) as pool:
        askers = [pool.submit(ask, thread) for thread in range(4)]
        try:
            bulk = [Text(words(3, f"b{number}")) for number in range(60)]
            vectors = pool.submit(embedder.embed, bulk).result(LONG)
        finally:
            over.set()
        assert all(asker.result(LONG) for asker in askers)
    np.testing.assert_array_equal(vectors, toy.expected(bulk))


def test_a_stream_is_read_no_further_than_there_is_room(toy: Toy, opened: Any) -> None:
    embedder = opened(max_queued=10, max_batch_tokens=2)
    pulled = 0

    def endless() -> Iterator[Input]:
        nonlocal pulled
        while True:
            pulled += 1
            yield Text(f"t {pulled}")

    stream = embedder.embed_iter(endless())
    assert pulled == 0
    for taken in range(1, 100):
        np.testing.assert_array_equal(next(stream), toy.expected([Text(f"t {taken}")])[0])
        assert pulled <= taken + 4 * 10
    scheduler = embedder._running().scheduler
    assert scheduler._waiting <= 10
    stream.close()
    wait_until(lambda: scheduler._waiting == 0)


def test_opened_pictures_are_bounded_in_bytes(toy: Toy, opened: Any) -> None:
    embedder = opened(max_queued_bytes=300, workers=2, worker_kind="thread")
    inputs = [InstructedImage(png(100 + number), f"i {number}") for number in range(20)]  # 300 bytes and more each
    scheduler = embedder._running().scheduler
    scheduler._alternate = False  # as on a GPU, where pictures are opened while the model computes
    with held(toy, 1) as pool:
        call = pool.submit(embedder.embed, inputs)
        assert toy.busy.wait(LONG)
        wait_until(lambda: scheduler._held_bytes >= 300 or not scheduler._waiting)
        assert scheduler._held_bytes <= 2 * 120 * 3  # one for each worker
        toy.gate.set()
        np.testing.assert_array_equal(call.result(LONG), toy.expected(inputs))
    assert scheduler._held_bytes == 0


# -- who gives up --


def test_a_cancelled_task_leaves_what_has_not_begun(toy: Toy, opened: Any) -> None:
    embedder = opened(max_batch_tokens=2)

    async def main() -> None:
        toy.gate.clear()
        task = asyncio.create_task(embedder.aembed([Text(f"t {number}") for number in range(50)]))
        await asyncio.to_thread(toy.busy.wait, LONG)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        toy.gate.set()
        np.testing.assert_array_equal(await embedder.aembed([Text("after")]), toy.expected([Text("after")]))

    asyncio.run(main())
    assert len(toy.batches) <= 3
    assert embedder._running().scheduler._waiting == 0


class Stop(Exception):
    """What a loop over a stream raises."""


@pytest.mark.parametrize("how", ["close", "exception", "interrupt", "forgotten"])
def test_an_abandoned_stream_leaves_what_has_not_begun(toy: Toy, opened: Any, how: str) -> None:
    embedder = opened(max_batch_tokens=2)
    inputs = [Text(f"t {number}") for number in range(100)]
    taken = []
    stream: Any = embedder.embed_iter(inputs)
    try:
        for vector in stream:
            taken.append(vector)
            if len(taken) == 3:
                toy.busy.clear()
                if how == "close":
                    stream.close()
                elif how == "exception":
                    raise Stop
                elif how == "interrupt":
                    raise KeyboardInterrupt
                else:
                    break
    except (Stop, KeyboardInterrupt):
        pass
    del stream
    gc.collect()
    np.testing.assert_array_equal(taken, toy.expected(inputs[:3]))
    scheduler = embedder._running().scheduler
    wait_until(lambda: scheduler._waiting == 0 and not scheduler._requests)
    np.testing.assert_array_equal(embedder.embed(inputs[:20]), toy.expected(inputs[:20]))


def test_an_interrupt_while_the_inputs_are_read_is_the_callers(toy: Toy, opened: Any) -> None:
    embedder = opened()

    def inputs() -> Iterator[Input]:
        yield Text("a")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(embedder.embed_iter(inputs()))
    assert embedder._running().scheduler._requests == set()
    np.testing.assert_array_equal(embedder.embed([Text("b")]), toy.expected([Text("b")]))


def test_many_event_loops_share_one_model(toy: Toy, opened: Any) -> None:
    embedder = opened(max_queued=4)

    def loop(seed: int) -> None:
        async def main() -> None:
            calls = [mixed(12, seed * 10 + number) for number in range(4)]
            for inputs, vectors in zip(calls, await asyncio.gather(*map(embedder.aembed, calls)), strict=True):
                np.testing.assert_array_equal(vectors, toy.expected(inputs))

        asyncio.run(main())

    with ThreadPoolExecutor(6) as pool:
        for done in [pool.submit(loop, seed) for seed in range(6)]:
            done.result(LONG)
    assert len(toy.threads) == 1


async def test_a_failed_input_is_named_to_a_task(toy: Toy, opened: Any) -> None:
    toy.unprepared["bad"] = InputError("is no good")
    embedder = opened()
    good, bad = await asyncio.gather(
        embedder.aembed([Text("a"), Text("b")]), embedder.aembed([Text("a"), Text("bad")]), return_exceptions=True
    )
    np.testing.assert_array_equal(good, toy.expected([Text("a"), Text("b")]))
    assert isinstance(bad, InputError)
    assert str(bad) == "input 1: is no good"


# -- replicas, and the end --


def test_two_replicas_share_the_work(toy: Toy, opened: Any) -> None:
    other = Toy()
    embedder = opened(toy, other, max_batch_tokens=10)
    other.gate.clear()
    inputs = mixed(100)
    with held(toy, 1) as pool:
        call = pool.submit(embedder.embed, inputs)
        assert toy.busy.wait(LONG)
        assert other.busy.wait(LONG)
        toy.gate.set()
        other.gate.set()
        np.testing.assert_array_equal(call.result(LONG), toy.expected(inputs))
    assert toy.batches
    assert other.batches
    assert not toy.threads & other.threads
    ids = [id(one.item) for batch in toy.batches + other.batches for one in batch]
    assert len(ids) == len(set(ids))


def test_closing_ends_everything_and_the_next_call_begins_anew(toy: Toy, opened: Any) -> None:
    embedder = opened()
    np.testing.assert_array_equal(embedder.embed([Text("a")]), toy.expected([Text("a")]))
    embedder.close()
    embedder.close()
    np.testing.assert_array_equal(embedder.embed([Text("b")]), toy.expected([Text("b")]))
    assert len(toy.threads) == 1  # still the one that loaded it


def test_whoever_waits_while_it_is_closed_gets_an_error(toy: Toy, opened: Any) -> None:
    embedder = opened(max_batch_tokens=2, max_queued=3)
    with held(toy, 4) as pool:
        calls = [pool.submit(embedder.embed, [Text(f"t {c} {n}") for n in range(20)]) for c in range(3)]
        assert toy.busy.wait(LONG)
        # A call that begins after it is closed starts it again.
        wait_until(lambda: len(embedder._running().scheduler._requests) == 3)
        closing = pool.submit(embedder.close)
        for call in calls:
            with pytest.raises(ABCRagError, match="closed while it computed"):
                call.result(LONG)
        toy.gate.set()
        closing.result(LONG)
    np.testing.assert_array_equal(embedder.embed([Text("b")]), toy.expected([Text("b")]))


def test_a_stream_over_a_closed_embedder_ends_in_an_error(toy: Toy, opened: Any) -> None:
    embedder = opened(max_queued=2)
    stream = embedder.embed_iter(Text(f"t {number}") for number in range(100))
    next(stream)
    embedder.close()
    with pytest.raises(ABCRagError, match="closed while it computed"):
        list(stream)


def test_a_forgotten_embedder_ends_its_threads() -> None:
    before = {thread.ident for thread in threading.enumerate()}
    embedder = LocalEmbedder(lambda: [Toy(), Toy()], EngineSettings(workers=3))
    embedder.embed([Text("a")])

    def new() -> list[str]:
        alive = [t.name for t in threading.enumerate() if t.ident not in before and t.is_alive()]
        return [name for name in alive if name != "abc-rag-watchdog"]

    assert sorted(new()) == ["abc-rag-model"] * 2 + ["abc-rag-prepare"] * 3
    del embedder
    gc.collect()
    wait_until(lambda: not new())


def test_the_interpreter_ends_while_much_is_on_its_way() -> None:
    done = run_script(
        """
        import contextlib, itertools, threading
        from abc_rag import Text, load_embedder
        from abc_rag.errors import ABCRagError

        embedder = load_embedder("abc-mini", device="cpu")
        begun = threading.Event()

        def work():
            with contextlib.suppress(ABCRagError):
                for vector in embedder.embed_iter(Text(f"passage {n}") for n in itertools.count()):
                    begun.set()

        for _ in range(3):
            threading.Thread(target=work, daemon=True).start()
        assert begun.wait(50)
        print("ended")
        sys.exit(7)
        """
    )
    assert (done.returncode, done.stdout) == (7, "ended\n")
    assert "Traceback" not in done.stderr


def test_an_error_that_nobody_catches_ends_the_interpreter() -> None:
    done = run_script(
        """
        from abc_rag import Text
        from abc_rag.embedding.engine.local import LocalEmbedder
        from toy_family import Toy

        for vector in LocalEmbedder(Toy).embed_iter(Text(f"passage {n}") for n in range(1000)):
            raise SystemExit("enough")
        """
    )
    assert (done.returncode, done.stderr) == (1, "enough\n")


@pytest.mark.skipif(sys.platform == "win32", reason="no fork here")
def test_a_forked_child_embeds_with_threads_of_its_own() -> None:
    done = run_script(
        """
        import os, warnings
        warnings.simplefilter("ignore")
        from abc_rag import Text, load_embedder

        embedder = load_embedder("abc-mini", device="cpu")
        before = embedder.embed([Text("a red cube")])
        child = os.fork()
        after = embedder.embed([Text("a red cube")])
        assert abs(before - after).max() < 1e-6
        if child:
            _, status = os.waitpid(child, 0)
            assert status == 0, status
            assert abs(embedder.embed([Text("a red cube")]) - before).max() < 1e-6
            print("both")
        """
    )
    assert (done.returncode, done.stdout) == (0, "both\n"), done.stderr


def test_a_picture_whose_instruction_is_too_long_leaves_no_bytes_uncounted() -> None:
    embedder = load_embedder("abc-mini", device="cpu")
    picture = PIL.Image.new("RGB", (60, 60), "red")
    with pytest.raises(InputError, match="longer than the model's"):
        embedder.embed([InstructedImage(picture, "left " * 4000)])
    assert embedder._running().scheduler._held_bytes == 0  # type: ignore[attr-defined]
