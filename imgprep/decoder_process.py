"""Diagnoses in processes of their own, so that no picture can crash, stop or bloat the one that asks.

Decoders are large programs in C that read whatever a stranger wrote. A process that decodes may use a bounded share of
memory, and a bounded time of the processor for each picture; when it dies, the picture that it died of is the finding,
and the next one gets a new process. What decoders print goes nowhere.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import CancelledError
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

from imgprep.diagnosis import Diagnosis, diagnose
from imgprep.errors import ImgprepError
from imgprep.images import MAX_PIXELS

SECONDS: Final = 60
"""Seconds of processor time that one picture may take. One of 100 million pixels takes a few in the slowest format."""

BYTES_PER_PIXEL: Final = 24
"""Bytes that decoding may take for each pixel of the limit: JPEG 2000 keeps 4 channels of 4 bytes, then converts."""

_BASE_BYTES: Final = 512 << 20
"""What a process may take on top: the bytes of the picture, tables, allocators."""

_REQUEST: Final = struct.Struct("<IQ")
"""Length of the name and of the bytes, which follow."""

_READY: Final = b"ready\n"
"""What a process says first: one that dies before has not died of a picture."""

BROKEN: Final = Diagnosis(codes=("breaks-decoder",))
"""The diagnosis of a picture that a process died of."""


class DecoderProcess:
    """One process that diagnoses pictures, one after another. It ends with :meth:`close`, or when its parent dies.

    Args:
        max_pixels: Pictures whose header claims more are not decoded.
        large: Descriptor of a file that is locked while a large picture is decoded.
        seconds: Processor time that one picture may take.

    Raises:
        ImgprepError: It does not start.
    """

    def __init__(self, *, max_pixels: int, large: int, seconds: int = SECONDS) -> None:
        # The same modules as here, wherever they are; one thread, as there are as many processes as processors.
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "OPENBLAS_NUM_THREADS": "1",
            "OMP_NUM_THREADS": "1",
        }
        self._running = subprocess.Popen(  # noqa: S603  # our own module
            [sys.executable, "-P", "-m", __name__, str(max_pixels), str(large), str(seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            pass_fds=(large,),
        )
        assert self._running.stdout is not None
        if self._running.stdout.readline() != _READY:
            self.close()
            raise ImgprepError(
                "a process that decodes pictures does not start",
                f"see why: `{Path(sys.executable).name} -m {__name__} 1 0 1`",
            )

    def diagnose(self, content: bytes, name: str) -> Diagnosis | None:
        """See :func:`imgprep.diagnosis.diagnose`; None when the process died of it, or before it."""
        assert self._running.stdin is not None
        assert self._running.stdout is not None
        encoded = name.encode("utf-8", "surrogateescape")
        try:
            for part in (_REQUEST.pack(len(encoded), len(content)), encoded, content):
                self._running.stdin.write(part)
            self._running.stdin.flush()
            answer = self._running.stdout.readline()
        except (BrokenPipeError, ValueError):  # of a pipe that was closed from here
            return None
        if not answer.endswith(b"\n"):
            return None
        fields = json.loads(answer)
        # A million answers share a few words.
        words = {name: sys.intern(fields[name]) for name in ("format", "mode")}
        return Diagnosis(**fields | words | {"codes": tuple(map(sys.intern, fields["codes"]))})

    def close(self) -> None:
        """End the process."""
        self._running.kill()
        for pipe in filter(None, (self._running.stdin, self._running.stdout)):
            # What is still in the buffer cannot be sent any more.
            with contextlib.suppress(OSError):
                pipe.close()
        self._running.wait()


class Decoders:
    """As many processes as are asked at once. Enter it to use it; safe for threads, also for those that outlast it.

    Args:
        max_pixels: Pictures whose header claims more are not decoded.
        seconds: Processor time that one picture may take.
    """

    def __init__(self, *, max_pixels: int = MAX_PIXELS, seconds: int = SECONDS) -> None:
        self._max_pixels = max_pixels
        self._seconds = seconds
        self._large = tempfile.TemporaryFile()  # noqa: SIM115  # closed when the block ends
        self._lock = threading.Lock()
        self._idle: list[DecoderProcess] = []
        self._all: set[DecoderProcess] = set()
        self._closed = threading.Event()

    def diagnose(self, content: bytes, name: str) -> Diagnosis:
        """See :func:`imgprep.diagnosis.diagnose`; :data:`BROKEN` for a picture that two processes died of.

        Raises:
            CancelledError: The block was left meanwhile.
            ImgprepError: No process can be started.
        """
        # Once more with a new process: the first may have died of something else, such as a lack of memory.
        for _ in range(2):
            process = self._take()
            found = process.diagnose(content, name)
            if found is not None:
                with self._lock:
                    self._idle.append(process)
                return found
            with self._lock:
                self._all.discard(process)
            process.close()
        return BROKEN

    def _take(self) -> DecoderProcess:
        with self._lock:
            if self._closed.is_set():
                raise CancelledError
            if self._idle:
                return self._idle.pop()
        process = DecoderProcess(max_pixels=self._max_pixels, large=self._large.fileno(), seconds=self._seconds)
        with self._lock:
            if not self._closed.is_set():
                self._all.add(process)
                return process
        process.close()
        raise CancelledError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._closed.set()
            processes = list(self._all)
        for process in processes:
            process.close()
        self._large.close()


class _OneAtATime:
    """Enters the lock of large pictures, as often as one likes."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __enter__(self) -> None:
        # A lock of the process (POSIX), not of the open file, which all processes share.
        fcntl.lockf(self._descriptor, fcntl.LOCK_EX)

    def __exit__(self, *error: object) -> None:
        fcntl.lockf(self._descriptor, fcntl.LOCK_UN)


def serve(requests: IO[bytes], answers: IO[bytes], *, max_pixels: int, large: int, seconds: int) -> None:
    """Answer requests until there are no more: the work of the process.

    Args:
        requests: Where they come from.
        answers: Where diagnoses go, as lines of JSON.
        max_pixels: Pictures whose header claims more are not decoded.
        large: Descriptor of the file to lock for large pictures.
        seconds: Processor time that one picture may take.
    """
    answers.write(_READY)
    answers.flush()
    while len(header := requests.read(_REQUEST.size)) == _REQUEST.size:
        length, num_bytes = _REQUEST.unpack(header)
        name = requests.read(length).decode("utf-8", "surrogateescape")
        content = requests.read(num_bytes)
        # Beyond the soft limit the kernel sends SIGXCPU, which ends the process also in the midst of C.
        _, most = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + seconds + 1, most))
        found = diagnose(content, name=name, max_pixels=max_pixels, large=_OneAtATime(large))
        answers.write(json.dumps(asdict(found)).encode() + b"\n")
        answers.flush()


def _limit_memory(max_pixels: int) -> None:
    now = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    wanted = now + max_pixels * BYTES_PER_PIXEL + _BASE_BYTES
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (wanted if most == resource.RLIM_INFINITY else min(wanted, most), most))


def _main() -> None:
    max_pixels, large, seconds = map(int, sys.argv[1:])
    # Ctrl-C is for the parent, which closes the pipe; a dump of memory is of use to nobody.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _limit_memory(max_pixels)
    serve(sys.stdin.buffer, sys.stdout.buffer, max_pixels=max_pixels, large=large, seconds=seconds)


if __name__ == "__main__":
    _main()
