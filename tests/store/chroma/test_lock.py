"""One writer, many readers: processes and threads that share a directory."""

import json
import os
import shutil
import signal
import socket
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from store_helpers import HOLD, ONE, TWO, Elsewhere, finish, texts, vectors

from abc_rag.errors import StoreError, StoreLockedError
from abc_rag.store.chroma.store import ChromaStore
from abc_rag.types import Record


def test_sixteen_threads_open_and_close(tmp_path: Path) -> None:
    def work(thread: int) -> None:
        for _ in range(3):
            with ChromaStore(tmp_path, fingerprint=ONE) as store:
                store.add([Record(f"r{thread}", "text")], vectors(1, seed=thread))
                assert store.has([f"r{thread}"])

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(work, range(16)))
    with ChromaStore(tmp_path) as store:
        assert store.count() == 16


def test_stores_of_one_process_share_the_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("store")
    first, second = ChromaStore("store"), ChromaStore(tmp_path / "store")
    third, other = ChromaStore("./link"), ChromaStore("store", collection="other")
    first.add(texts(5), vectors(5))
    second.add(texts(5, "s"), vectors(5, seed=1))
    third.delete(["t00000"])
    other.add(texts(1), vectors(1, dim=3))
    assert [store.count() for store in (first, second, third, other)] == [9, 9, 9, 1]
    first.close()
    assert len(second.search(vectors(1)[0], 20)) == 9
    for store in (second, third, other):
        store.close()


def test_another_process_that_writes_is_named(tmp_path: Path, elsewhere: Elsewhere) -> None:
    holder = elsewhere(HOLD, tmp_path)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with ChromaStore(tmp_path, lock_timeout_s=0) as store:
        assert len(store.search(vectors(1)[0], 100)) == 20
        for write in (lambda: store.add(texts(1), vectors(1)), lambda: store.delete(["i0"])):
            with pytest.raises(StoreLockedError) as caught:
                write()
            assert f"pid {holder.pid} on {socket.gethostname()}" in str(caught.value)
            assert "chroma run" in str(caught.value)
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        store.add(texts(1), vectors(1))
        assert store.count() == 21
        assert len(store.search(vectors(1)[0], 100)) == 21


def test_an_unknown_holder_is_said_to_be_unknown(tmp_path: Path, elsewhere: Elsewhere) -> None:
    holder = elsewhere(HOLD, tmp_path)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    for note in ("not json", "[]", json.dumps({"mark": 3})):
        (tmp_path / "abc-writer.json").write_text(note)
        with ChromaStore(tmp_path, lock_timeout_s=0) as store, pytest.raises(StoreLockedError, match="unknown"):
            store.add(texts(1), vectors(1))


def test_a_write_can_wait_for_the_other_process(tmp_path: Path, elsewhere: Elsewhere) -> None:
    holder = elsewhere(HOLD, tmp_path)
    assert holder.stdout is not None
    assert holder.stdin is not None
    assert holder.stdout.readline() == "held\n"
    with ChromaStore(tmp_path, lock_timeout_s=60) as store, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(store.add, texts(1), vectors(1))
        holder.stdin.close()
        assert waiting.result(60) == ["t00000"]
        assert store.count() == 21


def test_closing_hands_the_directory_over(tmp_path: Path, elsewhere: Elsewhere) -> None:
    other = "with ChromaStore(sys.argv[1], lock_timeout_s=0) as store: put(store, *map(int, sys.argv[2:]))"
    reader = ChromaStore(tmp_path)
    with ChromaStore(tmp_path, hold_s=3600) as store:
        store.add(texts(5), vectors(5))
        process = elsewhere(other, tmp_path, 0, 5)
        assert "StoreLockedError" in process.communicate()[1]
    # The reader keeps the directory open; the right to write went with the store that had it.
    finish(elsewhere(other, tmp_path, 0, 5))
    assert len(reader.search(vectors(1)[0], 100)) == 10
    reader.close()


def test_nothing_is_lost_when_processes_take_turns(tmp_path: Path, elsewhere: Elsewhere) -> None:
    """A store that was open while another process wrote must not save its old index over the new one."""
    turn = "with ChromaStore(sys.argv[1]) as store: put(store, *map(int, sys.argv[2:]))"
    early = ChromaStore(tmp_path)
    early.add(texts(1500), vectors(1500))
    early.close()
    early = ChromaStore(tmp_path)
    assert len(early.search(vectors(1)[0], 9000)) == 1500
    finish(elsewhere(turn, tmp_path, 0, 3000))
    assert len(early.search(vectors(1)[0], 9000)) == 4500
    early.add(texts(1500, "u"), vectors(1500, seed=1))
    assert len(early.search(vectors(1)[0], 9000)) == 6000
    early.close()
    finish(elsewhere(turn, tmp_path, 3000, 3010))
    with ChromaStore(tmp_path) as fresh:
        assert fresh.count() == len(fresh.search(vectors(1)[0], 9000)) == 6010


def test_reading_while_another_process_writes(tmp_path: Path, elsewhere: Elsewhere) -> None:
    """With plain Chroma this ends in a store that crashes every process that opens it."""
    writer = elsewhere(
        "store = ChromaStore(sys.argv[1])\n"
        "for i in range(0, 2400, 60): put(store, i, i + 60)\n"
        "print(len(store.search(np.ones(8), 9000)))",
        tmp_path,
    )
    searched = 0
    while writer.poll() is None:
        with ChromaStore(tmp_path) as store:
            for _ in range(3):
                found = len(store.search(np.ones(8), 9000))
                assert found % 60 == 0
                assert found >= searched
                searched = found
    assert finish(writer) == "2400\n"
    with ChromaStore(tmp_path) as store:
        assert store.count() == len(store.search(np.ones(8), 9000)) == 2400


def test_processes_may_open_a_new_directory_at_once(tmp_path: Path, elsewhere: Elsewhere) -> None:
    code = "with ChromaStore(sys.argv[1], lock_timeout_s=60) as store: put(store, *map(int, sys.argv[2:]))"
    for process in [elsewhere(code, tmp_path / "new", 10 * i, 10 * i + 10) for i in range(4)]:
        finish(process)
    with ChromaStore(tmp_path / "new") as store:
        assert len(store.search(np.ones(8), 100)) == 40


def test_a_forked_child_neither_hangs_nor_unlocks(tmp_path: Path, elsewhere: Elsewhere) -> None:
    code = (
        "import os\n"
        "from abc_rag.errors import StoreError\n"
        "def fork(work):\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n"
        "        work(); sys.exit(0)\n"  # unlike os._exit, runs every finaliser
        "    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0\n"
        "def early():\n"
        "    with ChromaStore(sys.argv[1]) as own: put(own, 0, 10); assert len(own.search(np.ones(8), 100)) == 10\n"
        "fork(early)\n"
        "store = ChromaStore(sys.argv[1], hold_s=3600); put(store, 10, 20)\n"
        "assert len(store.search(np.ones(8), 100)) == 20\n"
        "def late():\n"
        "    for use in (store.count, lambda: put(store, 20, 30), lambda: ChromaStore(sys.argv[1])):\n"
        "        try: use()\n"
        "        except StoreError as error: assert 'spawn' in str(error), error\n"
        "        else: raise AssertionError('the child used it')\n"
        "    store.close()\n"
        "fork(late)\n"
        "print('forked', flush=True); sys.stdin.readline()\n"
        "put(store, 20, 30); assert len(store.search(np.ones(8), 100)) == 30\n"
    )
    parent = elsewhere(code, tmp_path)
    assert parent.stdout is not None
    assert parent.stdin is not None
    assert parent.stdout.readline() == "forked\n", finish(parent)
    with ChromaStore(tmp_path, lock_timeout_s=0) as store:
        # The child has ended; its parent's lock must have outlived it.
        with pytest.raises(StoreLockedError, match=f"pid {parent.pid} "):
            store.add(texts(1), vectors(1))
        parent.stdin.write("\n")
        finish(parent)
        assert len(store.search(np.ones(8), 100)) == 30


def test_a_forked_child_uses_the_server(server_url: str, elsewhere: Elsewhere) -> None:
    code = (
        "import os\n"
        "store = ChromaStore(url=sys.argv[1], collection=sys.argv[2]); put(store, 0, 5)\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    put(store, 5, 10); store.close(); os._exit(0)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0\n"
        "print(store.count()); store.close()\n"
    )
    assert finish(elsewhere(code, server_url, f"c-{uuid.uuid4().hex}")) == "10\n"


def test_a_directory_can_be_deleted_and_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "store"
    for closed in (True, False, False):
        store = ChromaStore(path, fingerprint=ONE)
        store.add(texts(3), vectors(3))
        assert len(store.search(vectors(1)[0], 10)) == 3
        if closed:
            store.close()
        shutil.rmtree(path)
        if not closed:
            with pytest.raises(StoreError, match="deleted"):
                store.search(vectors(1)[0])
    with ChromaStore(path, fingerprint=TWO) as new:
        assert new.count() == 0
        new.add(texts(1), vectors(1, dim=3))
        assert len(new.search(vectors(1, dim=3)[0], 10)) == 1


@pytest.mark.parametrize("faceted", [False, True])
@pytest.mark.parametrize("filled", [False, True])
def test_a_search_waits_for_no_lock(tmp_path: Path, elsewhere: Elsewhere, filled: bool, faceted: bool) -> None:
    """The other process never lets go of its locks: a search that waited for one would not return."""
    picture = Record("p", "image", "", "p.png", {"page": 1})
    with ChromaStore(tmp_path) as writer:
        if filled:
            writer.add([picture, *texts(3)], vectors(4))
            if faceted:
                writer.add_facets(["p"], "what is on the left?", vectors(1, seed=1))
    store = ChromaStore(tmp_path)
    holder = elsewhere(
        "from filelock import FileLock\n"
        "for name in ('abc-index.lock', 'abc-writer.lock'): FileLock(f'{sys.argv[1]}/{name}').acquire()\n"
        "print('held', flush=True); sys.stdin.read()",
        tmp_path,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    for _ in range(2):
        for modality in (None, "text", "image"):
            for where in (None, {"page": 1}):
                hits = store.search(vectors(1)[0], 9, where, modality=modality)
                assert bool(hits) == filled
        assert store.count() == len(list(store.records())) == (4 if filled else 0)
        assert store.facet_names(["p"]) == ({"p": {"what is on the left?"}} if filled and faceted else {})
        assert store.vectors(["p"]).keys() == ({"p"} if filled else set())
    assert holder.poll() is None
    holder.kill()
    store.close()


def test_an_idle_writer_lets_others_write(tmp_path: Path, elsewhere: Elsewhere) -> None:
    """Two workers that stay open take turns, and each finds what the other has stored."""
    code = (
        "store = ChromaStore(sys.argv[1], hold_s=0.05, lock_timeout_s=60)\n"
        "for line in sys.stdin:\n"
        "    put(store, *map(int, line.split())); print(store.count(), flush=True)\n"
        "    assert len(store.search(np.ones(8), 100)) == store.count()\n"
    )
    workers = [elsewhere(code, tmp_path), elsewhere(code, tmp_path)]
    for turn in range(4):
        worker = workers[turn % 2]
        assert worker.stdin is not None
        assert worker.stdout is not None
        worker.stdin.write(f"{10 * turn} {10 * turn + 10}\n")
        worker.stdin.flush()
        assert worker.stdout.readline() == f"{10 * turn + 10}\n"
    for worker in workers:
        finish(worker)


def test_a_writer_that_keeps_writing_keeps_its_right(tmp_path: Path, elsewhere: Elsewhere) -> None:
    with ChromaStore(tmp_path, hold_s=3600) as store:
        store.add(texts(1), vectors(1))
        other = elsewhere("ChromaStore(sys.argv[1], lock_timeout_s=0).delete(['t00000'])", tmp_path)
        assert f"pid {os.getpid()} " in other.communicate(timeout=120)[1]


@pytest.mark.parametrize("content", ["pipe", "large", "deep", "folder"])
def test_any_note_of_the_writer_is_survived(tmp_path: Path, content: str) -> None:
    with ChromaStore(tmp_path) as store:
        store.add(texts(3), vectors(3))
    note = tmp_path / "abc-writer.json"
    note.unlink()
    if content == "pipe":
        os.mkfifo(note)
    elif content == "folder":
        note.mkdir()
    else:
        note.write_bytes(b"[" * 10**5 if content == "deep" else b'{"mark": "' + b"x" * 10**7)
    with ChromaStore(tmp_path, lock_timeout_s=0) as store:
        assert len(store.search(vectors(1)[0], 9)) == 3
        if content in ("pipe", "folder"):
            with pytest.raises(StoreError, match=r"abc-writer.json: not a regular file"):
                store.delete(["t00000"])
        else:
            assert store.delete(["t00000"]) == 1


@pytest.mark.parametrize("name", ["chroma.sqlite3", "abc-records.sqlite3"])
def test_a_pipe_in_the_place_of_a_database_is_refused(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(StoreError, match=f"{name}: not a regular file"):
        ChromaStore(tmp_path)
