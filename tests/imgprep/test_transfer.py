"""transfer: the bytes of one object, in order and without gaps, through what a network can do."""

from __future__ import annotations

import base64
import contextlib
import errno
import gc
import random
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import urllib3
from hypothesis import given
from hypothesis import strategies as st

from imgprep import transfer
from imgprep.backoff import Backoff
from imgprep.errors import AccessError, ChangedError, MissingInputError, NetworkError, SpecError
from imgprep.sources.kaggle import SignedUrl
from imgprep.testing.kaggle import Fault, FaultKind, KaggleStandIn, Request
from imgprep.transfer import (
    BrokenOffError,
    Identity,
    RangesIgnoredError,
    RateLimit,
    RemoteFile,
    TransferSpec,
    map_parallel,
)

Serve = Callable[..., KaggleStandIn]
Remote = Callable[..., RemoteFile]

CONTENT = random.Random(1).randbytes(1_200_000)
TAIL = 1000


class Memory:
    """An archive in memory."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.size = len(content)

    def pread(self, num_bytes: int, offset: int) -> bytes:
        return self.content[offset : offset + num_bytes]


def storage(stand_in: KaggleStandIn) -> list[Request]:
    return [request for request in stand_in.requests if request.path.startswith("/storage/")]


def opened(serve: Serve, remote: Remote, *faults: Fault, **settings: Any) -> tuple[KaggleStandIn, RemoteFile]:
    """A file that was opened before anything goes wrong."""
    stand_in = serve(Memory(CONTENT))
    file = remote(stand_in, **settings)
    file.open(TAIL)
    stand_in.forget()
    for fault in faults:
        stand_in.add_fault(fault)
    return stand_in, file


def test_opening_tells_what_it_is_and_reads_its_end_in_one_request(serve: Serve, remote: Remote) -> None:
    stand_in = serve(Memory(CONTENT))
    file = remote(stand_in)

    assert file.open(TAIL) == CONTENT[-TAIL:]
    assert (file.identity.num_bytes, file.identity.etag) == (len(CONTENT), stand_in.etag)
    assert [request.range_header for request in storage(stand_in)] == [f"bytes=-{TAIL}"]


def test_an_object_shorter_than_its_end_is_read_whole(serve: Serve, remote: Remote) -> None:
    assert remote(serve(Memory(b"short"))).open(TAIL) == b"short"


@pytest.fixture(scope="module")
def plain() -> Iterator[RemoteFile]:
    with KaggleStandIn(Memory(CONTENT)) as stand_in:
        url = SignedUrl(stand_in._signed("", "archive.zip").headers["Location"], "archive.zip").url
        with RemoteFile(lambda: url, what="plain", backoff=Backoff(retries=0)) as file:
            file.open(1)
            yield file


@given(bounds=st.tuples(st.integers(0, len(CONTENT)), st.integers(0, len(CONTENT))).map(sorted))
def test_any_range_comes_as_it_is_stored(plain: RemoteFile, bounds: list[int]) -> None:
    start, stop = bounds
    pieces = list(plain.stream(start, stop))

    assert b"".join(pieces) == CONTENT[start:stop]
    assert all(0 < len(piece) <= transfer.PIECE_BYTES for piece in pieces)


@pytest.mark.parametrize(("start", "stop"), [(-1, 5), (6, 5), (0, len(CONTENT) + 1)])
def test_a_range_outside_of_the_object_is_a_mistake_of_the_caller(plain: RemoteFile, start: int, stop: int) -> None:
    with pytest.raises(ValueError, match=f"range {start} to {stop}"):
        plain.stream(start, stop)


def test_every_request_says_what_it_expects_and_none_carries_credentials(
    serve: Serve, remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in = serve(Memory(CONTENT))
    monkeypatch.setenv("KAGGLE_USERNAME", stand_in.username)
    monkeypatch.setenv("KAGGLE_KEY", stand_in.key)
    file = remote(stand_in)
    file.open(TAIL)
    file.read(10, 500)
    file.read(100_000, 200_000)
    requests = storage(stand_in)

    assert {request.accept_encoding for request in requests} == {"identity"}
    assert [request.if_match for request in requests] == ["", stand_in.etag, stand_in.etag]
    assert not any(request.authorized for request in requests)
    assert all(request.user_agent.startswith("imgprep/") for request in requests)


def test_a_broken_connection_goes_on_at_the_byte(serve: Serve, remote: Remote) -> None:
    stand_in, file = opened(serve, remote, Fault(kind="cut", percent=40))

    assert file.read(1000, 1_001_000) == CONTENT[1000:1_001_000]
    assert [request.range for request in storage(stand_in)] == [(1000, 1_000_999), (401_000, 1_000_999)]
    assert stand_in.storage_bytes == 1_000_000
    assert file.wire.retries == 1


RECOVERED: list[FaultKind] = [
    "cut", "close", "stall", "status", "expired", "wrong-length", "no-length", "wrong-range", "short-range", "gzip",
    "html", "json-error", "no-etag",
]  # fmt: skip


@pytest.mark.parametrize("kind", RECOVERED)
@pytest.mark.parametrize("percent", [0, 50])
def test_what_passes_is_got_over(serve: Serve, remote: Remote, kind: FaultKind, percent: float) -> None:
    stand_in, file = opened(serve, remote, Fault(kind=kind, times=2, percent=percent), timeout=0.3, retries=3)

    assert file.read(5_000, 905_000) == CONTENT[5_000:905_000]
    assert any(request.fault == kind for request in stand_in.requests)


@pytest.mark.parametrize("kind", [kind for kind in RECOVERED if kind not in ("no-length", "expired", "no-etag")])
def test_what_does_not_pass_is_an_error(serve: Serve, remote: Remote, kind: FaultKind) -> None:
    _, file = opened(serve, remote, Fault(kind=kind, times=None, percent=0), timeout=0.2, retries=2)
    with pytest.raises(NetworkError, match="failed 3 times in a row; the last time:"):
        file.read(5_000, 905_000)


def test_a_server_that_sends_less_at_once_is_taken_as_it_is(
    serve: Serve, remote: Remote, clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No wait, no failure: only what comes in crumbs is one."""
    monkeypatch.setattr(transfer, "PIECE_BYTES", 1000)
    stand_in, file = opened(
        serve, remote, Fault(kind="short-range", percent=50, min_bytes=10_000, times=None), backoff=Backoff(stop=clock)
    )

    assert file.read(0, 900_000) == CONTENT[:900_000]
    assert (len(storage(stand_in)) > 5, clock.waits) == (True, [])


def test_a_line_that_drops_after_every_few_bytes_is_given_up(serve: Serve, remote: Remote) -> None:
    _, file = opened(serve, remote, Fault(kind="cut", times=None, percent=1), retries=5)
    with pytest.raises(NetworkError, match="failed 6 times in a row; the last time: the connection"):
        file.read(0, 1_000_000)


def test_a_line_that_drops_after_much_gets_there(serve: Serve, remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    """Failures count in a row only: what arrived in between is progress."""
    monkeypatch.setattr(transfer, "PIECE_BYTES", 1000)
    stand_in, file = opened(serve, remote, Fault(kind="cut", times=12, percent=10), retries=2)

    assert file.read(0, 500_000) == CONTENT[:500_000]
    assert len(storage(stand_in)) == 13


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_server_that_names_a_time_is_obeyed(serve: Serve, remote: Remote, clock: Any, status: int) -> None:
    fault = Fault(kind="status", status=status, retry_after="7")
    _, file = opened(serve, remote, fault, backoff=Backoff(base=0.01, stop=clock))

    assert file.read(0, 100) == CONTENT[:100]
    assert clock.waits == [7.0]


def test_retry_after_counts_only_with_a_status_that_may_pass(serve: Serve, remote: Remote, clock: Any) -> None:
    fault = Fault(kind="status", status=403, retry_after="7", times=2)
    _, file = opened(serve, remote, fault, backoff=Backoff(base=0.01, stop=clock))

    assert file.read(0, 100) == CONTENT[:100]
    assert all(wait < 1 for wait in clock.waits)


def test_an_expired_address_is_replaced_without_a_wait(serve: Serve, remote: Remote, clock: Any) -> None:
    _, file = opened(serve, remote, Fault(kind="expired"), backoff=Backoff(stop=clock))

    assert file.read(0, 5000) == CONTENT[:5000]
    assert (clock.waits, file.wire.addresses) == ([], 2)


def test_many_threads_resolve_an_expired_address_once(serve: Serve, remote: Remote) -> None:
    stand_in, file = opened(serve, remote, jobs=16)
    stand_in.add_fault(Fault(kind="expired"))
    starts = list(range(0, 1_200_000, 25_000))
    parts = map_parallel(lambda start: (start, file.read(start, start + 25_000)), starts, remote=file)

    assert b"".join(part for _, part in sorted(parts)) == CONTENT
    assert file.wire.addresses == 2


def test_fresh_addresses_that_are_refused_end_it(serve: Serve, remote: Remote) -> None:
    stand_in, file = opened(serve, remote, Fault(kind="status", status=403, times=None))
    with pytest.raises(AccessError, match=r"4 addresses in a row were refused \(HTTP status 403\).*clock"):
        file.read(0, 100)
    assert len(storage(stand_in)) == 4


def test_an_object_that_is_not_there_is_said_so(serve: Serve, remote: Remote) -> None:
    _, file = opened(serve, remote, Fault(kind="status", status=404, times=None))
    with pytest.raises(MissingInputError, match="HTTP status 404"):
        file.read(0, 100)


def test_an_object_that_was_replaced_is_not_mixed_with_the_new_one(serve: Serve, remote: Remote) -> None:
    stand_in, file = opened(serve, remote, Fault(kind="replaced", percent=30))
    was = stand_in.etag
    arrived = b""
    with pytest.raises(ChangedError, match=f"it was {re.escape(was)}, now it is .*--overwrite"):
        for piece in file.stream(0, 1_000_000):
            arrived += piece

    assert arrived == CONTENT[: len(arrived)]
    assert [request.status for request in storage(stand_in)] == [206, 412]


def test_without_an_etag_size_and_time_tell_a_replaced_object(serve: Serve, remote: Remote) -> None:
    stand_in = serve(Memory(CONTENT), faults=[Fault(kind="no-etag", times=None)])
    file = remote(stand_in)
    file.open(TAIL)

    assert file.identity.etag == ""
    assert file.identity.validator == file.identity.last_modified != ""
    assert file.read(0, 100) == CONTENT[:100]
    stand_in.replace(Memory(CONTENT))
    with pytest.raises(ChangedError, match="was replaced on the server"):
        file.read(0, 100)


def test_an_object_of_another_size_is_another_one(serve: Serve, remote: Remote) -> None:
    file = remote(serve(Memory(CONTENT)), identity=Identity(len(CONTENT) + 1))
    with pytest.raises(ChangedError, match=r"it was 1,200,001 bytes"):
        file.open(TAIL)


@pytest.mark.parametrize(
    ("identity", "conditions"),
    [
        (Identity(1, '"a"', "Mon"), {"If-Match": '"a"'}),
        (Identity(1, 'W/"a"', "Mon"), {"If-Unmodified-Since": "Mon"}),
        (Identity(1, "", "Mon"), {"If-Unmodified-Since": "Mon"}),
        (Identity(1, 'W/"a"'), {}),
        (Identity(1), {}),
    ],
)
def test_a_weak_tag_is_no_condition(identity: Identity, conditions: dict[str, str]) -> None:
    assert identity.conditions() == conditions


def test_a_server_without_ranges_is_told_from_one_with(serve: Serve, remote: Remote) -> None:
    file = remote(serve(Memory(CONTENT), faults=[Fault(kind="no-range", times=None)]))
    with pytest.raises(RangesIgnoredError) as caught:
        file.open(TAIL)

    assert caught.value.identity.num_bytes == file.identity.num_bytes == len(CONTENT)
    assert b"".join(file.stream_whole()) == CONTENT


def test_a_whole_object_is_read_in_one_attempt_or_not(serve: Serve, remote: Remote) -> None:
    stand_in = serve(Memory(CONTENT), faults=[Fault(kind="cut", percent=50)])
    file = remote(stand_in)
    with pytest.raises(BrokenOffError, match="the connection") as caught:
        list(file.stream_whole())
    assert caught.value.retry_after is None
    assert b"".join(file.stream_whole()) == CONTENT


@pytest.mark.parametrize("kind", ["cut", "close", "status", "expired", "wrong-length", "html", "gzip"])
def test_a_small_object_is_read_until_it_is_whole(serve: Serve, remote: Remote, kind: FaultKind) -> None:
    file = remote(serve(Memory(CONTENT), faults=[Fault(kind=kind, times=2)]))

    assert file.read_whole(limit=2 * len(CONTENT)) == CONTENT


def test_a_small_object_that_is_large_is_refused(serve: Serve, remote: Remote) -> None:
    stand_in = serve(Memory(CONTENT))
    with pytest.raises(NetworkError, match=r"has 1,200,000 bytes, more than 1,000"):
        remote(stand_in).read_whole(limit=1000)


class Simulated(threading.Event):
    """Time that passes only by waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0

    def wait(self, timeout: float | None = None) -> bool:
        self.now += max(0.0, timeout or 0.0)
        return False


@given(rate=st.floats(1e3, 1e9), pieces=st.lists(st.integers(1, 1 << 18), min_size=20, max_size=60))
def test_the_rate_is_kept_exactly_where_time_is_exact(rate: float, pieces: list[int]) -> None:
    simulated = Simulated()
    limit = RateLimit(rate, simulated)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("imgprep.transfer.time.monotonic", lambda: simulated.now)
        for piece in pieces:
            limit.take(piece)

    assert simulated.now - 100.0 == pytest.approx(sum(pieces) / rate, rel=1e-6, abs=1e-6)


def test_the_rate_holds_for_all_connections_together(serve: Serve, remote: Remote) -> None:
    _, file = opened(serve, remote, jobs=4, rate=1_000_000.0)
    before = time.monotonic()
    arrived = sum(map_parallel(lambda start: len(file.read(start, start + 200_000)), range(0, 1_200_000, 200_000), remote=file))  # noqa: E501  # fmt: skip
    rate = arrived / (time.monotonic() - before)

    assert arrived == 1_200_000
    assert 800_000 <= rate <= 1_200_000


def test_no_limit_waits_for_nothing(clock: Any) -> None:
    RateLimit(None, clock).take(1 << 40)

    assert clock.waits == []


def test_a_connection_that_crawls_is_replaced(serve: Serve, remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "_SLOW_SECONDS", 0.3)
    stand_in, file = opened(serve, remote, Fault(kind="slow", rate=20_000), floor=1_000_000.0)
    before = time.monotonic()

    assert file.read(0, 600_000) == CONTENT[:600_000]
    # At that rate it would have taken half a minute.
    assert time.monotonic() - before < 5
    first, second = storage(stand_in)
    assert first.fault == "slow"
    assert second.range is not None
    assert 0 < second.range[0] < 60_000


def test_a_slow_reader_is_not_taken_for_a_slow_connection(
    serve: Serve, remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "_SLOW_SECONDS", 0.05)
    stand_in, file = opened(serve, remote, floor=2_000_000.0)
    for _ in file.stream(0, 1_000_000):
        time.sleep(0.1)

    assert len(storage(stand_in)) == 1


def wakes(file: RemoteFile, read: Callable[[], object], *, blocked: Callable[[], bool]) -> float:
    """Seconds that a reader takes to leave once it is stopped."""
    caught: list[BaseException] = []

    def run() -> None:
        try:
            read()
        except NetworkError as error:
            caught.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    while not blocked():
        time.sleep(0.01)
    time.sleep(0.05)
    before = time.monotonic()
    file.stop()
    thread.join(20)
    assert "was stopped" in str(caught[0])
    return time.monotonic() - before


@pytest.mark.parametrize("percent", [0, 50])
def test_a_stop_wakes_readers_whose_body_stalls(serve: Serve, remote: Remote, percent: float) -> None:
    stand_in, file = opened(serve, remote, Fault(kind="stall", percent=percent, times=None), timeout=15.0)

    assert wakes(file, lambda: file.read(0, 100_000), blocked=lambda: bool(storage(stand_in))) < 1


def test_a_stop_wakes_readers_of_a_server_that_says_nothing() -> None:
    """It takes the connection and the request, and then: not one byte."""
    accepted: list[socket.socket] = []
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        accept = threading.Thread(target=lambda: accepted.append(stack.enter_context(server.accept()[0])), daemon=True)
        accept.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/x"
        with RemoteFile(lambda: url, what="x", spec=TransferSpec(timeout=15.0)) as file:
            assert wakes(file, lambda: file.open(TAIL), blocked=lambda: bool(accepted)) < 1


def test_a_stop_wakes_those_who_wait_to_try_again(serve: Serve, remote: Remote) -> None:
    fault = Fault(kind="status", times=None)
    stand_in, file = opened(serve, remote, fault, backoff=Backoff(base=30.0, longest=30.0))

    assert wakes(file, lambda: file.read(0, 100), blocked=lambda: bool(storage(stand_in))) < 1


def test_a_stop_wakes_those_who_wait_for_the_rate(serve: Serve, remote: Remote) -> None:
    stand_in, file = opened(serve, remote, rate=1000.0)

    assert wakes(file, lambda: file.read(0, 1_000_000), blocked=lambda: bool(storage(stand_in))) < 1


def test_the_first_error_ends_all_threads(serve: Serve, remote: Remote) -> None:
    stand_in, file = opened(serve, remote, jobs=4, timeout=15.0)
    stand_in.add_fault(Fault(kind="stall", times=None, percent=0))
    before = time.monotonic()

    def read(start: int) -> bytes:
        if start == 300:
            while len(storage(stand_in)) < 3:
                time.sleep(0.01)
            raise OSError(errno.ENOSPC, "No space left on device")
        return file.read(start, start + 100)

    with pytest.raises(OSError, match="No space left"):
        list(map_parallel(read, range(0, 4000, 100), remote=file))
    assert time.monotonic() - before < 5
    # The thread that failed may have begun one more before the others were told.
    assert len(storage(stand_in)) <= 4


def test_a_proxy_is_used_where_one_is_named(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = serve(Memory(CONTENT))
    monkeypatch.setenv("http_proxy", stand_in.url.removeprefix("http://"))
    url = stand_in._signed("", "a.zip").headers["Location"].replace(stand_in.url, "http://storage.invalid")
    with RemoteFile(lambda: url, what="x", backoff=Backoff(retries=0)) as file:
        assert file.open(TAIL) == CONTENT[-TAIL:]


def test_no_proxy_is_used_where_none_is_wanted(serve: Serve, remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = serve(Memory(CONTENT))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with pytest.raises(NetworkError, match="no connection through the proxy"):
        remote(stand_in, retries=0).open(TAIL)
    monkeypatch.setenv("no_proxy", "localhost,127.0.0.1")

    assert remote(stand_in, retries=0).open(TAIL) == CONTENT[-TAIL:]


def test_a_server_that_is_not_there_is_named_in_words() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with (
        RemoteFile(lambda: f"http://127.0.0.1:{port}/secret", what="x", backoff=Backoff(retries=0)) as file,
        pytest.raises(NetworkError, match="no connection to the server") as caught,
    ):
        file.open(TAIL)

    assert "secret" not in str(caught.value)


def test_a_certificate_that_cannot_be_checked_is_not_tried_again() -> None:
    reason = urllib3.exceptions.SSLError("CERTIFICATE_VERIFY_FAILED: self-signed certificate")
    pool = urllib3.HTTPSConnectionPool("x.invalid")
    with pytest.raises(NetworkError, match=r"certificate of the server.*REQUESTS_CA_BUNDLE"), transfer._network():
        raise urllib3.exceptions.MaxRetryError(pool, "/secret", reason)


def test_errors_of_the_disk_are_not_the_network() -> None:
    with pytest.raises(OSError, match="No space left"), transfer._network():
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"jobs": 0}, "jobs must be from 1 to 64, got 0"),
        ({"jobs": 65}, "got 65"),
        ({"rate": 0.5}, "rate must be 1 byte a second or more"),
        ({"rate": float("nan")}, "rate must be"),
        ({"timeout": 0}, "timeout must be more than 0"),
        ({"timeout": float("inf")}, "timeout must be more than 0 and at most 86,400 seconds"),
        ({"timeout": float("nan")}, "timeout must be"),
    ],
)
def test_illegal_specs_cannot_be_built(options: dict[str, float], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        TransferSpec(**options)  # type: ignore[arg-type]  # the values are wrong on purpose


@given(rate=st.floats(1, 1e9), jobs=st.integers(1, 64), floor=st.floats(0, 1e6))
def test_the_rate_never_makes_a_connection_look_slow(rate: float, jobs: int, floor: float) -> None:
    assert TransferSpec(rate=rate, jobs=jobs, floor=floor).floor * jobs <= rate


def test_the_identity_is_known_only_after_opening(serve: Serve, remote: Remote) -> None:
    with pytest.raises(RuntimeError, match="open"):
        _ = remote(serve(Memory(CONTENT))).identity


Answer = Callable[[socket.socket], None]


@pytest.fixture
def answering() -> Iterator[Callable[[Answer], str]]:
    """A server that gives each connection to a function; its address is returned."""
    servers: list[socket.socket] = []

    def start(answer: Answer) -> str:
        servers.append(socket.create_server(("127.0.0.1", 0)))

        def talk(connected: socket.socket) -> None:
            with connected, contextlib.suppress(OSError):
                connected.recv(1 << 16)
                answer(connected)

        def listen(server: socket.socket) -> None:
            with contextlib.suppress(OSError):
                while True:
                    threading.Thread(target=talk, args=server.accept()[:1], daemon=True).start()

        threading.Thread(target=listen, args=servers[-1:], daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].getsockname()[1]}"

    yield start
    for server in servers:
        server.shutdown(socket.SHUT_RDWR)
        server.close()


def drip(before: bytes, drop: bytes) -> Answer:
    """Bytes at once, and then more of them for ever, none of which completes anything."""

    def answer(connected: socket.socket) -> None:
        connected.sendall(before)
        while True:
            connected.sendall(drop)
            time.sleep(0.05)

    return answer


CHUNKED = b"HTTP/1.1 206 P\r\nContent-Range: bytes 0-9/10\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(drip(b"HTTP/1.1 206 P\r\nX: ", b"a"), id="header"),
        pytest.param(drip(b"", b"HTTP/1.1 100 Continue\r\n\r\n"), id="continue"),
        pytest.param(drip(CHUNKED, b"0"), id="chunk"),
        pytest.param(drip(CHUNKED.replace(b"Transfer", b"Connection: close\r\nTransfer"), b"0"), id="last chunk"),
    ],
)
def test_an_answer_that_trickles_is_given_up(answering: Callable[[Answer], str], answer: Answer) -> None:
    url = answering(answer)
    before = time.monotonic()
    with (
        RemoteFile(
            lambda: url, what="x", spec=TransferSpec(timeout=0.5), backoff=Backoff(retries=1, base=0.01)
        ) as file,
        pytest.raises(NetworkError, match="failed 2 times in a row"),
    ):
        file.open(10)
    assert time.monotonic() - before < 5


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n", id="length"),
        pytest.param(b"HTTP/1.1 302 F\r\nLocation: http://[::1\r\nContent-Length: 0\r\n\r\n", id="location"),
    ],
)
def test_headers_that_are_none_are_a_failed_attempt(answering: Callable[[Answer], str], answer: bytes) -> None:
    url = answering(lambda connected: connected.sendall(answer))
    with (
        RemoteFile(lambda: url, what="x", backoff=Backoff(retries=0)) as file,
        pytest.raises(NetworkError, match="failed 1 times in a row"),
    ):
        file.open(10)


# Python 3.11 leaves the refusal of a tunnel open until it is collected.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_gets_the_password_of_its_setting(monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    asked = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def refuse() -> None:
            connected, _ = server.accept()
            with connected:
                asked.append(connected.recv(1 << 16))
                connected.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")

        thread = threading.Thread(target=refuse)
        thread.start()
        monkeypatch.setenv(f"{scheme}_proxy", f"http://us%40er:s3cret@127.0.0.1:{server.getsockname()[1]}")
        with (
            RemoteFile(lambda: f"{scheme}://storage.invalid/x", what="x", backoff=Backoff(retries=3)) as file,
            pytest.raises(NetworkError, match="HTTP 407") as caught,
        ):
            file.open(10)
        thread.join()
    gc.collect()

    assert f"Proxy-Authorization: Basic {base64.b64encode(b'us@er:s3cret').decode()}\r\n".lower().encode() in (
        asked[0].lower()
    )
    assert "s3cret" not in f"{caught.value} {caught.value.advice}"


@pytest.mark.parametrize("setting", ["socks5://u:s3cret@h:1", "http://u:s3cret@h:port", "ftp://u:s3cret@h", "http://"])
def test_a_proxy_setting_that_cannot_be_used_is_said_without_its_password(
    monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    monkeypatch.setenv("http_proxy", setting)
    with (
        RemoteFile(lambda: "http://storage.invalid/x", what="x", backoff=Backoff(retries=3)) as file,
        pytest.raises(NetworkError, match="proxy setting") as caught,
    ):
        file.open(10)
    assert "s3cret" not in f"{caught.value} {caught.value.advice}"
