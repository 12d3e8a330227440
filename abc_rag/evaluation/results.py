"""What every evaluation returns: its figures, and what is needed to understand and to repeat them."""

from __future__ import annotations

import hashlib
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from abc_rag.embedding.embedder import Embedder
from abc_rag.errors import InputError
from abc_rag.evaluation.vectors import compute_of
from abc_rag.files import refused_as
from abc_rag.images.read import describe_source
from abc_rag.types import ImageSource

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Cell", "Mistake", "Plot", "ResultTable", "Results", "as_text", "left_out", "settings"]

Cell = str | float | int | None


@dataclass(frozen=True)
class Mistake:
    """A query that was answered wrongly, for the page.

    Attributes:
        query: The instruction, question or caption; empty for a picture alone.
        expected: The right answer: a text, or the name of a picture.
        found: The wrong answer that scored highest.
        image: The query's picture.
        expected_image: The picture of the right answer, if it has one.
        found_image: The picture of the wrong answer, if it has one.
        score: Cosine of the wrong answer.
        expected_score: Cosine of the right answer.
        rank: Rank of the right answer; 1 is first.
    """

    query: str
    expected: str
    found: str
    image: ImageSource | None = None
    expected_image: ImageSource | None = None
    found_image: ImageSource | None = None
    score: float | None = None
    expected_score: float | None = None
    rank: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """The mistake as plain values, for JSON; pictures by name."""
        pictures = ("image", "expected_image", "found_image")
        rest = {name: value for name, value in self.__dict__.items() if name not in pictures}
        shown = ((name, getattr(self, name)) for name in pictures)
        return rest | {name: None if source is None else describe_source(source) for name, source in shown}


@dataclass(frozen=True)
class Plot:
    """A plot for the page.

    Attributes:
        title: Shown above the plot.
        kind: ``"bars"`` or ``"lines"``.
        labels: Labels of the x axis.
        series: Name -> one value per label; NaN leaves a gap.
        unit: Unit of the values.
    """

    title: str
    kind: Literal["bars", "lines"]
    labels: Sequence[str]
    series: Mapping[str, Sequence[float]]
    unit: str = "%"


@dataclass(frozen=True)
class ResultTable:
    """A table for the terminal and the page. Floats are shown with one decimal, None is an empty cell."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Results:
    """What an evaluation found.

    Attributes:
        benchmark: Name of the benchmark, such as ``"ctrlbench"``.
        model: The model's fingerprint.
        metrics: Name -> figure; shares are in [0, 1].
        settings: Everything needed to repeat the evaluation; see `settings`.
        tables: For the terminal and the page.
        plots: For the page.
        mistakes: The worst mistakes first.
        bad: Rows and inputs that were left out; see `BadRows.as_dict`.
        notes: Remarks for the reader.
        details: Figures of single items, for programs.
    """

    benchmark: str
    model: str
    metrics: Mapping[str, float]
    settings: Mapping[str, Any]
    tables: Sequence[ResultTable]
    plots: Sequence[Plot] = ()
    mistakes: Sequence[Mistake] = ()
    bad: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    details: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The results as plain values, for JSON; NaN and infinity become None."""
        whole = {
            "benchmark": self.benchmark,
            "model": self.model,
            "metrics": self.metrics,
            "settings": self.settings,
            "tables": [table.__dict__ for table in self.tables],
            "plots": [plot.__dict__ for plot in self.plots],
            "mistakes": [mistake.as_dict() for mistake in self.mistakes],
            "bad": self.bad,
            "notes": self.notes,
            "details": self.details,
        }
        plain: dict[str, Any] = _plain(whole)
        return plain

    def show(self, console: Console) -> None:
        """Print the tables, the notes, and what was left out."""
        from rich.markup import escape
        from rich.table import Table

        for table in self.tables:
            console.print(f"[bold]{escape(table.title)}[/bold]")  # as a table's title, Rich would fold it
            shown = Table()
            for number, column in enumerate(table.columns):
                shown.add_column(escape(column), justify="left" if number == 0 else "right", overflow="fold")
            for row in table.rows:
                shown.add_row(*(escape(as_text(cell)) for cell in row))
            console.print(shown)
        for line in (*self.notes, *([left_out(self.bad)] if self.bad.get("count") else [])):
            console.print(f"[dim]{escape(line)}[/dim]")


def settings(embedder: Embedder | None, **given: Any) -> dict[str, Any]:  # noqa: ANN401
    """Everything needed to repeat an evaluation.

    Args:
        embedder: The model that was measured; None for one that does not embed.
        given: The evaluation's own arguments. The path of a file is recorded with the file's SHA-256.

    Returns:
        The arguments, the model's fingerprint, device and number format, and the versions of the libraries.
    """
    import torch
    import transformers

    from abc_rag import __version__

    model: dict[str, Any] = {}
    if embedder is not None:
        device, dtype = compute_of(embedder)
        model = {"model": dict(embedder.fingerprint.__dict__), "device": device, "dtype": dtype}
    return {
        "arguments": {name: _recorded(value) for name, value in given.items()},
        **model,
        "versions": {
            "abc-rag": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "numpy": np.__version__,
        },
    }


def as_text(cell: Cell) -> str:
    """A cell as text: one decimal for floats, nothing for None and NaN."""
    if cell is None or (isinstance(cell, float) and not math.isfinite(cell)):
        return ""
    return f"{cell:.1f}" if isinstance(cell, float) else str(cell)


def left_out(bad: Mapping[str, Any]) -> str:
    """One line about what was left out."""
    kinds = ", ".join(f"{count} {problem}" for problem, count in bad.get("by_problem", {}).items())
    return f"left out: {bad['count']}" + (f" ({kinds})" if kinds else "")


def _recorded(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, Path):
        return {"path": str(value), "sha256": _sha256(value)} if value.is_file() else {"path": str(value)}
    return value


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with refused_as(InputError, f"{file}: cannot be read", "check the path"), file.open("rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _plain(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(one) for one in value]
    return value if value is None or isinstance(value, (str, int, bool)) else str(value)
