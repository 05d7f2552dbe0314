from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from imgprep.errors import ImageError
from imgprep.index import ShardIndex
from training import loader
from training.loader import MemorySource, StreamSource, choose_mode
from training.order import permutation, split_steps
from training.reader import ShardReader

CPU = torch.device("cpu")


@pytest.mark.parametrize("threads", [1, 3])
def test_memory_and_stream_give_identical_batches(index_path: Path, index: ShardIndex, threads: int) -> None:
    steps = split_steps(permutation(5, 1, 40), 7)
    with ShardReader(index_path, index, "train") as reader:
        memory = MemorySource(reader, 12, device=CPU, threads=threads)
        stream = StreamSource(reader, 12, device=CPU, threads=threads)
        pairs = list(zip(memory.batches(steps), stream.batches(steps), strict=True))
        stream.close()
    assert len(pairs) == 6
    for step, (one, other) in zip(steps, pairs, strict=True):
        assert np.array_equal(one.samples, step)
        assert np.array_equal(other.samples, step)
        assert one.pixels.shape == (len(step), 12, 12, 3)
        assert torch.equal(one.pixels, other.pixels)
        assert torch.equal(one.labels, other.labels)
        assert one.labels.tolist() == [sample % 6 for sample in step]


def test_streaming_reads_only_so_far_ahead(
    index_path: Path, index: ShardIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[int] = []
    original = loader.decode_samples
    monkeypatch.setattr(loader, "decode_samples", lambda r, s, o: (decoded.append(len(s)), original(r, s, o)))
    with ShardReader(index_path, index, "train") as reader:
        stream = StreamSource(reader, 8, device=CPU, threads=2)
        batches = stream.batches(split_steps(np.arange(40), 2))
        next(batches)
        batches.close()  # type: ignore[attr-defined]
        stream.close()
    assert 1 <= len(decoded) <= 5


def test_waiting_is_counted(index_path: Path, index: ShardIndex) -> None:
    with ShardReader(index_path, index, "train") as reader:
        stream = StreamSource(reader, 8, device=CPU, threads=1)
        list(stream.batches(split_steps(np.arange(40), 40)))
        stream.close()
    assert stream.wait_seconds > 0


def test_an_undecodable_sample_is_named(index_path: Path, index: ShardIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    with ShardReader(index_path, index, "train") as reader:
        monkeypatch.setattr(reader, "read", lambda _: b"no JPEG")
        with pytest.raises(ImageError, match=r"sample at offset 512 of .*imgprep-train-000000.tar.*--overwrite"):
            MemorySource(reader, 8, device=CPU, threads=2)


def test_the_mode_follows_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "available_memory", lambda: 4000)
    assert choose_mode("auto", num_bytes=1000, device=CPU)[0] == "memory"
    mode, reason = choose_mode("auto", num_bytes=1001, device=CPU)
    assert mode == "stream"
    assert "exceed a quarter of the free memory" in reason
    assert choose_mode("memory", num_bytes=10**12, device=CPU)[0] == "memory"


def test_available_memory_is_a_plausible_number() -> None:
    assert 10**7 < loader.available_memory() < 10**14
