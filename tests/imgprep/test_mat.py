"""MAT files: what is written is read, by range too; damage and size are named, never trusted."""

from __future__ import annotations

import struct
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgprep.errors import MemberError
from imgprep.sources import mat
from imgprep.sources.mat import InflatedBytes, MemoryBytes, read_variables
from imgprep.testing.containers import mat_file

STRUCTS = [
    {"ID": np.array([1.0]), "WNID": "n00000001", "words": "tench, Tinca"},
    {"ID": np.array([2.0]), "WNID": "n00000002", "words": "ört"},
]


@pytest.mark.parametrize("compressed", [True, False])
def test_numbers_text_and_structs_come_back(compressed: bool) -> None:
    numbers = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    content = mat_file({"X": numbers, "s": STRUCTS, "t": "text"}, compressed=compressed)
    found = read_variables(MemoryBytes(content), where="a.mat")

    assert found["X"].shape == (2, 3, 4)
    assert found["X"].value().tolist() == numbers.ravel("F").tolist()
    assert found["t"].value() == "text"
    assert [(row["ID"].tolist(), row["WNID"], row["words"]) for row in found["s"].value()] == [
        ([1.0], "n00000001", "tench, Tinca"),
        ([2.0], "n00000002", "ört"),
    ]
    elements = found["X"].elements("<u1")
    assert elements.pread(3, 5) == numbers.tobytes("F")[5:8]
    assert elements.pread(100, 20) == numbers.tobytes("F")[20:]


def test_elements_of_another_type_are_refused() -> None:
    found = read_variables(MemoryBytes(mat_file({"X": np.zeros((2, 2))})), where="a.mat")
    with pytest.raises(MemberError, match=r"32 bytes of type 9 for the shape \(2, 2\), expected 4 of <u1"):
        found["X"].elements("<u1")


@given(
    st.binary(min_size=1, max_size=400),
    st.lists(st.tuples(st.integers(0, 500), st.integers(0, 500)), max_size=20),
    st.integers(1, 70),
)
def test_any_range_of_a_stream_is_what_was_packed(content: bytes, ranges: list[tuple[int, int]], spacing: int) -> None:
    inflated = InflatedBytes(MemoryBytes(zlib.compress(content)), len(content), where="x")
    inflated._spacing = spacing

    for offset, num_bytes in ranges:
        assert inflated.pread(num_bytes, offset) == content[offset : offset + num_bytes]


def test_threads_share_a_stream_and_blocks_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    content = np.random.default_rng(0).integers(0, 9, 1 << 20, dtype=np.uint8).tobytes()
    inflated = InflatedBytes(MemoryBytes(zlib.compress(content)), len(content), where="x")
    inflated._spacing = 1 << 14
    monkeypatch.setattr(mat, "_CACHE_BYTES", 4 << 14)
    offsets = np.random.default_rng(1).integers(0, 1 << 20, 400).tolist()
    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda offset: inflated.pread(3000, offset), offsets))

    assert parts == [content[offset : offset + 3000] for offset in offsets]
    assert len(inflated._blocks) <= 4
    assert len(inflated._points) == 64


def test_a_cut_or_altered_stream_is_named() -> None:
    packed = zlib.compress(bytes(5000))
    with pytest.raises(MemberError, match="X is cut off"):
        InflatedBytes(MemoryBytes(packed[:10]), 5000, where="X").pread(1, 4000)
    with pytest.raises(MemberError, match="X is damaged"):
        InflatedBytes(MemoryBytes(b"xx" + packed), 5000, where="X").pread(1, 0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no MAT file"),
        (b"MATLAB 7.3 MAT-file".ljust(200), "version 7.3"),
        (b"x" * 500, "no MAT file"),
        (mat_file({"t": "x"})[:-1], "cut off"),
        (mat_file({}) + b"1234", "cut off at byte 128"),
        (mat_file({})[:128] + struct.pack("<II", 15, 1 << 31), "cut off"),
        (mat_file({}) + struct.pack("<II", 15, 11) + zlib.compress(b"abc"), "cut off"),
        (mat_file({}) + struct.pack("<II", 14, 8) + struct.pack("<II", 6, 1 << 30), "damaged"),
        (mat_file({f"v{n}": "x" for n in range(66)}), "more than 64 arrays"),
    ],
)
def test_what_is_no_such_file_is_said(content: bytes, message: str) -> None:
    with pytest.raises(MemberError, match=message):
        read_variables(MemoryBytes(content), where="a.mat")


def test_a_large_value_is_not_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mat, "_MAX_VALUE", 1000)
    found = read_variables(MemoryBytes(mat_file({"X": np.zeros(500, np.uint8)})), where="a.mat")
    assert found["X"].value().size == 500
    found = read_variables(MemoryBytes(mat_file({"X": np.zeros(2000, np.uint8)})), where="a.mat")
    with pytest.raises(MemberError, match="more than the limit of 1,000"):
        found["X"].value()


def nested(depth: int) -> list[dict[str, Any]]:
    return [{"inner": nested(depth - 1) if depth else None}]


def test_structs_nest_but_not_without_end() -> None:
    found = read_variables(MemoryBytes(mat_file({"near": nested(3), "far": nested(20)})), where="a.mat")

    assert found["near"].value() == nested(3)
    with pytest.raises(MemberError, match="without end"):
        found["far"].value()


def test_arrays_of_other_classes_and_cut_arrays_are_refused() -> None:
    content = bytearray(mat_file({"X": np.zeros(600, np.uint8)}, compressed=False))
    flags = 128 + 8 + 8
    content[flags] = 1
    with pytest.raises(MemberError, match="an array of class 1, which is not handled"):
        read_variables(MemoryBytes(bytes(content)), where="a.mat")["X"].value()
    content[flags] = 9
    content[132:136] = struct.pack("<I", 100)
    with pytest.raises(MemberError, match=r"'X' of a\.mat is cut off"):
        read_variables(MemoryBytes(bytes(content[:236])), where="a.mat")["X"].elements("<u1")


@given(st.data())
def test_no_damage_makes_anything_but_an_error(draws: st.DataObject) -> None:
    content = bytearray(mat_file({"X": np.arange(6, dtype=np.uint8), "s": STRUCTS}, compressed=False))
    for place in draws.draw(st.lists(st.integers(128, len(content) - 1), min_size=1, max_size=8)):
        content[place] = draws.draw(st.integers(0, 255))
    try:
        for variable in read_variables(MemoryBytes(bytes(content)), where="a.mat").values():
            variable.value()
            variable.elements("<u1").pread(10, 0)
    except MemberError:
        pass


def test_the_real_development_kit_is_read(real_data: Path) -> None:
    with zipfile.ZipFile(real_data / "ilsvrc-text.zip") as archive:
        content = archive.read("devkit/meta.mat")
    synsets = read_variables(MemoryBytes(content), where="meta.mat")["synsets"]

    rows = synsets.value()
    assert synsets.shape == (len(rows), 1)
    first = rows[0]
    assert first["ILSVRC2012_ID"].tolist() == [1]
    assert (first["WNID"], first["words"]) == ("n02119789", "kit fox, Vulpes macrotis")
    assert first["gloss"].startswith("small grey fox")
    assert sum(row["num_children"][0] == 0 for row in rows) == 1000
