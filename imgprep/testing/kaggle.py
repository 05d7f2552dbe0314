"""A stand-in for Kaggle on the loopback interface: the API's calls, signed storage URLs, and faults on order.

The real client talks to it when ``KAGGLE_API_ENVIRONMENT`` is ``LOCALHOST`` and ``http_proxy`` names its port
(:meth:`KaggleStandIn.environment`): requests then come in absolute form (RFC 9112, 3.2.2). Calls are POSTs of JSON to
``/api/v1/<service>/<method>``; a download call is answered by a redirect to a signed URL under ``/storage/``, on
127.0.0.1 instead of localhost, so that clients drop their credentials on the way as they do for Kaggle's storage.

To try something against it by hand: ``python -m imgprep.testing.kaggle ARCHIVE``.
"""

from __future__ import annotations

import base64
import contextlib
import email.utils
import gzip
import hashlib
import http.client
import io
import json
import math
import mimetypes
import os
import re
import secrets
import socket
import socketserver
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from email.message import Message
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Protocol, Self, TypeAlias, get_args
from urllib.parse import SplitResult, quote, unquote, urlsplit

import click

from imgprep.errors import ImgprepError, SpecError, as_imgprep_error

FaultKind: TypeAlias = Literal[
    "cut", "close", "stall", "slow", "status", "expired", "no-range", "no-etag", "no-length", "wrong-length",
    "wrong-range", "short-range", "flip", "gzip", "html", "replaced", "rules", "json-error",
]  # fmt: skip
Place: TypeAlias = Literal["storage", "api", "introspect"]
Credentials: TypeAlias = Literal[
    "legacy", "kaggle.json", "token", "token-path", "access_token", "oauth", "wrong-key", "wrong-token", "none"
]

_PIECE: Final = 1 << 20
_LARGEST_CALL: Final = 1 << 16
_TICK: Final = 0.05
_LIFETIME: Final = 3 * 24 * 3600.0
"""Seconds a signed URL is good for, as seen on Kaggle's."""
_UPLOADED: Final = 1_662_479_741
"""When the files were made: the 2022-09-06 that Kaggle lists for ImageNet."""
_DEFAULT_PAGE: Final = 20
_LARGEST_PAGE: Final = 200
_RANGE_KINDS: Final = frozenset({"no-range", "wrong-range", "short-range"})
_STORAGE_KINDS: Final = _RANGE_KINDS | {"expired", "no-etag", "replaced"}
_RANGE: Final = re.compile(r"bytes=(\d{0,19})-(\d{0,19})")
_NAMED_STATUSES: Final = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
}
"""Names that the nested form of an error gives next to its number (google.rpc.Code)."""
_RULES: Final = "You must accept this competition's rules before you'll be able to download files."
_HTML: Final = (
    b"<!DOCTYPE html><html><head><title>Sign in</title></head><body><h1>Sign in to the network</h1></body></html>"
)


class Archive(Protocol):
    """What is served as the competition's bundle. One that also has a ``path`` is sent by the kernel from that file."""

    @property
    def size(self) -> int:
        """Its length in bytes."""

    def pread(self, num_bytes: int, offset: int) -> bytes:
        """Give ``num_bytes`` at ``offset``, fewer at the end; called from several threads at once."""


class FileArchive:
    """An archive that is a file. The file must not change while it is served.

    Args:
        path: The file.

    Raises:
        ImgprepError: It cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self.size = os.fstat(file.fileno()).st_size
        except OSError as error:
            raise as_imgprep_error(error) from None

    def pread(self, num_bytes: int, offset: int) -> bytes:
        """Give ``num_bytes`` at ``offset``, fewer at the end."""
        with self.path.open("rb", buffering=0) as file:
            return os.pread(file.fileno(), num_bytes, offset)


class _Bytes:
    """An archive in memory."""

    def __init__(self, content: bytes) -> None:
        self.size = len(content)
        self._content = content

    def pread(self, num_bytes: int, offset: int) -> bytes:
        return self._content[offset : offset + num_bytes]


class _Flipped:
    """An archive with one byte altered."""

    def __init__(self, archive: Archive, position: int) -> None:
        self.size = archive.size
        self._archive = archive
        self._position = position

    def pread(self, num_bytes: int, offset: int) -> bytes:
        content = bytearray(self._archive.pread(num_bytes, offset))
        if offset <= self._position < offset + len(content):
            content[self._position - offset] ^= 0xFF
        return bytes(content)


class _Seekable(io.RawIOBase):
    """An archive as the file object that zipfile wants."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._position = 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._archive.size}[whence]
        self._position = max(0, origin + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        content = self._archive.pread(len(buffer), self._position)
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)


class _Members:
    """The members of an archive, if it is a zip, for calls about single files."""

    def __init__(self, archive: Archive) -> None:
        self.sizes: dict[str, int] = {}
        with contextlib.suppress(zipfile.BadZipFile):
            self._zip = zipfile.ZipFile(io.BufferedReader(_Seekable(archive)))
            self.sizes = {info.filename: info.file_size for info in self._zip.infolist() if not info.is_dir()}
        self.names = list(self.sizes)

    def read(self, name: str) -> bytes:
        return self._zip.read(name)


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Something that goes wrong, and for which requests. The first fault that fits a request hits it; no other does.

    The kinds, with the body meaning the bytes that were asked for:

    - ``cut``: the connection ends after ``percent`` of the body. ``close``: it ends before the first byte of an answer.
    - ``stall``: nothing more comes after ``percent`` of the body; on a call, nothing at all.
    - ``slow``: the body trickles at ``rate``. ``status``: an error of that status, with ``retry_after``.
    - ``expired``: the URL is good no more; newly resolved ones are.
    - ``no-range``: the whole object with 200. ``wrong-range``: bytes from another offset, and a Content-Range that says
      so. ``short-range``: only ``percent`` of the bytes, with headers that say so. These hit only answers with 206.
    - ``no-etag``: no ETag. ``no-length``: chunked. ``wrong-length``: Content-Length announces more than comes.
    - ``flip``: the byte at ``percent`` of the body is another. ``gzip``: the body is compressed (in memory).
    - ``html``: 200 with a web page. ``json-error``: 200 with a JSON body whose code is ``status``.
    - ``replaced``: after ``percent`` of the body the object becomes another one, with another ETag, and the connection
      ends unless that was all of it; with 0 this answer is about the new object already.
    - ``rules``: download calls answer that the rules are not accepted.

    Attributes:
        kind: What goes wrong.
        where: Downloads, calls, or the call that checks a token. ``rules`` is always about download calls.
        after: How many requests that fit are let through first.
        times: How many requests are hit; None for all.
        percent: Share of the body, see above.
        status: For ``status`` and ``json-error``.
        retry_after: Value of a Retry-After header: seconds or an HTTP date.
        path: Only requests whose path contains this.
        min_bytes: Only answers whose body is at least this long.
        max_bytes: Only answers whose body is at most this long.
        from_byte: Only bodies that start at or after this offset.
        rate: For ``slow``, in bytes a second.
        replacement: For ``replaced``: the new object; None for the same bytes under another ETag.

    Raises:
        SpecError: A value breaks its rule.
    """

    kind: FaultKind
    where: Place = "storage"
    after: int = 0
    times: int | None = 1
    percent: float = 50.0
    status: int = 503
    retry_after: str | None = None
    path: str = ""
    min_bytes: int = 0
    max_bytes: int | None = None
    from_byte: int = 0
    rate: float = 1000.0
    replacement: Archive | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        _one_of("kind", self.kind, get_args(FaultKind))
        _one_of("where", self.where, get_args(Place))
        if self.where != "storage" and self.kind in _STORAGE_KINDS:
            raise SpecError(f"{self.kind} is about storage, not {self.where}", "leave where out")
        _between("after", self.after, 0, math.inf)
        _between("times", 1 if self.times is None else self.times, 1, math.inf)
        _between("percent", self.percent, 0, 100)
        _between("status", self.status, 400, 599)
        _between("rate", self.rate, 1, math.inf)

    @classmethod
    def parse(cls, text: str) -> Fault:
        """Read a fault as written on a command line: ``cut:percent=30,times=2,min_bytes=65536``; ``times=all`` is None.

        Raises:
            SpecError: It is not written so, or a value breaks its rule.
        """
        kind, _, rest = text.strip().partition(":")
        # A comma inside a value (an HTTP date has one) is not followed by a name and an equals sign.
        settings = dict(item.partition("=")[::2] for item in re.split(r",(?=\s*\w+=)", rest) if item.strip())
        values: dict[str, Any] = {}
        for name, value in settings.items():
            convert = _FAULT_SETTINGS.get(name.strip())
            if convert is None:
                known = ", ".join(_FAULT_SETTINGS)
                raise SpecError(f"a fault has no setting {name.strip()!r}", f"use one of {known}")
            try:
                values[name.strip()] = convert(value.strip())
            except ValueError:
                raise SpecError(f"{name.strip()} of a fault must be a number, got {value.strip()!r}") from None
        return cls(kind=kind, **values)  # type: ignore[arg-type]  # __post_init__ refuses what is no kind

    def fits(self, place: Place, path: str, answer: _Answer) -> bool:
        """Tell whether this fault is for that answer; errors of storage are left as they are."""
        if self.kind == "rules":
            return place == "api" and "/DownloadDataFile" in path
        if self.kind in _RANGE_KINDS and answer.status != http.client.PARTIAL_CONTENT:
            return False
        if self.kind == "wrong-range" and answer.num_bytes == answer.body.size:
            return False
        largest = math.inf if self.max_bytes is None else self.max_bytes
        return (
            self.where == place
            and (place != "storage" or answer.status < http.client.BAD_REQUEST)
            and self.path in path
            and self.min_bytes <= answer.num_bytes <= largest
            and answer.first >= self.from_byte
        )

    def share(self, num_bytes: int) -> int:
        """How many bytes ``percent`` of ``num_bytes`` is, rounded down."""
        return int(num_bytes * self.percent / 100)


_FAULT_SETTINGS: Final[dict[str, Callable[[str], Any]]] = {
    "where": str,
    "after": int,
    "times": lambda text: None if text == "all" else int(text),
    "percent": float,
    "status": int,
    "retry_after": str,
    "path": str,
    "min_bytes": int,
    "max_bytes": int,
    "from_byte": int,
    "rate": float,
}


def _one_of(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise SpecError(f"{name} must be one of {', '.join(choices)}, not {value!r}")


def _between(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise SpecError(
            f"{name} must be {f'{low} or more' if high == math.inf else f'from {low} to {high}'}, not {value}"
        )


@dataclass(frozen=True, slots=True)
class Request:
    """One request as it was answered.

    Attributes:
        method: GET, HEAD or POST.
        path: Without scheme, host and query, percent-decoded.
        range: First and last byte (inclusive) of the range asked for, within the object; None without a valid one.
        status: Status sent; 0 when the connection ended or stalled before any.
        num_bytes: Bytes of the body handed to the network so far.
        authorized: Whether it carried the right credentials. A storage request should not.
        fault: Kind of the fault that hit it, or "".
        range_header: Its headers of that name, "" where there was none; likewise the others.
        if_range: See above.
        if_match: See above.
        accept_encoding: See above.
        user_agent: See above.
    """

    method: str
    path: str
    range: tuple[int, int] | None
    status: int
    num_bytes: int
    authorized: bool
    fault: str
    range_header: str
    if_range: str
    if_match: str
    accept_encoding: str
    user_agent: str


class _Pace:
    """Bytes a second, shared by all who take from it."""

    def __init__(self, rate: float) -> None:
        self.piece = max(1, min(_PIECE, int(rate * _TICK)))
        self._rate = rate
        self._due = 0.0
        self._lock = threading.Lock()

    def seconds(self, num_bytes: int) -> float:
        """How long to wait before sending so many more."""
        with self._lock:
            now = time.monotonic()
            self._due = max(self._due, now) + num_bytes / self._rate
            return self._due - now


@dataclass(slots=True, kw_only=True)
class _Answer:
    """What to send: ``num_bytes`` of ``body`` from ``first`` on, unless a fault says otherwise."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: Archive = field(default_factory=lambda: _Bytes(b""))
    first: int = 0
    num_bytes: int = 0
    announced_more: int = 0
    chunked: bool = False
    stop_at: int | None = None
    ending: Literal["", "close", "stall"] = ""
    silent: bool = False
    paces: tuple[_Pace, ...] = ()

    def head(self) -> bytes:
        lines = [f"HTTP/1.1 {self.status} {http.client.responses.get(self.status, '')}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        length = (
            "Transfer-Encoding: chunked" if self.chunked else f"Content-Length: {self.num_bytes + self.announced_more}"
        )
        date = f"Date: {email.utils.formatdate(usegmt=True)}"
        return "\r\n".join([*lines, length, date, "", ""]).encode("latin-1")

    def narrow(self, first: int, num_bytes: int) -> None:
        """Make it an answer with 206 about another part of the body."""
        self.first, self.num_bytes = first, num_bytes
        self.headers["Content-Range"] = f"bytes {first}-{first + num_bytes - 1}/{self.body.size}"


def _answer(status: int, content: bytes, content_type: str, **headers: str) -> _Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    body = _Bytes(content)
    return _Answer(status=status, headers={"Content-Type": content_type, **named}, body=body, num_bytes=body.size)


def _json(status: int, document: Mapping[str, Any], **headers: str) -> _Answer:
    return _answer(status, json.dumps(document).encode(), "application/json; charset=utf-8", **headers)


def _xml(status: int, code: str, message: str, **headers: str) -> _Answer:
    text = f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
    return _answer(status, text.encode(), "application/xml; charset=UTF-8", **headers)


def _cut(answer: _Answer, fault: Fault) -> None:
    answer.stop_at, answer.ending = fault.share(answer.num_bytes), "close"


def _close(answer: _Answer, _fault: Fault) -> None:
    answer.silent, answer.ending = True, "close"


def _stall(answer: _Answer, fault: Fault) -> None:
    answer.stop_at, answer.ending, answer.silent = fault.share(answer.num_bytes), "stall", fault.where != "storage"


def _slow(answer: _Answer, fault: Fault) -> None:
    answer.paces = (*answer.paces, _Pace(fault.rate))


def _no_range(answer: _Answer, _fault: Fault) -> None:
    del answer.headers["Content-Range"]
    answer.status, answer.first, answer.num_bytes = http.client.OK, 0, answer.body.size


def _wrong_range(answer: _Answer, _fault: Fault) -> None:
    before = min(answer.first, 512)
    after = min(answer.body.size - answer.first - answer.num_bytes, 512)
    answer.narrow(answer.first - before if before else answer.first + after, answer.num_bytes)


def _short_range(answer: _Answer, fault: Fault) -> None:
    answer.narrow(answer.first, max(1, fault.share(answer.num_bytes)))


def _no_etag(answer: _Answer, _fault: Fault) -> None:
    answer.headers.pop("ETag", None)


def _no_length(answer: _Answer, _fault: Fault) -> None:
    answer.chunked = True


def _wrong_length(answer: _Answer, _fault: Fault) -> None:
    answer.announced_more, answer.ending = 1000, "close"


def _flip(answer: _Answer, fault: Fault) -> None:
    position = min(fault.share(answer.num_bytes), max(0, answer.num_bytes - 1))
    answer.body = _Flipped(answer.body, answer.first + position)


def _gzip(answer: _Answer, _fault: Fault) -> None:
    content = gzip.compress(answer.body.pread(answer.num_bytes, answer.first), compresslevel=1)
    answer.headers["Content-Encoding"] = "gzip"
    answer.body, answer.first, answer.num_bytes = _Bytes(content), 0, len(content)


_SPOILERS: Final[dict[FaultKind, Callable[[_Answer, Fault], None]]] = {
    "cut": _cut,
    "close": _close,
    "stall": _stall,
    "slow": _slow,
    "no-range": _no_range,
    "wrong-range": _wrong_range,
    "short-range": _short_range,
    "no-etag": _no_etag,
    "no-length": _no_length,
    "wrong-length": _wrong_length,
    "flip": _flip,
    "gzip": _gzip,
}


@dataclass(slots=True)
class _Armed:
    fault: Fault
    fitting: int = 0

    def strikes(self) -> bool:
        """Count a request that fits; tell whether it is hit."""
        self.fitting += 1
        hit = self.fitting - self.fault.after
        return hit >= 1 and (self.fault.times is None or hit <= self.fault.times)


@dataclass(slots=True)
class _Grant:
    """What a signed URL stands for: a member, or the archive for ""."""

    name: str
    deadline: float


@dataclass(frozen=True, slots=True)
class _Stored:
    """An object in storage."""

    body: Archive
    etag: str
    headers: dict[str, str]


@dataclass(frozen=True, slots=True)
class _Incoming:
    method: str
    target: SplitResult
    headers: Message
    content: bytes

    @property
    def path(self) -> str:
        return unquote(self.target.path)

    def header(self, name: str) -> str:
        return str(self.headers.get(name, ""))


def _asked_range(header: str, size: int) -> tuple[int, int] | None:
    """First and last byte asked for; last before first where it cannot be satisfied; None where it is to be ignored."""
    match = _RANGE.fullmatch(header.strip())
    if match is None or match[0] == "bytes=-":
        return None
    first, last = match.groups()
    if not first:
        return max(0, size - int(last)) if int(last) else size, size - 1
    if last and int(last) < int(first):
        return None
    return int(first), min(int(last), size - 1) if last else size - 1


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """One thread a connection; forgets them when they end, and can end them all."""

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, port: int, stand_in: KaggleStandIn) -> None:
        self.stand_in = stand_in
        self.closing = threading.Event()
        self._connections: set[socket.socket] = set()
        self._changed = threading.Condition()
        super().__init__(("127.0.0.1", port), _Handler)

    def joined(self, connection: socket.socket) -> None:
        with self._changed:
            self._connections.add(connection)
            if self.closing.is_set():
                self._hang_up(connection)

    def left(self, connection: socket.socket) -> None:
        with self._changed:
            self._connections.discard(connection)
            self._changed.notify_all()

    def end(self) -> None:
        """Stop listening and end every connection, stalled ones too."""
        self.closing.set()
        self.shutdown()
        self.server_close()
        with self._changed:
            for connection in self._connections:
                self._hang_up(connection)
            self._changed.wait_for(lambda: not self._connections, timeout=2)

    @staticmethod
    def _hang_up(connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    """Reads requests from one connection and sends the answers."""

    server: _Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self.server.joined(self.connection)

    def finish(self) -> None:
        super().finish()
        self.server.left(self.connection)

    def handle(self) -> None:
        # Clients that go away in the middle are what this server is for.
        with contextlib.suppress(ConnectionError):
            super().handle()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base class names it so
        """Say nothing: :attr:`KaggleStandIn.requests` is the log."""

    def _respond(self) -> None:
        length = self.headers.get("Content-Length", "0")
        if not (length.isascii() and length.isdigit() and len(length) < 9 and int(length) <= _LARGEST_CALL):
            self.close_connection = True
            self._send(_json(413, {"code": 413, "message": "Request too large"}), _Entry())
            return
        try:
            target = urlsplit(self.path)
        except ValueError:
            target = SplitResult("", "", "/", "", "")
        incoming = _Incoming(self.command, target, self.headers, self.rfile.read(int(length)))
        self._send(*self.server.stand_in.answer(incoming))

    do_GET = do_HEAD = do_POST = _respond  # noqa: N815  # the base class looks for these names

    def _send(self, answer: _Answer, entry: _Entry) -> None:
        if not answer.silent:
            with_body = self.command != "HEAD" and answer.num_bytes > 0
            # The head waits for the first bytes of the body, so that both leave in one packet.
            self.connection.sendall(answer.head(), socket.MSG_MORE if with_body else 0)
            if with_body:
                self._send_body(answer, entry)
        if answer.ending:
            self.close_connection = True
        if answer.ending == "stall":
            # Until the client goes away or the server ends: both end this read.
            while self.connection.recv(4096):
                pass

    def _send_body(self, answer: _Answer, entry: _Entry) -> None:
        path = getattr(answer.body, "path", None)
        piece = min((_PIECE, *(pace.piece for pace in answer.paces)))
        num_bytes = answer.num_bytes if answer.stop_at is None else answer.stop_at
        with contextlib.ExitStack() as stack:
            file = None if path is None else stack.enter_context(Path(path).open("rb", buffering=0)).fileno()
            for start in range(0, num_bytes, piece):
                length = min(piece, num_bytes - start)
                wait = max((pace.seconds(length) for pace in answer.paces), default=0.0)
                if wait > 0 and self.server.closing.wait(wait):
                    raise ConnectionAbortedError
                if answer.chunked:
                    self.connection.sendall(b"%x\r\n" % length, socket.MSG_MORE)
                self._send_piece(answer.body, file, answer.first + start, length, entry)
                if answer.chunked:
                    self.connection.sendall(b"\r\n")
        if answer.chunked and answer.stop_at is None:
            self.connection.sendall(b"0\r\n\r\n")

    def _send_piece(self, body: Archive, file: int | None, offset: int, length: int, entry: _Entry) -> None:
        content = memoryview(b"" if file is not None else body.pread(length, offset))
        left = length
        # Counted first: a client that has seen the last byte finds it counted.
        entry.num_bytes += length
        try:
            while left:
                if file is not None:
                    sent = os.sendfile(self.connection.fileno(), file, offset + length - left, left)
                else:
                    sent = self.connection.send(content[length - left :]) if len(content) == length else 0
                if not sent:
                    raise ConnectionAbortedError
                left -= sent
        finally:
            entry.num_bytes -= left


@dataclass(slots=True)
class _Entry:
    """A line of the log; its count grows while the body goes out."""

    request: Request | None = None
    num_bytes: int = 0


class KaggleStandIn:
    """A server that answers as Kaggle does, from when it is made until it is closed, on threads of its own.

    Args:
        archive: What the competition's bundle is. Single members are read from it, if it is a zip.
        competition: The one competition there is.
        faults: What goes wrong.
        username: Whose the key and the token are.
        key: The legacy API key.
        token: The access token.
        files: Whether single members can be downloaded; the listing names them in any case.
        zipped_files: Members that are served as a zip of their own, named ``NAME.zip``.
        rules_accepted: Whether the account has accepted the competition's rules.
        nested_errors: Errors of calls in the newer form, ``{"error": {...}}``.
        url_lifetime: Seconds until a signed URL expires; None for Kaggle's three days.
        max_file_calls: How many calls for single files are answered before 429; None for no limit.
        latency: Seconds before every answer.
        rate: Bytes a second for all storage together; None for no limit.
        port: The port of 127.0.0.1 to listen on; 0 for any that is free.

    Attributes:
        port: The port it listens on.
        url: Its address, for ``http_proxy``.

    Raises:
        ImgprepError: The archive cannot be read or the port not be had.
    """

    def __init__(
        self,
        archive: Path | Archive,
        *,
        competition: str = "imagenet-object-localization-challenge",
        faults: Sequence[Fault] = (),
        username: str = "someone",
        key: str = "0" * 32,
        token: str = "KGAT_" + "1" * 32,
        files: bool = True,
        zipped_files: Sequence[str] = (),
        rules_accepted: bool = True,
        nested_errors: bool = False,
        url_lifetime: float | None = None,
        max_file_calls: int | None = None,
        latency: float = 0.0,
        rate: float | None = None,
        port: int = 0,
    ) -> None:
        self.competition = competition
        self.username, self.key, self.token = username, key, token
        self._files = files
        self._zipped_files = frozenset(zipped_files)
        self._rules_accepted = rules_accepted
        self._nested_errors = nested_errors
        self._url_lifetime = _LIFETIME if url_lifetime is None else url_lifetime
        self._file_calls_left = math.inf if max_file_calls is None else max_file_calls
        self._latency = latency
        self._paces = () if rate is None else (_Pace(rate),)
        self._lock = threading.RLock()
        self._log: list[_Entry] = []
        self._armed = [_Armed(fault) for fault in faults]
        self._grants: dict[str, _Grant] = {}
        self._generation = 0
        self._archive = _as_archive(archive)
        self._bundle: _Stored | None = None
        self._members: _Members | None = None
        self._calls: dict[str, Callable[[dict[str, Any]], _Answer]] = {
            "competitions.CompetitionApiService/ListDataFiles": self._list_files,
            "competitions.CompetitionApiService/ListDataTreeFiles": self._list_folder,
            "competitions.CompetitionApiService/DownloadDataFile": self._download_file,
            "competitions.CompetitionApiService/DownloadDataFiles": self._download_bundle,
        }
        try:
            self._server = _Server(port, self)
        except OSError as error:
            raise as_imgprep_error(error) from None
        self.port: int = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, args=(_TICK,), name="kaggle-stand-in", daemon=True).start()

    def close(self) -> None:
        """Stop serving and end all connections; closing twice is fine."""
        self._server.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def requests(self) -> list[Request]:
        """Every request answered so far, or being answered, in the order they came."""
        with self._lock:
            log = list(self._log)
        return [replace(entry.request, num_bytes=entry.num_bytes) for entry in log if entry.request is not None]

    @property
    def storage_bytes(self) -> int:
        """Bytes of storage bodies sent for the requests in the log."""
        return sum(request.num_bytes for request in self.requests if request.path.startswith("/storage/"))

    @property
    def etag(self) -> str:
        """The bundle's ETag, quotes included."""
        return self._stored_bundle().etag

    def replace(self, archive: Path | Archive) -> None:
        """Put another object under the same name; its ETag is another one even if the bytes are the same."""
        opened = _as_archive(archive)
        with self._lock:
            self._generation += 1
            self._archive, self._bundle, self._members = opened, None, None

    def add_fault(self, fault: Fault) -> None:
        """Let one more thing go wrong; faults added before are tried before."""
        with self._lock:
            self._armed.append(_Armed(fault))

    def clear_faults(self) -> None:
        """Let nothing go wrong from here on. URLs that have expired stay so."""
        with self._lock:
            self._armed.clear()

    def forget(self) -> None:
        """Drop the log of requests."""
        with self._lock:
            self._log.clear()

    def environment(self, home: Path, *, credentials: Credentials = "legacy") -> dict[str, str]:
        """Variables that point the real client here, with credentials; the files these need are written.

        Args:
            home: An empty folder, or one given here before, to be the home folder.
            credentials: Which to offer: ``legacy`` (user name and key in the environment), ``kaggle.json``, ``token``
                (in the environment), ``token-path`` (the environment names a file), ``access_token`` (a file where the
                client looks for it), ``oauth`` (credentials.json with an access token that is still good),
                ``wrong-key`` and ``wrong-token`` (both in the environment), or none.

        Returns:
            Every variable that matters. An empty value means that the variable must not be set at all;
            :meth:`child_environment` does that.
        """
        folder = home / ".kaggle"
        folder.mkdir(parents=True, exist_ok=True)
        for stale in ("kaggle.json", "access_token", "credentials.json"):
            (folder / stale).unlink(missing_ok=True)
        files = {
            "kaggle.json": ("kaggle.json", json.dumps({"username": self.username, "key": self.key})),
            "access_token": ("access_token", self.token),
            "token-path": ("elsewhere", self.token),
            "oauth": ("credentials.json", json.dumps(self._oauth())),
        }
        if credentials in files:
            name, content = files[credentials]
            (folder / name).touch(mode=0o600)
            (folder / name).write_text(content, encoding="utf-8")
        legacy = {"legacy": self.key, "wrong-key": "f" * 32}.get(credentials, "")
        tokens = {"token": self.token, "wrong-token": "KGAT_" + "f" * 32, "token-path": str(folder / "elsewhere")}
        return {
            **dict.fromkeys(_TO_UNSET, ""),
            "HOME": str(home),
            "KAGGLE_CONFIG_DIR": str(folder),
            "KAGGLE_API_ENVIRONMENT": "LOCALHOST",
            "http_proxy": self.url,
            "KAGGLE_USERNAME": self.username if legacy else "",
            "KAGGLE_KEY": legacy,
            "KAGGLE_API_TOKEN": tokens.get(credentials, ""),
        }

    def child_environment(self, home: Path, *, credentials: Credentials = "legacy") -> dict[str, str]:
        """This process's environment with :meth:`environment` applied: for a child process."""
        merged = {**os.environ, **self.environment(home, credentials=credentials)}
        return {name: value for name, value in merged.items() if value}

    def _oauth(self) -> dict[str, Any]:
        return {
            "refresh_token": "not served",
            "access_token": self.token,
            "access_token_expiration": "2099-01-01T00:00:00+00:00",
            "username": self.username,
            "scopes": [],
        }

    def answer(self, incoming: _Incoming) -> tuple[_Answer, _Entry]:
        """Decide what to send, faults included, and log it; for the connection's thread."""
        if self._latency > 0:
            self._server.closing.wait(self._latency)
        path = incoming.path
        place: Place = "storage" if path.startswith("/storage/") else "api"
        if path.endswith("OAuthService/IntrospectToken"):
            place = "introspect"
        route = self._fetch if place == "storage" else self._call
        with self._lock:
            answer = route(incoming)
            fault = self._strike(place, path, answer)
            if fault is not None:
                answer = self._spoil(answer, fault, incoming)
            entry = _Entry(self._logged(incoming, answer, fault))
            self._log.append(entry)
        return answer, entry

    def _logged(self, incoming: _Incoming, answer: _Answer, fault: Fault | None) -> Request:
        asked = _asked_range(incoming.header("Range"), answer.body.size)
        return Request(
            method=incoming.method,
            path=incoming.path,
            range=asked if asked and asked[0] <= asked[1] else None,
            status=0 if answer.silent else int(answer.status),
            num_bytes=0,
            authorized=self._authorized(incoming),
            fault=fault.kind if fault else "",
            range_header=incoming.header("Range"),
            if_range=incoming.header("If-Range"),
            if_match=incoming.header("If-Match"),
            accept_encoding=incoming.header("Accept-Encoding"),
            user_agent=incoming.header("User-Agent"),
        )

    def _strike(self, place: Place, path: str, answer: _Answer) -> Fault | None:
        for armed in self._armed:
            if armed.fault.fits(place, path, answer) and armed.strikes():
                return armed.fault
        return None

    def _spoil(self, answer: _Answer, fault: Fault, incoming: _Incoming) -> _Answer:
        if fault.kind in _SPOILERS:
            _SPOILERS[fault.kind](answer, fault)
            return answer
        if fault.kind == "expired":
            self._grants[_signed_part(incoming)].deadline = 0.0
            return self._fetch(incoming)
        if fault.kind == "replaced":
            return self._spoil_by_replacing(answer, fault, incoming)
        return self._refuse(fault)

    def _refuse(self, fault: Fault) -> _Answer:
        retry = {} if fault.retry_after is None else {"Retry_After": fault.retry_after}
        message = "The request was refused on purpose."
        if fault.kind == "html":
            return _answer(http.client.OK, _HTML, "text/html; charset=utf-8")
        if fault.kind == "rules":
            return self._error(403, _RULES)
        if fault.kind == "status" and fault.where == "storage":
            return _xml(fault.status, "Refused", message, **retry)
        refusal = self._error(fault.status, message, **retry)
        if fault.kind == "json-error":
            refusal.status = http.client.OK
        return refusal

    def _spoil_by_replacing(self, answer: _Answer, fault: Fault, incoming: _Incoming) -> _Answer:
        # Before the old body goes out: once a client has all that comes of it, the new object must be there.
        self.replace(self._archive if fault.replacement is None else fault.replacement)
        if fault.percent == 0:
            return self._fetch(incoming)
        _cut(answer, fault)
        if answer.stop_at == answer.num_bytes:
            answer.ending = ""
        return answer

    def _authorized(self, incoming: _Incoming) -> bool:
        basic = base64.b64encode(f"{self.username}:{self.key}".encode()).decode()
        return incoming.header("Authorization") in (f"Basic {basic}", f"Bearer {self.token}")

    def _error(self, status: int, message: str, **headers: str) -> _Answer:
        document: dict[str, Any] = {"code": status, "message": message}
        if self._nested_errors:
            document = {"error": {**document, "status": _NAMED_STATUSES.get(status, "UNKNOWN")}}
        return _json(status, document, **headers)

    def _call(self, incoming: _Incoming) -> _Answer:
        """Answer a call of the API."""
        _, _, name = incoming.path.rpartition("/v1/")
        try:
            asked = json.loads(incoming.content)
        except (ValueError, RecursionError):
            asked = None
        if incoming.method != "POST" or not isinstance(asked, dict):
            return self._error(400, "Invalid request")
        if name == "security.OAuthService/IntrospectToken":
            return self._introspect(asked)
        if name not in self._calls:
            return self._error(404, "Not found")
        if not self._authorized(incoming):
            return self._error(401, "Unauthorized")
        if asked.get("competitionName") != self.competition:
            return self._error(404, "Competition not found")
        return self._calls[name](asked)

    def _introspect(self, asked: dict[str, Any]) -> _Answer:
        if asked.get("token") != self.token:
            return self._error(400, "Invalid token")
        return _json(200, {"active": True, "username": self.username, "clientId": "", "scope": "", "exp": 0})

    def _page(self, asked: dict[str, Any], names: list[str]) -> tuple[list[str], dict[str, str]]:
        """The names of the page asked for, and where the next one starts if there is one."""
        size, start = asked.get("pageSize"), asked.get("pageToken")
        size = min(size, _LARGEST_PAGE) if isinstance(size, int) and size > 0 else _DEFAULT_PAGE
        first = int(start) if isinstance(start, str) and re.fullmatch("[0-9]{1,9}", start) else 0
        following = {"nextPageToken": str(first + size)} if first + size < len(names) else {}
        return names[first : first + size], following

    def _list_files(self, asked: dict[str, Any]) -> _Answer:
        members = self._opened_members()
        page, following = self._page(asked, members.names)
        files = [{"ref": "", **self._described(name), "name": name} for name in page]
        return _json(200, {"files": files, **following})

    def _list_folder(self, asked: dict[str, Any]) -> _Answer:
        members = self._opened_members()
        path = asked.get("path")
        prefix = f"{path.strip('/')}/" if isinstance(path, str) and path.strip("/") else ""
        inside = [name.removeprefix(prefix) for name in members.names if name.startswith(prefix)]
        folders = list(dict.fromkeys(name.partition("/")[0] for name in inside if "/" in name))
        children = [f"{folder}/" for folder in folders] + [name for name in inside if "/" not in name]
        page, following = self._page(asked, children)
        totals = {
            "totalChildren": len(children),
            "totalDirectories": len(folders),
            "totalFiles": len(children) - len(folders),
        }
        directories = [
            {"name": child[:-1], "relativeUrl": prefix + child[:-1]} for child in page if child.endswith("/")
        ]
        files = [
            {"name": child, "relativeUrl": prefix + child, **self._described(prefix + child)}
            for child in page
            if not child.endswith("/")
        ]
        return _json(200, {"directories": directories, "files": files, **totals, **following})

    def _described(self, name: str) -> dict[str, Any]:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(_UPLOADED))
        return {"totalBytes": self._opened_members().sizes[name], "creationDate": stamp}

    def _download_bundle(self, _asked: dict[str, Any]) -> _Answer:
        return self._signed("", "archive.zip") if self._rules_accepted else self._error(403, _RULES)

    def _download_file(self, asked: dict[str, Any]) -> _Answer:
        if not self._rules_accepted:
            return self._error(403, _RULES)
        if self._file_calls_left <= 0:
            return self._error(429, "Too many requests", Retry_After="1")
        self._file_calls_left -= 1
        name = asked.get("fileName")
        if not self._files or not isinstance(name, str) or name not in self._opened_members().sizes:
            return self._error(404, "File not found")
        return self._signed(name, f"{name}.zip" if name in self._zipped_files else name)

    def _signed(self, name: str, shown: str) -> _Answer:
        """Redirect to a URL that no one can guess."""
        deadline = time.time() + self._url_lifetime
        path = f"/storage/{quote(self.competition, safe='')}/{quote(shown)}"
        query = f"GoogleAccessId=stand-in&Expires={math.ceil(deadline)}&Signature={secrets.token_hex(16)}"
        self._grants[f"{path}?{query}"] = _Grant(name, deadline)
        return _Answer(status=http.client.FOUND, headers={"Location": f"{self.url}{path}?{query}"})

    def _opened_members(self) -> _Members:
        with self._lock:
            if self._members is None:
                self._members = _Members(self._archive)
            return self._members

    def _stored_bundle(self) -> _Stored:
        """The bundle; like a composite object in Kaggle's storage it has no MD5."""
        with self._lock:
            if self._bundle is None:
                archive, edge = self._archive, 1 << 16
                digest = hashlib.sha256(f"{self._generation} {archive.size} ".encode())
                digest.update(archive.pread(edge, 0) + archive.pread(edge, max(0, archive.size - edge)))
                etag = f'"{digest.hexdigest()[:32]}"'
                self._bundle = _Stored(archive, etag, self._storage_headers(etag, "application/zip"))
            return self._bundle

    def _stored_member(self, name: str) -> _Stored | None:
        members = self._opened_members()
        if name not in members.sizes:
            return None
        content = members.read(name)
        kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
        if name in self._zipped_files:
            content, kind = _zipped(name.rpartition("/")[2], content), "application/zip"
        digest = hashlib.md5(content, usedforsecurity=False)
        etag = f'"{digest.hexdigest()}-{self._generation}"'
        hashed = {"x-goog-hash": f"md5={base64.b64encode(digest.digest()).decode()}"}
        return _Stored(_Bytes(content), etag, {**self._storage_headers(etag, kind), **hashed})

    def _storage_headers(self, etag: str, content_type: str) -> dict[str, str]:
        return {
            "Content-Type": content_type,
            "Accept-Ranges": "bytes",
            "ETag": etag,
            "Last-Modified": email.utils.formatdate(_UPLOADED + self._generation, usegmt=True),
        }

    def _fetch(self, incoming: _Incoming) -> _Answer:
        """Answer a GET or HEAD of an object (RFC 9110, 13.1 and 14)."""
        if incoming.method not in ("GET", "HEAD"):
            return _xml(405, "MethodNotAllowed", "The specified method is not allowed against this resource.")
        grant = self._grants.get(_signed_part(incoming))
        if grant is None:
            return _xml(403, "SignatureDoesNotMatch", "The request signature does not match the one of the URL.")
        if time.time() >= grant.deadline:
            return _xml(400, "ExpiredToken", "The provided token has expired.")
        stored = self._stored_member(grant.name) if grant.name else self._stored_bundle()
        if stored is None:
            return _xml(404, "NoSuchKey", "The specified key does not exist.")
        return self._part(stored, incoming)

    def _part(self, stored: _Stored, incoming: _Incoming) -> _Answer:
        if_match = incoming.header("If-Match")
        if if_match and "*" not in if_match and stored.etag not in [tag.strip() for tag in if_match.split(",")]:
            return _xml(412, "PreconditionFailed", "At least one of the pre-conditions you specified did not hold.")
        size = stored.body.size
        asked = _asked_range(incoming.header("Range"), size)
        if incoming.header("If-Range") not in ("", stored.etag, stored.headers["Last-Modified"]):
            asked = None
        if asked is not None and asked[1] < asked[0]:
            refusal = _xml(416, "InvalidRange", "The requested range cannot be satisfied.")
            refusal.headers["Content-Range"] = f"bytes */{size}"
            return refusal
        answer = _Answer(status=200, headers=dict(stored.headers), body=stored.body, num_bytes=size, paces=self._paces)
        if asked is not None:
            answer.status = http.client.PARTIAL_CONTENT
            answer.narrow(asked[0], asked[1] - asked[0] + 1)
        return answer


_TO_UNSET: Final = (
    "XDG_CONFIG_HOME", "KAGGLE_PATH", "VERBOSE", "VERBOSE_OUTPUT", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY",
    "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY",
)  # fmt: skip
"""Variables that would lead the real client elsewhere or make it print credentials."""


def _signed_part(incoming: _Incoming) -> str:
    return f"{incoming.target.path}?{incoming.target.query}"


def _as_archive(archive: Path | Archive) -> Archive:
    return FileArchive(archive) if isinstance(archive, Path) else archive


def _zipped(name: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        # A fixed date: every download of it has the same bytes.
        archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


@click.command()
@click.argument("archive", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--fault", "faults", multiple=True, metavar="SPEC", help="E.g. cut:percent=30,times=2; repeatable.")
@click.option("--port", default=0, help="Port of 127.0.0.1; any free one by default.")
@click.option("--rate", type=click.FloatRange(min=1), help="Bytes a second for all downloads together.")
@click.option("--latency", default=0.0, help="Seconds before every answer.")
@click.option("--url-lifetime", type=float, help="Seconds until a signed URL expires.")
def main(
    archive: Path, faults: Sequence[str], port: int, rate: float | None, latency: float, url_lifetime: float | None
) -> None:
    """Serve ARCHIVE as Kaggle's ImageNet competition until Ctrl-C."""
    try:
        armed = [Fault.parse(text) for text in faults]
        stand_in = KaggleStandIn(
            archive, faults=armed, port=port, rate=rate, latency=latency, url_lifetime=url_lifetime
        )
    except ImgprepError as error:
        raise click.ClickException(str(error)) from None
    with stand_in, tempfile.TemporaryDirectory(prefix="kaggle-stand-in-") as home:
        click.echo("# Paste into another shell, then run imgprep fetch there. Ctrl-C here ends it.")
        for name, value in stand_in.environment(Path(home)).items():
            click.echo(f"export {name}={value}" if value else f"unset {name}")
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
