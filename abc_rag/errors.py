"""The errors of abc-rag. Every message says what was wrong, with which input, and what to do.

::

    ABCRagError
    ├── InputError (ValueError)          an argument or an input is unusable
    │   ├── ContextError                 a conversation is longer than the model reads
    │   ├── PartialIndexError            some of many could not be stored, the others were
    │   ├── DocumentError                a document cannot be read; carries .source
    │   ├── DatasetError                 a data set cannot be read, or too many of its rows are unusable
    │   └── ImageError                   a picture is; carries .source
    │       ├── ImageLimitError          it exceeds a limit (bytes, pixels, aspect ratio, frames)
    │       ├── ImageFormatError         it is corrupt, truncated or of a format that is not read
    │       └── ImageFetchError          it could not be read or fetched, or fetching is not allowed
    ├── GenerationError                  a model's answer was cut off, or cannot be what was asked for
    ├── CheckpointError                  model files are missing, misshapen or left over
    ├── StoreError                       the vector store refuses
    │   ├── FingerprintMismatchError     it holds another model's vectors
    │   └── StoreLockedError             another process is writing to it
    └── MissingExtraError (ImportError)  an optional dependency is not installed
"""

from __future__ import annotations

import copy
from typing import TypeVar

__all__ = [
    "ABCRagError",
    "CheckpointError",
    "ContextError",
    "DatasetError",
    "DocumentError",
    "FingerprintMismatchError",
    "GenerationError",
    "ImageError",
    "ImageFetchError",
    "ImageFormatError",
    "ImageLimitError",
    "InputError",
    "MissingExtraError",
    "PartialIndexError",
    "StoreError",
    "StoreLockedError",
]


E = TypeVar("E", bound="ABCRagError")


class ABCRagError(Exception):
    """Base of every error that abc-rag raises on purpose.

    Attributes:
        position: Which of the caller's inputs the error is about, counted from 0; None where it is about no single one.
            The message begins with it, but for pictures, which it names.
    """

    position: int | None = None

    def at(self: E, position: int | None) -> E:
        """A copy about the input at that position of the caller's own list; with None, about no position."""
        made = copy.copy(self)
        made.position, made.__cause__ = position, self.__cause__
        return made

    def __str__(self) -> str:
        message = super().__str__()
        return message if self.position is None else f"input {self.position}: {message}"


class InputError(ABCRagError, ValueError):
    """An argument or an input cannot be used."""


class ContextError(InputError):
    """A conversation, with its pictures, is longer than the model reads."""


class ImageError(InputError):
    """A picture cannot be used.

    Attributes:
        source: A short name of the picture: its path, its URL, or what kind of object it was.
        reason: What is wrong with it.
    """

    def __init__(self, source: str, reason: str) -> None:
        super().__init__(f"{source}: {reason}")
        self.source = source
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.source}: {self.reason}"

    def __reduce__(self) -> tuple[type[ImageError], tuple[str, str], dict[str, int | None]]:
        # Exceptions rebuild themselves from their message alone; this one has two arguments.
        return type(self), (self.source, self.reason), {"position": self.position}


class PartialIndexError(InputError):
    """Some inputs could not be stored; all others are.

    Attributes:
        ids: The id of each input by position; None where it is not stored.
        failed: (position, error) of each input that is not stored.
    """

    def __init__(self, ids: list[str | None], failed: list[tuple[int, InputError]]) -> None:
        shown = "; ".join(f"input {position}: {error.at(None)}" for position, error in failed[:3])
        more = f"; and {len(failed) - 3} more" if len(failed) > 3 else ""
        super().__init__(f"{len(failed)} of {len(ids)} could not be stored, the others are: {shown}{more}")
        self.ids = ids
        self.failed = failed

    def __reduce__(self) -> tuple[type[PartialIndexError], tuple[list[str | None], list[tuple[int, InputError]]]]:
        return type(self), (self.ids, self.failed)


class DocumentError(InputError):
    """A document, such as a PDF, cannot be read.

    Attributes:
        source: Its path.
        reason: What is wrong with it.
    """

    def __init__(self, source: str, reason: str) -> None:
        super().__init__(f"{source}: {reason}")
        self.source = source
        self.reason = reason

    def __reduce__(self) -> tuple[type[DocumentError], tuple[str, str], dict[str, int | None]]:
        return type(self), (self.source, self.reason), {"position": self.position}


class DatasetError(InputError):
    """A data set cannot be read, or more of its rows are unusable than its limit allows; the first ones are named."""


class ImageLimitError(ImageError):
    """A picture exceeds one of the limits in `abc_rag.images.ImageLimits`."""


class ImageFormatError(ImageError):
    """A picture is corrupt, truncated, or of a format that is not read."""


class ImageFetchError(ImageError):
    """A picture could not be read or fetched, or fetching it is not allowed."""


class GenerationError(ABCRagError):
    """A model's answer was cut off before it was complete, or cannot be what was asked for."""


class CheckpointError(ABCRagError):
    """A checkpoint is missing, incomplete, or does not fit its configuration."""


class StoreError(ABCRagError):
    """The vector store cannot do what was asked."""


class FingerprintMismatchError(StoreError):
    """A collection holds vectors of another model, revision or resolution."""


class StoreLockedError(StoreError):
    """Another process is writing to the embedded store."""


class MissingExtraError(ABCRagError, ImportError):
    """An optional dependency is not installed; the message names the command that installs it."""

    @classmethod
    def for_module(cls, error: ModuleNotFoundError, what: str, *, extra: str) -> ImportError:
        """The error to raise where ``what`` cannot be imported, which names the extra to install.

        A missing module of our own is a broken installation, which no extra mends: that error comes back as it is.
        """
        name = error.name or ""
        if not name or name.startswith(("abc_rag", "langchain_abc")) or ".abc" in name:
            return error
        return cls(f"{what} needs {error.name}, which is not installed: pip install 'abc-rag[{extra}]'")
