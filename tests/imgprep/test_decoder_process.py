"""Processes that diagnose: the same answers as here, and an answer also where a decoder crashes or hangs."""

from __future__ import annotations

import io
import os
import signal
import threading
import time
from concurrent.futures import CancelledError
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imgprep import decoder_process
from imgprep.decoder_process import BROKEN, DecoderProcess, Decoders
from imgprep.diagnosis import diagnose
from imgprep.errors import ImgprepError


def jpeg(side: int = 64, **options: bool) -> bytes:
    rng = np.random.Generator(np.random.PCG64(side))
    small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    small.resize((side, side), Image.Resampling.BICUBIC).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def slow() -> bytes:
    """A JPEG of 25 million pixels and as many scans as are allowed: seconds of work in 150 kB."""
    buffer = io.BytesIO()
    Image.new("RGB", (5000, 5000), 7).save(buffer, "JPEG", progressive=True)
    content = buffer.getvalue()
    last, end = content.rindex(b"\xff\xda"), content.rindex(b"\xff\xd9")
    return content[:end] + content[last:end] * 89 + content[end:]


def test_a_process_says_what_is_said_here() -> None:
    with Decoders() as decoders:
        for content in (jpeg(), b"", b"no picture", jpeg()[:-50], jpeg(progressive=True)):
            assert decoders.diagnose(content, "ü/a.png") == diagnose(content, name="ü/a.png")


def test_the_limit_reaches_the_process() -> None:
    with Decoders(max_pixels=64 * 64 - 1) as decoders:
        assert decoders.diagnose(jpeg(), "a.jpg").codes == ("too-large",)


def test_one_process_serves_many_pictures_and_ends_with_the_block() -> None:
    with Decoders() as decoders:
        for side in range(20, 40):
            assert decoders.diagnose(jpeg(side), "a.jpg").width == side
        (process,) = decoders._all
        assert process._running.poll() is None

    assert process._running.returncode is not None


def test_a_process_that_died_is_replaced() -> None:
    with Decoders() as decoders:
        decoders.diagnose(jpeg(), "a.jpg")
        (process,) = decoders._all
        os.kill(process._running.pid, signal.SIGSEGV)
        process._running.wait()

        assert decoders.diagnose(jpeg(), "a.jpg").pillow is True
        assert decoders._all.isdisjoint({process})


def test_a_picture_that_takes_too_long_is_given_up() -> None:
    with Decoders(seconds=0) as decoders:  # the kernel counts whole seconds: one or a little more
        started = time.monotonic()
        assert decoders.diagnose(slow(), "a.jpg") == BROKEN
        assert decoders.diagnose(jpeg(), "a.jpg").pillow is True

    assert time.monotonic() - started < 60


def test_memory_is_bounded(tmp_path: Path) -> None:
    """The kernel's own account of the limit: what it was told, and that it is more than the process needs."""
    with Decoders(max_pixels=1_000_000) as decoders:
        decoders.diagnose(jpeg(), "a.jpg")
        (process,) = decoders._all
        limits = Path(f"/proc/{process._running.pid}/limits").read_text()
        used = int(Path(f"/proc/{process._running.pid}/statm").read_text().split()[0]) * os.sysconf("SC_PAGESIZE")
    (limit,) = [int(line.split()[3]) for line in limits.splitlines() if line.startswith("Max address space")]

    assert used < limit < used + 24_000_000 + (513 << 20)


def test_threads_share_the_processes() -> None:
    with Decoders() as decoders:
        found: list[int | None] = []
        threads = [
            threading.Thread(target=lambda side=side: found.append(decoders.diagnose(jpeg(side), "a").width))
            for side in range(30, 42)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert sorted(width or 0 for width in found) == list(range(30, 42))
        assert len(decoders._all) == len(decoders._idle) <= 12


def test_large_pictures_are_decoded_one_after_another(tmp_path: Path) -> None:
    """While another process holds the lock, a large picture waits and a small one does not."""
    with (tmp_path / "lock").open("w+b") as file:
        process = DecoderProcess(max_pixels=10**8, large=file.fileno())
        try:
            import fcntl

            fcntl.lockf(file, fcntl.LOCK_EX)
            assert process.diagnose(jpeg(), "a.jpg") is not None
            answers: list[object] = []
            content = io.BytesIO()
            Image.new("L", (4000, 4000)).save(content, "JPEG")
            waiting = threading.Thread(target=lambda: answers.append(process.diagnose(content.getvalue(), "a.jpg")))
            waiting.start()
            waiting.join(0.5)
            assert answers == []
            fcntl.lockf(file, fcntl.LOCK_UN)
            waiting.join(60)
            assert len(answers) == 1
        finally:
            process.close()


def test_a_process_that_does_not_start_is_an_error_and_no_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder_process.sys, "executable", "/bin/false")
    with Decoders() as decoders, pytest.raises(ImgprepError, match="does not start - see why: `false -m"):
        decoders.diagnose(jpeg(), "a.jpg")


def test_who_is_late_is_called_off_and_leaves_no_process() -> None:
    decoders = Decoders()
    with decoders:
        decoders.diagnose(jpeg(), "a.jpg")
        raised: list[BaseException] = []

        def ask() -> None:
            try:
                decoders.diagnose(slow(), "a.jpg")
            except CancelledError as error:
                raised.append(error)

        late = threading.Thread(target=ask)
        late.start()
        time.sleep(0.3)
        processes = set(decoders._all)
    late.join(60)

    assert len(raised) == 1
    assert all(process._running.returncode is not None for process in processes | decoders._all)
