"""Cores with inputs of their own: which way is chosen, and that it changes no vector."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from abc_rag import Image, Input, Text, load_embedder
from abc_rag.embedding.engine.cores import Cores, CoreUse, Faster, shares
from abc_rag.embedding.engine.local import LocalEmbedder
from abc_rag.embedding.settings import EngineSettings
from abc_rag.embedding.usable import embed_usable
from abc_rag.errors import ABCRagError, InputError
from abc_rag.models.abc.family import ABCFamily
from abc_rag.scenes.drawing import render
from abc_rag.scenes.world import random_scene


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def work(faster: Faster, clock: Clock, seconds: Callable[[bool], float], times: int) -> list[bool]:
    """Which way was taken, where each takes so long for one unit."""
    taken = []
    for _ in range(times):
        apart = faster.apart()
        clock.now += seconds(apart)
        faster.done(apart=apart, size=1.0, seconds=seconds(apart))
        taken.append(apart)
    return taken


def test_what_is_faster_is_chosen_and_the_other_tried_now_and_then() -> None:
    clock = Clock()
    faster = Faster(clock)
    assert faster.use is None
    taken = work(faster, clock, lambda apart: 0.5 if apart else 1.0, 200)
    assert taken[:4] == [False, False, True, True]
    assert 0 < sum(not one for one in taken[4:]) <= 0.1 * len(taken)
    assert faster.use == CoreUse(True, pytest.approx(2.0))


def test_a_machine_that_changes_is_noticed_at_once() -> None:
    clock = Clock()
    faster = Faster(clock)
    work(faster, clock, lambda apart: 0.5 if apart else 0.4, 12)
    assert faster.use == CoreUse(False, pytest.approx(0.8))
    # Waking other cores has become dear.
    taken = work(faster, clock, lambda apart: 0.5 if apart else 2.0, 10)
    assert taken.count(True) >= 5
    assert taken[-3:] == [True, True, True]


def test_shares_are_as_even_as_the_largest_input_lets_them_be() -> None:
    found = shares([10, 4000, 20, 30, 3900, 2000], 2, most=1024)
    assert sorted(at for part in found for at in part) == list(range(6))
    assert found[:3] == [[1], [4], [5]]
    assert found[3] == [3, 2, 0]
    many = shares([7] * 100, 2, most=1024)
    assert len(many) in (4, 5)
    assert max(map(len, many)) - min(map(len, many)) <= 25
    assert max(sum(7 for _ in part) for part in shares([7] * 100, 2, most=50)) <= 50
    assert shares([], 2, most=10) == []


def test_each_core_computes_alone_and_ends_with_the_engine() -> None:
    woken = threading.Event()
    cores = Cores(2, woken.set)
    together = threading.Barrier(2)

    def job() -> tuple[int, threading.Thread]:
        together.wait(60)  # both at once
        return torch.get_num_threads(), threading.current_thread()

    found = [future.result(60) for future in cores.start([job, job])]
    assert {threads for threads, _ in found} == {1}
    assert woken.wait(60)
    threads = {thread for _, thread in found}
    assert len(threads) == 2
    # A thread that has not used torch yet gets all cores, as before.
    with ThreadPoolExecutor(1) as new:
        assert new.submit(torch.get_num_threads).result(60) == torch.get_num_threads() == 2
    cores.close()
    assert not any(thread.is_alive() for thread in threads)


def test_a_vector_does_not_depend_on_the_number_of_threads(photos: list[Path]) -> None:
    inputs: list[Input] = [Text("a pig"), Text("a pig on the left, and a rose beside it " * 9), *map(Image, photos[:6])]
    found, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            embedder = load_embedder("abc-mini", device="cpu")
            for _ in range(2):  # at first with the tower, then without
                found.append(np.concatenate([embedder.embed([one]) for one in inputs]))
            embedder.close()
    finally:
        torch.set_num_threads(before)
    assert all((one == found[0]).all() for one in found)


class Watched(ABCFamily):
    """Calls back before it sees pictures."""

    before: Callable[[Sequence[Any]], object]

    def see(self, opened: Sequence[Any]) -> list[torch.Tensor]:
        self.before(opened)
        return super().see(opened)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photos")
    found = []
    for number in range(10):
        found.append(folder / f"{number}.png")
        render(random_scene(random.Random(number), objects=2), 64 + 40 * number).save(found[-1])
    return found


@pytest.fixture
def watched() -> Iterator[tuple[LocalEmbedder, Watched]]:
    """An engine whose cores have inputs of their own from the first batch on."""
    embedder = load_embedder("abc-mini", device="cpu", engine=EngineSettings(vision_cache_bytes=0))
    assert isinstance(embedder, LocalEmbedder)
    family: Watched = embedder.family  # type: ignore[assignment]
    family.__class__ = Watched
    family.before = lambda _: None
    embedder.embed_texts(["a pig"])
    (runner,) = embedder._running()._runners
    runner.cores = Cores(2, embedder._running().scheduler.wake)
    for apart in (True, False):
        for _ in range(2):
            runner.cores.faster.done(apart=apart, size=1e9 if apart else 1e-9, seconds=1.0)
    yield embedder, family
    embedder.close()


def test_vectors_are_those_of_all_cores_together(watched: tuple[LocalEmbedder, Watched], photos: list[Path]) -> None:
    embedder, family = watched
    threads = set()
    family.before = lambda _: threads.add(threading.current_thread().name)
    items: list[Input] = [*(Image(photo) for photo in photos), *(Text(f"the number {n} " * n) for n in range(1, 40))]
    found = embedder.embed(items)
    assert threads
    assert threads <= {"abc-rag-core_0", "abc-rag-core_1"}
    expected = load_embedder("abc-mini", device="cpu").embed(items, batch_size=1)
    assert np.abs(found - expected).max() < 1e-5


def test_a_question_waits_for_no_picture(watched: tuple[LocalEmbedder, Watched], photos: list[Path]) -> None:
    embedder, family = watched
    answered = threading.Event()
    waited = []

    def hold(_: Sequence[Any]) -> None:
        waited.append(answered.wait(60))

    family.before = hold
    with ThreadPoolExecutor(1) as other:
        index = other.submit(embedder.embed, [Image(photo) for photo in photos])
        while not embedder._running()._runners[0]._seeing:
            assert not index.done()
        vector = embedder.embed_texts(["what is on the left?"])[0]
        answered.set()
        assert index.result(60).shape == (len(photos), embedder.dim)
    assert all(waited)
    assert np.linalg.norm(vector) == pytest.approx(1)


def test_a_picture_that_fails_costs_no_other(watched: tuple[LocalEmbedder, Watched], photos: list[Path]) -> None:
    embedder, family = watched
    largest = max(range(len(photos)), key=lambda at: photos[at].stat().st_size)
    sizes = [embedder.facts.open(photo).pixels.sum() for photo in photos]

    def refuse(opened: Sequence[Any]) -> None:
        if any(one.pixels.sum() == sizes[largest] for one in opened):
            raise InputError("no such picture")

    family.before = refuse
    vectors, errors = embed_usable(embedder, [Image(photo) for photo in photos])
    assert list(errors) == [largest]
    assert "no such picture" in str(errors[largest])
    assert np.allclose(np.linalg.norm(np.delete(vectors, largest, axis=0), axis=1), 1)


def test_whoever_closes_waits_for_what_is_being_seen(
    watched: tuple[LocalEmbedder, Watched], photos: list[Path]
) -> None:
    embedder, family = watched
    engine = embedder._running()

    def close(_: Sequence[Any]) -> None:
        engine.scheduler.fail_all(ABCRagError("closed"))
        engine.scheduler.stop()

    family.before = close
    with pytest.raises(ABCRagError, match="closed"):
        embedder.embed([Image(photo) for photo in photos])
    assert all(runner.ended.wait(60) for runner in engine._runners)
