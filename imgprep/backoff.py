"""How long to wait before asking a server again, and when to give up."""

from __future__ import annotations

import email.utils
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from imgprep.errors import NetworkError, SpecError

RETRIED_STATUSES: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
"""HTTP answers that may be another one a moment later (RFC 9110, RFC 6585, RFC 8470)."""


def _tell_nobody(text: str) -> None:
    del text


@dataclass(frozen=True, kw_only=True)
class Backoff:
    """Exponential backoff with full jitter, which spreads clients out best (Brooker 2015, AWS Architecture Blog).

    Attributes:
        retries: Failures in a row, without one new byte between them, after which to give up.
        base: Upper bound of the first wait, in seconds; it doubles with every failure.
        longest: Bound of any wait the server did not ask for, in seconds.
        patience: Longest Retry-After that is waited for, in seconds.
        stop: Set to end all waits at once.
        tell: Told of every wait but the first in a row, so that nobody wonders about a silence.
    """

    retries: int = 8
    base: float = 1.0
    longest: float = 60.0
    patience: float = 900.0
    stop: threading.Event = field(default_factory=threading.Event, compare=False)
    tell: Callable[[str], None] = field(default=_tell_nobody, compare=False)

    def __post_init__(self) -> None:
        if self.retries < 0:
            raise SpecError(f"retries must be 0 or more, got {self.retries}")

    def seconds(self, failures: int, *, retry_after: str | None = None) -> float:
        """How long to wait.

        Args:
            failures: Failures in a row so far, 1 or more.
            retry_after: The server's ``Retry-After`` header, if it sent one. It is a lower bound.
        """
        bound = min(self.longest, self.base * 2.0 ** min(failures - 1, 32))
        # A little at least: a server that has just refused is not asked again at once.
        jittered = random.uniform(bound / 4, bound)  # noqa: S311  # spreads load, guards nothing
        return max(jittered, retry_after_seconds(retry_after) or 0.0)

    def pause(self, failures: int, *, what: str, why: str, retry_after: str | None = None) -> None:
        """Wait before the next attempt.

        Args:
            failures: Failures in a row so far, 1 or more.
            what: What is being tried, for the message.
            why: How it failed last, for the message.
            retry_after: The server's ``Retry-After`` header, if it sent one.

        Raises:
            NetworkError: Enough attempts were made, or the server asks for more patience than there is.
        """
        again = "run the same command again to go on from here"
        if failures > self.retries:
            raise NetworkError(f"{what} failed {failures} times in a row; the last time: {why}", again)
        seconds = self.seconds(failures, retry_after=retry_after)
        if seconds > max(self.patience, self.longest):
            raise NetworkError(f"{what} failed: {why}; the server asks to wait {seconds:,.0f} s", f"then {again}")
        if failures > 1:
            self.tell(f"{what}: {why}; attempt {failures + 1} in {seconds:.0f} s")
        if self.stop.wait(seconds):
            raise NetworkError(f"{what} was stopped", again)


def retry_after_seconds(header: str | None) -> float | None:
    """Read a ``Retry-After`` header: seconds or an HTTP date (RFC 9110, 10.2.3); None when it is neither."""
    if header is None:
        return None
    text = header.strip()
    if text.isascii() and text.isdigit():
        return float(text[:12])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
