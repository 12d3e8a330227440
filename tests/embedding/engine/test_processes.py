"""Workers that are killed, pictures that hang or crash their decoder, interrupts: nothing hangs, nothing is lost."""

from __future__ import annotations

import dataclasses
import io
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import toy_pictures
from toy_family import LONG, Toy, png, wait_until
from toy_pictures import HANGS, KILLS

from abc_rag import Image, ImageLimits, Input, InstructedImage, Text, load_embedder
from abc_rag.embedding.embedder import Embedder
from abc_rag.embedding.engine.local import LocalEmbedder
from abc_rag.embedding.engine.preparation import _Batch, _Read, _Slot
from abc_rag.embedding.settings import EngineSettings
from abc_rag.errors import ABCRagError, ImageError, ImageFormatError, InputError

ENOUGH = 30.0
"""Seconds for a picture where none hangs."""
SOON = 3.0
"""Seconds for a picture where one does: enough for the others on a busy machine."""
NO_KILL = pytest.mark.skipif(sys.platform == "win32", reason="other signals there")


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return not Path("/proc").is_dir()


def noise(seed: int, side: int = 64) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    PIL.Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def photos() -> list[Input]:
    return [Image(noise(seed)) for seed in range(24)]


@pytest.fixture(scope="module")
def expected(mini: Embedder) -> Any:
    return mini.embed([Image(noise(seed)) for seed in range(24)])


@pytest.fixture
def processes() -> Iterator[LocalEmbedder]:
    """abc-mini with two processes that open pictures."""
    settings = EngineSettings(workers=2, worker_kind="process", picture_timeout_s=ENOUGH, vision_cache_bytes=0)
    embedder = load_embedder("abc-mini", device="cpu", engine=settings)
    assert isinstance(embedder, LocalEmbedder)
    yield embedder
    embedder.close()


@pytest.fixture
def dangerous() -> Iterator[Any]:
    """Opens embedders of a toy family whose pictures of some colours kill or hang."""
    made: list[LocalEmbedder] = []
    toy_pictures.go_on.clear()
    toy_pictures.hanging.clear()

    def opened(kind: str, timeout_s: float = ENOUGH, **settings: Any) -> tuple[Toy, LocalEmbedder]:
        toy = Toy(dangerous=True)
        chosen: Any = {"workers": 2, "worker_kind": kind, "picture_timeout_s": timeout_s, **settings}
        made.append(LocalEmbedder(lambda: toy, EngineSettings(**chosen)))
        return toy, made[-1]

    yield opened
    toy_pictures.go_on.set()
    for one in made:
        one.close()


def bad_and_good(tmp_path: Path, colour: tuple[int, int, int]) -> tuple[list[Input], list[int]]:
    """Inputs of which one is a picture of that colour, and where the others are."""
    (tmp_path / "bad.png").write_bytes(png(7, colour=colour))
    inputs: list[Input] = [Image(png(width)) for width in range(1, 9)]
    inputs[3] = Image(tmp_path / "bad.png")
    inputs.insert(0, Text("a"))
    return inputs, [n for n in range(len(inputs)) if n != 4]


# --- Processes that open pictures -------------------------------------------------------------------------


def test_processes_open_pictures_bit_for_bit_as_threads_do(processes: LocalEmbedder, photos: Any) -> None:
    settings = EngineSettings(workers=2, worker_kind="thread")
    threads = load_embedder("abc-mini", device="cpu", engine=settings)
    preparations = []
    for embedder in (processes, threads):
        embedder.embed([photos[0]])
        assert isinstance(embedder, LocalEmbedder)
        preparations.append(embedder._running().preparation)
    assert len(processes.worker_pids) >= 1
    assert threads.worker_pids == []  # type: ignore[attr-defined]
    batch = _Batch(_Slot())
    for photo in photos[:6]:
        ours, theirs = (p._opened(_Read(photo.source, photo.source, ""), batch) for p in preparations)
        assert type(ours) is type(theirs)
        assert (ours.rows, ours.columns) == (theirs.rows, theirs.columns)
        assert ours.pixels.dtype == theirs.pixels.dtype == np.uint8
        assert np.array_equal(ours.pixels, theirs.pixels)


def test_processes_come_and_go_with_the_embedder(processes: LocalEmbedder, photos: Any, expected: Any) -> None:
    assert processes.worker_pids == []
    np.testing.assert_allclose(processes.embed(photos), expected, atol=1e-5)
    pids = processes.worker_pids
    assert 1 <= len(pids) <= 2
    assert all(alive(pid) for pid in pids)
    processes.close()
    assert not any(alive(pid) for pid in pids)
    np.testing.assert_allclose(processes.embed(photos), expected, atol=1e-5)
    assert not set(pids) & set(processes.worker_pids)


@NO_KILL
def test_a_process_killed_while_idle_is_replaced(processes: LocalEmbedder, photos: Any, expected: Any) -> None:
    for _ in range(2):
        np.testing.assert_allclose(processes.embed(photos), expected, atol=1e-5)
        killed = processes.worker_pids
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda killed=killed: not any(map(alive, killed)))
        # One picture may meet all of the dead.
        np.testing.assert_allclose(processes.embed(photos[:1]), expected[:1], atol=1e-5)
    np.testing.assert_allclose(processes.embed(photos), expected, atol=1e-5)
    assert not set(killed) & set(processes.worker_pids)


@NO_KILL
def test_processes_killed_at_work_cost_nothing(processes: LocalEmbedder, photos: Any, expected: Any) -> None:
    for _ in range(3):
        stream = processes.embed_iter(photos)
        vectors = [next(stream)]
        # One at a time: a picture that ends two processes is taken to be the cause.
        killed = processes.worker_pids[0]
        os.kill(killed, signal.SIGKILL)
        vectors += stream
        np.testing.assert_allclose(vectors, expected, atol=1e-5)
        wait_until(lambda killed=killed: not alive(killed))


@NO_KILL
def test_a_stopped_process_counts_as_hanging(dangerous: Any) -> None:
    toy, embedder = dangerous("process", 2.0, workers=1)
    embedder.embed([Image(png(1))])
    (pid,) = embedder.worker_pids
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(ImageFormatError, match="takes more than 2 s to open"):
        embedder.embed([Image(png(2))])
    assert not alive(pid)
    np.testing.assert_array_equal(embedder.embed([Image(png(3))]), toy.expected([Image(png(3))]))


def test_a_picture_that_ends_its_process_is_named_and_costs_the_others_nothing(dangerous: Any, tmp_path: Path) -> None:
    toy, embedder = dangerous("process")
    inputs, good = bad_and_good(tmp_path, KILLS)
    found = list(embedder.embed_iter(inputs, return_errors=True))
    assert type(found[4]) is ImageFormatError
    assert str(tmp_path / "bad.png") in str(found[4])
    assert "ends the process that opens it (exit status 3)" in str(found[4])
    wanted = toy.expected([inputs[n] for n in good])
    np.testing.assert_array_equal([found[n] for n in good], wanted)
    with pytest.raises(ImageFormatError, match=r"bad\.png"):
        embedder.embed(inputs)
    np.testing.assert_array_equal(embedder.embed([inputs[n] for n in good]), wanted)


@pytest.mark.parametrize("kind", ["process", "thread"])
def test_a_picture_that_hangs_is_named_and_costs_the_others_nothing(dangerous: Any, kind: str, tmp_path: Path) -> None:
    toy, embedder = dangerous(kind)
    embedder.embed([Image(png(99))])  # a process takes longer to start than a picture may
    embedder._running().preparation._timeout_s = SOON
    embedder._running().preparation.processes._timeout_s = SOON
    inputs, good = bad_and_good(tmp_path, HANGS)
    wanted = toy.expected([inputs[n] for n in good])
    for _ in range(3):  # more often than there are workers
        found = list(embedder.embed_iter(inputs, return_errors=True))
        assert type(found[4]) is ImageFormatError
        assert str(found[4]).startswith(f"{tmp_path / 'bad.png'}: takes more than 3 s to open")
        assert "picture_timeout_s" in str(found[4])
        np.testing.assert_array_equal([found[n] for n in good], wanted)
    np.testing.assert_array_equal(embedder.embed([inputs[n] for n in good]), wanted)


@pytest.mark.parametrize("kind", ["process", "thread"])
def test_all_who_wait_for_the_same_hanging_picture_are_told(dangerous: Any, kind: str) -> None:
    toy, embedder = dangerous(kind, workers=3)
    embedder.embed([Image(png(99))])
    embedder._running().preparation._timeout_s = SOON
    embedder._running().preparation.processes._timeout_s = SOON
    bad = png(7, colour=HANGS)
    inputs: list[Input] = [Text("a"), *[InstructedImage(bad, f"i {n}") for n in range(5)], Image(bad), Image(png(4))]
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(lambda: list(embedder.embed_iter(inputs, return_errors=True))) for _ in range(4)]
        for call in calls:
            found = call.result(LONG)
            assert [type(one) for one in found[1:7]] == [ImageFormatError] * 6
            np.testing.assert_array_equal([found[0], found[7]], toy.expected([inputs[0], inputs[7]]))
    np.testing.assert_array_equal(embedder.embed([Text("b")]), toy.expected([Text("b")]))


class SlowPath:
    """A file on a disk that does not answer, for the first who asks."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.asked, self.answer, self.answered = threading.Event(), threading.Event(), threading.Event()

    def __fspath__(self) -> str:
        if threading.current_thread().name == "abc-rag-prepare" and not self.asked.is_set():
            self.asked.set()
            assert self.answer.wait(LONG)
            self.answered.set()
        return str(self.path)


def test_a_file_that_hangs_is_named_and_can_be_read_later(dangerous: Any, tmp_path: Path) -> None:
    toy, embedder = dangerous("thread", SOON)
    (tmp_path / "slow.png").write_bytes(png(5))
    slow = SlowPath(tmp_path / "slow.png")
    with pytest.raises(ImageFormatError, match=r"slow\.png: takes more than 3 s"):
        embedder.embed([Image(slow)])
    left = [t for t in threading.enumerate() if t.name == "abc-rag-prepare"]
    slow.answer.set()
    assert slow.answered.wait(LONG)
    wait_until(lambda: any(not thread.is_alive() for thread in left))  # the one that had been left behind
    np.testing.assert_array_equal(embedder.embed([Image(slow)]), toy.expected([Image(png(5))]))
    assert embedder._running().scheduler._preparing == 0


def test_a_recipe_that_children_do_not_know_is_used_in_threads(photos: Any) -> None:
    class Local(toy_pictures.ToyPictures):
        """In no module that could be imported."""

    toy = Toy()
    toy.facts = dataclasses.replace(toy.facts, recipe=Local())
    embedder = LocalEmbedder(lambda: toy, EngineSettings(workers=2, worker_kind="process"))
    inputs = [Image(png(width)) for width in range(1, 5)]
    np.testing.assert_array_equal(embedder.embed(inputs), toy.expected(inputs))
    assert embedder.worker_pids == []
    embedder.close()


def test_no_processes_where_none_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    toy = Toy()
    embedder = LocalEmbedder(lambda: toy, EngineSettings(workers=2, worker_kind="process"))
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    inputs = [Image(png(width)) for width in range(1, 5)]
    np.testing.assert_array_equal(embedder.embed(inputs), toy.expected(inputs))
    assert embedder.worker_pids == []
    embedder.close()


def bad_pictures() -> dict[str, bytes]:
    gif = io.BytesIO()
    frames = [PIL.Image.new("RGB", (4, 4), (n, 0, 0)) for n in range(5)]
    frames[0].save(gif, "GIF", save_all=True, append_images=frames[1:])
    good = noise(0)
    return {
        "corrupt": good[:60] + b"\0" * 40 + good[100:],
        "truncated": good[: len(good) // 2],
        "no picture": b"hello, I am a text",
        "another format": b"%PDF-1.7 and so on",
        "empty": b"",
        "too many pixels": png(300, 300),
        "too long": png(500, 1),
        "too many frames": gif.getvalue(),
        "too many bytes": good + b"\0" * 100_000,
    }


@pytest.fixture(scope="module")
def both() -> Iterator[list[LocalEmbedder]]:
    """The same model with threads and with processes, and with limits."""
    limits = ImageLimits(max_bytes=100_000, max_pixels=50_000, max_aspect_ratio=200, max_frames=3)
    made = [
        load_embedder("abc-mini", device="cpu", image_limits=limits, engine=EngineSettings(worker_kind=kind, workers=2))
        for kind in ("thread", "process")
    ]
    yield made  # type: ignore[misc]
    for one in made:
        one.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", bad_pictures())
def test_an_error_is_the_same_wherever_it_comes_from(name: str, both: list[LocalEmbedder], tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(bad_pictures()[name])
    for source in (path, bad_pictures()[name]):
        errors = []
        for embedder in both:
            first, bad, last = embedder.embed_iter(
                [Image(noise(1)), InstructedImage(source, "x"), Text("a")], return_errors=True
            )
            assert isinstance(first, np.ndarray)
            assert isinstance(last, np.ndarray)
            errors.append(bad)
        here, there = errors
        assert isinstance(here, ImageError)
        assert type(here) is type(there)
        assert str(here) == str(there)
        assert here.source == there.source
        assert (str(path) if source is path else "bytes") in str(here)
        with pytest.raises(type(here)):
            both[1].embed([Text("a"), Image(source)])


def test_what_a_recipe_says_of_a_good_picture_is_the_same_too(dangerous: Any) -> None:
    # abc-mini's own limit, of 200 to 1, with the engine's out of the way.
    limits = ImageLimits(max_aspect_ratio=10_000)
    messages = []
    for kind in ("thread", "process"):
        settings = EngineSettings(worker_kind=kind, workers=1)  # type: ignore[arg-type]
        embedder = load_embedder("abc-mini", device="cpu", image_limits=limits, engine=settings)
        with pytest.raises(InputError, match="201x1") as caught:
            embedder.embed([Text("a"), Image(png(201))])
        messages.append((type(caught.value), str(caught.value)))
        embedder.close()  # type: ignore[attr-defined]
    assert messages[0] == messages[1]


def test_closing_ends_a_process_at_work_and_starts_no_other(dangerous: Any) -> None:
    _, embedder = dangerous("process")
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(embedder.embed, [Image(png(7, colour=HANGS))])
        wait_until(lambda: embedder._machine is not None)
        processes = embedder._running().preparation.processes
        wait_until(lambda: processes._all and not processes._idle and processes._usable)
        pids = processes.pids
        embedder.close()
        with pytest.raises(ABCRagError, match="closed while it computed"):
            call.result(LONG)
    assert pids
    assert not any(map(alive, pids))
    assert processes.pids == []


# --- Interrupts -------------------------------------------------------------------------------------------

STREAM = """
    import os, signal, sys, threading
    from pathlib import Path
    from abc_rag import Image, Text
    from abc_rag.embedding.engine.local import LocalEmbedder
    from abc_rag.embedding.settings import EngineSettings
    from toy_family import Toy, png

    out, kind = Path(sys.argv[1]), sys.argv[2]
    toy = Toy()
    settings = EngineSettings(workers=2, worker_kind=kind, max_queued=16, max_batch_tokens=2)
    embedder = LocalEmbedder(lambda: toy, settings)
    # Made before: Pillow saves within an "except", which gives an interrupt there a second traceback.
    pictures = [png(1 + n) for n in range(400)]

    def inputs():
        n = 0
        while True:
            n += 1
            yield Image(pictures[n % 400]) if n % 2 else Text(f"t {n}")

    with out.open("wb") as stored:
        for count, vector in enumerate(embedder.embed_iter(inputs())):
            stored.write(vector.tobytes())
            if count == 40:
                stored.flush()
                (out.parent / "pids").write_text(" ".join(map(str, embedder.worker_pids)))
                print("ready", flush=True)
"""


@NO_KILL
@pytest.mark.parametrize("kind", ["process", "thread"])
def test_an_interrupt_in_a_stream_leaves_a_prefix_and_no_processes(kind: str, tmp_path: Path) -> None:
    program = f"import sys; sys.path[:0] = {sys.path!r}\n" + textwrap.dedent(STREAM)
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "vectors"), kind],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to all processes of the group
        _, said = process.communicate(timeout=LONG)
    finally:
        process.kill()
        process.wait()
    assert process.returncode in (-signal.SIGINT, 130)
    assert said.count("Traceback") == 1
    assert "KeyboardInterrupt" in said
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert bool(pids) == (kind == "process")
    assert not any(alive(pid) for pid in pids)
    stored = np.fromfile(tmp_path / "vectors", np.float32).reshape(-1, 8)
    assert len(stored) > 40
    inputs = [Image(png(1 + n % 400)) if n % 2 else Text(f"t {n}") for n in range(1, len(stored) + 1)]
    np.testing.assert_array_equal(stored, Toy().expected(inputs))


@NO_KILL
def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    program = f"import sys; sys.path[:0] = {sys.path!r}\n" + textwrap.dedent(STREAM)
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "vectors"), "process"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    finally:
        process.kill()
        process.communicate()
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert pids
    wait_until(lambda: not any(alive(pid) for pid in pids))


def test_everything_at_once(dangerous: Any, tmp_path: Path) -> None:
    """Many threads, bad inputs of every sort, little memory: each gets what belongs to it."""
    toy, embedder = dangerous("process", workers=3, max_batch_tokens=20, max_batch_patches=30, max_queued=8)
    toy.failing["bad"], toy.unprepared["worse"] = ValueError("bad"), InputError("worse")
    toy.max_batch_tokens, toy.max_batch_patches = 15, 25
    choices: list[Input] = [Text(f"t {n}") for n in range(20)] + [Image(png(n, 2)) for n in range(1, 20)]
    choices += [InstructedImage(png(n, 2), f"i {n % 3}") for n in range(1, 20)]
    spoilt: list[Input] = [Text("bad"), Text("worse"), Image(b"nothing"), Image(png(7, colour=KILLS)), Image("gone")]
    spoilt += [Image(png(26)), Text("w " * 16)]

    def call(seed: int) -> None:
        rng = random.Random(seed)
        inputs = rng.sample(choices, 25) + rng.sample(spoilt, 3)
        rng.shuffle(inputs)
        found = list(embedder.embed_iter(inputs, return_errors=True))
        assert len(found) == len(inputs)
        for item, one in zip(inputs, found, strict=True):
            if item in spoilt:
                assert isinstance(one, ABCRagError), item
            else:
                np.testing.assert_array_equal(one, toy.expected([item])[0])

    with ThreadPoolExecutor(6) as pool:
        for done in [pool.submit(call, seed) for seed in range(12)]:
            done.result(2 * LONG)
    assert embedder._running().scheduler._waiting == 0
    assert embedder._running().scheduler._held_bytes == 0
    assert embedder._running().scheduler._in_flight == {}


def test_equal_bad_pictures_are_named_each_by_its_own_name(tmp_path: Path) -> None:
    embedder = load_embedder("abc-mini", device="cpu")
    paths = [tmp_path / name for name in ("first.png", "second.png", "third.png")]
    for path in paths:
        path.write_bytes(b"\x89PNG\r\n\x1a\n and nothing else")
    errors = list(embedder.embed_iter([Image(path) for path in paths], return_errors=True))
    assert [str(error).partition(":")[0] for error in errors] == [str(path) for path in paths]
