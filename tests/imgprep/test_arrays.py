"""Digits out of MAT files: the right pixels under the right names, whatever holds the file."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from imgprep.errors import DamagedError, MemberError
from imgprep.sources import open_source
from imgprep.sources.arrays import PNG_BYTES, DigitArraySource, png
from imgprep.testing.containers import Container, mat_file, write_source

PIXELS = np.random.default_rng(3).integers(0, 256, (32, 32, 3, 12), dtype=np.uint8)
LABELS = np.array([1, 9, 2, 10, 5, 10, 7, 3, 4, 6, 8, 1], dtype=np.uint8).reshape(-1, 1)


@pytest.mark.parametrize("container", get_args(Container))
@pytest.mark.parametrize("compressed", [True, False])
def test_pictures_are_those_of_the_array(tmp_path: Path, container: Container, compressed: bool) -> None:
    content = mat_file({"X": PIXELS, "y": LABELS}, compressed=compressed)
    path = write_source(tmp_path / "a", {"in/t.mat": content, "in/readme": b"hi"}, container)
    with DigitArraySource(open_source(path), {"in/t.mat": "in/t"}) as source:
        beside, *members = source.members()

        assert (beside.name, source.read("in/readme")) == ("in/readme", b"hi")
        assert [member.name for member in members[:4]] == [
            "in/t/1/000001.png", "in/t/9/000002.png", "in/t/2/000003.png", "in/t/0/000004.png",
        ]  # fmt: skip
        for number, member in enumerate(members):
            made = source.read(member.name)
            assert member.num_bytes == len(made) == PNG_BYTES
            with Image.open(io.BytesIO(made)) as image:
                assert np.array_equal(np.asarray(image), PIXELS[:, :, :, number])


def test_one_picture_and_labels_in_floats_are_fine(tmp_path: Path) -> None:
    content = mat_file({"X": PIXELS[..., 0], "y": np.array([10.0])})
    with DigitArraySource(open_source(write_source(tmp_path / "a", {"t.mat": content}, "zip")), {"t.mat": "t"}) as one:
        assert [member.name for member in one.members()] == ["t/0/000001.png"]


@given(st.binary(min_size=3072, max_size=3072))
def test_a_png_holds_its_pixels(pixels: bytes) -> None:
    with Image.open(io.BytesIO(png(pixels))) as image:
        assert (image.mode, image.tobytes()) == ("RGB", pixels)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"X": PIXELS}, "has the arrays X, expected X and y"),
        ({"X": PIXELS[:31], "y": LABELS}, r"X has the shape \(31, 32, 3, 12\)"),
        ({"X": PIXELS.astype(np.uint16), "y": LABELS}, "expected 36,864 of <u1"),
        ({"X": PIXELS, "y": LABELS[:5]}, r"y must be 12 labels .*\(5, 1\)"),
        ({"X": PIXELS, "y": LABELS + 1}, "y must be 12 labels from 1 to 10"),
        ({"X": PIXELS, "y": "aaaaaaaaaaaa"}, "y must be 12 labels"),
        ({"X": "x", "y": LABELS}, r"X has the shape \(1, 1\)"),
    ],
)
def test_other_arrays_are_refused(tmp_path: Path, variables: dict[str, Any], message: str) -> None:
    path = write_source(tmp_path / "a", {"t.mat": mat_file(variables)}, "zip")
    with open_source(path) as source, pytest.raises(DamagedError, match=message):
        DigitArraySource(source, {"t.mat": "t"})


@pytest.mark.parametrize("name", ["t/9/000001.png", "t/1/000000.png", "t/1/000013.png", "t/1/1.png", "t.mat/x", "u"])
def test_a_picture_that_is_not_there_is_named(tmp_path: Path, name: str) -> None:
    path = write_source(tmp_path / "a", {"t.mat": mat_file({"X": PIXELS, "y": LABELS})}, "tar")
    with DigitArraySource(open_source(path), {"t.mat": "t"}) as source, pytest.raises(MemberError, match=name):
        source.read(name)


def test_a_file_of_another_kind_is_named(tmp_path: Path) -> None:
    path = write_source(tmp_path / "a", {"t.mat": b"no"}, "directory")
    with open_source(path) as source, pytest.raises(MemberError, match=r"t\.mat is no MAT file"):
        DigitArraySource(source, {"t.mat": "t"})
