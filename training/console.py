"""What a person watches on stderr: lines, and progress bars where there is a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress

PLAIN_INTERVAL: Final = 10.0
"""Off a terminal a task says where it is this often, in seconds."""


def printable(text: str) -> str:
    """The text with a blank for every character that could move a cursor or break a line."""
    return "".join(c if c.isprintable() else " " for c in text)


class Console:
    """Writes lines and progress; keeps quiet about neither on a pipe, only briefer.

    Args:
        stream: Where to; stderr when not given.
        terminal: Whether to draw bars; asks the stream when not given.
        clock: Seconds since some start.
    """

    def __init__(
        self, stream: TextIO | None = None, *, terminal: bool | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._terminal = self._stream.isatty() if terminal is None else terminal
        self._clock = clock
        self._live: Progress | None = None

    def say(self, line: str) -> None:
        """Write one line; above the bar while there is one. Names may come from anywhere: only printables pass."""
        line = printable(line)
        if self._live is not None:
            self._live.console.print(line, markup=False, highlight=False, soft_wrap=True)
            return
        self._stream.write(line + "\n")
        self._stream.flush()

    @contextmanager
    def task(self, name: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        """Show the progress of a piece of work while the block lasts.

        Args:
            name: What is being done.
            total: How much there is.
            unit: Of what, e.g. ``images``.

        Yields:
            A function to call with the amount done since its last call.
        """
        if self._terminal:
            with self._bar(name, total, unit) as advance:
                yield advance
        else:
            yield self._plain(name, total, unit)

    @contextmanager
    def _bar(self, name: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        from rich.console import Console as RichConsole
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
        )
        start, done = self._clock(), 0
        with Progress(*columns, console=RichConsole(file=self._stream), transient=True) as progress:
            row = progress.add_task(name, total=total, rate="")

            def advance(amount: int) -> None:
                nonlocal done
                done += amount
                progress.update(row, advance=amount, rate=f"{done / max(self._clock() - start, 1e-9):,.0f} {unit}/s")

            self._live = progress
            try:
                yield advance
            finally:
                self._live = None

    def _plain(self, name: str, total: int, unit: str) -> Callable[[int], None]:
        start = spoken = self._clock()
        done = 0

        def advance(amount: int) -> None:
            nonlocal done, spoken
            done += amount
            now = self._clock()
            if now - spoken >= PLAIN_INTERVAL and done < total:
                spoken = now
                rate = done / max(now - start, 1e-9)
                self.say(
                    f"{name}: {done:,} of {total:,} {unit}, {rate:,.0f} a second, {(total - done) / rate:,.0f} s left"
                )

        return advance
