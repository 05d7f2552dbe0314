"""Progress on stderr: a bar on a terminal, plain lines now and then elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING, Final

import click

from imgprep.stats import Progress

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

_EVERY_SECONDS: Final = 10.0
_RATE_SECONDS: Final = 0.2


class BarProgress:
    """A bar with count, rate and time left."""

    def __init__(self) -> None:
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None
        self._rated_at = 0.0

    def begin(self, what: str, total: int, unit: str) -> None:
        """Show the bar."""
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("+"),
            TimeRemainingColumn(),
            TextColumn("left"),
        )
        self._bar = RichProgress(*columns, console=Console(stderr=True), transient=True)
        self._task = self._bar.add_task(what, total=total, rate="")
        self._bar.start()

    def advance(self, n: int = 1) -> None:
        """Move the bar."""
        if self._bar is None or self._task is None:
            return
        self._bar.update(self._task, advance=n)
        # Asking for the speed costs as much as reading an XML file.
        now = time.monotonic()
        if now - self._rated_at > _RATE_SECONDS:
            self._rated_at = now
            speed = self._bar.tasks[0].speed
            self._bar.update(self._task, rate=f"{speed:,.0f}/s" if speed else "")

    def finish(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class LineProgress:
    """A line every ten seconds, and none for work that is done sooner."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._what, self._unit, self._total, self._done = "", "", 0, 0
        self._start = self._last = 0.0

    def begin(self, what: str, total: int, unit: str) -> None:
        """Remember when the part started."""
        with self._lock:
            self._what, self._unit, self._total, self._done = what, unit, total, 0
            self._start = self._last = time.monotonic()

    def advance(self, n: int = 1) -> None:
        """Count, and print when it is time."""
        with self._lock:
            self._done += n
            now = time.monotonic()
            if now - self._last < _EVERY_SECONDS:
                return
            self._last = now
            rate = self._done / (now - self._start)
            left = (self._total - self._done) / rate
            click.echo(
                f"{self._what}: {self._done:,} of {self._total:,} {self._unit}, {rate:,.0f}/s, {left:,.0f} s left",
                err=True,
            )

    def finish(self) -> None:
        """Nothing to take away."""


def make_progress() -> Progress:
    """A bar when stderr is a terminal, else lines."""
    return BarProgress() if sys.stderr.isatty() else LineProgress()
