"""Reports the progress of a run: a progress bar, JSON lines, TensorBoard."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from abc_rag.errors import MissingExtraError
from abc_rag.files import write

__all__ = ["RunLog"]


class RunLog:
    """The metrics of one run; a context manager. Only the main process writes.

    Args:
        folder: Receives ``metrics.jsonl`` and ``tensorboard/``.
        label: Label of the progress bar.
        steps: Total number of steps.
        first: Steps done before the run was resumed; later rows of the files are dropped.
        every: Steps between rows of the files.
        tensorboard: Write TensorBoard files.
        main: Whether this is the main process.
        say: Receives a line now and then if there is no terminal to show a bar on.
    """

    def __init__(
        self,
        folder: Path,
        *,
        label: str,
        steps: int,
        first: int,
        every: int,
        tensorboard: bool,
        main: bool,
        say: Callable[[str], None],
    ) -> None:
        self._path = folder / "metrics.jsonl"
        self._label, self._steps, self._first, self._every = label, steps, first, every
        self._main, self._say = main, say
        self._start = self._said = time.monotonic()
        self._mean: dict[str, float] = {}
        self._bar: Any = None
        self._writer: Any = None
        self._seconds = 0.0
        if not main:
            return
        self._drop_later_rows()
        if tensorboard:
            self._writer = _summary_writer(folder / "tensorboard", first)

    def _drop_later_rows(self) -> None:
        if not self._path.exists():
            return
        kept = []
        for line in self._path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except ValueError:  # the run was killed while it wrote this line
                continue
            if row["step"] <= self._first:
                kept.append(line + "\n")
                self._seconds = row["seconds"]
        write(self._path, "".join(kept))

    def __enter__(self) -> RunLog:
        if self._main and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[values]}"),
                console=Console(stderr=True),
            )
            self._bar.start()
            self._task = self._bar.add_task(self._label, total=self._steps, completed=self._first, values="")
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._writer is not None:
            self._writer.close()

    def __call__(self, step: int, values: dict[str, float]) -> None:
        """Log the values of ``step`` (from 1), by name; ``loss`` among them."""
        if not self._main:
            return
        now = time.monotonic()
        for name, value in values.items():
            self._mean[name] = 0.95 * self._mean.get(name, value) + 0.05 * value
        if step % self._every == 0 or step == self._steps:
            row = {"step": step, "seconds": round(self._seconds + now - self._start, 1)}
            with self._path.open("a", encoding="utf-8") as handle:
                handle.write(json.dumps(row | {n: float(f"{v:.7g}") for n, v in values.items()}) + "\n")
            for name, value in values.items():
                if self._writer is not None:
                    self._writer.add_scalar(name, value, step)
        shown = "  ".join(f"{n} {v:.3f}" for n, v in self._mean.items() if n != "lr")
        if self._bar is not None:
            self._bar.update(self._task, completed=step, values=shown)
        elif step == self._steps or now - self._said > 30 or step == self._first + 1:
            self._said = now
            left = (now - self._start) / (step - self._first) * (self._steps - step)
            self._say(f"{self._label} {step}/{self._steps}  {left:.0f} s left  {shown}")


def _summary_writer(folder: Path, first: int) -> Any:  # noqa: ANN401  (tensorboard has no types)
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingExtraError(
            "TensorBoard files need tensorboard: pip install 'abc-rag[train]', or set tensorboard=false"
        ) from error
    return SummaryWriter(str(folder), purge_step=first + 1 if first else None)
