"""Writing a file or a folder whole or not at all.

Every writer fills a draft beside the target, flushes it to the disk, and renames it over the target. Readers see the
old content or the new, never half of it, also after a crash, a kill or a full disk. A draft that could not be finished
is removed; one that a killed process left behind is hidden, and `remove_drafts` removes it.

Errors are plain `OSError` with the target's name; callers turn them into their own, as by `refused_as`.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from abc_rag.errors import ABCRagError

__all__ = [
    "append",
    "is_draft",
    "move",
    "new_file",
    "new_folder",
    "refused_as",
    "remove_drafts",
    "write",
    "write_json",
]

_DRAFT = re.compile(r"\.abc-[0-9a-f]{16}\.part")
# What a folder that cannot be flushed answers: no reading permission, or a file system without it.
_NO_FLUSH = {errno.EACCES, errno.EINVAL, errno.ENOTSUP}


@contextmanager
def new_file(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Write one file: fill the draft that this yields; it replaces ``path`` when the block ends without an error.

    The mode and the owner of a file that is replaced are kept; a new file has those of any new file. A symbolic link
    is replaced, not followed, so that nothing outside its folder is written. The folder must exist.

    Args:
        path: The target.
        durable: Wait for the disk. Without, a power cut may cost the file; readers still never see half of it.

    Raises:
        OSError: The target cannot be written, or is a device, a pipe or a folder.
    """
    before = _status(path)
    if before is not None and not stat.S_ISREG(before.st_mode):
        code = errno.EISDIR if stat.S_ISDIR(before.st_mode) else errno.EINVAL
        raise OSError(code, "Is a directory" if code == errno.EISDIR else "Not a regular file", str(path))
    draft = _draft(path)
    try:
        draft.touch(exist_ok=False)
        mode = stat.S_IMODE((before or draft.stat()).st_mode)
        yield draft
        if before is not None and hasattr(os, "chown"):
            with suppress(OSError):  # only root may give a file away
                os.chown(draft, before.st_uid, before.st_gid)
        draft.chmod(mode)  # the caller may have created the draft again, with other permissions
        move(draft, path, durable=durable)
    except BaseException as error:
        with suppress(OSError):
            draft.unlink()
        if isinstance(error, OSError) and error.filename == str(draft):
            error.filename, error.filename2 = str(path), None
        raise


@contextmanager
def new_folder(path: Path, *, replace: bool = False, durable: bool = True) -> Iterator[Path]:
    """Write a folder: fill the draft that this yields; it becomes ``path`` when the block ends without an error.

    Args:
        path: The target: missing, or an empty folder.
        replace: Take the place of a folder with content too. That takes two renames: a process that is killed between
            them leaves the earlier folder beside the target, under a hidden name that ends in ``.old``.
        durable: Wait for the disk, file by file.

    Raises:
        OSError: The target cannot be written, is a file, or has content.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = _draft(path)
    try:
        draft.mkdir()
        yield draft
        old = draft.with_suffix(".old")
        if path.is_dir() and not path.is_symlink():
            if replace:
                draft.chmod(stat.S_IMODE(path.stat().st_mode))
                path.rename(old)
            else:
                path.rmdir()
        elif os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, "not a folder", str(path))
        try:
            move(draft, path, durable=durable)
        except OSError:
            if old.is_dir() and not path.exists():
                old.rename(path)
            raise
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def write(path: Path, content: str | bytes, *, durable: bool = True) -> None:
    """Write text (UTF-8; what cannot be encoded becomes ``?``) or bytes; see `new_file`."""
    with new_file(path, durable=durable) as draft:
        # File names may hold bytes that are not Unicode; one odd name must not cost the whole file.
        draft.write_bytes(content.encode("utf-8", "replace") if isinstance(content, str) else content)


def write_json(path: Path, value: object) -> None:
    """Write an indented JSON document; see `new_file`."""
    write(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def refused_as(kind: type[ABCRagError], what: str, remedy: str) -> Iterator[None]:
    """Turn what the system refuses within the block into an error of ours: ``WHAT (REASON); REMEDY``."""
    try:
        yield
    except OSError as error:
        raise kind(f"{what} ({error.strerror or error}); {remedy}") from error


def append(path: Path, content: bytes, *, at: int | None = None) -> None:
    """Add bytes to the end of a file, and wait until the disk has them.

    Args:
        path: The file; created if missing.
        content: What to add.
        at: Cut the file to this length first: everything behind it is what a killed run did not finish.

    Raises:
        OSError: The file cannot be written.
    """
    with path.open("r+b" if path.exists() else "w+b") as handle:
        if at is not None:
            handle.truncate(at)
        handle.seek(0, os.SEEK_END)
        handle.write(content)
        handle.flush()
        os.fsync(handle.fileno())


def move(draft: Path, path: Path, *, durable: bool = True) -> None:
    """Flush a finished file or folder to the disk and rename it to ``path``, in the same file system.

    Raises:
        OSError: The disk does not take it, or ``path`` cannot be replaced.
    """
    if durable:
        _flush(draft)
    draft.replace(path)
    if durable:
        _flush_folder(path.parent)


def is_draft(name: str) -> bool:
    """Whether a name is that of a draft."""
    return _DRAFT.fullmatch(name) is not None


def remove_drafts(folder: Path, *, older_than_s: float = 0.0) -> None:
    """Remove the drafts that killed processes left in a folder. Call it where nobody else writes, or with an age."""
    with suppress(OSError):
        for path in [path for path in folder.iterdir() if is_draft(path.name)]:
            with suppress(OSError):
                if time.time() - path.lstat().st_mtime >= older_than_s:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()


def _draft(path: Path) -> Path:
    # Random, as two processes may write one target; short, as the target's name may be as long as names can be.
    return path.with_name(f".abc-{secrets.token_hex(8)}.part")


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:  # missing, or a link to nothing
        return None


def _flush(path: Path) -> None:
    if path.is_symlink():
        return
    if path.is_dir():
        for inner in path.iterdir():
            _flush(inner)
        return _flush_folder(path)
    # Windows flushes only what is open for writing; elsewhere a file may be read-only.
    _fsync(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)


def _flush_folder(folder: Path) -> None:
    if os.name == "nt":  # folders cannot be opened there
        return
    try:
        _fsync(folder, os.O_RDONLY)
    except OSError as error:
        if error.errno not in _NO_FLUSH:
            raise


def _fsync(path: Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
