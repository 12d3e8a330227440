"""Caches of vision features and finished vectors, by content, bounded in bytes, in memory and on disk."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import queue
import stat
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from abc_rag.errors import InputError
from abc_rag.files import is_draft, refused_as, write

__all__ = ["DiskTier", "TensorCache"]

logger = logging.getLogger("abc_rag")

_SUFFIX = ".safetensors"
_ABANDONED_S = 3600.0  # a draft this old has no writer left


class TensorCache:
    """A cache of tensors, bounded in bytes, that drops the least recently used. Safe to use from many threads.

    Args:
        max_bytes: Maximum memory; 0 keeps nothing in memory.
        disk: A second tier on disk, or None.
        scope: Whatever a tensor depends on beside its key. It is part of the names on disk.
        fits: Whether a tensor from disk can be what was asked for; one that cannot be is dropped.

    Attributes:
        in_use: Whether anything is found or kept; false between `pause` and `resume`.
        hits: How often something was found.
        misses: How often it was not.
    """

    def __init__(
        self,
        max_bytes: int,
        *,
        disk: DiskTier | None = None,
        scope: str = "",
        fits: Callable[[torch.Tensor], bool] | None = None,
    ) -> None:
        self.max_bytes = max_bytes
        self._disk = disk
        self._scope = scope
        self._fits = fits
        self._held = 0
        self._tensors: OrderedDict[str, torch.Tensor] = OrderedDict()
        self._lock = threading.Lock()
        self.in_use = False
        self.hits = self.misses = 0
        self.resume()

    def pause(self) -> None:
        """Drop what is in memory, and neither find nor keep anything until `resume`."""
        self.in_use = False
        self.clear()

    def resume(self) -> None:
        """End `pause`."""
        self.in_use = self.max_bytes > 0 or self._disk is not None

    @property
    def held_bytes(self) -> int:
        """Bytes in memory."""
        return self._held

    def get(self, key: str) -> torch.Tensor | None:
        """The tensor, or None."""
        if not self.in_use:
            return None
        found = self._get(key)
        with self._lock:
            self.hits += found is not None
            self.misses += found is None
        return found

    def _get(self, key: str) -> torch.Tensor | None:
        with self._lock:
            found = self._tensors.get(key)
            if found is not None:
                self._tensors.move_to_end(key)
                return found
        if self._disk is None:
            return None
        name = self._name(key)
        found = self._disk.get(name)
        if found is None:
            return None
        if self._fits is not None and not self._fits(found):
            self._disk.drop(name)
            return None
        self._remember(key, found)
        return found

    def put(self, key: str, tensor: torch.Tensor) -> None:
        """Keep a tensor. It must not be changed from now on."""
        if not self.in_use:
            return
        self._remember(key, tensor)
        if self._disk is not None:
            self._disk.put(self._name(key), tensor)

    def clear(self) -> None:
        """Drop what is in memory."""
        with self._lock:
            self._tensors.clear()
            self._held = 0

    def _remember(self, key: str, tensor: torch.Tensor) -> None:
        with self._lock:
            known = self._tensors.pop(key, None)
            if known is not None:
                self._held -= known.nbytes
            if tensor.nbytes > self.max_bytes:
                return  # it would push out all others, and then itself
            self._tensors[key] = tensor
            self._held += tensor.nbytes
            while self._held > self.max_bytes:
                self._held -= self._tensors.popitem(last=False)[1].nbytes

    def _name(self, key: str) -> str:
        return hashlib.sha256(f"{self._scope}\n{key}".encode()).hexdigest()


class DiskTier:
    """Tensors in a folder, each in a safetensors file of its own; several processes may share the folder.

    A file appears whole or not at all and is written by a thread of its own; what was used longest ago goes first. A
    file carries a checksum of its name, its tensor's type and shape, and its numbers: one that was changed, or that
    stands under another's name, is dropped. Writing that fails (a full disk) loses nothing but the file.

    Args:
        folder: Created if missing.
        max_bytes: Maximum bytes of all files.

    Raises:
        InputError: The folder cannot be created.
    """

    def __init__(self, folder: str | os.PathLike[str], max_bytes: int) -> None:
        self._folder = Path(folder).expanduser()
        self._max_bytes = max_bytes
        with refused_as(InputError, f"cache folder {folder}: cannot be created", "choose another"):
            self._folder.mkdir(parents=True, exist_ok=True)
        self._held: int | None = None
        self._todo: queue.Queue[tuple[str, torch.Tensor] | None] = queue.Queue(64)
        self._writer: threading.Thread | None = None
        self._starting = threading.Lock()

    def get(self, name: str) -> torch.Tensor | None:
        """The tensor of that name, on the CPU; None if it is not there, or is not what was written."""
        file = self._file(name)
        try:
            status = file.stat()
            # A pipe would never end, and a larger file is none of ours.
            data = file.read_bytes() if stat.S_ISREG(status.st_mode) and status.st_size <= self._max_bytes else b""
            found = load(data)["tensor"]
            if _checksum_in(data) != _checksum(name, found):
                raise ValueError("another checksum")
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError, KeyError, ValueError, TypeError, AttributeError, RecursionError):
            self.drop(name)
            return None
        with contextlib.suppress(OSError):
            os.utime(file)
        return found

    def drop(self, name: str) -> None:
        """Remove an entry that is wrong."""
        file = self._file(name)
        logger.warning("the cache entry %s is damaged; it is dropped and computed again", file)
        with contextlib.suppress(OSError):
            file.unlink()

    def put(self, name: str, tensor: torch.Tensor) -> None:
        """Queue a tensor for writing. It is skipped if the disk is too slow: the model must not wait."""
        with self._starting:
            if self._writer is None or not self._writer.is_alive():
                self._writer = threading.Thread(target=self._write_all, name="abc-rag-cache", daemon=True)
                self._writer.start()
        with contextlib.suppress(queue.Full):
            self._todo.put_nowait((name, tensor))

    def close(self) -> None:
        """Write what is queued, and end the thread."""
        with self._starting:
            writer, self._writer = self._writer, None
        if writer is not None and writer.is_alive():
            self._todo.put(None)
            writer.join()

    def _file(self, name: str) -> Path:
        return self._folder / name[:2] / (name + _SUFFIX)

    def _write_all(self) -> None:
        while (job := self._todo.get()) is not None:
            with contextlib.suppress(OSError):
                self._write(*job)

    def _write(self, name: str, tensor: torch.Tensor) -> None:
        file = self._file(name)
        if file.exists():
            return
        kept = tensor.detach().cpu().contiguous()
        data = save({"tensor": kept}, metadata={"sha256": _checksum(name, kept)})
        if len(data) > self._max_bytes:
            return
        file.parent.mkdir(exist_ok=True)
        write(file, data, durable=False)
        self._held = self._count() if self._held is None else self._held + len(data)
        if self._held > self._max_bytes:
            self._held = self._evict()

    def _count(self) -> int:
        return sum(size for _, size, _ in self._files())

    def _files(self) -> list[tuple[float, int, str]]:
        """(time of last use, bytes, path) of each file."""
        found = []
        for folder in os.scandir(self._folder):
            if not folder.is_dir():
                continue
            for entry in os.scandir(folder.path):
                with contextlib.suppress(OSError):  # another process may have removed it
                    status = entry.stat()
                    if entry.name.endswith(_SUFFIX):
                        found.append((status.st_mtime, status.st_size, entry.path))
                    elif is_draft(entry.name) and time.time() - status.st_mtime > _ABANDONED_S:
                        os.unlink(entry.path)
        return found

    def _evict(self) -> int:
        files = sorted(self._files())
        held = sum(size for _, size, _ in files)
        for _, size, path in files:
            # A little more than needed, so that not every write scans the folder.
            if held <= self._max_bytes * 0.9:
                break
            with contextlib.suppress(OSError):
                os.unlink(path)
            held -= size
        return held


def _checksum(name: str, tensor: torch.Tensor) -> str:
    digest = hashlib.sha256(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
    digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _checksum_in(data: bytes) -> str:
    """The checksum in the header of a file that safetensors has read: its length in 8 bytes, then JSON."""
    length = int.from_bytes(data[:8], "little")
    checksum: str = json.loads(data[8 : 8 + length])["__metadata__"]["sha256"]
    return checksum
