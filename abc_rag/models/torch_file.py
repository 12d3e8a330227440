"""Reading tensors from files of ``torch.save`` as data: nothing is unpickled, and nothing in them is called.

Some published adapters exist in this form only. Such a file is a zip archive of raw numbers and one small pickle
program, which holds names and shapes. A state dict needs a handful of pickle's instructions and three names; anything
else is refused before it has an effect.
"""

from __future__ import annotations

import math
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from abc_rag.errors import CheckpointError
from abc_rag.models.checkpoint import StoredTensors
from abc_rag.models.config import shown

__all__ = ["torch_file"]

_REBUILD = ("torch._utils", "_rebuild_tensor_v2")
_ORDERED = ("collections", "OrderedDict")
_STORAGES = {
    ("torch", "FloatStorage"): torch.float32,
    ("torch", "HalfStorage"): torch.float16,
    ("torch", "BFloat16Storage"): torch.bfloat16,
}
_KNOWN = {_REBUILD, _ORDERED, *_STORAGES}
# A program for some thousand tensors is a few hundred kilobytes.
_MAX_PROGRAM_BYTES = 4 * 2**20
_MAX_ENTRIES = 100_000
_MAX_SHARING = 4  # tied weights are stored once and named twice
_MAX_NUMBERS = 2**33
_MARK = object()
_CONSTANTS = {"EMPTY_TUPLE": (), "NONE": None, "NEWTRUE": True, "NEWFALSE": False, "MARK": _MARK}
_VALUES = ("BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1")
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def torch_file(file: Path) -> StoredTensors:
    """The tensors of a state dict, in float32, float16 or bfloat16.

    Args:
        file: Written by ``torch.save``, in the format that it has had since version 1.6.

    Raises:
        CheckpointError: It is no such file, or holds anything but named tensors.
    """
    with _opened(file) as archive:
        shapes = {name: tensor.shape for name, tensor in archive.tensors.items()}
    return StoredTensors(str(file), shapes, lambda: _read(file))


def _read(file: Path) -> Iterator[tuple[str, torch.Tensor]]:
    with _opened(file) as archive:
        last, data = None, b""
        for name, tensor in archive.tensors.items():
            if tensor.storage != last:  # tensors that share a storage are neighbours
                last, data = tensor.storage, archive.numbers(tensor.storage)
            yield name, tensor.of(data)


@contextmanager
def _opened(file: Path) -> Iterator[_Archive]:
    try:
        with zipfile.ZipFile(file) as archive:
            yield _Archive(archive, file.stat().st_size)
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        IndexError,
        KeyError,
        NotImplementedError,
        OSError,
        RuntimeError,
        TypeError,
        ValueError,
        struct.error,
        Warning,  # about escapes in a name, where warnings are errors
    ) as error:
        raise CheckpointError(f"{file}: not readable as a state dict ({error}); convert it to safetensors") from error


class _Archive:
    """The file, and what its program says; no numbers have been read.

    Args:
        archive: Opened.
        size: Bytes of the file. What it holds is stored without compression, so it cannot be more.
    """

    def __init__(self, archive: zipfile.ZipFile, size: int) -> None:
        self._archive = archive
        entries = archive.infolist()
        if len(entries) > _MAX_ENTRIES:
            raise _Odd(f"it has more than {_MAX_ENTRIES:,} entries")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise _Odd("it is compressed, which torch.save never does")
        if sum(entry.file_size for entry in entries) > size:
            raise _Odd("its entries overlap")
        programs = [entry for entry in entries if entry.filename.endswith("/data.pkl")]
        if len(programs) != 1:
            raise _Odd("it holds no single data.pkl")
        self._folder = programs[0].filename.removesuffix("data.pkl")
        order = f"{self._folder}byteorder"
        if order in archive.namelist() and archive.read(order) != b"little":
            raise _Odd("its numbers are not little-endian")
        if programs[0].file_size > _MAX_PROGRAM_BYTES:
            raise _Odd("its data.pkl is too long")
        state = _Reader(archive.read(programs[0])).run()
        if not isinstance(state, dict) or not all(
            isinstance(name, str) and isinstance(one, _Tensor) for name, one in state.items()
        ):
            raise _Odd("it holds something other than named tensors")
        self.tensors: dict[str, _Tensor] = state
        if sum(math.prod(one.shape) * one.storage.dtype.itemsize for one in state.values()) > _MAX_SHARING * size:
            raise _Odd("its tensors share their numbers too often")

    def numbers(self, storage: _Storage) -> bytes:
        """A storage's bytes."""
        data = f"{self._folder}data/{storage.key}"
        if self._archive.getinfo(data).file_size != storage.nbytes:
            raise _Odd(f"{data} is not as long as it should be")
        return self._archive.read(data)


class _Odd(ValueError):
    """Something that no state dict needs."""


@dataclass(frozen=True)
class _Storage:
    dtype: torch.dtype
    key: str
    count: int

    @property
    def nbytes(self) -> int:
        return self.count * self.dtype.itemsize


@dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def of(self, data: bytes) -> torch.Tensor:
        """The tensor, from the bytes of its storage."""
        storage = self.storage
        reach = self.offset + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
        if 0 in self.shape:
            return torch.empty(self.shape, dtype=storage.dtype)
        if not 0 <= reach < storage.count or math.prod(self.shape) > storage.count:
            raise _Odd(f"a tensor of shape {self.shape} does not lie within storage {storage.key}")
        flat = torch.frombuffer(bytearray(data), dtype=storage.dtype)
        return flat.as_strided(self.shape, self.strides, self.offset).clone()


class _Reader:
    """Reads the program of a state dict, instruction by instruction; `pickletools` tells them apart and runs nothing.

    Args:
        program: In pickle's language, protocol 2.
    """

    def __init__(self, program: bytes) -> None:
        self._program = program
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:  # noqa: ANN401  (whatever the program says; checked by the caller)
        """Run the program and return its result."""
        told: Any
        for code, told, _ in pickletools.genops(self._program):
            name = code.name
            if name in _VALUES:
                self._stack.append(told)
            elif name in _CONSTANTS:
                self._stack.append(_CONSTANTS[name])
            elif name in _TUPLES:
                self._stack.append(self._last(_TUPLES[name]))
            elif name in ("BINPUT", "LONG_BINPUT"):
                self._memo[told] = self._stack[-1]
            elif name in ("BINGET", "LONG_BINGET"):
                self._stack.append(self._memo[told])
            else:
                self._step(name, told)
        return self._stack.pop()

    def _step(self, code: str, told: Any) -> None:  # noqa: ANN401
        match code:
            case "PROTO":
                if told != 2:
                    raise _Odd("its data.pkl is not of protocol 2")
            case "EMPTY_DICT":
                self._stack.append({})
            case "TUPLE":
                self._stack.append(tuple(self._to_mark()))
            case "GLOBAL":
                self._name(*told.split(" ", 1))
            case "BINPERSID":
                self._persistent()
            case "REDUCE":
                self._reduce()
            case "BUILD":
                self._build()
            case "SETITEM":
                self._set_items(self._last(2))
            case "SETITEMS":
                self._set_items(self._to_mark())
            case "STOP":
                pass
            case _:
                raise _Odd(f"its data.pkl has an instruction that no state dict needs: {code}")

    def _to_mark(self) -> list[Any]:
        found = []
        while (last := self._stack.pop()) is not _MARK:
            found.append(last)
        return found[::-1]

    def _last(self, count: int) -> tuple[Any, ...]:
        if len(self._stack) < count:
            raise _Odd("its data.pkl takes more than it has")
        found = tuple(self._stack[len(self._stack) - count :])
        del self._stack[len(self._stack) - count :]
        return found

    # --- Instructions ---------------------------------------------------------------------------------

    def _name(self, *name: str) -> None:
        if name not in _KNOWN:
            raise _Odd(f"it wants {'.'.join(name)[:80]}, which no state dict needs")
        self._stack.append(name)

    def _persistent(self) -> None:
        (told,) = self._last(1)
        if not (isinstance(told, tuple) and len(told) == 5 and told[0] == "storage" and told[1] in _STORAGES):
            raise _Odd("it refers to something that is no storage of numbers")
        key, count = told[2], told[4]
        if not (isinstance(key, str) and key.isalnum() and type(count) is int and 0 <= count <= _MAX_NUMBERS):
            raise _Odd("a storage has no usable name or length")
        self._stack.append(_Storage(_STORAGES[told[1]], key, count))

    def _reduce(self) -> None:
        name, given = self._last(2)
        if name == _ORDERED and given == ():
            self._stack.append({})
        elif name == _REBUILD and isinstance(given, tuple) and len(given) in (6, 7):
            storage, offset, shape, strides = given[:4]
            if not (
                isinstance(storage, _Storage)
                and _whole([offset])
                and isinstance(shape, tuple)
                and isinstance(strides, tuple)
                and len(shape) == len(strides)
                and _whole([*shape, *strides])
            ):
                raise _Odd("a tensor is described oddly")
            self._stack.append(_Tensor(storage, offset, shape, strides))
        else:
            raise _Odd(f"it calls {shown(name)} in a way that no state dict needs")

    def _build(self) -> None:
        self._last(1)  # the versions of a state dict's modules; what they are put on stays on the stack
        if not isinstance(self._stack[-1], dict):
            raise _Odd("it changes something that is no dictionary")

    def _set_items(self, items: Sequence[Any]) -> None:
        if not isinstance(self._stack[-1], dict) or len(items) % 2:
            raise _Odd("it fills something that is no dictionary")
        for name, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(name, str):
                raise _Odd(f"a tensor's name is {shown(name)}")
            self._stack[-1][name] = value


def _whole(numbers: Sequence[Any]) -> bool:
    return all(type(number) is int and 0 <= number <= _MAX_NUMBERS for number in numbers)
