"""Streams of inputs: as `embed`, one by one, for any length, and errors where their inputs stood."""

from __future__ import annotations

import io
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from helpers import FIXTURE, TOLERANCE, as_input, run_script
from toy_family import Toy, png

from abc_rag import Image, Input, InstructedImage, Text
from abc_rag.embedding.embedder import BatchSize, Embedder
from abc_rag.embedding.engine.local import LocalEmbedder
from abc_rag.embedding.fake import FakeEmbedder
from abc_rag.embedding.settings import EngineSettings
from abc_rag.errors import ABCRagError, ImageFormatError, InputError
from abc_rag.types import Vectors


class Chunked(FakeEmbedder):
    """Notes what it is given; like the real one, it raises for a whole call where one input is bad."""

    def __init__(self) -> None:
        super().__init__(dim=8)
        self.calls: list[int] = []

    def _embed(self, inputs: Sequence[Input], *, batch_size: BatchSize, progress: bool) -> Vectors:
        self.calls.append(len(inputs))
        for position, item in enumerate(inputs):
            if item == Text("bad"):
                raise InputError(f"input {position}: is no good")
            if isinstance(item, Image) and item.source == "bad.png":
                raise ImageFormatError("bad.png", "is broken")
        return super()._embed(inputs, batch_size=batch_size, progress=progress)


@pytest.fixture(params=["toy", "fake"])
def streaming(request: pytest.FixtureRequest) -> Iterator[Embedder]:
    """An embedder with a stream of its own, and one with that of the base class."""
    if request.param == "fake":
        yield Chunked()
        return
    toy = Toy()
    toy.unprepared["bad"] = InputError("is no good")
    embedder = LocalEmbedder(lambda: toy, EngineSettings(workers=2, max_queued=16))
    yield embedder
    embedder.close()


def texts(count: int) -> list[Input]:
    return [Text(f"t {number}") for number in range(count)]


def test_a_stream_meets_the_goldens(tiny: Embedder, cases: Any, goldens: Any) -> None:
    inputs = [as_input(case) for case in cases]
    expected = np.stack([goldens[f"{case['id']}.embedding"].numpy() for case in cases])
    for batch_size in ("auto", 3):
        vectors = list(tiny.embed_iter(iter(inputs), batch_size=batch_size))  # type: ignore[arg-type]
        assert all(vector.shape == (tiny.dim,) and vector.dtype == np.float32 for vector in vectors)
        assert np.abs(np.stack(vectors) - expected).max() < TOLERANCE
    assert np.abs(np.stack(vectors) - tiny.embed(inputs)).max() < TOLERANCE


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 300])
def test_a_stream_is_what_embed_gives(streaming: Embedder, count: int) -> None:
    inputs = texts(count)
    found = list(streaming.embed_iter(inputs))
    assert len(found) == count
    if count:
        np.testing.assert_array_equal(np.stack(found), streaming.embed(inputs))


def test_vectors_are_their_takers_own(streaming: Embedder) -> None:
    inputs = [Text("a"), Text("b"), Text("a")]
    first = list(streaming.embed_iter(inputs))
    for vector in first:
        assert vector.flags.writeable
    kept = [vector.copy() for vector in first]
    first[0][:] = 0
    np.testing.assert_array_equal(first[1:], kept[1:])
    np.testing.assert_array_equal(np.stack(list(streaming.embed_iter(inputs))), kept)


def test_nothing_is_read_before_it_is_asked_for_nor_much_ahead(streaming: Embedder) -> None:
    pulled = 0

    def endless() -> Iterator[Input]:
        nonlocal pulled
        for pulled in itertools.count(1):
            yield Text(f"t {pulled}")

    stream = streaming.embed_iter(endless())
    assert pulled == 0
    for taken in range(1, 200):
        next(stream)
        assert pulled <= taken + 64
    stream.close()  # type: ignore[attr-defined]
    with pytest.raises(StopIteration):
        next(stream)


def test_inputs_are_read_in_the_callers_thread(streaming: Embedder) -> None:
    import threading

    threads = set()

    def inputs() -> Iterator[Input]:
        for item in texts(100):
            threads.add(threading.current_thread())
            yield item

    list(streaming.embed_iter(inputs()))
    assert threads == {threading.current_thread()}


BAD: dict[str, tuple[Any, type[InputError], str]] = {
    "text": (Text("bad"), InputError, r"^input {}: is no good$"),
    "picture": (Image("bad.png"), InputError, r"^bad\.png: "),
    "type": ("a string", InputError, r"^input {} is a str; wrap it as abc_rag\.Text"),
    "none": (None, InputError, r"^input {} is a NoneType"),
}


@pytest.mark.parametrize("position", [0, 1, 70, 99])
@pytest.mark.parametrize("bad", BAD)
def test_an_error_stands_where_its_input_stood(streaming: Embedder, bad: str, position: int) -> None:
    import re

    item, kind, message = BAD[bad]
    inputs: list[Any] = texts(100)
    inputs[position] = item
    expected = streaming.embed(texts(100))
    found = list(streaming.embed_iter(inputs, return_errors=True))
    assert len(found) == 100
    assert isinstance(found[position], kind)
    assert re.search(message.format(position), str(found[position]))
    good = [number for number in range(100) if number != position]
    np.testing.assert_array_equal([found[number] for number in good], expected[good])
    # Without return_errors, those before it are given first.
    taken: list[Any] = []
    with pytest.raises(kind, match=message.format(position)):
        taken.extend(streaming.embed_iter(inputs))
    assert len(taken) == position
    if taken:
        np.testing.assert_array_equal(taken, expected[:position])


def test_many_errors_in_a_row(streaming: Embedder) -> None:
    inputs: list[Any] = [3, Text("bad"), "x", Text("a"), None, 5, Text("bad"), Text("b"), b"", Text("bad"), ()]
    found = list(streaming.embed_iter(inputs, return_errors=True))
    good = {3: Text("a"), 7: Text("b")}
    for position, one in enumerate(found):
        if position in good:
            np.testing.assert_array_equal(one, streaming.embed([good[position]])[0])
        else:
            assert isinstance(one, InputError)
            assert str(one).startswith(f"input {position}")
    assert len(found) == len(inputs)
    assert [type(one) for one in streaming.embed_iter([1, 2], return_errors=True)] == [InputError] * 2  # type: ignore[list-item]


def test_what_the_source_raises_comes_through(streaming: Embedder) -> None:
    def inputs() -> Iterator[Input]:
        yield Text("a")
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        list(streaming.embed_iter(inputs()))


@pytest.mark.parametrize("single", [Text("a"), Image("a.png"), InstructedImage("a.png", "x"), "a", b"a", None, 3])
def test_a_single_input_is_no_stream(streaming: Embedder, single: Any) -> None:
    with pytest.raises(InputError, match="inputs must be a list"):
        streaming.embed_iter(single)  # at once, not when it is first read


@pytest.mark.parametrize("batch_size", [0, -1, "many", 2.5, True])
def test_bad_batch_sizes_are_refused_at_once(streaming: Embedder, batch_size: Any) -> None:
    with pytest.raises(InputError, match="batch_size"):
        streaming.embed_iter([Text("a")], batch_size=batch_size)


def test_two_streams_at_once(streaming: Embedder) -> None:
    one, other = streaming.embed_iter(texts(100)), streaming.embed_iter(texts(100)[::-1])
    pairs = list(zip(one, other, strict=True))
    expected = streaming.embed(texts(100))
    np.testing.assert_array_equal([pair[0] for pair in pairs], expected)
    np.testing.assert_array_equal([pair[1] for pair in pairs], expected[::-1])


async def test_event_loops_get_the_same(streaming: Embedder) -> None:
    np.testing.assert_array_equal(await streaming.aembed(texts(20)), streaming.embed(texts(20)))
    assert (await streaming.aembed([])).shape == (0, 8)
    with pytest.raises(InputError, match="input 1"):
        await streaming.aembed([Text("a"), Text("bad")])
    with pytest.raises(InputError, match="input 1 is a str"):
        await streaming.aembed([Text("a"), "b"])  # type: ignore[list-item]


def test_chunks_of_the_base_class() -> None:
    embedder = Chunked()
    list(embedder.embed_iter(texts(130)))
    assert embedder.calls == [64, 64, 2]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("total", "shown"), [(None, "5/?"), (5, "5/5"), (9, "5/9")])
def test_progress_says_how_many(
    streaming: Embedder, total: int | None, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    inputs: Iterator[Any] = iter([*texts(4), "of the wrong type"])
    assert len(list(streaming.embed_iter(inputs, progress=True, total=total, return_errors=True))) == 5
    assert "embedding" in terminal.getvalue()
    assert shown in terminal.getvalue()


def test_a_lists_length_is_its_total(streaming: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    list(streaming.embed_iter(texts(7), progress=True))
    assert "7/7" in sys.stderr.getvalue()  # type: ignore[attr-defined]


UNIT = np.eye(4, dtype=np.float32)


class Broken(FakeEmbedder):
    def __init__(self, returned: Vectors) -> None:
        super().__init__(dim=4)
        self.returned = returned

    def _embed(self, inputs: Sequence[Input], *, batch_size: BatchSize, progress: bool) -> Vectors:
        return self.returned


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (UNIT * 2, "length 2"),
        (UNIT * np.nan, "length nan"),
        (UNIT[:, :3], "expected float32 of"),
        (UNIT.astype(np.float64), "float64"),
    ],
)
def test_vectors_that_would_spoil_a_store_end_the_stream(wrong: Any, message: str) -> None:
    # Even where errors are asked for: it is no input's fault.
    with pytest.raises(ABCRagError, match=message) as caught:
        list(Broken(wrong).embed_iter(texts(4), return_errors=True))
    assert not isinstance(caught.value, InputError)


def test_a_streams_pictures_may_be_anything(tmp_path: Path) -> None:
    toy = Toy()
    embedder = LocalEmbedder(lambda: toy, EngineSettings(workers=2))
    (tmp_path / "a.png").write_bytes(png(4, 2))
    opened = PIL.Image.open(tmp_path / "a.png")
    inputs: list[Input] = [Image(tmp_path / "a.png"), Image(png(4, 2)), Image(opened), InstructedImage(opened, "x")]
    np.testing.assert_array_equal(np.stack(list(embedder.embed_iter(inputs))), toy.expected(inputs))
    embedder.close()


def test_the_fixture_has_bad_neighbours_too(tiny: Embedder, cases: Any, goldens: Any) -> None:
    chosen = [case for case in cases if case["kind"] != "text"][:4]
    inputs: list[Any] = [Image(FIXTURE / "cases.json"), *map(as_input, chosen), Image("gone.png"), Text("\ud800")]
    found = list(tiny.embed_iter(inputs, return_errors=True))
    assert isinstance(found[0], ImageFormatError)
    assert "cases.json" in str(found[0])
    assert "gone.png" in str(found[5])
    assert str(found[6]).startswith("input 6: a text holds half a character")
    for case, vector in zip(chosen, found[1:5], strict=True):
        assert np.abs(vector - goldens[f"{case['id']}.embedding"].numpy()).max() < TOLERANCE


# --- What is left of an embedder --------------------------------------------------------------------------


def test_a_closed_and_dropped_embedder_leaves_no_threads_and_no_memory() -> None:
    done = run_script(
        """
        import gc, os, threading
        import PIL.Image
        from abc_rag import Image, InstructedImage, Text, load_embedder

        picture = PIL.Image.new("RGB", (64, 64), "red")

        def one(number):
            embedder = load_embedder("abc-mini", device="cpu")
            embedder.embed([Text(f"passage {number}"), Image(picture), InstructedImage(picture, "the colour")])
            embedder.close()

        def left():
            gc.collect()
            ours = sorted(thread.name for thread in threading.enumerate() if thread.name.startswith("abc-rag"))
            pages = int(open("/proc/self/statm").read().split()[1]) if os.path.exists("/proc/self/statm") else 0
            return ours, threading.active_count(), pages * os.sysconf("SC_PAGE_SIZE") / 2**20

        for number in range(5):
            one(number)
        ours, count, before = left()
        assert ours == [], ours
        for number in range(15):
            one(number)
        ours, again, after = left()
        assert (ours, again) == ([], count), (ours, again, count)
        assert after - before < 30, (before, after)
        print("nothing")
        """
    )
    assert (done.returncode, done.stdout) == (0, "nothing\n"), done.stderr
