"""A process that reads documents: bytes in, parts out. `abc_rag.ingest.documents.process` starts it.

It needs no file, no address and no program, so all are refused once the reader's libraries are loaded: by an audit hook
for what runs in Python, and by limits of the operating system on memory and on the size of what is written.
"""

from __future__ import annotations

import importlib
import mimetypes
import mmap
import os
import sys
from contextlib import suppress
from typing import Any

from abc_rag.embedding.engine.worker import answering, read_exactly, write_message
from abc_rag.errors import InputError
from abc_rag.ingest.documents.ocr import ocr_engine, recognised
from abc_rag.ingest.documents.options import DocumentLimits, DocumentOptions
from abc_rag.ingest.documents.parts import part_as_json
from abc_rag.ingest.documents.reader import Reader
from abc_rag.ingest.documents.readers import reader_named

__all__ = ["main"]

_REFUSED = (
    *("socket.", "subprocess.", "os.system", "os.exec", "os.fork", "os.spawn", "os.posix_spawn", "os.kill", "pty."),
    *("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.truncate", "shutil."),
    *("ftplib.", "smtplib.", "urllib.", "http.", "webbrowser.", "os.putenv"),
)


def _guard() -> None:
    """Refuse files, addresses and programs from here on."""
    places = [os.path.realpath(place) for place in (*sys.path, sys.prefix, sys.base_prefix) if place]
    files = {os.path.realpath(file) for file in mimetypes.knownfiles}

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith(_REFUSED):
            raise PermissionError(f"documents are read without {event}")
        # Modules are still imported, from where they are installed: their folders are listed, their files read.
        if event in ("open", "os.listdir", "os.scandir"):
            path, mode, flags = (*arguments, None, None)[:3]
            path = "." if path is None else path
            if isinstance(path, int):
                return
            writes = any(letter in str(mode or "") for letter in "wax+") or int(flags or 0) & (
                os.O_WRONLY | os.O_RDWR | os.O_CREAT
            )
            real = os.path.realpath(os.fsdecode(path))
            inside = real in files or any(os.path.commonpath((place, real)) == place for place in places)
            if writes or not inside:
                raise PermissionError(f"documents are read without {event} of {real}")

    for name in _REFUSED:
        importlib.import_module(name.partition(".")[0])
    sys.addaudithook(hook)


class _Memory:
    """The address space of this process; the file that tells it is opened before files are refused."""

    def __init__(self) -> None:
        self._status = None
        with suppress(OSError):
            self._status = open("/proc/self/statm", "rb", buffering=0)

    def now(self) -> int:
        """Bytes; 0 where the system does not tell."""
        if self._status is None:
            return 0
        self._status.seek(0)
        return int(self._status.read().split()[0]) * mmap.PAGESIZE


def _limit(limits: DocumentLimits, now: int) -> None:
    """Limit what a document may take, beyond what this process has.

    Args:
        limits: Of this document.
        now: Bytes that the process has.
    """
    with suppress(ImportError, OSError, ValueError):  # not every system has them
        import resource

        for what, most in (
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_FSIZE, 0),
            (resource.RLIMIT_AS, now + limits.max_memory),
        ):
            hard = resource.getrlimit(what)[1]
            fits = most if hard == resource.RLIM_INFINITY else min(most, hard)
            resource.setrlimit(what, (fits, hard))  # the hard one stays, so that the next document gets its own


def _answer(reader: Reader, data: bytes, options: DocumentOptions, start: int, out: Any) -> dict[str, Any]:  # noqa: ANN401
    """Write the parts of a document; what is left to say at its end, empty where all went well."""
    try:
        parts = reader.parts(data, options, start)
        for part in recognised(parts, options.limits.max_pixels) if options.ocr else parts:
            if isinstance(part, int):
                write_message(out, {"page": part})
            else:
                write_message(out, *part_as_json(part))
    except InputError as error:
        return {"refused": str(error)}
    except MemoryError:
        return {"memory": True}
    except RecursionError:
        return {"error": "is nested too deeply; save it anew"}
    except BrokenPipeError:
        raise
    except Exception as error:
        return {"error": f"cannot be read ({type(error).__name__}: {error}); save it anew"}
    return {}


def main() -> None:
    """Read documents until the other side closes the pipe."""
    memory = _Memory()
    start = 0
    with answering() as (source, out), suppress(EOFError, BrokenPipeError):
        while True:
            header, data = read_exactly(source)
            told = header["options"]
            options = DocumentOptions(**{**told, "limits": DocumentLimits(**told["limits"])})
            reader = reader_named(header["reader"])
            for name in reader.modules:
                importlib.import_module(name)
            if options.ocr:
                ocr_engine()
            if not start:
                start = max(1, memory.now())
                _guard()
            _limit(options.limits, memory.now())
            answer = _answer(reader, bytes(data), options, header["start"], out)
            del data
            # What one document leaves behind must not be missing to the next one.
            again = memory.now() - start < options.limits.max_memory // 2
            write_message(out, answer or {"end": True, "again": again})
