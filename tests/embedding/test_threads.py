"""Threads beside an event loop, and locks that a forked child does not find taken."""

from __future__ import annotations

import os
import threading
import time

import pytest
from helpers import run_script
from toy_family import LONG

from abc_rag.embedding.threads import ForkSafeLock

NO_FORK = pytest.mark.skipif(not hasattr(os, "register_at_fork"), reason="no fork here")


def test_a_lock_is_held_by_one_thread_which_may_take_it_twice() -> None:
    lock = ForkSafeLock()
    entered = threading.Event()

    def enter() -> None:
        with lock:
            entered.set()

    thread = threading.Thread(target=enter)
    with lock, lock:
        thread.start()
        assert not entered.wait(0.05)
    assert entered.wait(LONG)
    thread.join()


def test_a_fork_waits_once_for_a_lock_that_is_held_too_long() -> None:
    lock = ForkSafeLock()
    lock._patience_s = 0.05
    free, taken = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            taken.set()
            free.wait(LONG)

    thread = threading.Thread(target=hold)
    thread.start()
    assert taken.wait(LONG)
    assert not lock.acquire_before_fork()
    start = time.monotonic()
    assert not lock.acquire_before_fork()  # without another wait, which would be a minute
    assert time.monotonic() - start < LONG
    free.set()
    thread.join()
    assert lock.acquire_before_fork()
    lock.release_after_fork(in_child=False, held=True)
    # In a child it is free whoever held it.
    assert lock.acquire_before_fork()
    lock.release_after_fork(in_child=True, held=True)
    thread = threading.Thread(target=lock.__enter__)
    thread.start()
    thread.join(LONG)
    assert not thread.is_alive()


@NO_FORK
def test_a_process_forked_while_the_model_loads_embeds() -> None:
    done = run_script(
        """
        import os, sys, threading, time
        from abc_rag import Text, load_embedder

        embedders = [load_embedder("abc-mini", device="cpu") for _ in range(12)]
        # The first imports what loading needs; a fork may come at any moment of it.
        for number, embedder in enumerate(embedders):
            thread = threading.Thread(target=embedder.embed, args=([Text("a red cube")],))
            thread.start()
            time.sleep(0.02 * number)
            child = os.fork()
            if not child:
                vector = embedder.embed([Text("a red cube")])
                os._exit(0 if vector.shape == (1, embedder.dim) else 1)
            _, status = os.waitpid(child, 0)
            assert status == 0, (number, status)
            thread.join()
            embedder.close()
        print("all")
        """
    )
    assert (done.returncode, done.stdout) == (0, "all\n"), done.stderr


@NO_FORK
def test_forks_of_several_threads_do_not_stand_in_each_others_way() -> None:
    done = run_script(
        """
        import os, threading
        from abc_rag.embedding.threads import ForkSafeLock

        lock, stop = ForkSafeLock(), threading.Event()

        def hold():
            while not stop.is_set():
                with lock:
                    pass

        def fork():
            for _ in range(20):
                child = os.fork()
                if not child:
                    with lock, ForkSafeLock():
                        os._exit(0)
                assert os.waitpid(child, 0)[1] == 0

        holding = threading.Thread(target=hold)
        forking = [threading.Thread(target=fork) for _ in range(3)]
        for thread in (holding, *forking):
            thread.start()
        for thread in forking:
            thread.join()
        stop.set()
        holding.join()
        print("all")
        """
    )
    assert (done.returncode, done.stdout) == (0, "all\n"), done.stderr
