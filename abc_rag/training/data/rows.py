"""Rows of unvetted data sets: an unusable row is named, counted and left out, up to a limit."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from abc_rag.errors import DatasetError, ImageError, ImageFetchError, ImageFormatError, ImageLimitError, InputError

__all__ = ["BadRow", "BadRows", "Unusable", "checked_text", "problem_of", "require_rows", "text_of"]

_LOG = logging.getLogger(__name__)
_SHOWN = 5


@dataclass(frozen=True)
class BadRow:
    """A row that was left out.

    Attributes:
        where: Names the row: ``"captions.jsonl:17"``, ``"train[4711]"``.
        problem: The kind of problem, in the same words for all rows that have it: ``"missing image"``.
        detail: What is wrong with this row.
    """

    where: str
    problem: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.problem}" + (f" ({self.detail})" if self.detail else "")


class Unusable(Exception):
    """The reason why a row is left out; caught where rows are read."""

    def __init__(self, problem: str, detail: str = "") -> None:
        super().__init__(problem, detail)
        self.problem = problem
        self.detail = detail[:200]


_PROBLEMS = (
    (ImageLimitError, "picture exceeds a limit"),
    (ImageFormatError, "picture is broken"),
    (ImageFetchError, "picture cannot be read"),
    (ImageError, "picture cannot be used"),
)


def problem_of(error: InputError) -> str:
    """The kind of an input that cannot be embedded, for `BadRows.add`."""
    return next((problem for kind, problem in _PROBLEMS if isinstance(error, kind)), "cannot be embedded")


@dataclass
class BadRows:
    """Counts unusable rows, and raises when there are too many.

    Attributes:
        name: Name of the data set, for messages.
        limit: Maximum number of unusable rows; 0 raises at the first.
        rows: The first thousand unusable rows.
        count: Number of unusable rows.
        by_problem: Number of unusable rows by problem.
    """

    name: str
    limit: int = 100
    rows: list[BadRow] = field(default_factory=list)
    count: int = 0
    by_problem: Counter[str] = field(default_factory=Counter)

    def add(self, where: str, problem: str, detail: str = "") -> None:
        """Leave out a row.

        Raises:
            DatasetError: The limit is exceeded; the message has the counts and the first rows.
        """
        row = BadRow(where, problem, detail)
        self.count += 1
        self.by_problem[problem] += 1
        if len(self.rows) < 1000:
            self.rows.append(row)
        if self.count > self.limit:
            raise DatasetError(
                f"{self.name}: {self.summary()}; the limit is {self.limit}. "
                f"Correct the rows, or raise the limit. First: {'; '.join(map(str, self.rows[:_SHOWN]))}"
            )
        if self.count <= _SHOWN:
            _LOG.warning("left out: %s", row)

    @contextmanager
    def leaving_out(self, where: str) -> Iterator[None]:
        """Within it, a row that turns out `Unusable` is left out."""
        try:
            yield
        except Unusable as error:
            self.add(where, error.problem, error.detail)

    def summary(self) -> str:
        """``"3 unusable rows (2 missing image, 1 empty caption)"``."""
        kinds = ", ".join(f"{count} {problem}" for problem, count in self.by_problem.most_common())
        return f"{self.count} unusable row{'' if self.count == 1 else 's'}" + (f" ({kinds})" if kinds else "")

    def as_dict(self) -> dict[str, Any]:
        """The counts and the first hundred rows as plain values, for JSON."""
        return {
            "count": self.count,
            "by_problem": dict(self.by_problem.most_common()),
            "rows": [{"where": r.where, "problem": r.problem, "detail": r.detail} for r in self.rows[:100]],
        }


def text_of(raw: Mapping[str, Any], column: str) -> str:
    """The text of a column, without surrounding white space.

    Raises:
        Unusable: The column is missing or empty, or holds something else.
    """
    if raw.get(column) is None:
        raise Unusable(f"missing {column}", f"columns: {', '.join(sorted(raw)) or 'none'}")
    return checked_text(raw[column], column)


def checked_text(value: object, name: str) -> str:
    """A text without surrounding white space.

    Raises:
        Unusable: It is empty, or not text.
    """
    if not isinstance(value, str):
        raise Unusable("wrong type", f"{name} is {type(value).__name__}, not text")
    if not value.strip():
        raise Unusable(f"empty {name}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:  # JSON can hold half of a surrogate pair; tokenizers cannot read it
        raise Unusable("not text", f"{name}: {error.reason}") from error
    return value.strip()


def require_rows(rows: int, name: str, bad: BadRows, shape: str) -> None:
    """Refuse a data set without usable rows.

    Raises:
        DatasetError: There are none.
    """
    if rows == 0:
        why = f"{bad.summary()}; first: {bad.rows[0]}" if bad.count else "it is empty"
        raise DatasetError(f"{name}: no row can be used ({why}); each must be like {shape}")
