"""Files of torch.save, read as data."""

from __future__ import annotations

import collections
import copy
import os
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from abc_rag.errors import CheckpointError
from abc_rag.models.torch_file import torch_file


def contents(file: Path) -> dict[str, torch.Tensor]:
    return dict(torch_file(file).read())


SHARED = torch.arange(24.0)


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"a": torch.randn(3, 4), "b.c": torch.randn(5)},
        collections.OrderedDict(a=torch.randn(300, 2), b=torch.tensor(3.5)),
        torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4)).state_dict(),
        {"half": torch.randn(7).half(), "bfloat16": torch.randn(7).bfloat16()},
        {"whole": SHARED, "part": SHARED[3:9], "turned": SHARED.view(4, 6).T, "step": SHARED[1::5]},
        {"empty": torch.zeros(0, 3), "parameter": torch.nn.Parameter(torch.randn(2), requires_grad=False).data},
        {f"layer.{number}": torch.full((2,), float(number)) for number in range(700)},
    ],
)
def test_what_torch_saved_is_what_is_read(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save(state, tmp_path / "x.bin")
    found = contents(tmp_path / "x.bin")
    assert list(found) == list(state)
    for name, tensor in state.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    # Each tensor has memory of its own.
    assert len({tensor.data_ptr() for tensor in found.values() if tensor.numel()}) == len(
        [tensor for tensor in found.values() if tensor.numel()]
    )


class Runs:
    """What a hostile file would do when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.file),)


def test_nothing_in_a_file_is_called(tmp_path: Path) -> None:
    torch.save({"a": Runs(tmp_path / "made")}, tmp_path / "x.bin")
    with pytest.raises(CheckpointError, match=r"x\.bin: .*mkdir, which no state dict needs"):
        contents(tmp_path / "x.bin")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ({"a": 1}, "something other than named tensors"),
        ({1: torch.zeros(1)}, "a tensor's name is 1"),
        ([torch.zeros(1)], "an instruction that no state dict needs"),
        (torch.zeros(1), "something other than named tensors"),
        ({"a": torch.zeros(2, dtype=torch.int64)}, "torch.LongStorage, which no state dict needs"),
        ({"a": torch.nn.Linear(1, 1)}, "Linear, which no state dict needs"),
        ({"a": torch.zeros(2).to_sparse()}, "no state dict needs"),
    ],
)
def test_other_contents_are_refused(saved: Any, message: str, tmp_path: Path) -> None:
    torch.save(saved, tmp_path / "x.bin")
    with pytest.raises(CheckpointError, match=f"{message}.*; convert it to safetensors"):
        contents(tmp_path / "x.bin")


def rewritten(file: Path, change: Callable[[str, bytes], bytes | None]) -> Path:
    """The archive with some of its files changed, or left out."""
    out = file.with_name("changed.bin")
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            data = change(name, old.read(name))
            if data is not None:
                new.writestr(name, data)
    return out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda name, data: None if name.endswith("data.pkl") else data, "holds no single data.pkl"),
        (lambda name, data: b"big" if name.endswith("byteorder") else data, "not little-endian"),
        (lambda name, data: data[:-4] if "/data/" in name else data, "is not as long as it should be"),
        (lambda name, data: None if "/data/" in name else data, "There is no item named"),
        (
            lambda name, data: data[:30] if name.endswith("data.pkl") else data,
            "only .* remain|not enough data|exhausted|no newline",
        ),
        (lambda name, data: bytes(17 * 2**20) if name.endswith("data.pkl") else data, "too long"),
        (lambda name, data: b"\x80\x04." if name.endswith("data.pkl") else data, "not of protocol 2"),
    ],
)
def test_broken_archives_are_refused(change: Any, message: str, tmp_path: Path) -> None:
    torch.save({"a": torch.randn(3, 4)}, tmp_path / "x.bin")
    with pytest.raises(CheckpointError, match=message):
        contents(rewritten(tmp_path / "x.bin", change))


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    """Compressed, a small file could stand for any amount of memory; torch.save never compresses."""
    torch.save({"a": torch.zeros(4000)}, tmp_path / "x.bin")
    with (
        zipfile.ZipFile(tmp_path / "x.bin") as old,
        zipfile.ZipFile(tmp_path / "y.bin", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(CheckpointError, match="it is compressed"):
        contents(tmp_path / "y.bin")


def test_an_archive_with_a_changed_byte_is_read_or_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(400)}, tmp_path / "x.bin")
    whole = (tmp_path / "x.bin").read_bytes()
    refused = 0
    for at in range(30, len(whole) - 200, 3):
        (tmp_path / "z.bin").write_bytes(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
        try:
            contents(tmp_path / "z.bin")
        except CheckpointError:
            refused += 1
    assert refused > 20


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (b"\x80\x02" + b"(" * 2_000_000 + b"t" * 1_999_999 + b".", "something other than named tensors"),
        (b"\x80\x02" + b")" + b"\x85" * 2_000_000 + b".", "something other than named tensors"),
        (b"\x80\x02X\xff\xff\xff\xff.", "only 1 remain"),
        (b"\x80\x02h\x05.", "state dict"),
        (b"\x80\x02s.", "state dict"),
    ],
)
def test_hostile_programs_end_soon(program: bytes, message: str, tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "x.bin")
    file = rewritten(tmp_path / "x.bin", lambda name, data: program if name.endswith("data.pkl") else data)
    with pytest.raises(CheckpointError, match=message):
        contents(file)


def test_entries_that_overlap_are_refused(tmp_path: Path) -> None:
    """Many names for the same bytes, as in a zip bomb without compression."""
    torch.save({f"layer.{n}": torch.zeros(1000) for n in range(20)}, tmp_path / "x.bin")
    with zipfile.ZipFile(tmp_path / "x.bin") as old, zipfile.ZipFile(tmp_path / "y.bin", "w") as new:
        for name in old.namelist():
            if "/data/" not in name:
                new.writestr(name, old.read(name))
        new.writestr("archive/data/0", bytes(4000))
        (first,) = (entry for entry in new.filelist if entry.filename == "archive/data/0")
        for n in range(1, 20):
            again = copy.copy(first)
            again.filename = f"archive/data/{n}"
            new.filelist.append(again)
            new.NameToInfo[again.filename] = again
    with pytest.raises(CheckpointError, match="entries overlap"):
        contents(tmp_path / "y.bin")


def test_a_view_many_times_over_is_refused(tmp_path: Path) -> None:
    shared = torch.zeros(4000)
    torch.save({f"layer.{n}": shared for n in range(20)}, tmp_path / "x.bin")
    with pytest.raises(CheckpointError, match="share their numbers too often"):
        contents(tmp_path / "x.bin")


def test_no_archive_at_all_is_refused(tmp_path: Path) -> None:
    for data in (b"", b"PK\x03\x04", b"\x80\x02}q\x00."):
        (tmp_path / "x.bin").write_bytes(data)
        with pytest.raises(CheckpointError, match="not readable as a state dict"):
            contents(tmp_path / "x.bin")
    with pytest.raises(CheckpointError, match="No such file"):
        contents(tmp_path / "nowhere.bin")


def test_whatever_is_changed_in_a_program_it_is_read_or_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.randn(3, 4), "b": torch.randn(2).half()}, tmp_path / "x.bin")
    rng = random.Random(0)
    refused = 0
    for _ in range(400):

        def change(name: str, data: bytes) -> bytes:
            if not name.endswith("data.pkl"):
                return data
            changed = bytearray(data)
            for _ in range(rng.randint(1, 3)):
                changed[rng.randrange(len(changed))] = rng.randrange(256)
            return bytes(changed)

        try:
            found = contents(rewritten(tmp_path / "x.bin", change))
        except CheckpointError:
            refused += 1
        else:
            assert all(isinstance(tensor, torch.Tensor) for tensor in found.values())
    assert 100 < refused < 400
