"""The virtual archive is a real one: zipfile reads it, reads agree with its file, and its numbers are ImageNet's."""

from __future__ import annotations

import gc
import io
import re
import struct
import zipfile
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree
from PIL import Image

from imgprep.errors import SpecError
from imgprep.images import ImageSpec, prepare_image
from imgprep.layouts import Listing, find_layout
from imgprep.layouts.ilsvrc import parse_solution
from imgprep.records import is_key
from imgprep.sources import open_source
from imgprep.testing.archives import VirtualImagenet, VirtualSpec
from imgprep.voc import parse_annotation

SMALL = VirtualSpec(classes=20, train=160, val=60, test=17, train_xml=71, val_xml=50, picture_bytes=5_000, seed=3)
DATA, ANNOTATIONS, SETS = "ILSVRC/Data/CLS-LOC", "ILSVRC/Annotations/CLS-LOC", "ILSVRC/ImageSets/CLS-LOC"
LISTS = [f"{SETS}/{name}.txt" for name in ("test", "train_cls", "train_loc", "val")]
TABLES = ["LOC_sample_submission.csv", "LOC_synset_mapping.txt", "LOC_train_solution.csv", "LOC_val_solution.csv"]
FULL32 = 0xFFFFFFFF
RECORD = b"PK\x01\x02\x2d\x03"
SEAM = re.compile(rb"PK\x03\x04\x14\x00|" + re.escape(RECORD) + rb"|PK\x06\x06|PK\x06\x07|PK\x05\x06")


class Reader(io.RawIOBase):
    """A virtual archive as a file for zipfile."""

    def __init__(self, archive: VirtualImagenet) -> None:
        self.archive, self.at = archive, 0

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.at = offset + (0, self.at, self.archive.size)[whence]
        return self.at

    def read(self, num_bytes: int = -1) -> bytes:
        content = self.archive.pread(self.archive.size if num_bytes < 0 else num_bytes, self.at)
        self.at += len(content)
        return content


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[VirtualImagenet, Path]:
    archive, path = VirtualImagenet(SMALL), tmp_path_factory.mktemp("virtual") / "small.zip"
    archive.write(path)
    return archive, path


@pytest.fixture(scope="module")
def members(small: tuple[VirtualImagenet, Path]) -> dict[str, bytes]:
    with zipfile.ZipFile(small[1]) as bundle:
        return {info.filename: bundle.read(info) for info in bundle.infolist()}


@pytest.fixture(scope="module")
def listing(small: tuple[VirtualImagenet, Path]) -> Listing:
    with open_source(small[1]) as source:
        return find_layout(source).scan(source)


@pytest.fixture(scope="module")
def full() -> VirtualImagenet:
    return VirtualImagenet()


@pytest.mark.parametrize(("text", "pictures"), list(product([True, False], repeat=2)))
def test_zipfile_reads_every_member(tmp_path: Path, text: bool, pictures: bool) -> None:
    spec = VirtualSpec(
        classes=3, train=40, val=9, test=5, train_xml=20, val_xml=9, picture_bytes=5_000,
        deflate_text=text, deflate_pictures=pictures,
    )  # fmt: skip
    archive = VirtualImagenet(spec)
    archive.write(tmp_path / "a.zip")
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]
    assert (tmp_path / "a.zip").stat().st_size == archive.size
    with zipfile.ZipFile(tmp_path / "a.zip") as bundle:
        assert bundle.testzip() is None
        infos = bundle.infolist()
        assert bundle.start_dir == archive.directory_offset
    assert len(infos) == archive.members == spec.members == 40 + 9 + 5 + 20 + 9 + 8
    at = 0
    for info in infos:
        deflated = pictures if info.filename.endswith(".JPEG") else text
        assert info.compress_type == (zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED)
        assert (info.header_offset, info.date_time) == (at, (2012, 1, 1, 0, 0, 0))
        assert info.external_attr >> 16 == 0o100644
        at += 30 + len(info.filename) + info.compress_size
    assert at == archive.directory_offset
    if text:
        assert sum(info.compress_size for info in infos if info.filename.endswith((".xml", ".txt"))) < 0.8 * sum(
            info.file_size for info in infos if info.filename.endswith((".xml", ".txt"))
        )


def test_members_stand_folder_by_folder_and_lists_last(members: dict[str, bytes]) -> None:
    names = list(members)
    assert names[-8:] == LISTS + TABLES
    folders = [name.rpartition("/")[0] for name in names[:-8]]
    changes = [folder for place, folder in enumerate(folders) if place == 0 or folders[place - 1] != folder]
    assert len(changes) == len(set(changes))
    assert Counter("/".join(folder.split("/")[1:4]) for folder in folders) == {
        "Data/CLS-LOC/train": 160,
        "Data/CLS-LOC/val": 60,
        "Data/CLS-LOC/test": 17,
        "Annotations/CLS-LOC/train": 71,
        "Annotations/CLS-LOC/val": 50,
    }
    counts = Counter(folder.rpartition("/")[2] for folder in folders if folder.startswith(f"{DATA}/train/"))
    assert counts == {f"n{place + 1:08d}": count for place, count in enumerate(SMALL.train_counts)}
    assert all(is_key(name.rpartition("/")[2].partition(".")[0]) for name in names[:-8])
    widths = {len(name.rpartition("_")[2]) for name in names if name.startswith(f"{DATA}/train/")}
    assert len(widths) > 2


@given(st.data())
def test_any_read_equals_the_file(small: tuple[VirtualImagenet, Path], data: st.DataObject) -> None:
    archive, path = small
    offset = data.draw(st.integers(0, archive.size + 50))
    num_bytes = data.draw(st.one_of(st.integers(0, 300), st.integers(0, 100_000)))
    with path.open("rb") as file:
        file.seek(offset)
        assert archive.pread(num_bytes, offset) == file.read(num_bytes)


def test_every_seam_is_read_right(small: tuple[VirtualImagenet, Path]) -> None:
    archive, path = small
    whole = path.read_bytes()
    seams = [match.start() for match in SEAM.finditer(whole)]
    assert len(seams) == 2 * archive.members + 3
    for seam in seams:
        for offset in (seam - 1, seam, seam + 1, seam + 30):
            if offset >= 0:
                assert archive.pread(80, offset) == whole[offset : offset + 80]
    assert archive.pread(archive.size + 1, 0) == whole
    assert archive.pread(10, archive.size) == b""


@pytest.mark.parametrize(("num_bytes", "offset"), [(-1, 0), (1, -1)])
def test_negative_reads_are_refused(small: tuple[VirtualImagenet, Path], num_bytes: int, offset: int) -> None:
    with pytest.raises(SpecError, match="at least 0"):
        small[0].pread(num_bytes, offset)


def test_threads_read_the_same_bytes_and_nothing_leaks(small: tuple[VirtualImagenet, Path]) -> None:
    whole = small[1].read_bytes()
    archive = VirtualImagenet(SMALL)
    offsets = np.random.default_rng(0).integers(archive.directory_offset - 40_000, archive.size, size=400).tolist()
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(archive.pread, [5_000] * len(offsets), offsets))
    assert found == [whole[offset : offset + 5_000] for offset in offsets]
    del archive
    gc.collect()  # an unclosed file would be a ResourceWarning, and warnings are errors


def test_the_seed_decides_the_bytes(small: tuple[VirtualImagenet, Path]) -> None:
    whole = small[1].read_bytes()
    assert VirtualImagenet(SMALL).pread(len(whole), 0) == whole
    other = VirtualImagenet(replace(SMALL, seed=4))
    assert other.members == small[0].members
    assert other.pread(len(whole), 0) != whole


def test_the_layout_finds_all_of_it(listing: Listing) -> None:
    assert Counter(image.split for image in listing.images) == {"train": 160, "val": 60, "test": 17}
    assert Counter(xml.split for xml in listing.annotations) == {"train": 71, "val": 50}
    assert not listing.ignored
    assert Counter(listing.label_lists[0].labels.values()) == {f"n{place + 1:08d}": 3 for place in range(20)}
    assert list(listing.label_lists[0].labels) != sorted(listing.label_lists[0].labels)
    assert set(listing.label_lists[0].labels) == {image.key for image in listing.images if image.split == "val"}


def test_annotations_tell_class_size_and_boxes(listing: Listing, members: dict[str, bytes]) -> None:
    predictions = rows(members, "LOC_train_solution.csv") | rows(members, "LOC_val_solution.csv")
    for xml in listing.annotations:
        content = members[xml.member.name]
        tree = etree.fromstring(content)
        assert tree.findtext("filename") == xml.key
        assert tree.findtext("folder") == (xml.wnid or "val")
        annotation = parse_annotation(content, key=xml.key, catalog=listing.catalog)
        picture = Image.open(io.BytesIO(members[xml.member.name.replace("Annotations", "Data")[:-4] + ".JPEG"]))
        assert (int(tree.findtext("size/width") or 0), int(tree.findtext("size/height") or 0)) == picture.size
        wnid = xml.wnid or listing.label_lists[0].labels[xml.key]
        told = []
        for found in tree.findall("object"):
            edges = [int(found.findtext(f"bndbox/{edge}") or -1) for edge in ("xmin", "ymin", "xmax", "ymax")]
            assert 0 <= edges[0] < edges[2] < picture.size[0]
            assert 0 <= edges[1] < edges[3] < picture.size[1]
            told.append(f"{found.findtext('name')} {' '.join(map(str, edges))} ")
        assert len(annotation.boxes) == len(told)
        assert told
        assert predictions[xml.key] == "".join(told)
        assert predictions[xml.key].split()[0] == wnid


def rows(members: dict[str, bytes], name: str) -> dict[str, str]:
    header, *lines = members[name].decode().splitlines()
    assert header == "ImageId,PredictionString"
    return dict(line.split(",") for line in lines)


def test_lists_name_what_is_there(members: dict[str, bytes]) -> None:
    def stems(folder: str, suffix: str) -> list[str]:
        return sorted(name[len(folder) + 1 :].removesuffix(suffix) for name in members if name.startswith(folder + "/"))

    expected = {
        "train_cls": stems(f"{DATA}/train", ".JPEG"),
        "train_loc": stems(f"{ANNOTATIONS}/train", ".xml"),
        "val": stems(f"{DATA}/val", ".JPEG"),
        "test": stems(f"{DATA}/test", ".JPEG"),
    }
    for name, keys in expected.items():
        lines = members[f"{SETS}/{name}.txt"].decode()
        assert lines == "".join(f"{key} {line}\n" for line, key in enumerate(keys, start=1))
    assert sorted(rows(members, "LOC_train_solution.csv")) == [key.partition("/")[2] for key in expected["train_loc"]]
    assert list(rows(members, "LOC_sample_submission.csv")) == expected["test"]
    mapping = [line.partition(" ") for line in members["LOC_synset_mapping.txt"].decode().splitlines()]
    assert [wnid for wnid, _, _ in mapping] == [f"n{place:08d}" for place in range(1, 21)]
    assert len({names for _, _, names in mapping}) == 20


def segments(content: bytes) -> list[int]:
    """Markers up to the scan, read more strictly than decoders do: those skip bytes between segments."""
    markers: list[int] = []
    at = 2
    while not markers or markers[-1] != 0xDA:
        lead, marker, length = struct.unpack_from(">BBH", content, at)
        assert lead == 0xFF
        markers.append(marker)
        at += 2 + length
    return markers


@pytest.mark.parametrize("picture_bytes", [5_000, 40_000, 200_000])
def test_pictures_decode_in_every_size(picture_bytes: int) -> None:
    spec = VirtualSpec(classes=16, train=700, val=0, test=0, train_xml=0, val_xml=0, picture_bytes=picture_bytes)
    with zipfile.ZipFile(Reader(VirtualImagenet(spec))) as bundle:
        pictures = {bundle.read(info) for info in bundle.infolist() if info.filename.endswith(".JPEG")}
        sizes = [info.file_size for info in bundle.infolist() if info.filename.endswith(".JPEG")]
    assert 0.9 < np.mean(sizes) / picture_bytes < 1.1
    assert len(set(sizes)) > 200
    assert min(sizes) < 0.6 * picture_bytes
    for content in sorted(pictures)[::7]:
        assert content[:2] + content[-2:] == b"\xff\xd8\xff\xd9"
        assert segments(content)[0] == 0xE0
        assert set(segments(content)[1:]) == {0xFE, 0xDB, 0xC0, 0xC4, 0xDA}  # comments, tables, frame, scan
        image = Image.open(io.BytesIO(content))
        image.load()
        pixels = cv2.imdecode(np.frombuffer(content, dtype=np.uint8), cv2.IMREAD_COLOR)
        assert pixels is not None
        assert pixels.shape == (image.height, image.width, 3)
        assert pixels.std() > 5
        prepared = prepare_image(content, ImageSpec(size=32))
        assert min(prepared.width, prepared.height) == 32


def test_members_beyond_four_gib_are_found_by_zipfile() -> None:
    spec = VirtualSpec(classes=2, train=10_000, val=0, test=0, train_xml=900, val_xml=0, picture_bytes=500_000)
    archive = VirtualImagenet(spec)
    with zipfile.ZipFile(Reader(archive)) as bundle:
        infos = bundle.infolist()
        assert len(infos) == archive.members
        is_wide = [info.header_offset >= FULL32 for info in infos]
        first = is_wide.index(True)
        assert is_wide == [False] * first + [True] * (len(infos) - first)
        assert [len(info.extra) for info in infos] == [12 * wide for wide in is_wide]
        for info in (*infos[first - 2 : first + 2], infos[0], infos[-9], *infos[-8:]):
            assert len(bundle.read(info)) == info.file_size  # zipfile checks the CRC-32


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"classes": 0}, "classes must be from 1"),
        ({"classes": 10_001}, "classes must be from 1 to 10000"),
        ({"train": 999}, "train must be from 1000"),
        ({"val": -1}, "val must be from 0"),
        ({"test": -1}, "test must be from 0"),
        ({"train_xml": 1_281_168}, "train_xml must be from 0 to 1281167"),
        ({"val_xml": 50_001}, "val_xml must be from 0 to 50000"),
        ({"picture_bytes": 4_999}, "picture_bytes must be from 5000"),
        ({"seed": -1}, "seed must be from 0"),
    ],
)
def test_wrong_specs_are_refused(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(SpecError, match=told):
        VirtualSpec(**wrong)


@given(classes=st.integers(1, 300), extra=st.integers(0, 20_000), seed=st.integers(0, 5))
def test_every_class_gets_its_share_of_pictures(classes: int, extra: int, seed: int) -> None:
    spec = VirtualSpec(classes=classes, train=classes + extra, train_xml=0, seed=seed)
    counts = spec.train_counts
    assert len(counts) == classes
    assert sum(counts) == classes + extra
    assert min(counts) >= 1
    assert max(counts) <= 2 * spec.train / classes + 1


def test_full_scale_is_imagenet(full: VirtualImagenet) -> None:
    assert full.members == 2_025_721
    assert 167.0e9 < full.size < 167.62e9
    assert 225e6 < full.directory_bytes < 240e6
    counts = full.spec.train_counts
    assert (len(counts), sum(counts), min(counts), max(counts)) == (1000, 1_281_167, 732, 1300)
    end = full.pread(98, full.size - 98)
    assert struct.unpack("<4sQ2H2I4Q", end[:56]) == (
        b"PK\x06\x06", 44, 0x032D, 45, 0, 0, 2_025_721, 2_025_721, full.directory_bytes, full.directory_offset,
    )  # fmt: skip
    assert struct.unpack("<4sIQI", end[56:76]) == (b"PK\x06\x07", 0, full.size - 98, 1)
    assert end[76:] == struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, FULL32, FULL32, 0)
    assert full.directory_offset + full.directory_bytes + 98 == full.size


def test_the_full_directory_lists_every_member(full: VirtualImagenet) -> None:
    marks = {
        RECORD: 2_025_721,
        b"ILSVRC/Data/CLS-LOC/train/n": 1_281_167,
        b"ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_000": 50_000,
        b"ILSVRC/Data/CLS-LOC/test/ILSVRC2012_test_00": 100_000,
        b"ILSVRC/Annotations/CLS-LOC/train/n": 544_546,
        b"ILSVRC/Annotations/CLS-LOC/val/ILSVRC2012_val_000": 50_000,
        b"ILSVRC/ImageSets/CLS-LOC/": 4,
        b"LOC_s": 2,
    }
    step, overlap, found = 1 << 24, 64, Counter[bytes]()
    for offset in range(full.directory_offset, full.size, step):
        piece = full.pread(step + overlap, offset)
        for mark in marks:
            # A mark on the seam of two pieces counts in the one it begins in.
            found[mark] += piece.count(mark, 0, step + len(mark) - 1)
    assert found == marks


def test_members_of_the_full_archive_lie_where_the_directory_says(full: VirtualImagenet) -> None:
    rng = np.random.default_rng(0)
    last = full.directory_bytes - 1_000
    starts = [0, *rng.integers(last, size=400).tolist(), last, last + 300]
    methods, wide, classes = Counter[int](), Counter[bool](), set()
    for start in starts:
        window = full.pread(700, full.directory_offset + start)
        record = window[window.index(RECORD) :]
        method, crc, packed, size, name_length, extra_length, offset = struct.unpack_from("<10xH4x3I2H10xI", record)
        name = record[46 : 46 + name_length]
        if extra_length:
            tag, length, true_offset = struct.unpack_from("<2HQ", record, 46 + name_length)
            assert (tag, length, offset) == (1, 8, FULL32)
            offset = true_offset
            assert offset >= FULL32
        local = full.pread(30 + name_length + packed, offset)
        assert struct.unpack_from("<4s5H3I2H", local) == (
            b"PK\x03\x04", 20, 0, method, 0, (32 << 9) + 33, crc, packed, size, name_length, 0,
        )  # fmt: skip
        assert local[30 : 30 + name_length] == name
        content = local[30 + name_length :]
        if method == zipfile.ZIP_DEFLATED:
            content = zlib.decompress(content, -zlib.MAX_WBITS)
        assert (len(content), zlib.crc32(content)) == (size, crc)
        assert full.pread(4, offset + len(local)) in {b"PK\x03\x04", b"PK\x01\x02"}
        methods[method] += 1
        wide[extra_length > 0] += 1
        classes.add(name.rpartition(b"/")[0])
    assert min(methods.values()) > 50
    assert min(wide.values()) >= 1
    assert len(classes) > 100


def test_the_full_val_labels_give_every_class_fifty_pictures(full: VirtualImagenet) -> None:
    tail = full.pread(20_000_000, full.directory_offset - 20_000_000)
    start = tail.rindex(b"PK\x03\x04\x14\x00")
    name_length = struct.unpack_from("<H", tail, start + 26)[0]
    begin = start + 30 + name_length
    assert tail[start + 30 : begin] == b"LOC_val_solution.csv"
    labels = parse_solution(zlib.decompress(tail[begin:], -zlib.MAX_WBITS), where="LOC_val_solution.csv")
    assert len(labels) == 50_000
    assert set(Counter(labels.values()).values()) == {50}
