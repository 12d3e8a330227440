"""Finding the files to index, and telling by their content what they are."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple, cast

from pathspec import GitIgnoreSpec

from abc_rag.errors import InputError
from abc_rag.images.formats import format_of, kind_of_file
from abc_rag.ingest.documents.readers import head_and_tail, reader_of
from abc_rag.ingest.regular import open_regular
from abc_rag.ingest.report import IndexReport
from abc_rag.store.opening import marks_store
from abc_rag.types import Modality

__all__ = [
    "IGNORE_FILE",
    "IMAGE_SUFFIXES",
    "TEXT_SUFFIXES",
    "FileKind",
    "Found",
    "files_matching",
    "find_files",
    "kind_of_name",
]

IMAGE_SUFFIXES = frozenset(
    {
        *(".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".tif", ".tiff"),
        ".webp",
    }
)
"""Files with one of these names are pictures; one that is none is reported. Others are told by their first bytes."""
FileKind = Modality | Literal["document"]
"""What a file is."""
TEXT_SUFFIXES = frozenset({".md", ".txt"})
_TEXT_OR_DOCUMENT = frozenset({".md"})
IGNORE_FILE = ".abcignore"
"""Patterns of what to leave out of a folder and its sub-folders, in the syntax of ``.gitignore``."""

# What network storage, operating systems and recycle bins keep beside people's files; hidden ones are left out anyway.
_BY_MACHINES = frozenset(
    {
        *("@eadir", "@tmp", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", "$recycle.bin", "recycler"),
        *("system volume information", "lost+found", "__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini"),
    }
)
_WILDCARD = re.compile(r"[*?\[]")
_KEPT_COPY = re.compile(r"([0-9a-f]{2})/\1[0-9a-f]{62}\.[a-z]+")

_HIDDEN = "hidden"
_MACHINES = "thumbnails and recycle bins"
_EXCLUDED = "excluded"
_LINKS = "links that lead elsewhere"
_STORES = "stores and their copies"
_SPECIAL = "devices, pipes and sockets"
_UNREADABLE = "unreadable"


class Found(NamedTuple):
    """A file to index.

    Attributes:
        path: Absolute; without links, except that a linked file keeps its own name.
        kind: What it is; None for a file that was named by the caller and is of no kind that is indexed.
    """

    path: Path
    kind: FileKind | None


def find_files(
    paths: Iterable[str | os.PathLike[str]],
    report: IndexReport,
    *,
    exclude: Sequence[str] = (),
    follow_links: bool = False,
    noted: Callable[[str], str | None] = lambda _: None,
) -> list[Found]:
    """Every file to index, once each, in a fixed order.

    Args:
        paths: Files and folders.
        report: Receives folders that cannot be listed, and counts what was left out.
        exclude: Patterns of what to leave out, relative to each folder, in the syntax of ``.gitignore``.
        follow_links: Also read what links in the folders point to outside all of ``paths``.
        noted: What a file was that has not changed since (`abc_rag.ingest.notes.FileNotes.kind`); None where that is
            not known. Other files whose names do not tell are opened.

    Raises:
        InputError: ``paths`` or ``exclude`` is no list, a pattern is malformed, or a path does not exist.
    """
    for name, value in (("paths", paths), ("exclude", exclude)):
        if isinstance(value, (str, os.PathLike)):
            raise InputError(f"{name} must be a list; got a single {type(value).__name__}: pass [{name.rstrip('s')}]")
    given = [os.path.expanduser(path) for path in paths]
    for path in given:
        if not os.path.exists(path):
            raise InputError(f"{path}: no such file or folder")
    walk = _Walk([Path(os.path.realpath(path)) for path in given], exclude, follow_links, report, noted)
    found: dict[Path, FileKind | None] = {}
    for path in given:
        if os.path.isdir(path):
            found.update(walk.folder(Path(os.path.realpath(path))))
        else:
            # The folder without links, so that one file has one name; but its own name, which says what it is.
            real = Path(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
            found[real] = _kind_of(real, noted)
    return [Found(path, kind) for path, kind in found.items()]


def files_matching(pattern: str, *, exclude: Sequence[str] = (), follow_links: bool = False) -> list[Path]:
    """The files that a pattern such as ``photos/**/*.jpg`` names: ``*`` within a name, ``**`` across folders.

    Of the folder before the first wildcard, the same files are left out as by `find_files`. Where a folder matches, all
    files in it do.

    Args:
        pattern: With ``*``, ``?`` or ``[...]``; anything else matches nothing.
        exclude: Patterns of what to leave out, relative to that folder, in the syntax of ``.gitignore``.
        follow_links: Also follow links in the folder that lead out of it, to files.

    Raises:
        InputError: A pattern is malformed.
    """
    parts = Path(os.path.expanduser(pattern)).parts
    first = next((number for number, part in enumerate(parts) if _WILDCARD.search(part)), None)
    if first is None or not os.path.isdir(folder := os.path.realpath(Path(*parts[:first]))):
        return []
    root = Path(folder)
    wanted = _Rules(root, ["/" + "/".join(parts[first:])], None)
    walk = _Walk([root], exclude, follow_links, IndexReport(), lambda _: None)
    return [path for path, _ in walk.folder(root, wanted)]


def kind_of_name(path: str | os.PathLike[str]) -> Modality | None:
    """What a file's name says that it is, if it says so."""
    suffix = os.path.splitext(path)[1].lower()
    return "image" if suffix in IMAGE_SUFFIXES else "text" if suffix in TEXT_SUFFIXES else None


def _known_kind(path: Path, noted: Callable[[str], str | None]) -> FileKind | None:
    """What a file is, if its name or a note tells; of a text that may be a document, its structure does."""
    kind: str | None = kind_of_name(path)
    if kind is None or path.suffix.lower() in _TEXT_OR_DOCUMENT:
        kind = noted(str(path)) or (_text_or_document(path) if kind else None)
    return cast("FileKind", kind) if kind in ("text", "image", "document") else None


def _text_or_document(path: Path) -> FileKind:
    with suppress(OSError, InputError):
        reader = reader_of(*head_and_tail(path), path)
        if reader is not None and reader.missing() is None:
            return "document"
    return "text"


def _kind_of(path: Path, noted: Callable[[str], str | None]) -> FileKind | None:
    kind = _known_kind(path, noted)
    if kind is None:
        try:
            head, tail = head_and_tail(path)
        except (OSError, InputError):
            return None
        if format_of(head) is not None:
            return "image"
        kind = "document" if reader_of(head, tail, path) is not None else None
    return kind


class _Rules:
    """What a folder's ignore file and those above it leave out; the nearest one that says something decides."""

    def __init__(self, folder: Path, patterns: Iterable[str], above: _Rules | None) -> None:
        self._folder = folder
        self._above = above
        try:
            self._spec = GitIgnoreSpec.from_lines(patterns)
        except ValueError as error:
            raise InputError(f"a pattern is malformed ({error}); see the manual of gitignore") from error

    def matches(self, path: Path) -> bool:
        """Whether a pattern of this folder names a file, or a folder that it is in."""
        return bool(self._spec.match_file(path.relative_to(self._folder).as_posix()))

    def leave_out(self, path: Path, *, is_folder: bool) -> bool:
        name = path.relative_to(self._folder).as_posix() + ("/" if is_folder else "")
        said = self._spec.check_file(name).include
        if said is None:
            return self._above is not None and self._above.leave_out(path, is_folder=is_folder)
        return said


class _Walk:
    """Walks over folders; what it leaves out is counted, a folder as one."""

    def __init__(
        self,
        roots: Sequence[Path],
        exclude: Sequence[str],
        follow_links: bool,
        report: IndexReport,
        noted: Callable[[str], str | None],
    ) -> None:
        self._roots = roots
        self._exclude = exclude
        self._follow_links = follow_links
        self._report = report
        self._noted = noted
        self._seen: set[Path] = set()

    def folder(self, root: Path, wanted: _Rules | None = None) -> Iterator[tuple[Path, FileKind]]:
        """The files of a folder and its sub-folders, those of a folder first; only those ``wanted``, if given."""
        waiting: list[tuple[Path, _Rules]] = [(root, _Rules(root, self._exclude, None))]
        while waiting:
            folder, rules = waiting.pop()
            if folder in self._seen and folder != root:
                continue  # links may lead in circles
            self._seen.add(folder)
            try:
                with os.scandir(folder) as listed:
                    entries = sorted(listed, key=lambda entry: entry.name)
            except OSError as error:
                self._report.failed.append((str(folder), f"cannot be listed ({error.strerror})"))
                continue
            if any(marks_store(entry.name) for entry in entries):
                self._count(_STORES)
                continue
            ignore = folder / IGNORE_FILE
            if any(entry.name == IGNORE_FILE for entry in entries) and not self._leads_out(ignore):
                rules = _Rules(folder, self._patterns(ignore), rules)
            below = []
            for entry in entries:
                path, is_folder = folder / entry.name, entry.is_dir()
                if wanted is not None and not is_folder and not (root in path.parents and wanted.matches(path)):
                    continue
                target = Path(os.path.realpath(path)) if entry.is_symlink() else path
                kind: FileKind | None = None
                why = self._why_not(path, target, rules, is_folder=is_folder)
                if why is None and not is_folder:
                    kind, why = self._kind(path)
                if why is not None:
                    self._count(why)
                elif kind is not None:
                    yield path, kind
                elif is_folder and target not in self._seen:
                    # A linked folder has rules of its own: the patterns above are relative to another place.
                    below.append((target, rules if target == path else _Rules(target, self._exclude, None)))
            waiting += reversed(below)

    def _why_not(self, path: Path, target: Path, rules: _Rules, *, is_folder: bool) -> str | None:
        """Why a file or a folder is left out, whatever it holds."""
        if path.name == IGNORE_FILE:
            return _LINKS if self._leads_out(path) else ""
        if path.name.startswith("."):
            return _HIDDEN
        if path.name.lower() in _BY_MACHINES:
            return _MACHINES
        if target != path and self._leads_out(path):
            return _LINKS
        return _EXCLUDED if rules.leave_out(path, is_folder=is_folder) else None

    def _leads_out(self, path: Path) -> bool:
        """Whether a path is a link out of the given files and folders, and is not to be followed."""
        target = Path(os.path.realpath(path))
        return not self._follow_links and not any(root == target or root in target.parents for root in self._roots)

    def _kind(self, path: Path) -> tuple[FileKind | None, str | None]:
        """What a file is, or why it is left out."""
        if _KEPT_COPY.fullmatch("/".join(path.parts[-2:])):
            return None, _STORES
        kind = _known_kind(path, self._noted)
        if kind is not None:
            return kind, None
        try:
            head, tail = head_and_tail(path)
        except InputError:
            return None, _SPECIAL
        except OSError:
            return None, _UNREADABLE
        if format_of(head) is not None:
            return "image", None
        reader = reader_of(head, tail, path)
        if reader is None:
            return None, kind_of_file(head)
        if reader.missing() is not None:
            return None, f"{reader.name} (pip install 'abc-rag[{reader.extra}]')"
        return "document", None

    def _count(self, why: str) -> None:
        if why:  # the ignore file itself is nothing to tell of
            self._report.left_out[why] = self._report.left_out.get(why, 0) + 1

    def _patterns(self, file: Path) -> list[str]:
        try:
            with open(open_regular(file), encoding="utf-8") as opened:
                return opened.read(2**20).splitlines()
        except (OSError, InputError, UnicodeDecodeError) as error:
            raise InputError(f"{file}: cannot be read as patterns ({error}); correct or remove it") from error
