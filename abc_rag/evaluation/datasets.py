"""Data sets for evaluations: unvetted JSON lines and folders, read row by row.

The name of a picture is always a path, absolute or relative to the folder of the file. A row may have an ``"id"``,
which must be unique; other columns are ignored.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from abc_rag.errors import DatasetError
from abc_rag.training.data.lines import read_jsonl
from abc_rag.training.data.rows import BadRows, Unusable, checked_text, require_rows, text_of
from abc_rag.types import ImageSource

__all__ = [
    "InstructedRow",
    "LabelledRow",
    "QuestionRow",
    "check_limit",
    "existing",
    "find_image",
    "first_rows",
    "read_instructed",
    "read_labelled",
    "read_labels",
    "read_questions",
    "sample",
    "texts_of",
    "usable",
]

_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
_SEED = 20_263
Row = TypeVar("Row")


@dataclass(frozen=True)
class InstructedRow:
    """A picture with its instructions.

    Attributes:
        name: Name of the picture.
        image: The picture.
        pairs: (instruction, phrase that answers it); instructions are distinct.
        aspects: Instruction -> aspect, for those of which the file says it.
    """

    name: str
    image: ImageSource
    pairs: tuple[tuple[str, str], ...]
    aspects: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class LabelledRow:
    """A picture, its name and its label."""

    name: str
    image: ImageSource
    label: str


@dataclass(frozen=True)
class QuestionRow:
    """A picture, a question about it, and answers.

    Attributes:
        name: Name of the picture.
        image: The picture.
        question: The question.
        answer: The right answer.
        candidates: All answers to choose from, the right one included; None if every answer of the file is one.
    """

    name: str
    image: ImageSource
    question: str
    answer: str
    candidates: tuple[str, ...] | None


# --- What all formats share -------------------------------------------------------------------------------


def existing(data: str | os.PathLike[str], what: str, *, is_file: bool = False) -> Path:
    """The path of a file or folder.

    Raises:
        DatasetError: It does not exist, or is a folder although ``is_file`` is set.
    """
    path = Path(os.path.expanduser(data))
    if not path.exists():
        raise DatasetError(f"{path}: no such file or folder; give {what}")
    if is_file and path.is_dir():
        raise DatasetError(f"{path}: is a folder; give {what}")
    return path


def usable(path: Path, bad: BadRows, parse: Callable[[dict[str, Any]], Row]) -> Iterator[tuple[str, Row]]:
    """Yield (where, row) of each line that ``parse`` accepts and whose id is new; other lines are counted.

    Raises:
        DatasetError: The file cannot be read, or too many rows are unusable.
    """
    seen: set[str] = set()
    for where, raw in read_jsonl(path, bad):
        with bad.leaving_out(where):
            key = None if raw.get("id") is None else json.dumps(raw["id"], sort_keys=True)
            if key in seen:
                raise Unusable("duplicate id", str(key)[:200])
            row = parse(raw)
            if key is not None:
                seen.add(key)
            yield where, row


def first_rows(rows: Sequence[Row], limit: int | None, path: Path, bad: BadRows, columns: str) -> list[Row]:
    """The first ``limit`` rows, or all.

    Raises:
        DatasetError: There are none, or the limit is not positive.
    """
    check_limit(limit)
    require_rows(len(rows), str(path), bad, columns)
    return list(rows[:limit])


def check_limit(limit: int | None) -> None:
    """Refuse a limit below 1.

    Raises:
        DatasetError: It is.
    """
    if limit is not None and limit < 1:
        raise DatasetError(f"limit must be at least 1, not {limit}")


def texts_of(raw: Mapping[str, Any], name: str, dropped: list[Unusable] | None = None) -> tuple[str, ...]:
    """A column's list of texts, without repetitions. Unusable ones go to ``dropped``; without it, they cost the row."""
    values = raw.get(name)
    if not isinstance(values, list):
        raise Unusable(f"{name} is not a list", type(values).__name__)
    found: dict[str, None] = {}
    for value in values:
        try:
            found[checked_text(value, name)] = None
        except Unusable as error:
            if dropped is None:
                raise
            dropped.append(error)
    return tuple(found)


def find_image(raw: Mapping[str, Any], folder: Path) -> Path:
    """The picture file of a row."""
    name = text_of(raw, "image")
    path = folder / name
    try:
        if path.is_file():
            return path
    except (OSError, ValueError):  # a name too long, a null byte
        pass
    raise Unusable("missing image", name[:200])


# --- Instructions (CtrlBench) -----------------------------------------------------------------------------


def read_instructed(path: Path, bad: BadRows, *, limit: int | None = None) -> list[InstructedRow]:
    """Rows ``{"image": ..., "pairs": [{"instruction": ..., "phrase": ...}, ...]}``; ``"caption"`` does too.

    A pair may name its ``"aspect"``. Rows with the same picture are joined. An unusable pair is left out; the others of
    its row are used.

    Raises:
        DatasetError: The file cannot be read, has no usable row, or too many unusable ones.
    """
    joined: dict[Path, tuple[str, dict[str, str]]] = {}
    aspects: dict[Path, dict[str, str]] = {}
    for where, (name, image, pairs) in usable(path, bad, partial(_instructed, path.parent)):
        known = joined.setdefault(image, (name, {}))[1]
        for number, raw in enumerate(pairs, 1):
            with bad.leaving_out(f"{where}, pair {number}"):
                instruction, phrase = _pair(raw, known)
                known[instruction] = phrase
                if isinstance(raw.get("aspect"), str) and raw["aspect"].strip():
                    aspects.setdefault(image, {})[instruction] = raw["aspect"].strip()
    rows = [
        InstructedRow(name, str(image), tuple(pairs.items()), aspects.get(image, {}))
        for image, (name, pairs) in joined.items()
        if pairs
    ]
    columns = '{"image": "a.jpg", "pairs": [{"instruction": "the dog", "phrase": "a brown dog"}, ...]}'
    return first_rows(rows, limit, path, bad, columns)


def _instructed(folder: Path, raw: dict[str, Any]) -> tuple[str, Path, list[Any]]:
    pairs = raw.get("pairs")
    if not isinstance(pairs, list):
        raise Unusable(
            "missing pairs" if pairs is None else "pairs is not a list", f"columns: {', '.join(sorted(raw))}"[:200]
        )
    if not pairs:
        raise Unusable("empty pairs")
    return text_of(raw, "image"), find_image(raw, folder), pairs


def _pair(raw: object, known: Mapping[str, str]) -> tuple[str, str]:
    if not isinstance(raw, dict):
        raise Unusable("pair is not a JSON object", type(raw).__name__)
    if "phrase" in raw and "caption" in raw:
        raise Unusable("mixed columns", "phrase and caption in one pair")
    instruction = text_of(raw, "instruction")
    phrase = text_of(raw, "caption" if "caption" in raw else "phrase")
    if instruction in known:
        raise Unusable("instruction asked twice of a picture", instruction[:200])
    return instruction, phrase


# --- Labels -----------------------------------------------------------------------------------------------


def read_labelled(path: Path, bad: BadRows) -> list[LabelledRow]:
    """Rows ``{"image": ..., "label": ...}``, or a folder with a subfolder of pictures for each label.

    Raises:
        DatasetError: The data cannot be read, have no usable row, or too many unusable ones.
    """
    if path.is_dir():
        return first_rows(_by_folder(path), None, path, bad, "LABEL/PICTURE.jpg")
    seen: dict[Path, str] = {}

    def parse(raw: dict[str, Any]) -> LabelledRow:
        image, label = find_image(raw, path.parent), text_of(raw, "label")
        if image in seen:
            raise Unusable("duplicate image" if seen[image] == label else "two labels for an image", raw["image"][:200])
        seen[image] = label
        return LabelledRow(raw["image"], str(image), label)

    rows = [row for _, row in usable(path, bad, parse)]
    return first_rows(rows, None, path, bad, '{"image": "a.jpg", "label": "dog"}')


def sample(rows: Sequence[Row], limit: int | None) -> list[Row]:
    """``limit`` random rows, always the same, in order: the first rows of a folder would all have one label."""
    if limit is None or limit >= len(rows):
        return list(rows)
    return [rows[position] for position in sorted(random.Random(_SEED).sample(range(len(rows)), limit))]


def _by_folder(path: Path) -> list[LabelledRow]:
    try:
        folders = sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
        return [
            LabelledRow(f"{folder.name}/{file.name}", str(file), folder.name)
            for folder in folders
            for file in sorted(folder.iterdir())
            if file.suffix.lower() in _SUFFIXES and file.is_file()
        ]
    except OSError as error:
        raise DatasetError(f"{error.filename or path}: cannot be read ({error.strerror or error})") from error


def read_labels(path: Path) -> dict[str, str]:
    """Label -> words, from a JSON object, a JSON list, or a text file with one label per line.

    Raises:
        DatasetError: The file cannot be read, is none of these, or has an empty or a repeated label.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    try:
        value = json.loads(text) if text.lstrip()[:1] in ("{", "[") else text.splitlines()
    except ValueError as error:
        raise DatasetError(
            f"{path}: begins like JSON but is not ({error}); correct it, or write one label per line"
        ) from error
    try:
        if isinstance(value, dict):
            words = {name.strip(): checked_text(one, "words for a label") for name, one in value.items()}
        else:
            listed = [checked_text(one, "label") for one in value if not isinstance(one, str) or one.strip()]
            words = {one: one for one in listed}
            if len(words) < len(listed):
                repeated = next(one for one in listed if listed.count(one) > 1)
                raise Unusable("a label occurs twice", repeated[:200])
    except Unusable as error:
        raise DatasetError(f"{path}: {error.problem} ({error.detail}); give each label once, as text") from error
    if not words:
        raise DatasetError(f"{path}: has no labels; write one per line")
    return words


# --- Questions --------------------------------------------------------------------------------------------


def read_questions(path: Path, bad: BadRows, *, limit: int | None = None) -> list[QuestionRow]:
    """Rows ``{"image": ..., "question": ..., "answer": ...}``, all with or all without ``"candidates": [...]``.

    Raises:
        DatasetError: The file cannot be read, has no usable row, or too many unusable ones.
    """
    shared: bool | None = None

    def parse(raw: dict[str, Any]) -> QuestionRow:
        nonlocal shared
        image, question, answer = find_image(raw, path.parent), text_of(raw, "question"), text_of(raw, "answer")
        own = raw.get("candidates") is not None
        if shared is not None and own == shared:
            raise Unusable("mixed columns", f"{'with' if own else 'without'} candidates, unlike the rows before")
        candidates = tuple(dict.fromkeys((answer, *texts_of(raw, "candidates")))) if own else None
        if candidates is not None and len(candidates) < 2:
            raise Unusable("no wrong candidate")
        shared = not own
        return QuestionRow(raw["image"], str(image), question, answer, candidates)

    rows = [row for _, row in usable(path, bad, parse)]
    return first_rows(
        rows, limit, path, bad, '{"image": "a.jpg", "question": "...", "answer": "...", "candidates": [...]}'
    )
