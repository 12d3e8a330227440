"""The errors of abc-rag. Every message says what was wrong, with which input, and what to do.

::

    ABCRagError
    ├── InputError (ValueError)          an argument or an input is unusable
    │   ├── PartialIndexError            some of many could not be stored, the others were
    │   ├── DatasetError                 a data set cannot be read, or too many of its rows are unusable
    │   └── ImageError                   a picture is; carries .source
    │       ├── ImageLimitError          it exceeds a limit (bytes, pixels, aspect ratio, frames)
    │       ├── ImageFormatError         it is corrupt, truncated or of a format that is not read
    │       └── ImageFetchError          it could not be read or fetched, or fetching is not allowed
    ├── CheckpointError                  model files are missing, misshapen or left over
    ├── StoreError                       the vector store refuses
    │   ├── FingerprintMismatchError     it holds another model's vectors
    │   └── StoreLockedError             another process is writing to it
    └── MissingExtraError (ImportError)  an optional dependency is not installed
"""

from __future__ import annotations

__all__ = [
    "ABCRagError",
    "CheckpointError",
    "DatasetError",
    "FingerprintMismatchError",
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


class ABCRagError(Exception):
    """Base of every error that abc-rag raises on purpose."""


class InputError(ABCRagError, ValueError):
    """An argument or an input cannot be used."""


class ImageError(InputError):
    """A picture cannot be used.

    Attributes:
        source: A short name of the picture: its path, its URL, or what kind of object it was.
    """

    def __init__(self, source: str, reason: str) -> None:
        super().__init__(f"{source}: {reason}")
        self.source = source
        self.reason = reason

    def __reduce__(self) -> tuple[type[ImageError], tuple[str, str]]:
        # Exceptions rebuild themselves from their message alone; this one has two arguments.
        return type(self), (self.source, self.reason)


class PartialIndexError(InputError):
    """Some of many inputs could not be stored. The others are.

    Attributes:
        ids: The id of each input that is stored now, by position; None where it is not.
        failed: (position, error) of each that is not.
    """

    def __init__(self, ids: list[str | None], failed: list[tuple[int, InputError]]) -> None:
        shown = "; ".join(f"input {position}: {error}" for position, error in failed[:3])
        more = f"; and {len(failed) - 3} more" if len(failed) > 3 else ""
        super().__init__(f"{len(failed)} of {len(ids)} could not be stored, the others are: {shown}{more}")
        self.ids = ids
        self.failed = failed

    def __reduce__(self) -> tuple[type[PartialIndexError], tuple[list[str | None], list[tuple[int, InputError]]]]:
        return type(self), (self.ids, self.failed)


class DatasetError(InputError):
    """A data set cannot be read, or more of its rows are unusable than its limit allows; the first ones are named."""


class ImageLimitError(ImageError):
    """A picture exceeds one of the limits in `abc_rag.images.ImageLimits`."""


class ImageFormatError(ImageError):
    """A picture is corrupt, truncated, or of a format that is not read."""


class ImageFetchError(ImageError):
    """A picture could not be read or fetched, or fetching it is not allowed."""


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
