"""Counters that add up, and the seam through which stages report progress."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Protocol


class Stats:
    """Named counts of a stage. Two of them add with ``+``, so parts of a job can be counted apart.

    Args:
        counts: Initial counts by name.
    """

    def __init__(self, counts: Mapping[str, int] | None = None) -> None:
        self._counts: Counter[str] = Counter(counts or {})

    def count(self, name: str, n: int = 1) -> None:
        """Add ``n`` to the counter ``name``."""
        self._counts[name] += n

    def __getitem__(self, name: str) -> int:
        return self._counts[name]

    def __add__(self, other: Stats) -> Stats:
        total = Stats(self._counts)
        for name, n in other._counts.items():
            total.count(name, n)
        return total

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stats) and +self._counts == +other._counts

    __hash__ = None  # type: ignore[assignment]  # counts change, so a Stats cannot be a key

    def __repr__(self) -> str:
        return f"Stats({self.to_dict()})"

    def to_dict(self) -> dict[str, int]:
        """The counts that are not zero, sorted by name."""
        return {name: n for name, n in sorted(self._counts.items()) if n}


class Progress(Protocol):
    """What a stage tells while it works. Calls may come from several threads."""

    def begin(self, what: str, total: int, unit: str) -> None:
        """A part of the job starts: its name, how many units it has, and what a unit is called."""

    def advance(self, n: int = 1) -> None:
        """``n`` more units of the part are done."""

    def note(self, text: str) -> None:
        """Something to show beside the count, in place of what was shown before."""

    def finish(self) -> None:
        """The part is over, done or not."""


class SilentProgress:
    """Tells nobody."""

    def begin(self, what: str, total: int, unit: str) -> None:
        """Ignore."""

    def advance(self, n: int = 1) -> None:
        """Ignore."""

    def note(self, text: str) -> None:
        """Ignore."""

    def finish(self) -> None:
        """Ignore."""


SILENT = SilentProgress()
