"""Pictures out of shards, by number: one positioned read each, checked against the sample table's CRC-32."""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import numpy as np

from imgprep.errors import DamagedError, MemberError, MissingInputError
from imgprep.index import ShardIndex, open_samples

if TYPE_CHECKING:
    from types import TracebackType

    from numpy.typing import NDArray

REMEDY: Final = "run `imgprep shard --overwrite` to write the shards again"

MAX_OPEN_SHARDS: Final = 512
"""Splits of more shards are opened anew for every read: processes may hold about a thousand files."""


class ShardReader:
    """The pictures of one split. Any number of threads may read at once; close it, or use it as a context manager.

    Args:
        index_path: The ``index.json`` that ``index`` was read from.
        index: Its content.
        split: Name of the split.

    Attributes:
        labels: Class label of every sample, shape ``(n,)``, int64.

    Raises:
        MissingInputError: No such split, or a shard file is missing.
        DamagedError: A shard has another size than the index says, or the sample table does not fit.
    """

    def __init__(self, index_path: Path, index: ShardIndex, split: str) -> None:
        self.split = split
        self._table = open_samples(index_path, index, split)
        self.labels: NDArray[np.int64] = self._table["label"].astype(np.int64)
        self._shards = [index_path.parent / shard.filename for shard in index.splits[split].shards]
        self._handles: list[int] | None = None
        for path, shard in zip(self._shards, index.splits[split].shards, strict=True):
            _check_size(path, shard.num_bytes)
        if len(self._shards) <= MAX_OPEN_SHARDS:
            self._handles = []
            try:
                for path in self._shards:
                    self._handles.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
            except OSError:
                self.close()
                raise

    def __len__(self) -> int:
        return len(self._table)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the shards; reading afterwards is an error."""
        handles, self._handles = self._handles or [], []
        for handle in handles:
            os.close(handle)

    def read(self, sample: int) -> bytes:
        """The bytes of one picture.

        Args:
            sample: Its row in the sample table.

        Raises:
            MemberError: Fewer bytes than expected, or another CRC-32.
        """
        row = self._table[sample]
        shard, offset, length = int(row["shard"]), int(row["offset"]), int(row["length"])
        content = self._pread(shard, offset, length)
        if len(content) != length:
            raise MemberError(f"{self._place(shard, offset)}: {length} bytes expected, got {len(content)}", REMEDY)
        checksum = zlib.crc32(content)
        if checksum != int(row["crc32"]):
            raise MemberError(
                f"{self._place(shard, offset)}: CRC-32 {int(row['crc32']):08x} expected, got {checksum:08x}", REMEDY
            )
        return content

    def place(self, sample: int) -> str:
        """Where a sample lies, for messages: shard and offset."""
        row = self._table[sample]
        return self._place(int(row["shard"]), int(row["offset"]))

    def _place(self, shard: int, offset: int) -> str:
        return f"sample at offset {offset} of {self._shards[shard]}"

    def _pread(self, shard: int, offset: int, length: int) -> bytes:
        if self._handles is not None:
            return os.pread(self._handles[shard], length, offset)
        with self._shards[shard].open("rb", buffering=0) as stream:
            return os.pread(stream.fileno(), length, offset)


def _check_size(path: Path, num_bytes: int) -> None:
    try:
        found = path.stat().st_size
    except FileNotFoundError:
        raise MissingInputError(f"the shard {path} is missing", REMEDY) from None
    if found != num_bytes:
        raise DamagedError(f"the shard {path} has {found} bytes, the index says {num_bytes}", REMEDY)
