"""Batches of pixels in a known order: kept in memory after one decoding, or decoded ahead by threads.

Both ways call :func:`training.decode.decode_square` on the same bytes, so they yield identical pixels.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np
import torch

from imgprep.errors import ImageError
from training.decode import decode_square
from training.reader import REMEDY, ShardReader

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from training.config import InputMode

MEMORY_SHARE: Final = 0.25
"""Share of the free memory that decoded pictures may take."""

_CHUNK: Final = 64


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Some samples on the device.

    Attributes:
        samples: Their numbers, shape ``(n,)``, int64, in host memory.
        pixels: Shape ``(n, size, size, 3)``, uint8.
        labels: Shape ``(n,)``, int64.
    """

    samples: NDArray[np.int64]
    pixels: torch.Tensor
    labels: torch.Tensor


class PixelSource(Protocol):
    """Where batches come from.

    Attributes:
        wait_seconds: Time that :meth:`batches` has kept its caller waiting so far.
    """

    wait_seconds: float

    def batches(self, steps: Sequence[NDArray[np.int64]]) -> Iterator[Batch]:
        """Yield one batch per entry of ``steps``, in that order."""
        ...

    def close(self) -> None:
        """Let go of threads and memory."""
        ...


class MemorySource:
    """All pictures of a split, decoded once.

    Args:
        reader: The split; read only here.
        size: Side in pixels of the decoded squares.
        device: Where the pixels are kept.
        threads: Decoding threads.
        progress: Called with the number of pictures decoded since its last call.
    """

    def __init__(
        self,
        reader: ShardReader,
        size: int,
        *,
        device: torch.device,
        threads: int,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        self.wait_seconds = 0.0
        start = time.perf_counter()
        pixels = np.empty((len(reader), size, size, 3), dtype=np.uint8)
        chunks = [np.arange(i, min(i + _CHUNK, len(reader))) for i in range(0, len(reader), _CHUNK)]
        pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        try:
            jobs = [pool.submit(decode_samples, reader, chunk, pixels[chunk[0] : chunk[-1] + 1]) for chunk in chunks]
            for job, chunk in zip(jobs, chunks, strict=True):
                job.result()
                if progress is not None:
                    progress(len(chunk))
        finally:
            pool.shutdown(cancel_futures=True)
        self._pixels = torch.from_numpy(pixels).to(device)
        self._labels = torch.from_numpy(reader.labels).to(device)
        self.decode_seconds = time.perf_counter() - start

    def batches(self, steps: Sequence[NDArray[np.int64]]) -> Iterator[Batch]:
        """Yield one batch per entry of ``steps``, in that order."""
        for samples in steps:
            start = time.perf_counter()
            rows = torch.from_numpy(samples).to(self._pixels.device)
            batch = Batch(samples=samples, pixels=self._pixels[rows], labels=self._labels[rows])
            self.wait_seconds += time.perf_counter() - start
            yield batch

    def close(self) -> None:
        """Let go of the pixels."""
        self._pixels = self._pixels[:0]


class StreamSource:
    """Pictures decoded by threads ahead of the steps that need them, one whole batch a job.

    Args:
        reader: The split; must stay open.
        size: Side in pixels of the decoded squares.
        device: Where the batches go.
        threads: Decoding threads; at most two batches more than that are decoded ahead.
    """

    def __init__(self, reader: ShardReader, size: int, *, device: torch.device, threads: int) -> None:
        self.wait_seconds = 0.0
        self._reader, self._size, self._device = reader, size, device
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._read_ahead = threads + 2

    def batches(self, steps: Sequence[NDArray[np.int64]]) -> Iterator[Batch]:
        """Yield one batch per entry of ``steps``, in that order."""
        waiting: deque[tuple[NDArray[np.int64], Future[torch.Tensor]]] = deque()
        upcoming = iter(steps)
        try:
            while True:
                while len(waiting) < self._read_ahead and (samples := next(upcoming, None)) is not None:
                    waiting.append((samples, self._pool.submit(self._decode, samples)))
                if not waiting:
                    return
                start = time.perf_counter()
                samples, job = waiting.popleft()
                pixels = job.result().to(self._device, non_blocking=True)
                labels = torch.from_numpy(self._reader.labels[samples]).to(self._device)
                self.wait_seconds += time.perf_counter() - start
                yield Batch(samples=samples, pixels=pixels, labels=labels)
        finally:
            for _, job in waiting:
                job.cancel()

    def _decode(self, samples: NDArray[np.int64]) -> torch.Tensor:
        pixels = torch.empty(
            (len(samples), self._size, self._size, 3), dtype=torch.uint8, pin_memory=self._device.type == "cuda"
        )
        decode_samples(self._reader, samples, pixels.numpy())
        return pixels

    def close(self) -> None:
        """Stop the threads."""
        self._pool.shutdown(cancel_futures=True)


def decode_samples(reader: ShardReader, samples: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
    """Read and decode samples into the rows of an array.

    Args:
        reader: The split.
        samples: Their numbers, shape ``(n,)``.
        out: Written: shape ``(n, size, size, 3)``.

    Raises:
        MemberError: A sample's bytes are damaged.
        ImageError: A sample is no whole JPEG; the message names shard and offset.
    """
    for row, sample in enumerate(samples):
        try:
            decode_square(reader.read(int(sample)), out[row])
        except ImageError as error:
            raise ImageError(f"{reader.place(int(sample))}: {error.what}", error.advice or REMEDY) from None


def choose_mode(wanted: InputMode, *, num_bytes: int, device: torch.device) -> tuple[InputMode, str]:
    """Decide between ``memory`` and ``stream``.

    Args:
        wanted: What the configuration says.
        num_bytes: Size of all decoded pictures.
        device: Where training runs; its memory counts first.

    Returns:
        The mode and the reason, for the log.
    """
    size = f"{num_bytes / 1e9:.2f} GB of decoded pictures"
    if wanted != "auto":
        return wanted, f"input {wanted}: asked for; {size}"
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()
    where = "the GPU's free memory" if device.type == "cuda" else "the free memory"
    if num_bytes <= MEMORY_SHARE * free:
        return "memory", f"input memory: {size} fit a quarter of {where} ({free / 1e9:.1f} GB)"
    return "stream", f"input stream: {size} exceed a quarter of {where} ({free / 1e9:.1f} GB)"


def open_source(
    reader: ShardReader,
    size: int,
    *,
    mode: InputMode,
    device: torch.device,
    threads: int,
    progress: Callable[[int], None] | None = None,
) -> PixelSource:
    """Make the source of the given mode (``memory`` or ``stream``)."""
    if mode == "memory":
        return MemorySource(reader, size, device=device, threads=threads, progress=progress)
    return StreamSource(reader, size, device=device, threads=threads)


def available_memory() -> int:
    """Bytes this process may still allocate: what the system calls available, or less where a control group says so."""
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                available = int(line.split()[1]) * 1024
        group = Path("/sys/fs/cgroup")
        limit = (group / "memory.max").read_text(encoding="ascii").strip()
        if limit != "max":
            used = int((group / "memory.current").read_text(encoding="ascii"))
            available = min(available, max(0, int(limit) - used))
    except (OSError, ValueError):
        pass  # Not Linux, or no such control group: the total stands.
    return available
