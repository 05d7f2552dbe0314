"""The toy archive is what it says: Kaggle's layout, the same bytes each time, and true labels, boxes and odd files."""

from __future__ import annotations

import csv
import io
import tarfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest
from lxml import etree
from PIL import Image

from imgprep.errors import OutputExistsError, SpecError
from imgprep.records import is_key, is_wnid
from imgprep.testing import drawing, toy
from imgprep.testing.drawing import SHAPES
from imgprep.testing.toy import ToyListing, ToySpec, write_toy_imagenet

if TYPE_CHECKING:
    from numpy.typing import NDArray

SMALL = ToySpec(classes=8, per_class=6, val_per_class=3, test=4, min_side=48, max_side=96)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ToyListing]:
    path = tmp_path_factory.mktemp("toy") / "nested" / "toy.zip"
    return path, write_toy_imagenet(path, SMALL)


def contents(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as bundle:
        return {info.filename: bundle.read(info) for info in bundle.infolist()}


@pytest.fixture(scope="module")
def members(archive: tuple[Path, ToyListing]) -> dict[str, bytes]:
    return contents(archive[0])


def rows(members: dict[str, bytes], name: str) -> dict[str, str]:
    table = csv.DictReader(io.StringIO(members[name].decode()))
    assert table.fieldnames == ["ImageId", "PredictionString"]
    return {row["ImageId"]: row["PredictionString"] for row in table}


def picture_of(members: dict[str, bytes], key: str) -> bytes:
    return members[f"ILSVRC/Data/CLS-LOC/train/{key[:9]}/{key}.JPEG"]


def test_equal_specs_give_equal_bytes(archive: tuple[Path, ToyListing], tmp_path: Path) -> None:
    path, listing = archive
    assert write_toy_imagenet(tmp_path / "again.zip", SMALL) == listing
    assert (tmp_path / "again.zip").read_bytes() == path.read_bytes()
    other = ToySpec(classes=8, per_class=6, val_per_class=3, test=4, min_side=48, max_side=96, seed=1)
    write_toy_imagenet(tmp_path / "other.zip", other)
    mine, theirs = contents(path), contents(tmp_path / "other.zip")
    same = [name for name in mine if name.endswith(".JPEG") and mine[name] and mine[name] == theirs.get(name)]
    assert same == []


def test_zip_passes_testzip_and_stores_pictures_only(archive: tuple[Path, ToyListing]) -> None:
    path, listing = archive
    assert [p.name for p in path.parent.iterdir()] == ["toy.zip"]
    with zipfile.ZipFile(path) as bundle:
        assert bundle.testzip() is None
        assert len(bundle.namelist()) == len(set(bundle.namelist())) == listing.members
        for info in bundle.infolist():
            stored = zipfile.ZIP_STORED if info.filename.endswith(".JPEG") else zipfile.ZIP_DEFLATED
            assert info.compress_type == stored
            assert info.date_time == (2012, 1, 1, 0, 0, 0)


def test_folder_zip_and_tar_hold_the_same_members(
    archive: tuple[Path, ToyListing], members: dict[str, bytes], tmp_path: Path
) -> None:
    assert write_toy_imagenet(tmp_path / "folder", SMALL) == archive[1]
    assert write_toy_imagenet(tmp_path / "toy.tar", SMALL) == archive[1]
    found = (tmp_path / "folder").rglob("*")
    folder = {p.relative_to(tmp_path / "folder").as_posix(): p.read_bytes() for p in found if p.is_file()}
    with tarfile.open(tmp_path / "toy.tar") as bundle:
        infos = bundle.getmembers()
        tarred = {info.name: bundle.extractfile(info).read() for info in infos}  # type: ignore[union-attr]
    assert folder == members
    assert tarred == members
    assert {(info.uid, info.gid, info.mtime, info.pax_headers == {}) for info in infos} == {(0, 0, 1325376000, True)}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "toy.tar"]


def test_layout_and_counts(archive: tuple[Path, ToyListing], members: dict[str, bytes]) -> None:
    listing = archive[1]
    data, sets = "ILSVRC/Data/CLS-LOC", "ILSVRC/ImageSets/CLS-LOC"
    assert (listing.train, listing.val, listing.test) == (7 * 6 + 4, 8 * 3, 4)
    assert listing.short_wnids == listing.wnids[-1:]
    for wnid in listing.wnids:
        count = sum(name.startswith(f"{data}/train/{wnid}/{wnid}_") for name in members)
        assert count == (4 if wnid in listing.short_wnids else 6)
    mapping = [line.split(" ", 1) for line in members["LOC_synset_mapping.txt"].decode().splitlines()]
    named = [wnid for wnid, _ in mapping]
    assert named == sorted(named)
    assert all(is_wnid(wnid) for wnid in named)
    assert set(listing.wnids) < set(named)
    assert len(named) == len(listing.wnids) + 2

    lists = {n: members[f"{sets}/{n}.txt"].decode().splitlines() for n in ("train_cls", "train_loc", "val", "test")}
    for lines in lists.values():
        assert [line.split()[1] for line in lines] == [str(n + 1) for n in range(len(lines))]
    stems = {name: [line.split()[0] for line in lines] for name, lines in lists.items()}
    assert all(is_key(stem.rpartition("/")[2]) for found in stems.values() for stem in found)
    assert {f"{data}/train/{stem}.JPEG" for stem in stems["train_cls"]} == {n for n in members if f"{data}/train/" in n}
    assert {f"{data}/val/{stem}.JPEG" for stem in stems["val"]} == {n for n in members if f"{data}/val/" in n}
    assert {f"{data}/test/{stem}.JPEG" for stem in stems["test"]} == {n for n in members if f"{data}/test/" in n}
    assert stems["val"][0] == "ILSVRC2012_val_00000001"
    assert [f"{key[:9]}/{key}" for key in sorted(rows(members, "LOC_train_solution.csv"))] == stems["train_loc"]
    assert len(stems["train_loc"]) == listing.boxed
    assert 0.3 < listing.boxed / listing.train < 0.7
    assert list(rows(members, "LOC_sample_submission.csv")) == stems["test"]


def test_boxes_lie_in_their_pictures_and_agree_with_the_tables(
    archive: tuple[Path, ToyListing], members: dict[str, bytes]
) -> None:
    listing = archive[1]
    val = rows(members, "LOC_val_solution.csv")
    predictions = val | rows(members, "LOC_train_solution.csv")
    assert list(val) != sorted(val)
    assert len(val) == listing.val
    assert {text.split()[0] for text in val.values()} == set(listing.wnids)
    seen = 0
    for name, content in members.items():
        if not name.endswith(".xml"):
            continue
        tree = etree.fromstring(content)
        key = Path(name).stem
        assert tree.findtext("filename") == key
        assert tree.findtext("folder") == Path(name).parent.name
        picture = members[name.replace("Annotations", "Data").replace(".xml", ".JPEG")]
        size = (int(tree.findtext("size/width") or 0), int(tree.findtext("size/height") or 0))
        if key not in listing.undecodable:
            assert Image.open(io.BytesIO(picture)).size == size
        told = []
        for found in tree.findall("object"):
            edges = [int(found.findtext(f"bndbox/{edge}") or -1) for edge in ("xmin", "ymin", "xmax", "ymax")]
            assert 0 <= edges[0] < edges[2] < size[0]
            assert 0 <= edges[1] < edges[3] < size[1]
            told.append(f"{found.findtext('name')} {' '.join(map(str, edges))} ")
        assert predictions[key] == "".join(told)
        seen += 1
    assert seen == len(predictions) == listing.boxed + listing.val


def test_odd_files_are_what_they_claim(archive: tuple[Path, ToyListing], members: dict[str, bytes]) -> None:
    listing = archive[1]
    assert sorted(listing.odd.values()) == sorted(toy.ODD_KINDS)
    by_kind = {kind: picture_of(members, key) for key, kind in listing.odd.items()}

    def opened(kind: str) -> Image.Image:
        return Image.open(io.BytesIO(by_kind[kind]))

    assert (opened(toy.GREYSCALE).format, opened(toy.GREYSCALE).mode) == ("JPEG", "L")
    assert (opened(toy.CMYK).format, opened(toy.CMYK).mode) == ("JPEG", "CMYK")
    assert opened(toy.PNG).format == "PNG"
    assert opened(toy.PROGRESSIVE).info["progressive"]
    assert opened(toy.ORIENTED).getexif()[0x0112] == 6
    assert by_kind[toy.EMPTY] == b""
    with pytest.raises(OSError, match="truncated"):
        opened(toy.TRUNCATED).load()
    assert len({key[:9] for key in listing.undecodable}) == len(listing.undecodable) == 2


def test_all_others_are_plain_baseline_jpeg(archive: tuple[Path, ToyListing], members: dict[str, bytes]) -> None:
    for name, content in members.items():
        if not name.endswith(".JPEG") or Path(name).stem in archive[1].odd:
            continue
        image = Image.open(io.BytesIO(content))
        assert (image.format, image.mode, "progressive" in image.info) == ("JPEG", "RGB", False)
        image.load()
        assert all(SMALL.min_side <= side <= SMALL.max_side for side in image.size)


def test_odd_files_leave_each_class_a_plain_picture_and_no_class_two_undecodable_ones(tmp_path: Path) -> None:
    listing = write_toy_imagenet(tmp_path / "toy.zip", ToySpec(classes=2, per_class=6, val_per_class=0, test=0))
    assert listing.train == 6 + 4
    for wnid, count in zip(listing.wnids, (6, 4), strict=True):
        assert sum(key.startswith(wnid) for key in listing.odd) < count
        assert sum(key.startswith(wnid) for key in listing.undecodable) == 1


def test_more_pictures_leave_the_others_alone(tmp_path: Path) -> None:
    def made(name: str, per_class: int, val_per_class: int, test: int) -> dict[str, bytes]:
        spec = ToySpec(
            classes=4, per_class=per_class, val_per_class=val_per_class, test=test, short_classes=0, max_side=96
        )
        write_toy_imagenet(tmp_path / name, spec)
        return {n: c for n, c in contents(tmp_path / name).items() if n.endswith((".JPEG", ".xml"))}

    few, more = made("few.zip", 5, 2, 1), made("more.zip", 8, 3, 2)
    assert few.items() < more.items()


def test_boxed_fraction_reaches_both_ends(tmp_path: Path) -> None:
    for share in (0.0, 1.0):
        spec = ToySpec(classes=1, per_class=3, val_per_class=1, test=0, boxed_fraction=share, odd_files=False)
        listing = write_toy_imagenet(tmp_path / f"{share:.0f}.zip", spec)
        assert (listing.boxed, listing.odd, listing.test) == (int(share * listing.train), {}, 0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"classes": 0}, "classes must be from 1 to 16, not 0"),
        ({"classes": 17}, "classes must be from 1 to 16, not 17"),
        ({"per_class": 0}, "per_class .* not 0"),
        ({"short_classes": 13}, "short_classes must be from 0 to 12, not 13"),
        ({"val_per_class": -1}, "val_per_class .* not -1"),
        ({"test": -1}, "test .* not -1"),
        ({"seed": -1}, "seed .* not -1"),
        ({"min_side": 8}, "min_side .* not 8"),
        ({"max_side": 79}, "max_side must be from 80 to 1024, not 79"),
        ({"boxed_fraction": 1.5}, "boxed_fraction must be from 0 to 1, not 1.5"),
        ({"classes": 1}, "odd_files needs classes of at least 2, not 1"),
        ({"classes": 2, "per_class": 4}, "odd_files needs 5 or more train pictures in class number 1, not 4"),
    ],
)
def test_specs_that_break_a_rule_cannot_be_built(options: dict[str, int], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        ToySpec(**options)  # type: ignore[arg-type]


def test_refuses_what_it_must_not_write_to(tmp_path: Path) -> None:
    spec = ToySpec(classes=1, per_class=1, val_per_class=0, test=0, odd_files=False)
    with pytest.raises(SpecError, match=r"not in \.rar"):
        write_toy_imagenet(tmp_path / "toy.rar", spec)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "mine.jpg").write_bytes(b"keep me")
    with pytest.raises(OutputExistsError, match="not an empty folder"):
        write_toy_imagenet(tmp_path / "photos", spec)
    assert (tmp_path / "photos" / "mine.jpg").read_bytes() == b"keep me"
    (tmp_path / "empty").mkdir()
    assert write_toy_imagenet(tmp_path / "empty", spec).train == 1
    assert (tmp_path / "empty" / "LOC_synset_mapping.txt").is_file()


@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_boxes_fit_the_drawn_shape(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def black(width: int, height: int, *_: object) -> NDArray[np.float32]:
        return np.zeros((height, width, 3), dtype=np.float32)

    monkeypatch.setattr(drawing, "_background", black)
    for number in range(12):
        pixels, boxes = drawing.draw(shape, np.random.Generator(np.random.PCG64(number)), min_side=64, max_side=128)
        # The median takes single noisy pixels away, and a pixel or two of the sharpest tips with them.
        ys, xs = np.nonzero(cv2.medianBlur(pixels.max(axis=2), 3) > 40)
        seen = np.array([xs.min(), ys.min(), xs.max(), ys.max()])
        corners = np.array(boxes)
        told = np.concatenate([corners[:, :2].min(axis=0), corners[:, 2:].max(axis=0)])
        assert np.abs(seen - told).max() <= 5
