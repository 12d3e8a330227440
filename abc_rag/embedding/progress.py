"""A progress bar with rate and time left, on standard error, or nothing at all."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

__all__ = ["Progress", "progress_bar"]


class Progress(Protocol):
    """A progress bar."""

    def advance(self, count: int = 1) -> None:
        """Count items as done."""


class _Silent:
    def advance(self, count: int = 1) -> None:
        """Show nothing."""


@contextmanager
def progress_bar(label: str, *, total: int | None, enabled: bool) -> Iterator[Progress]:
    """Show a bar while the block runs.

    Args:
        label: The text beside the bar.
        total: Number of items; None if it is unknown.
        enabled: If false, nothing is shown. Neither is it if standard error is no terminal.
    """
    if not enabled or not sys.stderr.isatty():
        yield _Silent()
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        ProgressColumn,
        Task,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as RichProgress
    from rich.text import Text as RichText

    class Rate(ProgressColumn):
        def render(self, task: Task) -> RichText:
            return RichText(f"{task.speed or 0:.1f}/s")

    bar = RichProgress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    with bar:
        task = bar.add_task(label, total=total)

        class Shown:
            def advance(self, count: int = 1) -> None:
                bar.advance(task, count)

        yield Shown()
