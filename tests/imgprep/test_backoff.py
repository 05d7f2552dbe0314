"""backoff: waits grow and are bounded, a server that names a time is obeyed, and in the end there is an error."""

from __future__ import annotations

import email.utils
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgprep.backoff import Backoff, retry_after_seconds
from imgprep.errors import NetworkError, SpecError


@given(failures=st.integers(1, 10_000), base=st.floats(0.01, 10), longest=st.floats(0.01, 100))
def test_waits_double_up_to_a_bound_and_are_never_nothing(failures: int, base: float, longest: float) -> None:
    bound = min(longest, base * 2.0 ** min(failures - 1, 32))

    assert bound / 4 <= Backoff(base=base, longest=longest).seconds(failures) <= bound


@given(failures=st.integers(1, 20), asked=st.integers(0, 10**6))
def test_retry_after_is_a_lower_bound(failures: int, asked: int) -> None:
    assert Backoff().seconds(failures, retry_after=str(asked)) >= asked


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("7", 7.0),
        (" 120 ", 120.0),
        ("0", 0.0),
        ("-5", None),
        ("1.5", None),
        ("\u0663", None),
        ("soon", None),
        ("", None),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
        ("Mon, 01 Jan 2024 00:00:00 +99999999999999999", None),
        ("9" * 5000, 999_999_999_999.0),
    ],
)
def test_retry_after_is_read_or_passed_over(header: str | None, seconds: float | None) -> None:
    assert retry_after_seconds(header) == seconds


def test_retry_after_may_be_a_date() -> None:
    header = email.utils.formatdate(time.time() + 100, usegmt=True)

    assert 90 < (retry_after_seconds(header) or 0) <= 100


@given(st.text() | st.from_regex(r"[A-Z][a-z]{2}, \d{1,3} [A-Z][a-z]{2} \d{1,6} \d+:\d+:\d+ ([+-]\d{1,30}|GMT)"))
def test_no_header_of_a_server_breaks_it(header: str) -> None:
    seconds = retry_after_seconds(header)

    assert seconds is None or seconds >= 0


def test_a_pause_waits_as_long_as_the_server_asks(clock: threading.Event) -> None:
    Backoff(stop=clock).pause(1, what="x", why="HTTP status 503", retry_after="33")

    assert clock.waits == [33.0]  # type: ignore[attr-defined]


def test_after_enough_failures_it_says_what_failed_last(clock: threading.Event) -> None:
    backoff = Backoff(retries=3, stop=clock)
    for failures in (1, 2, 3):
        backoff.pause(failures, what="the archive", why="no byte in time")
    with pytest.raises(NetworkError, match=r"the archive failed 4 times in a row.*no byte in time - run the same"):
        backoff.pause(4, what="the archive", why="no byte in time")

    assert len(clock.waits) == 3  # type: ignore[attr-defined]


def test_a_server_that_asks_for_too_much_is_not_waited_for(clock: threading.Event) -> None:
    with pytest.raises(NetworkError, match=r"asks to wait 90,000 s"):
        Backoff(stop=clock).pause(1, what="x", why="HTTP status 429", retry_after="90000")

    assert clock.waits == []  # type: ignore[attr-defined]


def test_a_stop_ends_a_wait_at_once() -> None:
    backoff = Backoff(base=60.0)
    threading.Timer(0.1, backoff.stop.set).start()
    before = time.monotonic()
    with pytest.raises(NetworkError, match="x was stopped"):
        backoff.pause(1, what="x", why="y")

    assert time.monotonic() - before < 5


def test_fewer_than_no_retries_cannot_be_asked_for() -> None:
    with pytest.raises(SpecError, match="retries must be 0 or more, got -1"):
        Backoff(retries=-1)
