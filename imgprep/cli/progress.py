"""Progress on stderr: a bar on a terminal, plain lines now and then elsewhere. Bytes are shown as sizes."""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING, Final

import click

from imgprep.cli.options import size_text
from imgprep.stats import Progress

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

_EVERY_SECONDS: Final = 10.0
_SHOW_SECONDS: Final = 0.2


class BarProgress:
    """A bar with count, rate and time left."""

    def __init__(self) -> None:
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None
        self._total = 0
        self._unit = ""
        self._shown_at = 0.0

    def begin(self, what: str, total: int, unit: str) -> None:
        """Show the bar."""
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[count]}"),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TextColumn("+"),
            TimeRemainingColumn(),
            TextColumn("left"),
        )
        self._total, self._unit, self._shown_at = total, unit, 0.0
        self._bar = RichProgress(*columns, console=Console(stderr=True), transient=True)
        self._task = self._bar.add_task(what, total=total, count="", note="")
        self._bar.start()

    def advance(self, n: int = 1) -> None:
        """Move the bar."""
        if self._bar is None or self._task is None:
            return
        self._bar.update(self._task, advance=n)
        # Asking for the speed costs as much as reading an XML file.
        now = time.monotonic()
        if now - self._shown_at > _SHOW_SECONDS:
            self._shown_at = now
            task = self._bar.tasks[0]
            self._bar.update(self._task, count=count_text(int(task.completed), self._total, self._unit, task.speed))

    def note(self, text: str) -> None:
        """Show a text beside the count."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, note=text)

    def finish(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class LineProgress:
    """A line every ten seconds, and none for work that is done sooner."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._what, self._unit, self._note, self._total, self._done = "", "", "", 0, 0
        self._start = self._last = 0.0

    def begin(self, what: str, total: int, unit: str) -> None:
        """Remember when the part started."""
        with self._lock:
            self._what, self._unit, self._note, self._total, self._done = what, unit, "", total, 0
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
            note = f", {self._note}" if self._note else ""
            count = count_text(self._done, self._total, self._unit, rate)
            click.echo(f"{self._what}: {count}{note}, {left:,.0f} s left", err=True)

    def note(self, text: str) -> None:
        """Print a text with the next line."""
        with self._lock:
            self._note = text

    def finish(self) -> None:
        """Nothing to take away."""


def count_text(done: int, total: int, unit: str, rate: float | None) -> str:
    """How far a part is, and how fast: ``1,200 of 3,000 files, 95/s`` or ``1.2 GB of 3.0 GB, 95.0 MB/s``."""
    if unit == "bytes":
        return f"{size_text(done)} of {size_text(total)}" + (f", {size_text(rate)}/s" if rate else "")
    return f"{done:,} of {total:,} {unit}" + (f", {rate:,.0f}/s" if rate else "")


def make_progress() -> Progress:
    """A bar when stderr is a terminal, else lines."""
    return BarProgress() if sys.stderr.isatty() else LineProgress()
