"""Death on order: count the changes a process makes on disk, and kill it in front of, or in the middle of, one of them.

A kill by SIGKILL leaves what was written, synced or not: what syncing protects from is a power cut, which is not tried
here. So syncs are counted, and not made, which is quick.
"""

from __future__ import annotations

import builtins
import functools
import io
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

WRITES: Final = frozenset({"write", "pwrite", "writev"})
"""Kinds of changes that can be cut in half."""


@dataclass(frozen=True, kw_only=True)
class Kill:
    """Where a process dies: at the ``number``-th change of a kind, before it or when half of its bytes are written."""

    kind: str
    number: int
    half: bool = False


def kill_points(counts: Counter[str], *, most_writes: int) -> list[Kill]:
    """Every change that was counted, but of many writes no more than a spread of them.

    Args:
        counts: Changes by kind, as a :class:`Meter` counted them.
        most_writes: Kills at writes of one kind at most; a write is killed at before it and in its middle.
    """
    chosen = []
    for kind, count in sorted(counts.items()):
        step = max(1.0, 2 * count / most_writes) if kind in WRITES else 1.0
        numbers = sorted({int(place * step) + 1 for place in range(count) if place * step < count})
        halves = (False, True) if kind in WRITES else (False,)
        chosen += [Kill(kind=kind, number=number, half=half) for number in numbers for half in halves]
    return chosen


class Meter:
    """Counts the changes a process makes on disk, and kills it at one of them.

    Args:
        kill: Where; None only counts.
    """

    def __init__(self, kill: Kill | None) -> None:
        self.counts: Counter[str] = Counter()
        self._kill = kill
        self._lock = threading.Lock()

    def __call__(self, kind: str, write_half: Callable[[], object] = lambda: None) -> None:
        """Count one change that is about to happen."""
        with self._lock:
            self.counts[kind] += 1
            if self._kill is not None and (kind, self.counts[kind]) == (self._kill.kind, self._kill.number):
                if self._kill.half:
                    write_half()
                os.kill(os.getpid(), signal.SIGKILL)

    def install(self, *, syncing: Iterable[Any] = ()) -> None:
        """Put this meter before every function that changes something; for a process that ends soon.

        Args:
            syncing: Modules that imported :func:`imgprep.files.sync_filesystem` by name.
        """
        kinds = {"rename": "rename", "replace": "rename", "unlink": "unlink", "mkdir": "mkdir", "rmdir": "rmdir"}
        for name, kind in kinds.items():
            setattr(os, name, self._counted(kind, getattr(os, name)))
        for name in ("fsync", "fdatasync"):
            setattr(os, name, self._counted(name, _nothing))
        for module in syncing:
            module.sync_filesystem = self._counted("syncfs", _nothing)
        os.write = self._writing("write", os.write)
        os.pwrite = self._writing("pwrite", os.pwrite)
        os_writev = os.writev

        def write_all(handle: int, parts: Any) -> int:
            half = b"".join(parts)
            self("writev", lambda: os_writev(handle, [half[: len(half) // 2]]))
            return os_writev(handle, parts)

        os.writev = write_all
        os_open = os.open

        def open_counted(path: Any, flags: int, mode: int = 0o777, **options: Any) -> int:
            if flags & (os.O_WRONLY | os.O_RDWR):
                self("open")
            return os_open(path, flags, mode, **options)

        os.open = open_counted
        io.open = builtins.open = self._opening(io.open)

    def _counted(self, kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def counted(*args: Any, **options: Any) -> Any:
            self(kind)
            return function(*args, **options)

        return counted

    def _writing(self, kind: str, function: Callable[..., int]) -> Callable[..., int]:
        def write(handle: int, content: Any, *place: int) -> int:
            self(kind, lambda: function(handle, memoryview(content)[: len(content) // 2], *place))
            return function(handle, content, *place)

        return write

    def _opening(self, function: Callable[..., Any]) -> Callable[..., Any]:
        meter = self

        class CountedFile(io.FileIO):
            def write(self, content: Any) -> int:
                meter("write", lambda: io.FileIO.write(self, memoryview(content)[: len(content) // 2]))
                return super().write(content)

            def truncate(self, size: int | None = None) -> int:
                meter("truncate")
                return super().truncate(size)

        def open_counted(file: Any, mode: str = "r", buffering: int = -1, *rest: Any, **options: Any) -> Any:
            if not set(mode) & set("wxa+"):
                return function(file, mode, buffering, *rest, **options)
            meter("open")
            if "b" not in mode:
                return function(file, mode, buffering, *rest, **options)
            raw = CountedFile(file, mode, closefd=options.get("closefd", True))
            return raw if buffering == 0 else io.BufferedWriter(raw)

        return open_counted


def _nothing(_: object) -> None:
    """Sync nothing."""


@dataclass(frozen=True)
class Metered:
    """A function whose worker process dies at a change it makes; for whatever engine sends it there.

    Attributes:
        function: What the worker calls.
        kill: Where it dies.
    """

    function: Callable[..., Any]
    kill: Kill

    def __call__(self, *args: Any) -> Any:
        """Call the function, with a meter in this process."""
        _install_once(self.kill)
        return self.function(*args)


@functools.cache
def _install_once(kill: Kill) -> None:
    Meter(kill).install()
