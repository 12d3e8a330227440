"""What is remembered of pictures and vectors: in memory and on disk, over processes, bounded, and never wrongly."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
import random
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from toy_family import LONG, Toy, png, wait_until

from abc_rag import Image, Input, InstructedImage, Text, load_embedder
from abc_rag.embedding.engine.caches import DiskTier, TensorCache
from abc_rag.embedding.engine.local import LocalEmbedder
from abc_rag.embedding.settings import EngineSettings
from abc_rag.errors import InputError
from abc_rag.models.abc.family import ABCFamily
from abc_rag.types import Fingerprint

MIB = 2**20


def tensor(value: float, count: int = 100, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.full((1, count), value, dtype=dtype)


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


# --- On disk ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_tensor_comes_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    disk = DiskTier(tmp_path / "new" / "folder", MIB)
    wanted = torch.randn(7, 5).to(dtype)
    disk.put("ab12", wanted.T)  # not contiguous
    disk.close()
    found = DiskTier(tmp_path / "new" / "folder", MIB).get("ab12")
    assert found is not None
    assert found.dtype == dtype
    assert torch.equal(found, wanted.T)
    assert disk.get("ab13") is None


def test_it_goes_on_after_it_was_closed(tmp_path: Path) -> None:
    disk = DiskTier(tmp_path, MIB)
    for name in ("aa", "bb"):
        disk.put(name, tensor(1))
        disk.close()
    disk.close()
    assert len(files(tmp_path)) == 2


def test_what_was_used_longest_ago_goes_first(tmp_path: Path) -> None:
    disk = DiskTier(tmp_path, 10 * 4000 + 5000)  # ten, with what stands before each
    for number in range(10):
        disk.put(f"{number:02}", tensor(number, 1000))
    disk.close()
    assert len(files(tmp_path)) == 10
    for number, file in enumerate(files(tmp_path)):
        os.utime(file, (1000 + number, 1000 + number))
    assert disk.get("00") is not None  # used now
    disk.put("10", tensor(10, 1000))
    disk.put("11", tensor(11, 1000))
    disk.close()
    left = {file.stem for file in files(tmp_path)}
    assert sum(file.stat().st_size for file in files(tmp_path)) <= 10 * 4000 + 5000
    assert {"00", "10", "11"} <= left
    assert left - {"00", "10", "11"} == {f"{n:02}" for n in range(10 - len(left) + 3, 10)}


def test_what_others_wrote_counts_too(tmp_path: Path) -> None:
    for number in range(20):
        DiskTier(tmp_path, MIB).put(f"{number:02}", tensor(number, 1000))
    wait_until(lambda: len(files(tmp_path)) == 20)
    disk = DiskTier(tmp_path, 20_000)
    disk.put("20", tensor(20, 1000))
    disk.close()
    assert sum(file.stat().st_size for file in files(tmp_path)) <= 20_000
    assert disk.get("20") is not None


def test_one_that_is_larger_than_all_is_not_kept(tmp_path: Path) -> None:
    disk = DiskTier(tmp_path, 1000)
    disk.put("aa", tensor(1, 10))
    disk.put("bb", tensor(2, 1000))
    disk.close()
    assert [file.stem for file in files(tmp_path)] == ["aa"]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "truncated in its header": lambda data: data[:12],
    "truncated in its numbers": lambda data: data[:-5],
    "too long": lambda data: data + b"more",
    "overwritten": lambda data: b"\xff" * len(data),
    "of another program": lambda data: data.replace(b"tensor", b"tensar"),
    "one number changed": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    "NaN": lambda data: data[:-4] + np.array([np.nan], dtype=np.float32).tobytes(),
    "without a checksum": lambda data: save(load(data)),
    "of another shape": lambda data: save(
        {"tensor": load(data)["tensor"].reshape(-1, 1)}, metadata={"sha256": stored_checksum(data)}
    ),
    "another vector": lambda data: save(
        {"tensor": load(data)["tensor"].flip(-1) + 1}, metadata={"sha256": stored_checksum(data)}
    ),
    "a header that is no mapping": lambda data: (2).to_bytes(8, "little") + b"[]",
    "a header nested without end": lambda data: (100_000).to_bytes(8, "little") + b"[" * 100_000,
}


def stored_checksum(data: bytes) -> str:
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return str(header["__metadata__"]["sha256"])


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_a_miss_and_is_written_anew(damage: str, tmp_path: Path) -> None:
    disk = DiskTier(tmp_path, MIB)
    disk.put("aa", tensor(1))
    disk.close()
    (file,) = files(tmp_path)
    good = file.read_bytes()
    file.write_bytes(DAMAGE[damage](good))
    assert disk.get("aa") is None
    disk.put("aa", tensor(1))
    disk.close()
    assert file.read_bytes() == good
    assert torch.equal(disk.get("aa"), tensor(1))  # type: ignore[arg-type]


def test_an_entry_under_the_name_of_another_is_dropped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    disk = DiskTier(tmp_path, MIB)
    disk.put("aa1", tensor(1))
    disk.put("aa2", tensor(2))
    disk.close()
    first, second = files(tmp_path)
    shutil.copyfile(second, first)
    with caplog.at_level(logging.WARNING, "abc_rag"):
        assert disk.get("aa1") is None
    (record,) = caplog.records
    assert record.getMessage() == f"the cache entry {first} is damaged; it is dropped and computed again"
    assert files(tmp_path) == [second]
    assert torch.equal(disk.get("aa2"), tensor(2))  # type: ignore[arg-type]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_a_pipe_in_place_of_an_entry_is_dropped(tmp_path: Path) -> None:
    disk = DiskTier(tmp_path, MIB)
    (tmp_path / "aa").mkdir()
    os.mkfifo(tmp_path / "aa" / "aa.safetensors")
    assert disk.get("aa") is None
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    "wrong",
    [
        torch.full((8,), np.nan),
        torch.full((8,), 0.1),
        torch.nn.functional.normalize(torch.ones(7), dim=0),
        torch.nn.functional.normalize(torch.ones(1, 8), dim=1),
        torch.nn.functional.normalize(torch.ones(8), dim=0).double(),
    ],
    ids=["NaN", "short", "another length", "another shape", "another type"],
)
def test_a_wrong_vector_is_dropped_once_and_computed_again(wrong: torch.Tensor, opened: Any, tmp_path: Path) -> None:
    settings = {"cache_folder": tmp_path, "embedding_cache_bytes": MIB}
    toy, embedder = opened(**settings)
    expected = embedder.embed([Text("a")])
    embedder.close()
    (file,) = files(tmp_path)
    file.unlink()
    disk = DiskTier(tmp_path, MIB)
    disk.put(file.stem, wrong)  # with a checksum, as another version may have written it
    disk.close()
    for computed in (1, 0):
        toy, embedder = opened(**settings)
        np.testing.assert_array_equal(embedder.embed([Text("a")]), expected)
        embedder.close()
        assert len(toy.batches) == computed


def test_half_written_files_of_the_dead_are_removed(tmp_path: Path) -> None:
    (tmp_path / "aa").mkdir()
    for name, age in ((f".abc-{0:016}.part", 7200), (f".abc-{1:016}.part", 0)):
        (tmp_path / "aa" / name).write_bytes(b"half")
        os.utime(tmp_path / "aa" / name, (time.time() - age,) * 2)
    disk = DiskTier(tmp_path, MIB)
    disk.put("bb", tensor(1))
    disk.close()
    assert [path.name for path in (tmp_path / "aa").iterdir()] == [f".abc-{1:016}.part"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"cache folder .*file.below: cannot be created \(.+\); choose another"):
        DiskTier(tmp_path / "file" / "below", MIB)
    embedder = LocalEmbedder(Toy, EngineSettings(cache_folder=tmp_path / "file"))
    for _ in range(2):
        with pytest.raises(InputError, match="choose another"):
            embedder.embed([Text("a")])


@pytest.mark.parametrize("wreck", ["gone", "a file"])
def test_a_folder_that_goes_away_costs_only_the_cache(wreck: str, tmp_path: Path) -> None:
    toy = Toy()
    settings = EngineSettings(workers=1, cache_folder=tmp_path / "cache", embedding_cache_bytes=1)
    embedder = LocalEmbedder(lambda: toy, settings)
    embedder.embed([Image(png(3))])
    embedder.close()
    embedder.embed([Text("a")])
    embedder._running()._disk.close()  # type: ignore[union-attr]  (what waits is written)
    shutil.rmtree(tmp_path / "cache")
    if wreck == "a file":
        (tmp_path / "cache").write_text("in the way")
    inputs = [Image(png(4)), Text("b")]
    for _ in range(2):
        np.testing.assert_array_equal(embedder.embed(inputs), toy.expected(inputs))
    embedder.close()


def test_two_processes_share_a_folder(tmp_path: Path) -> None:
    program = f"""
        import sys
        sys.path[:0] = {sys.path!r}
        import random, torch
        from abc_rag.embedding.engine.caches import DiskTier
        disk, rng = DiskTier(sys.argv[1], 40_000), random.Random(int(sys.argv[2]))
        for _ in range(300):
            number = rng.randrange(60)
            found = disk.get(f"{{number:02}}")
            if found is None:
                disk.put(f"{{number:02}}", torch.full((500,), float(number)))
            else:
                assert torch.equal(found, torch.full((500,), float(number))), number
        disk.close()
    """
    running = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(program), str(tmp_path), str(seed)],
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in range(2)
    ]
    for process in running:
        _, said = process.communicate(timeout=LONG)
        assert process.returncode == 0, said
    assert not list(tmp_path.rglob(".*.part"))
    assert 0 < sum(file.stat().st_size for file in files(tmp_path)) <= 2 * 40_000


# --- Both tiers -------------------------------------------------------------------------------------------


def test_memory_is_asked_first_and_filled_from_the_disk(tmp_path: Path) -> None:
    disk = DiskTier(tmp_path, MIB)
    first = TensorCache(1000, disk=disk, scope="one")
    first.put("a", tensor(1))
    disk.close()
    again = TensorCache(1000, disk=DiskTier(tmp_path, MIB), scope="one")
    found = again.get("a")
    assert found is not None
    assert torch.equal(found, tensor(1))
    assert again.held_bytes == found.nbytes
    for file in files(tmp_path):
        file.unlink()
    assert again.get("a") is found


def test_a_scope_does_not_see_another(tmp_path: Path) -> None:
    disk = DiskTier(tmp_path, MIB)
    caches = [TensorCache(0, disk=disk, scope=scope) for scope in ("vision a", "vision b", "vector a")]
    caches[0].put("key", tensor(0))
    disk.close()
    assert [cache.get("key") is None for cache in caches] == [False, True, True]
    caches[1].put("key", tensor(1))
    disk.close()
    assert torch.equal(caches[0].get("key"), tensor(0))  # type: ignore[arg-type]
    assert torch.equal(caches[1].get("key"), tensor(1))  # type: ignore[arg-type]


def test_whether_anything_is_remembered(tmp_path: Path) -> None:
    assert not TensorCache(0).in_use
    assert TensorCache(1).in_use
    assert TensorCache(0, disk=DiskTier(tmp_path, MIB)).in_use


def test_many_threads_never_hold_more_than_the_bound() -> None:
    cache = TensorCache(5000)

    def use(seed: int) -> bool:
        rng = random.Random(seed)
        for _ in range(500):
            number = rng.randrange(40)
            found = cache.get(str(number))
            if found is None:
                cache.put(str(number), tensor(number))
            elif not torch.equal(found, tensor(number)):
                return False
            if cache.held_bytes > 5000 + 400:
                return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(use, range(8)))
    assert cache.held_bytes == sum(t.nbytes for t in cache._tensors.values()) <= 5000


# --- In an engine -----------------------------------------------------------------------------------------


@pytest.fixture
def opened() -> Iterator[Callable[..., tuple[Toy, LocalEmbedder]]]:
    made: list[LocalEmbedder] = []

    def opened(toy: Toy | None = None, **settings: Any) -> tuple[Toy, LocalEmbedder]:
        family = toy or Toy()
        made.append(LocalEmbedder(lambda: family, EngineSettings(**{"workers": 2, **settings})))
        return family, made[-1]

    yield opened
    for one in made:
        one.close()


def some() -> list[Input]:
    return [
        *[Text(f"t {number}") for number in range(5)],
        *[Image(png(width, 2)) for width in (3, 4)],
        *[InstructedImage(png(width, 2), asked) for width in (3, 4) for asked in ("", "left", "right")],
    ]


def forget(toy: Toy) -> None:
    toy.batches.clear()
    toy.seen.clear()


def test_finished_vectors_need_no_network(opened: Any) -> None:
    toy, embedder = opened(embedding_cache_bytes=MIB)
    expected = toy.expected(some())
    np.testing.assert_array_equal(embedder.embed(some()), expected)
    forget(toy)
    np.testing.assert_array_equal(embedder.embed(some()[::-1]), expected[::-1])
    np.testing.assert_array_equal(list(embedder.embed_iter(some())), expected)
    np.testing.assert_array_equal(asyncio.run(embedder.aembed(some())), expected)
    assert toy.batches == toy.seen == []
    embedder.forget()
    np.testing.assert_array_equal(embedder.embed(some()), expected)
    assert toy.batches
    assert toy.seen


def test_what_is_remembered_cannot_be_changed_from_outside(opened: Any) -> None:
    toy, embedder = opened(embedding_cache_bytes=MIB)
    expected = toy.expected(some())
    for _ in range(3):
        for vector, wanted in zip(embedder.embed_iter(some()), expected, strict=True):
            np.testing.assert_array_equal(vector, wanted)
            vector[:] = 0
    assert sum(map(len, toy.batches)) == len(some())


def test_vectors_are_bounded_and_off_unless_asked_for(opened: Any) -> None:
    toy, embedder = opened()
    for _ in range(2):
        embedder.embed([Text("a")])
    assert len(toy.batches) == 2
    toy, embedder = opened(embedding_cache_bytes=3 * 32)
    embedder.embed([Text(f"t {number}") for number in range(10)])
    assert embedder._running().embeddings.held_bytes == 3 * 32


def test_contents_that_differ_are_never_taken_for_one_another(opened: Any) -> None:
    _, embedder = opened(embedding_cache_bytes=MIB)
    picture = png(3)
    inputs: list[Input] = [Text(picture.hex()), Image(picture), InstructedImage(picture, "")]
    inputs += [InstructedImage(picture, "a"), Text("a"), Text("a "), Text("")]
    keys = []
    for item in inputs:
        embedder.embed([item])
        keys = list(embedder._running().embeddings._tensors)
    assert len(set(keys)) == len(inputs)


SCRIPT = """
    import sys
    from abc_rag import Image, InstructedImage, Text
    from abc_rag.embedding.engine.local import LocalEmbedder
    from abc_rag.embedding.settings import EngineSettings
    from toy_family import Toy, png
    import numpy as np

    toy = Toy()
    settings = EngineSettings(workers=2, cache_folder=sys.argv[1], embedding_cache_bytes=int(sys.argv[2]))
    embedder = LocalEmbedder(lambda: toy, settings)
    inputs = [Text("a"), Image(png(3, 2)), InstructedImage(png(3, 2), "left")]
    np.testing.assert_array_equal(embedder.embed(inputs), toy.expected(inputs))
    embedder.close()
    print(len(toy.seen), sum(map(len, toy.batches)))
"""


def test_a_folder_serves_the_next_process(tmp_path: Path) -> None:
    program = f"import sys; sys.path[:0] = {sys.path!r}\n" + textwrap.dedent(SCRIPT)
    said = []
    # Vision features alone at first, then vectors too.
    for vectors in ("0", "0", "1000", "1000"):
        done = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path), vectors],
            capture_output=True,
            text=True,
            timeout=LONG,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        said.append(done.stdout.strip())
    assert said == ["1 3", "0 3", "0 3", "0 0"]


def test_another_model_revision_resolution_or_precision_does_not_hit(opened: Any, tmp_path: Path) -> None:
    settings = {"cache_folder": tmp_path, "embedding_cache_bytes": MIB}
    inputs = [Text("a"), Image(png(3, 2))]
    fingerprints = [Fingerprint("toy", "1", 1, 4), Fingerprint("other", "1", 1, 4), Fingerprint("toy", "2", 1, 4)]
    fingerprints += [Fingerprint("toy", "1", 1, 9), Fingerprint("toy", "1", 4, 4)]
    told = [(one, torch.float32) for one in fingerprints] + [(fingerprints[0], torch.bfloat16)]
    for fingerprint, dtype in told:
        told_toy = Toy()
        told_toy.facts = replace(told_toy.facts, fingerprint=fingerprint, dtype=dtype)
        toy, embedder = opened(told_toy, **settings)
        embedder.embed(inputs)
        embedder.close()
        assert len(toy.seen) == 1, (fingerprint, dtype)
        assert sum(map(len, toy.batches)) == 2
    for fingerprint, dtype in told:
        told_toy = Toy()
        told_toy.facts = replace(told_toy.facts, fingerprint=fingerprint, dtype=dtype)
        toy, embedder = opened(told_toy, **settings)
        embedder.embed(inputs)
        assert toy.seen == toy.batches == []


def test_damaged_files_change_no_vector(opened: Any, tmp_path: Path) -> None:
    settings = {"cache_folder": tmp_path, "embedding_cache_bytes": MIB}
    toy, embedder = opened(**settings)
    expected = toy.expected(some())
    embedder.embed(some())
    embedder.close()
    assert len(files(tmp_path)) == len(some()) + 2
    for file, damage in zip(files(tmp_path), itertools.cycle(DAMAGE.values())):
        file.write_bytes(damage(file.read_bytes()))
    toy, embedder = opened(**settings)
    np.testing.assert_array_equal(embedder.embed(some()), expected)
    assert len(toy.seen) >= 1
    embedder.close()
    toy, embedder = opened(**settings)
    np.testing.assert_array_equal(embedder.embed(some()), expected)
    assert toy.seen == toy.batches == []


def test_nothing_is_remembered_where_that_is_asked_for(opened: Any, tmp_path: Path) -> None:
    for folder in (None, tmp_path):
        toy, embedder = opened(embedding_cache_bytes=MIB, cache_folder=folder)
        embedder.embed(some())
        embedder.close()
        embedder.embed(some())
        for _ in range(2):
            forget(toy)
            with embedder.remembering_nothing():
                np.testing.assert_array_equal(embedder.embed(some()), toy.expected(some()))
            assert sum(map(len, toy.batches)) == len(some())
            assert sum(map(len, toy.seen)) == 2
        embedder.embed(some())
        forget(toy)
        embedder.embed(some())
        assert toy.batches == []


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_features_of_a_real_model_are_the_same_from_disk(dtype: Any, tmp_path: Path) -> None:
    asked: list[Input] = [InstructedImage(png(60, 50, (9, 99, 199)), what) for what in ("left", "right", "")]
    settings = EngineSettings(workers=1, cache_folder=tmp_path)
    seen = 0

    class Counting(ABCFamily):
        def see(self, opened: Any) -> Any:
            nonlocal seen
            seen += len(opened)
            return super().see(opened)

    vectors = []
    for passes in (1, 1):
        embedder = load_embedder("abc-mini", device="cpu", dtype=dtype, engine=settings)
        assert isinstance(embedder, LocalEmbedder)
        embedder.family.__class__ = Counting
        # One by one, as rounding depends on what else is in a batch.
        vectors.append([embedder.embed([one])[0] for one in asked])
        embedder.close()
        assert seen == passes
    np.testing.assert_array_equal(vectors[0], vectors[1])


# --- Settings ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "values", "message"),
    [
        ("workers", [0, -1, True, 1.5, "2"], "workers must be an int of at least 1, not"),
        ("max_batch_tokens", [0, False, 2.0], "max_batch_tokens must be an int of at least 1, not"),
        ("max_batch_patches", [0, "many"], "max_batch_patches must be an int of at least 1, not"),
        ("max_queued", [0, None], "max_queued must be an int of at least 1, not"),
        ("max_queued_bytes", [0, None], "max_queued_bytes must be an int of at least 1, not"),
        ("vision_cache_bytes", [-1, None, 1e9], "vision_cache_bytes must be an int of at least 0, not"),
        ("embedding_cache_bytes", [-1, True], "embedding_cache_bytes must be an int of at least 0, not"),
        ("cache_folder_bytes", [-1, "1 GB"], "cache_folder_bytes must be an int of at least 0, not"),
        ("picture_timeout_s", [0, -1.0, float("inf"), float("nan"), True, None], "picture_timeout_s must be a number"),
        ("max_wait_ms", [-0.1, float("nan"), "5"], "max_wait_ms must be a number of at least 0, not"),
        ("worker_kind", ["fork", None], "worker_kind must be auto, thread or process, not"),
        ("cache_folder", [3, b"bytes"], "cache_folder must be a path or None, not"),
        ("compile", [1, None, "yes"], "compile must be True or False, not"),
    ],
)
def test_settings_that_make_no_sense(setting: str, values: list[Any], message: str) -> None:
    for value in values:
        with pytest.raises(InputError, match=message) as caught:
            EngineSettings(**{setting: value})
        assert str(caught.value).startswith("EngineSettings.")
        assert repr(value) in str(caught.value)


def test_settings_that_make_sense(tmp_path: Path) -> None:
    EngineSettings()
    for setting in ("workers", "max_batch_tokens", "max_batch_patches"):
        EngineSettings(**{setting: None})
        EngineSettings(**{setting: 1})
    EngineSettings(vision_cache_bytes=0, cache_folder_bytes=0, max_wait_ms=0, picture_timeout_s=1)
    EngineSettings(cache_folder=tmp_path)
    EngineSettings(cache_folder="~/cache", worker_kind="process", compile=True)
