"""Byte ranges of one remote object over HTTP, each right or an error: checked headers, resumed, retried, re-addressed.

What is promised: the bytes that come out are those of one object, told by its size and its validator (ETag), in order
and without gaps. Whether they were altered on the way is for checksums to say, one level up.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Final, Self, TypeVar
from urllib.parse import unquote, urlsplit
from weakref import WeakSet

import urllib3

from imgprep import __version__
from imgprep.backoff import RETRIED_STATUSES, Backoff
from imgprep.errors import AccessError, ChangedError, MissingInputError, NetworkError, SpecError

PIECE_BYTES: Final = 1 << 18
"""Most bytes taken from a connection at once: small enough to stay in a processor's cache, large enough to be cheap."""

MIN_RANGE_BYTES: Final = 1 << 20
"""A connection is not opened for less than this, except where there is no more to fetch."""

MAX_TIMEOUT: Final = 86_400
"""Seconds that a timeout may have; sockets take no infinite ones."""

_REFUSALS: Final = 3
"""How many fresh addresses may be refused in a row."""

_SIZE: Final = re.compile(r"\d{1,18}", re.ASCII)
_CONTENT_RANGE: Final = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")
_SLOW_SECONDS: Final = 30.0

P = TypeVar("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Identity:
    """What makes a remote object the same one.

    Attributes:
        num_bytes: Its size.
        etag: Its entity tag as the server sent it, or empty.
        last_modified: Its Last-Modified header, or empty.
    """

    num_bytes: int
    etag: str = ""
    last_modified: str = ""

    @property
    def validator(self) -> str:
        """The ETag, else the time of the last change, else nothing."""
        return self.etag or self.last_modified

    def conditions(self) -> dict[str, str]:
        """Request headers that make the server refuse when the object is another one (RFC 9110, 13.1)."""
        if self.etag and not self.etag.startswith("W/"):
            return {"If-Match": self.etag}
        # A weak tag never satisfies If-Match.
        return {"If-Unmodified-Since": self.last_modified} if self.last_modified else {}


@dataclass(frozen=True, kw_only=True)
class TransferSpec:
    """How to treat the network.

    Attributes:
        jobs: Connections at once.
        rate: Most bytes a second over all connections; None for no limit.
        timeout: Seconds without a byte, or for a connection to come about, after which an attempt has failed.
        floor: Bytes a second that a connection must deliver over half a minute, or it is replaced by another.
    """

    jobs: int = 8
    rate: float | None = None
    timeout: float = 60.0
    floor: float = 1024.0

    def __post_init__(self) -> None:
        if not 1 <= self.jobs <= 64:
            raise SpecError(f"jobs must be from 1 to 64, got {self.jobs}")
        if self.rate is not None and not self.rate >= 1:
            raise SpecError(f"rate must be 1 byte a second or more, got {self.rate}")
        if not 0 < self.timeout <= MAX_TIMEOUT:
            raise SpecError(f"timeout must be more than 0 and at most {MAX_TIMEOUT:,} seconds, got {self.timeout}")
        # A connection that we slow down ourselves must not be taken for a slow one.
        if self.rate is not None and self.floor * self.jobs > self.rate:
            object.__setattr__(self, "floor", self.rate / self.jobs / 2)


class Wire:
    """What went over the network: counters that several threads may touch."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.num_bytes = 0
        self.requests = 0
        self.retries = 0
        self.addresses = 0

    def count(self, *, num_bytes: int = 0, requests: int = 0, retries: int = 0, addresses: int = 0) -> None:
        """Add to the counters."""
        with self._lock:
            self.num_bytes += num_bytes
            self.requests += requests
            self.retries += retries
            self.addresses += addresses


class RateLimit:
    """At most so many bytes a second, over all threads.

    Args:
        rate: Bytes a second; None for no limit.
        stop: Ends all waits.
    """

    def __init__(self, rate: float | None, stop: threading.Event) -> None:
        self._rate = rate
        self._stop = stop
        self._lock = threading.Lock()
        self._free_at = 0.0

    def take(self, num_bytes: int) -> None:
        """Wait until ``num_bytes`` may have arrived."""
        if self._rate is None:
            return
        with self._lock:
            now = time.monotonic()
            self._free_at = max(self._free_at, now) + num_bytes / self._rate
            wait = self._free_at - now
        self._stop.wait(wait)


class RangesIgnoredError(Exception):
    """The server answers a request for a range with the whole object; ``identity`` is what it says of it."""

    def __init__(self, identity: Identity) -> None:
        super().__init__("the server ignores ranges")
        self.identity = identity


class BrokenOffError(Exception):
    """One attempt to read a whole object failed: why, and what the server said about trying again."""

    def __init__(self, why: str, retry_after: str | None) -> None:
        super().__init__(why)
        self.why = why
        self.retry_after = retry_after


class _Failed(Exception):  # noqa: N818  # never leaves this module
    """An attempt that may go better next time."""

    def __init__(self, why: str, *, retry_after: str | None = None, refused: int | None = None) -> None:
        super().__init__(why)
        self.why = why
        self.retry_after = retry_after
        self.refused = refused


class RemoteFile:
    """One remote object behind addresses that expire.

    Args:
        resolve: Gives an address (URL) that is good now. Called again when the last one was refused.
        what: What the object is called in messages.
        spec: How to treat the network.
        backoff: How long to wait between attempts.
        wire: Counters to add to.
        identity: The object that is expected; None to take what is there when :meth:`open` is called.
    """

    def __init__(
        self,
        resolve: Callable[[], str],
        *,
        what: str,
        spec: TransferSpec | None = None,
        backoff: Backoff | None = None,
        wire: Wire | None = None,
        identity: Identity | None = None,
    ) -> None:
        self.what = what
        self.spec = spec or TransferSpec()
        self.wire = wire or Wire()
        self.hashes = ""
        self._resolve = resolve
        self._backoff = backoff or Backoff()
        self._identity = identity
        self._rate = RateLimit(self.spec.rate, self._backoff.stop)
        self._lock = threading.Lock()
        # A lock of its own: resolving may take minutes, and stop() must not wait for it.
        self._address_lock = threading.Lock()
        self._address: str | None = None
        self._pools: dict[str, urllib3.PoolManager] = {}
        self._sockets: WeakSet[socket.socket] = WeakSet()
        self._patience = Patience(self.spec.timeout)

    @property
    def identity(self) -> Identity:
        """The object that is read; known once :meth:`open` was called."""
        if self._identity is None:
            message = "open() comes first"
            raise RuntimeError(message)
        return self._identity

    def open(self, tail_bytes: int) -> bytes:
        """Find out what the object is, and read its end in the same request.

        Args:
            tail_bytes: How many of the last bytes to read.

        Returns:
            The last ``tail_bytes`` bytes, or the whole object if it is shorter.

        Raises:
            RangesIgnoredError: The server cannot send a part of it.
            ChangedError: It is not the expected object.
            NetworkError: The network failed after every retry.
        """
        # The size is not known yet, so the range is given from the end.
        what = f"the end of {self.what}"
        try:
            return b"".join(self._attempts(-tail_bytes, None, what=what))
        except RangesIgnoredError:
            # One such answer may be a hiccup, and the ways without ranges are slow.
            return b"".join(self._attempts(-tail_bytes, None, what=what))

    def stream(self, start: int, stop: int, *, what: str = "") -> Generator[bytes, None, None]:
        """The bytes from ``start`` to before ``stop``, in pieces; goes on where it stopped after a failure.

        Raises:
            ChangedError: The object was replaced.
            AccessError: Fresh addresses are refused.
            NetworkError: The network failed after every retry.
        """
        if not 0 <= start <= stop <= self.identity.num_bytes:
            message = f"range {start} to {stop} of {self.identity.num_bytes} bytes"
            raise ValueError(message)
        return self._attempts(start, stop, what=what or self.what)

    def read(self, start: int, stop: int, *, what: str = "") -> bytes:
        """Like :meth:`stream`, joined."""
        return b"".join(self.stream(start, stop, what=what))

    def stream_whole(self) -> Generator[bytes, None, None]:
        """The whole object from its start, in one attempt: nothing is resumed within.

        Raises:
            BrokenOffError: The attempt failed; it may go better next time.
            ChangedError: The object was replaced.
            AccessError: Fresh addresses are refused.
        """
        address = self._current()
        known = self._identity
        try:
            with self._request(address, known.conditions() if known else {}) as response:
                _check_encoding(response)
                if response.status != 200:
                    raise self._refusal(response)
                found = _identity_of(response)
                whole = self._whole(response)
                if not isinstance(whole, RangesIgnoredError):
                    raise whole
                self._check_identity(found)
                self.hashes = response.headers.get("x-goog-hash", "")
                yield from self._pieces(response, found.num_bytes)
        except _Failed as error:
            if error.refused is not None:
                self._forget(address)
            # What broke off may have lied about its size.
            self._identity = known
            raise BrokenOffError(error.why, error.retry_after) from None

    def read_whole(self, *, limit: int) -> bytes:
        """A small object, read from its start until an attempt gets through to its end.

        Args:
            limit: Most bytes it may have.

        Raises:
            NetworkError: It has more, or the network failed after every retry.
        """
        failures = 0
        while True:
            parts: list[bytes] = []
            try:
                for piece in self.stream_whole():
                    if self.identity.num_bytes > limit:
                        raise NetworkError(f"{self.what} has {self.identity.num_bytes:,} bytes, more than {limit:,}")
                    parts.append(piece)
                return b"".join(parts)
            except BrokenOffError as error:
                failures += 1
                self.wire.count(retries=1)
                self._backoff.pause(failures, what=self.what, why=error.why, retry_after=error.retry_after)

    def _attempts(self, start: int, stop: int | None, *, what: str) -> Generator[bytes, None, None]:
        position = start
        failures = refusals = 0
        while stop is None or position < stop:
            arrived = 0
            address = self._current()
            try:
                for piece in self._attempt(address, position, stop):
                    if stop is None:
                        # The first answer told the size: from here on the range is an ordinary one.
                        stop = self.identity.num_bytes
                        position = max(0, stop + position)
                    arrived += len(piece)
                    position += len(piece)
                    yield piece
                refusals = 0
                if stop is not None and position < stop and arrived < PIECE_BYTES:
                    raise _Failed(f"sent only {arrived:,} bytes of what was asked for")
            except _Failed as error:
                if self._backoff.stop.is_set():
                    raise NetworkError(f"{what} was stopped") from None
                # A server that drops the line after every few bytes is as good as dead.
                if arrived >= PIECE_BYTES:
                    failures = refusals = 0
                self.wire.count(retries=1)
                if error.refused is not None:
                    refusals += 1
                    self._forget(address)
                    if refusals > _REFUSALS:
                        raise self._refused(error, what) from None
                    if refusals == 1:
                        # Most likely it only expired: a fresh address deserves no wait.
                        continue
                failures += 1
                self._backoff.pause(failures, what=what, why=error.why, retry_after=error.retry_after)

    def _refused(self, error: _Failed, what: str) -> AccessError | MissingInputError:
        if error.refused in (404, 410):
            return MissingInputError(f"{what} is not where its address points: {error.why}", "try again later")
        return AccessError(
            f"{what}: {_REFUSALS + 1} addresses in a row were refused ({error.why})",
            "check that the clock of this computer is right, then run the same command again",
        )

    def _attempt(self, address: str, position: int, stop: int | None) -> Iterator[bytes]:
        asked = f"bytes={position}" if position < 0 else f"bytes={position}-{'' if stop is None else stop - 1}"
        conditions = self._identity.conditions() if self._identity else {}
        with self._request(address, {"Range": asked, **conditions}) as response:
            _check_encoding(response)
            if response.status == 200:
                answer = self._whole(response)
                if position >= 0 and isinstance(answer, RangesIgnoredError):
                    # It can send ranges, as it did when the file was opened: perhaps another server of a pool.
                    raise _Failed("answered with all of the file instead of a range")
                raise answer
            if response.status != 206:
                raise self._refusal(response)
            first, last, total = _content_range(response)
            self._check_identity(_identity_of(response, num_bytes=total))
            if position < 0:
                position = max(0, total + position)
            if first != position or last < first or last >= (total if stop is None else stop):
                raise _Failed(f"asked for bytes from {position:,}, got {first:,} to {last:,}")
            length = response.headers.get("Content-Length")
            if length is not None and length != str(last - first + 1):
                raise _Failed(f"announced {length} bytes for a range of {last - first + 1:,}")
            yield from self._pieces(response, last - first + 1)

    def _pieces(self, response: urllib3.BaseHTTPResponse, num_bytes: int) -> Iterator[bytes]:
        """The body, which must have exactly ``num_bytes``, on a connection that keeps up a least speed."""
        left, waited, waited_bytes = num_bytes, 0.0, 0
        while left:
            before = time.monotonic()
            with _network(), self._patience.until_answered():
                # Content-Encoding was checked before: what comes is what is stored.
                piece = response.read1(min(left, PIECE_BYTES), decode_content=False)
            waited += time.monotonic() - before
            if not piece:
                raise _Failed(f"the connection ended {left:,} bytes early")
            left -= len(piece)
            waited_bytes += len(piece)
            if waited > _SLOW_SECONDS:
                if waited_bytes < self.spec.floor * waited:
                    raise _Failed(f"slower than {self.spec.floor:,.0f} bytes a second")
                waited, waited_bytes = 0.0, 0
            self.wire.count(num_bytes=len(piece))
            self._rate.take(len(piece))
            if self._backoff.stop.is_set():
                raise _Failed("stopped")
            yield piece

    @contextlib.contextmanager
    def _request(self, address: str, headers: dict[str, str]) -> Iterator[urllib3.BaseHTTPResponse]:
        if self._backoff.stop.is_set():
            raise _Failed("stopped")
        pool = self._pool(address)
        self.wire.count(requests=1)
        with _network():
            response = pool.request(
                "GET",
                address,
                headers={"Accept-Encoding": "identity", "User-Agent": f"imgprep/{__version__}", **headers},
                preload_content=False,
                decode_content=False,
            )
        try:
            yield response
            # Back to the pool only when the end of the body is known to be reached.
            if response.headers.get("Content-Length") is None:
                response.close()
            response.release_conn()
        except BaseException:
            response.close()
            raise

    def _pool(self, address: str) -> urllib3.PoolManager:
        proxy = _proxy_for(address)
        with self._lock:
            if proxy not in self._pools:
                self._pools[proxy] = _make_pool(proxy, self.spec, self._note, self._patience)
            return self._pools[proxy]

    def _note(self, connected: socket.socket) -> None:
        with self._lock:
            self._sockets.add(connected)
        if self._backoff.stop.is_set():
            self.stop()

    def _current(self) -> str:
        """The address to use, resolved anew when the last one was refused."""
        with self._address_lock:
            if self._address is None:
                self.wire.count(addresses=1)
                self._address = self._resolve()
            return self._address

    def _forget(self, address: str) -> None:
        with self._address_lock:
            if self._address == address:
                self._address = None

    def _check_identity(self, found: Identity) -> None:
        with self._lock:
            if self._identity is None:
                self._identity = found
            expected = self._identity
        same_tag = expected.etag == found.etag or not (expected.etag and found.etag)
        same_time = expected.last_modified == found.last_modified or bool(expected.etag and found.etag)
        if expected.num_bytes != found.num_bytes or not same_tag or not (same_time or not found.last_modified):
            raise changed(self.what, expected, found)

    def _whole(self, response: urllib3.BaseHTTPResponse) -> Exception:
        """What a 200 in answer to a range means: a web page in between, or a server without ranges."""
        kind = response.headers.get("Content-Type", "")
        found = _identity_of(response)
        if kind.startswith(("text/html", "application/json")) or found.num_bytes < 0:
            return _Failed(f"answered 200 with {kind or 'something of unknown size'} instead of the file")
        if self._identity is not None and found.num_bytes != self._identity.num_bytes:
            return _Failed(f"answered 200 with {found.num_bytes:,} bytes instead of a range")
        with self._lock:
            self._identity = self._identity or found
        return RangesIgnoredError(found)

    def _refusal(self, response: urllib3.BaseHTTPResponse) -> Exception:
        """What a status other than 200 and 206 means."""
        status = response.status
        if status == 407:
            return _proxy_password()
        if status in (412, 416) and self._identity is not None:
            return changed(self.what, self._identity, _identity_of(response))
        refused = status if status in (400, 401, 403, 404, 410) else None
        retry_after = response.headers.get("Retry-After") if status in RETRIED_STATUSES else None
        return _Failed(f"HTTP status {status}", retry_after=retry_after, refused=refused)

    def stop(self) -> None:
        """End all transfers and waits at once, from any thread."""
        self._backoff.stop.set()
        with self._lock:
            sockets = list(self._sockets)
        for connected in sockets:
            with contextlib.suppress(OSError):
                connected.shutdown(socket.SHUT_RDWR)  # wakes a reader that is blocked

    def close(self) -> None:
        """Close all connections."""
        self._patience.close()
        for pool in self._pools.values():
            pool.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def changed(what: str, expected: Identity, found: Identity) -> ChangedError:
    """The error for an object that was replaced."""
    was = expected.validator or f"{expected.num_bytes:,} bytes"
    now = found.validator if found.validator and found.validator != was else f"{max(found.num_bytes, 0):,} bytes"
    return ChangedError(
        f"{what} was replaced on the server since: it was {was}, now it is {now}",
        "nothing here was touched; run the same command with --overwrite to go over to the new one",
    )


def map_parallel(function: Callable[[P], R], plans: Iterable[P], *, remote: RemoteFile) -> Generator[R, None, None]:
    """Apply a function that reads ``remote`` to each plan, as many at once as the spec allows.

    Yields:
        The results as they come. The first error stops all others at once and is raised.
    """
    pool = ThreadPoolExecutor(remote.spec.jobs, thread_name_prefix="imgprep-fetch")
    try:
        for future in as_completed([pool.submit(function, plan) for plan in plans]):
            yield future.result()
    except BaseException:
        # Also Ctrl-C: sleeping and reading threads wake up, so leaving takes no time.
        remote.stop()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def _network() -> Iterator[None]:
    """Turn what the network raises into a failed attempt; errors of the disk pass through.

    Raises:
        NetworkError: The server cannot prove who it is, or a proxy wants a password: trying again does not help.
    """
    try:
        yield
    except (urllib3.exceptions.HTTPError, ConnectionError, TimeoutError, ValueError) as error:
        # A ValueError is a redirection to an address that is none.
        reason = getattr(error, "reason", None) or error
        if isinstance(reason, urllib3.exceptions.ProxyError) and " 407 " in str(reason.original_error):
            raise _proxy_password() from None
        if isinstance(reason, urllib3.exceptions.SSLError) and "certificate" in str(reason).lower():
            raise NetworkError(
                f"the certificate of the server cannot be checked ({_first_line(reason)})",
                "behind a proxy that opens TLS, name its certificates in REQUESTS_CA_BUNDLE",
            ) from None
        raise _Failed(_why(reason)) from None


def _proxy_password() -> NetworkError:
    return NetworkError(
        "the proxy wants a user name and a password (HTTP 407)", "set https_proxy to http://USER:PASSWORD@HOST:PORT"
    )


def _why(error: BaseException) -> str:
    kinds = {
        # The first two are kinds of the third.
        urllib3.exceptions.NameResolutionError: "the name of the server cannot be resolved",
        urllib3.exceptions.NewConnectionError: "no connection to the server",
        urllib3.exceptions.ConnectTimeoutError: "no connection in time",
        urllib3.exceptions.ReadTimeoutError: "no byte in time",
        urllib3.exceptions.ProxyError: "no connection through the proxy",
        urllib3.exceptions.ProtocolError: "the connection broke",
    }
    known = next((text for kind, text in kinds.items() if isinstance(error, kind)), None)
    return known or f"{type(error).__name__}: {_first_line(error)}"


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "")[:200]


def _identity_of(response: urllib3.BaseHTTPResponse, *, num_bytes: int | None = None) -> Identity:
    if num_bytes is None:
        length = response.headers.get("Content-Length", "")
        num_bytes = int(length) if _SIZE.fullmatch(length) else -1
    return Identity(num_bytes, response.headers.get("ETag", ""), response.headers.get("Last-Modified", ""))


def _check_encoding(response: urllib3.BaseHTTPResponse) -> None:
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding != "identity" and response.status in (200, 206):
        raise _Failed(f"sent with Content-Encoding {encoding[:20]}, which was not asked for")


def _content_range(response: urllib3.BaseHTTPResponse) -> tuple[int, int, int]:
    header = response.headers.get("Content-Range", "")
    match = _CONTENT_RANGE.fullmatch(header.strip())
    if match is None or match[3] == "*":
        raise _Failed(f"sent a part without saying which (Content-Range: {header[:60]!r})")
    return int(match[1]), int(match[2]), int(match[3])


def _proxy_for(address: str) -> str:
    """The proxy that the environment names for an address, or nothing (``http_proxy``, ``no_proxy`` and so on)."""
    parts = urlsplit(address)
    if urllib.request.proxy_bypass(parts.netloc):
        return ""
    proxies = urllib.request.getproxies()
    return proxies.get(parts.scheme) or proxies.get("all") or ""


class Patience:
    """Ends waits for an answer that trickles.

    A socket's own timeout begins anew with each byte, so one byte a minute would keep a reader for days. What is
    awaited here, all of an answer's header or the next piece of its body, must be there in time as a whole.

    Args:
        seconds: How long a wait may be.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._current = threading.local()
        self._waits: dict[int, tuple[float, socket.socket]] = {}
        self._closed = threading.Event()
        self._watcher: threading.Thread | None = None
        self._lock = threading.Lock()

    def use(self, connected: socket.socket) -> None:
        """Tell the socket that this thread waits for from now on."""
        self._current.socket = connected

    @contextlib.contextmanager
    def until_answered(self) -> Iterator[None]:
        """A wait of this thread: when it takes too long, its socket is shut down."""
        awaited: socket.socket | None = getattr(self._current, "socket", None)
        if awaited is None:
            yield
            return
        if self._watcher is None:
            self._begin()
        # Assigning and removing a key are atomic: a lock for every piece would cost more than the rest.
        self._waits[threading.get_ident()] = time.monotonic() + self._seconds, awaited
        try:
            yield
        finally:
            self._waits.pop(threading.get_ident(), None)

    def _begin(self) -> None:
        with self._lock:
            if self._watcher is None and not self._closed.is_set():
                self._watcher = threading.Thread(target=self._watch, name="imgprep-patience", daemon=True)
                self._watcher.start()

    def _watch(self) -> None:
        while not self._closed.wait(min(1.0, self._seconds / 4)):
            now = time.monotonic()
            for until, awaited in list(self._waits.values()):
                if now > until:
                    with contextlib.suppress(OSError):
                        awaited.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End the watch."""
        self._closed.set()
        if self._watcher is not None:
            self._watcher.join()


def _make_pool(
    proxy: str, spec: TransferSpec, note: Callable[[socket.socket], None], patience: Patience
) -> urllib3.PoolManager:
    # Retrying is ours: only a storage server's redirect to another of its hosts is followed.
    retries = urllib3.Retry(
        total=5,
        connect=0,
        read=0,
        other=0,
        status=0,
        redirect=5,
        raise_on_status=False,
        respect_retry_after_header=False,
    )
    timeout = urllib3.Timeout(connect=min(spec.timeout, 30.0), read=spec.timeout)
    # The variables requests looks at too, so that one setting serves both clients.
    bundle = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or os.environ.get("SSL_CERT_FILE")
    if bundle is None:
        import certifi

        bundle = certifi.where()
    make: Callable[..., urllib3.PoolManager] = urllib3.PoolManager
    if proxy:
        make = _through(proxy)
    pool = make(maxsize=spec.jobs, retries=retries, timeout=timeout, ca_certs=bundle)
    pool.pool_classes_by_scheme = {
        scheme: _noting(kind, note, patience) for scheme, kind in pool.pool_classes_by_scheme.items()
    }
    return pool


def _through(proxy: str) -> Callable[..., urllib3.PoolManager]:
    """Makes pools that go through a proxy, given as ``[http://][USER:PASSWORD@]HOST:PORT``.

    Raises:
        NetworkError: The setting cannot be used. It is not quoted: it may hold a password.
    """
    try:
        parts = urllib3.util.parse_url(proxy if "://" in proxy else f"http://{proxy}")
        if parts.scheme in ("http", "https") and parts.host:
            headers = urllib3.util.make_headers(proxy_basic_auth=unquote(parts.auth)) if parts.auth else {}
            bare = parts._replace(auth=None).url
            return partial(urllib3.ProxyManager, bare, proxy_headers=headers)
    except (urllib3.exceptions.HTTPError, ValueError):
        pass
    raise NetworkError(
        "the proxy setting of this computer cannot be used",
        "set https_proxy and http_proxy to http://HOST:PORT or http://USER:PASSWORD@HOST:PORT",
    )


def _noting(kind: type[Any], note: Callable[[socket.socket], None], patience: Patience) -> type[Any]:
    """A kind of pool whose connections tell of their sockets: one that waits for an answer can then be woken."""
    connection = kind.ConnectionCls

    def connect(self: Any) -> None:
        connection.connect(self)
        note(self.sock)

    def getresponse(self: Any) -> Any:
        patience.use(self.sock)
        with patience.until_answered():
            return connection.getresponse(self)

    methods = {"connect": connect, "getresponse": getresponse}
    return type(kind.__name__, (kind,), {"ConnectionCls": type(connection.__name__, (connection,), methods)})
