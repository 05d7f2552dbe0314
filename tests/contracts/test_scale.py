"""The figures of ``docs/explanation/scale.md`` that follow from the code are those of the code."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Final

import numpy as np
import pytest

from imgprep import interop, verify
from imgprep.index import SAMPLE_FIELDS, ClassInfo, ShardIndex, ShardInfo, SplitInfo
from imgprep.interop import write_sums
from imgprep.receipts import Receipt
from imgprep.records import Catalog, Synset
from imgprep.shard import samples_bytes
from imgprep.shard_plan import _TARGET_BYTES, ShardPlans, ShardSpec, estimate_bytes, plan_shards, read_plan_input

PAGE: Final = Path(__file__).resolve().parents[2] / "docs" / "explanation" / "scale.md"
SIZES: Final = (1_281_167, 14_197_122, 1_000_000_000)
MEMORY: Final = 24 << 30
LARGE: Final = 1 << 40
"""Bytes of a picture that is shrunk for sure."""


def rows() -> dict[str, list[str]]:
    """The tables of the page: the cells after the first one, by the first one."""
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {first: rest for first, *rest in cells}


ROWS: Final = rows()


def size_text(num_bytes: float) -> str:
    """A size with three digits that count."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if num_bytes < 999.5 or unit == "TB":
            break
        num_bytes /= 1000
    digits = max(0, 2 - math.floor(math.log10(num_bytes)))
    return f"{num_bytes:.{digits}f} {unit}"


def count_text(number: float) -> str:
    """A number of pictures with three digits that count."""
    unit, word = (1e9, "billion") if number >= 1e9 else (1e6, "million")
    return f"{number / unit:.3g} {word}"


def time_text(seconds: float) -> str:
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.2g} s"


def number(text: str) -> float:
    """The first number of a cell."""
    found = re.search(r"[\d,]+(\.\d+)?", text)
    assert found is not None
    return float(found[0].replace(",", ""))


# What the code says.


def sample_bytes() -> int:
    """Of a tar, for each sample, as a plan estimates it."""
    return int(estimate_bytes(np.array([LARGE]), ShardSpec())[0])


def num_tars(pictures: int) -> int:
    return math.ceil(pictures * sample_bytes() / _TARGET_BYTES)


def shards(number: int) -> tuple[ShardInfo, ...]:
    """Tars as they are in a large index."""
    return tuple(
        ShardInfo(filename=f"imgprep-train-{n:06d}.tar", num_samples=7107, num_bytes=268_435_456, sha256="a" * 64)
        for n in range(number)
    )


def index(number: int) -> ShardIndex:
    split = SplitInfo(
        num_samples=7107 * number, samples_filename="train.samples.npy", samples_sha256="a" * 64, shards=shards(number)
    )
    return ShardIndex(classes=(ClassInfo(label=0, wnid="n00000000", name="a"),), splits={"train": split})


def files(number: int) -> dict[str, int]:
    """Names and sizes of what each tar adds to a folder."""
    table = {shard.filename: shard.num_bytes for shard in shards(number)}
    table |= {name: 700_000 for name in interop.side_names(index(number)) if name.startswith("imgprep-")}
    return table


def receipt_text(number: int) -> str:
    outputs = {name: {"num_bytes": size, "sha256": "a" * 64} for name, size in files(number).items()}
    return json.dumps(Receipt(stage="shard", inputs={}, options={})._document(outputs, {}), indent=1)


def sums_text(number: int, folder: Path) -> str:
    write_sums(folder, files(number), hashes=dict.fromkeys(files(number), "a" * 64))
    return (folder / interop.SUMS).read_text()


@pytest.fixture
def per_tar(tmp_path: Path) -> dict[str, int]:
    """Bytes that one more tar adds to the lists of all."""
    return {
        "`index.json`": len(index(101).to_json()) - len(index(100).to_json()),
        "`shard.receipt.json`": len(receipt_text(101)) - len(receipt_text(100)),
        "`SHA256SUMS`": len(sums_text(101, tmp_path)) - len(sums_text(100, tmp_path)),
    }


def dali_line() -> int:
    """Bytes of a line of DALI's index, for a sample in the middle of a tar of photographs."""
    key = "n01440764_10026"
    members = [(f"{key}.jpg", 134_217_728, 32_000), (f"{key}.cls", 134_250_496, 3), (f"{key}.json", 134_251_520, 180)]
    return len(interop._dali_index([members, members])) - len(interop._dali_index([members]))


ROW: Final = np.dtype(list(SAMPLE_FIELDS)).itemsize


# On disk.


def test_a_sample_and_the_tars() -> None:
    assert ROWS["a sample in its tar"][0].endswith(f"= {sample_bytes():,} B")
    assert ROWS["tars"][1:] == [f"{num_tars(n):,}" for n in SIZES]
    assert ROWS["bytes of all tars"][1:] == [size_text(n * sample_bytes()) for n in SIZES]


@pytest.mark.parametrize(
    ("what", "formula", "each"),
    [
        ("sample table", "N x 24 B", ROW),
        ("index for Energon", "N x 8 B", 8),
        ("index for DALI", f"N x {dali_line()} B", dali_line()),
        ("records of finished tars, until the end", "N x 32 B", ROW * 4 / 3),
        ("`manifest.csv`", "N x 107 B", 107),
    ],
)
def test_files_with_something_for_each_picture(what: str, formula: str, each: float) -> None:
    assert ROWS[what] == [formula, *(size_text(n * each) for n in SIZES)]


def test_a_sample_table_has_so_many_bytes() -> None:
    one, two = (samples_bytes([np.zeros(n, list(SAMPLE_FIELDS))]) for n in (1000, 2000))

    assert len(two) - len(one) == 1000 * ROW


@pytest.mark.parametrize("what", ["`index.json`", "`shard.receipt.json`", "`SHA256SUMS`"])
def test_files_with_something_for_each_tar(what: str, per_tar: dict[str, int]) -> None:
    assert ROWS[what] == [f"tars x {per_tar[what]} B", *(size_text(num_tars(n) * per_tar[what]) for n in SIZES)]


# In memory.

MEASURED: Final = {
    "`catalog` of a zip": 55,
    "`subset`, a small part": 31,
    "`subset`, everything": 644,
    "`shard`, the plan while it is made": 109,
}


@pytest.fixture
def plans(tmp_path: Path) -> ShardPlans:
    path = tmp_path / "manifest.csv"
    lines = [f"k{n},train,a/k{n}.jpg,n00000000,0,1000,7\n" for n in range(50)]
    path.write_text("key,split,path,wnid,label,num_bytes,crc32\n" + "".join(lines))
    given = read_plan_input(path, Catalog([Synset("n00000000", 0, "a")]), 0, made_by="imgprep subset")
    return plan_shards(path, given, ShardSpec())


def test_memory_for_each_picture(plans: ShardPlans) -> None:
    held = plans._order.itemsize + plans._manifest._ends.itemsize
    known = MEASURED | {"`shard`, the plan while it is used": held, "`shard`, the end": held + 3 * ROW}

    for what, each in known.items():
        assert ROWS[what][-5:] == [
            f"{each} B",
            *(size_text(n * each) for n in SIZES),
            count_text(MEMORY / each),
        ], what


# In time.


@pytest.mark.parametrize(
    "what", ["`shard`", "`shard --images original`", "`verify`", "side files", "the plan of `shard`", "`subset`"]
)
def test_time_on_one_processor(what: str) -> None:
    rate = number(ROWS[what][-4])

    assert ROWS[what][-3:] == [time_text(n / rate) for n in SIZES]


def test_what_is_said_of_a_billion_pictures_on_many_processors() -> None:
    text = " ".join(PAGE.read_text(encoding="utf-8").split())
    hours = number(ROWS["`shard`"][-1])

    assert f"{hours:.0f} h / 64 = {hours / 64:.1f} h" in text
    assert f"more than a quarter of that: {ROWS['side files'][-1]} in one thread" in text
    assert number(ROWS["side files"][-1]) > hours / 64 / 4


# What breaks first.


def test_what_breaks_is_told_in_its_order(per_tar: dict[str, int], plans: ShardPlans) -> None:
    held = plans._order.itemsize + plans._manifest._ends.itemsize
    memory = [MEMORY / each for each in (644, 109, held + 3 * ROW, 55, 31)]
    tars = [verify._MAX_TEXT / per_tar[name] for name in ("`shard.receipt.json`", "`SHA256SUMS`", "`index.json`")]
    pictures = [number * _TARGET_BYTES / sample_bytes() for number in tars]
    numbers = float(np.iinfo(plans._order.dtype).max) + 1
    names = 10**6 * _TARGET_BYTES / sample_bytes()
    expected = [*memory, *pictures, numbers, names]

    told = [ROWS[str(place)] for place in range(1, len(expected) + 1)]

    assert expected == sorted(expected)
    assert [row[2] for row in told] == [count_text(number) for number in expected]
