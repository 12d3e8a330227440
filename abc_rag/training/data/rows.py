"""Rows of data sets that nobody vetted: read one by one; a bad one is named, counted and left out, up to a limit."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from abc_rag.errors import DatasetError, ImageError, ImageFetchError, ImageFormatError, ImageLimitError, InputError

__all__ = ["BadRow", "BadRows", "Unusable", "problem_of", "read_jsonl"]

_LOG = logging.getLogger(__name__)
_SHOWN = 5
_ENOUGH = 5  # lines in a row from the start that are no JSON, after which the file is taken for another kind


@dataclass(frozen=True)
class BadRow:
    """A row that was left out.

    Attributes:
        where: Which: ``"captions.jsonl:17"``, ``"train[4711]"``.
        problem: The kind, the same words for all rows with it: ``"missing image"``, ``"empty caption"``, ...
        detail: What this row has.
    """

    where: str
    problem: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.problem}" + (f" ({self.detail})" if self.detail else "")


class Unusable(Exception):
    """Why a row is left out. Caught where rows are read."""

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
    """Counts what is left out, and stops when it is too much.

    Attributes:
        name: The data set, for messages.
        limit: Most bad rows before `DatasetError`; 0 stops at the first.
        rows: The first thousand that were left out.
        count: How many were left out.
    """

    name: str
    limit: int = 100
    rows: list[BadRow] = field(default_factory=list)
    count: int = 0
    by_problem: Counter[str] = field(default_factory=Counter)

    def add(self, where: str, problem: str, detail: str = "") -> None:
        """Leave a row out.

        Raises:
            DatasetError: It is one more than the limit; the message names the first ones and the counts.
        """
        row = BadRow(where, problem, detail)
        self.count += 1
        self.by_problem[problem] += 1
        if len(self.rows) < 1000:
            self.rows.append(row)
        if self.count > self.limit:
            raise DatasetError(
                f"{self.name}: {self.summary()}; the limit is {self.limit}. "
                f"Mend the rows, or raise the limit. First: {'; '.join(map(str, self.rows[:_SHOWN]))}"
            )
        if self.count <= _SHOWN:
            _LOG.warning("left out: %s", row)

    def summary(self) -> str:
        """``"3 unusable rows (2 missing image, 1 empty caption)"``."""
        kinds = ", ".join(f"{count} {problem}" for problem, count in self.by_problem.most_common())
        return f"{self.count} unusable row{'' if self.count == 1 else 's'}" + (f" ({kinds})" if kinds else "")

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the count, the counts by problem, and the first rows."""
        return {
            "count": self.count,
            "by_problem": dict(self.by_problem.most_common()),
            "rows": [{"where": r.where, "problem": r.problem, "detail": r.detail} for r in self.rows[:100]],
        }


def read_jsonl(path: Path, bad: BadRows) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (where, object) for each line that is a JSON object; other lines are bad rows. Blank lines are skipped.

    Raises:
        DatasetError: The file cannot be read, or too many lines are no JSON objects.
    """
    wrong = 0
    try:
        with path.open("rb") as handle:
            for number, line in enumerate(handle, 1):
                if not line.strip():
                    continue
                where = f"{path.name}:{number}"
                try:
                    value = json.loads(line)
                except ValueError as error:  # a UnicodeDecodeError is one too
                    wrong += 1
                    bad.add(where, "not JSON", str(error))
                    if wrong == number == _ENOUGH:
                        raise DatasetError(
                            f"{path}: is not in JSON lines, as none of its first {_ENOUGH} lines is JSON ({error}); "
                            "give one object a line"
                        ) from error
                    continue
                if not isinstance(value, dict):
                    bad.add(where, "not a JSON object", type(value).__name__)
                    continue
                yield where, value
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror or error})") from error
